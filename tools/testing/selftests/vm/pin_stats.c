// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pins as user space sees them (R15): events in /proc/vmstat, "Pinned:" in smaps,
 * a bit in kpageflags, and tracepoints.
 */
#define _GNU_SOURCE
#include "pin_event.h"

#ifndef KPF_PINNED
#define KPF_PINNED	27
#endif
#define TRACING		"/sys/kernel/debug/tracing/"
#define NR_MAPPINGS	1100	/* more references than a pin adds */

/*
 * Return the sum of "Pinned:" over all mappings that overlap @mem to @end, in
 * pages, or -1 if no such line is there.
 */
static long smaps_pinned(const char *mem, const char *end)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long from = 0, to = 0, start, next;
	long kb, found = -1;
	char line[512];

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		/* The A of "Anonymous:" is a hex number, too. */
		if (sscanf(line, "%lx-%lx ", &start, &next) == 2) {
			from = start;
			to = next;
			continue;
		}
		if (from < (uintptr_t)end && to > (uintptr_t)mem &&
		    sscanf(line, "Pinned: %ld", &kb) == 1)
			found = (found < 0 ? 0 : found) + kb * 1024 / PAGE;
	}
	fclose(file);
	return found;
}

static long rollup_pinned(void)
{
	long long kb = pin_number("/proc/self/smaps_rollup", "Pinned:");

	return kb < 0 ? kb : kb * 1024 / PAGE;
}

/* Count the pages that have the bit in kpageflags. */
static int flagged(const uint64_t *pfns)
{
	int i, nr = 0;

	for (i = 0; i < NR_PAGES; i++)
		nr += pin_page_has(pfns[i], KPF_PINNED);
	return nr;
}

/* Return true if all pages of a huge page count as pinned when one is. */
static bool counts_together(enum kind kind)
{
	return kind == THP || kind == THP_SPLIT || kind == HUGETLB;
}

TEST_F(event, R15_smaps_and_kpageflags)
{
	long nr = counts_together(variant->kind) ? HUGE_PAGE / PAGE : NR_PAGES;
	struct buffer *b = &self->b;
	char *end = b->m.map + b->m.len;
	uint64_t pfns[NR_PAGES];

	ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
	EXPECT_EQ(nr, smaps_pinned(b->m.map, end));
	EXPECT_EQ(nr, rollup_pinned());
	EXPECT_EQ(NR_PAGES, flagged(pfns));
	give_back(b);
	EXPECT_EQ(0, smaps_pinned(b->m.map, end));
	EXPECT_EQ(0, rollup_pinned());
	EXPECT_EQ(0, flagged(pfns));
}

/* Map a page many times, as a library's: it counts as pinned only if it is. */
TEST(R15_many_mappings_are_no_pins)
{
	int fd = memfd_create("pin_stats", MFD_CLOEXEC), dev, i;
	uint32_t handle;
	char *mem = NULL;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, PAGE));
	for (i = 0; i < NR_MAPPINGS; i++) {
		mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ASSERT_NE(MAP_FAILED, mem);
		*mem = 1;
	}
	EXPECT_EQ(0, smaps_pinned(mem, mem + PAGE));
	EXPECT_EQ(0, rollup_pinned());

	dev = pin_open();
	ASSERT_LE(0, dev);
	ASSERT_EQ(0, pin_range(dev, mem, PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &handle));
	EXPECT_EQ(1, smaps_pinned(mem, mem + PAGE));
	EXPECT_EQ(NR_MAPPINGS, rollup_pinned());
	EXPECT_EQ(0, pin_unpin(dev, handle, 0));
	EXPECT_EQ(0, smaps_pinned(mem, mem + PAGE));
	EXPECT_EQ(0, rollup_pinned());
}

/* Count reuse once for each page-table entry, whatever its size. */
TEST_F(event, R15_pgreuse_and_pgreuse_pinned)
{
	bool one = variant->kind == THP || variant->kind == HUGETLB;
	int nr = one ? 1 : NR_PAGES, round, i;
	struct buffer *b = &self->b;
	long long reuse, pinned;

	for (round = 0; round < 2; round++) {
		reuse = pin_vmstat("pgreuse");
		pinned = pin_vmstat("pgreuse_pinned");
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len, PROT_READ));
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len,
				      PROT_READ | PROT_WRITE));
		for (i = 0; i < NR_PAGES; i++)
			pin_set(b->m.mem + i * PAGE, i);
		EXPECT_LE(reuse + nr, pin_vmstat("pgreuse"));
		EXPECT_EQ(pinned + (round ? 0 : nr),
			  pin_vmstat("pgreuse_pinned"));
		if (!round)
			give_back(b);
	}
}

/* Touch new pages: this counts neither as reuse nor as a copy. */
TEST_F(event, R15_first_touch)
{
	struct buffer *b = &self->b;
	long long reused, copied;
	char *mem;

	if (variant->kind == HUGETLB)
		mem = pin_map(HUGE_PAGE, MAP_PRIVATE | MAP_HUGETLB);
	else if (variant->kind == THP)
		mem = pin_map_thp(b->p.dev, 1);
	else
		mem = pin_map_small(NR_PAGES);
	ASSERT_NE(NULL, mem);
	/* pin_map_thp() has touched the huge page: drop it. */
	if (variant->kind == THP)
		ASSERT_EQ(0, madvise(mem, HUGE_PAGE, MADV_DONTNEED));
	reused = pin_vmstat("pgreuse");
	copied = pin_vmstat("pgcow");
	pin_fill(mem, NR_PAGES, 1);
	EXPECT_EQ(reused, pin_vmstat("pgreuse"));
	EXPECT_EQ(copied, pin_vmstat("pgcow"));
}

TEST_F(event, R15_pgcow)
{
	int nr = variant->kind == HUGETLB ? 1 : NR_PAGES, i;
	struct buffer *b = &self->b;
	long long before, copies;
	pid_t child;

	give_back(b);
	child = make_child(WAY_FORK, child_waits, &b->p);
	ASSERT_LT(0, child);
	wait_arrived(&b->p, 1);
	before = pin_vmstat("pgcow");
	for (i = 0; i < NR_PAGES; i++)
		pin_set(b->m.mem + i * PAGE, i);
	copies = pin_vmstat("pgcow") - before;
	/* Allow a few copies of stack pages of both processes. */
	EXPECT_LE(nr, copies);
	EXPECT_GE(nr + 20, copies);
	*b->p.stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(event, R15_pgcow_fork)
{
	int nr = variant->kind == THP_SPLIT ? HUGE_PAGE / PAGE :
		 counts_together(variant->kind) ? 1 : NR_PAGES;
	struct buffer *b = &self->b;
	int round;
	long long before;

	for (round = 0; round < 2; round++) {
		before = pin_vmstat("pgcow_fork");
		EXPECT_EQ(0, reap(make_child(WAY_FORK, child_exits, &b->p)));
		EXPECT_EQ(before + (round ? 0 : nr), pin_vmstat("pgcow_fork"));
		if (!round)
			give_back(b);
	}
}

static void forget_trace(void)
{
	close(open(TRACING "trace", O_WRONLY | O_TRUNC));
}

/* Count the lines of the trace that have event @event and text @what. */
static int traced(const char *event, const char *what)
{
	FILE *file = fopen(TRACING "trace", "r");
	char line[512], name[64];
	int nr = 0;

	if (!file)
		return -1;
	snprintf(name, sizeof(name), " %s: ", event);
	while (fgets(line, sizeof(line), file))
		nr += strstr(line, name) && strstr(line, what);
	fclose(file);
	return nr;
}

TEST_F(event, R15_tracepoints)
{
	bool whole = variant->kind == THP || variant->kind == HUGETLB;
	struct buffer *b = &self->b;
	unsigned long pfn = pin_pfn(getpid(), b->m.mem);
	char pinned[128], unpinned[128], copied[128];

	if (access(TRACING "events/pin", F_OK))
		SKIP(return, "no " TRACING "events/pin");
	snprintf(unpinned, sizeof(unpinned),
		 "pfn=0x%lx npages=%d make_dirty=%d", pfn, NR_PAGES, !!b->flags);
	snprintf(pinned, sizeof(pinned),
		 "start=0x%lx nr_pages=%d gup_flags=0x%x pfn=0x%lx ret=%d",
		 (unsigned long)b->m.mem, NR_PAGES, !!b->flags, pfn, NR_PAGES);
	snprintf(copied, sizeof(copied), "addr=0x%lx pfn=",
		 (unsigned long)(whole ? b->m.map : b->m.mem));

	forget_trace();
	ASSERT_EQ(0, pin_write_file(TRACING "events/pin/enable", "1"));
	give_back(b);
	take(b);
	EXPECT_EQ(0, reap(make_child(WAY_FORK, child_exits, &b->p)));
	ASSERT_EQ(0, pin_write_file(TRACING "events/pin/enable", "0"));

	EXPECT_EQ(1, traced("unpin_user_pages", unpinned));
	EXPECT_EQ(1, traced("pin_user_pages", pinned));
	EXPECT_EQ(1, traced("pin_fork_copy", copied));

	/* Disabled events write nothing. */
	forget_trace();
	give_back(b);
	EXPECT_EQ(0, traced("unpin_user_pages", ""));
}

int main(int argc, char **argv)
{
	pin_need_device();
	keep_settings();
	pin_keep(TRACING "events/pin/enable");
	return test_harness_run(argc, argv);
}
