// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reclaim and pinned memory (R12, R16, C1): what is pinned stays mapped, by
 * whatever way reclaim comes, and memory that nobody pins is taken instead.
 */
#define _GNU_SOURCE
#include <sys/stat.h>

#include "pin_event.h"

#define CGROUPS		"/sys/fs/cgroup/"
#define CGROUP		CGROUPS "pin_reclaim/"
#define MIN_FREE	"/proc/sys/vm/min_free_kbytes"
#define NR_OTHER	256	/* pages that nobody pins */
#define ROUNDS		10
#define RACES		300

/* Memory that reclaim may have. */
static char *other;

static size_t swapped(const char *mem, size_t nr)
{
	size_t i, out = 0;

	for (i = 0; i < nr; i++)
		out += pin_pagemap(getpid(), mem + i * PAGE) >> 62 & 1;
	return out;
}

/* Swap space, and something to put there. */
static void make_other(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;

	if (!b->m.swap) {
		if (swap_on())
			SKIP(_exit(255), "no swap space on " SWAP_DEVICE);
		b->m.swap = true;
	}
	other = pin_map_small(NR_OTHER);
	ASSERT_NE(NULL, other);
	pin_fill(other, NR_OTHER, 1);
}

static void expect_other_swapped(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;

	/* Some of it may be on its way to the LRU lists yet. */
	EXPECT_LT(NR_OTHER / 2, swapped(other, NR_OTHER));
	EXPECT_EQ(0, swapped(b->m.mem, NR_PAGES));
	EXPECT_EQ(-1, pin_differs(other, NR_OTHER, 1));
}

/* The process asks for it. */
static int page_out(struct buffer *b)
{
	int n;

	for (n = 0; n < ROUNDS; n++) {
		if (madvise(b->m.map, b->m.len, MADV_PAGEOUT) ||
		    madvise(other, NR_OTHER * PAGE, MADV_PAGEOUT))
			return -errno;
	}
	return 0;
}

TEST_F(event, R12_R16_C1_madv_pageout)
{
	struct buffer *b = &self->b;

	make_other(b);
	if (variant->kind == HUGETLB) {
		EXPECT_EQ(-EINVAL, page_out(b));
		expect_held(b, "after MADV_PAGEOUT");
		return;
	}
	EXPECT_EQ(0, expect_held_through(b, page_out, "with MADV_PAGEOUT"));
	expect_other_swapped(b);

	give_back(b);
	EXPECT_EQ(true, swap_out(b->m.map, b->m.len / PAGE));
}

/* What is write-protected, cold and clean is the first to go. */
TEST_F(event, R11_R12_R16_C1_cold_and_write_protected)
{
	struct buffer *b = &self->b;
	int n;

	make_other(b);
	for (n = 0; n < ROUNDS; n++) {
		madvise(b->m.map, b->m.len, MADV_COLD);
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len, PROT_READ));
		madvise(b->m.map, b->m.len, MADV_PAGEOUT);
		madvise(other, NR_OTHER * PAGE, MADV_PAGEOUT);
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len,
				      PROT_READ | PROT_WRITE));
		expect_held(b, "after MADV_PAGEOUT of a read-only mapping");
	}
	expect_other_swapped(b);
}

/* The cgroup has no room. */
static int limit_cgroup(struct buffer *b)
{
	int ret = pin_write_number(CGROUP "memory.high", 0);

	return pin_write_file(CGROUP "memory.high", "max") ?: ret;
}

TEST_F(event, R12_R16_C1_memory_cgroup)
{
	struct buffer *b = &self->b;

	make_other(b);
	if (access(CGROUP "memory.high", W_OK))
		SKIP(return, "no memory cgroup to be had");
	EXPECT_EQ(0, expect_held_through(b, limit_cgroup,
					 "with a cgroup that has no room"));
	expect_other_swapped(b);
}

/*
 * What a pin for reading has unshared, or what was read from swap, is clean.
 * Who says MADV_FREE must not have it dropped from the other one, too.
 */
TEST_F(event, R10_C2_madv_free_by_one_of_two)
{
	struct buffer *b = &self->b;
	pid_t child;

	if (variant->kind == HUGETLB)
		SKIP(return, "hugetlb is not freed lazily");
	if (access(CGROUP "memory.high", W_OK))
		SKIP(return, "no memory cgroup to be had");
	make_other(b);
	give_back(b);
	pin_fill(b->m.mem, NR_PAGES, AT_FORK);
	if (variant->kind == SWAPPED)
		ASSERT_EQ(true, swap_out(b->m.map, b->m.len / PAGE));

	child = make_child(WAY_FORK, child_waits, &b->p);
	ASSERT_LT(0, child);
	pin(&b->p, b->m.mem, NR_PAGES, b->flags, b->call);
	*b->p.stage = 1;
	EXPECT_EQ(0, reap(child));
	ASSERT_EQ(0, pin_unpin(b->p.dev, b->p.handle, 0));
	b->p.handle = 0;

	*b->p.stage = 0;
	child = make_child(WAY_FORK, child_looks_late, &b->p);
	ASSERT_LT(0, child);
	ASSERT_EQ(0, madvise(b->m.map, b->m.len, MADV_FREE));
	madvise(other, PAGE, MADV_COLD);
	EXPECT_EQ(0, limit_cgroup(b));
	*b->p.stage = 1;
	EXPECT_EQ(0, reap(child));
}

/* The watermarks go above what is free, so that kswapd has to work. */
static int raise_watermarks(struct buffer *b)
{
	long long was = pin_file_number(MIN_FREE);
	long long free = pin_number("/proc/meminfo", "MemFree:");
	long long scanned = pin_vmstat("pgscan_kswapd");
	int n, ret;
	char *mem;

	/* Between the minimum and the low watermark, a fourth above it. */
	ret = pin_write_number(MIN_FREE, free - free / 8);
	for (n = 0; !ret && n < 300; n++) {
		mem = pin_map_small(1);
		if (!mem)
			break;
		*mem = 1;
		munmap(mem, PAGE);
		if (pin_vmstat("pgscan_kswapd") > scanned &&
		    swapped(other, NR_OTHER) > NR_OTHER / 2)
			break;
		usleep(10000);
	}
	pin_write_number(MIN_FREE, was);
	return ret;
}

TEST_F(event, R12_R16_C1_kswapd)
{
	struct buffer *b = &self->b;

	make_other(b);
	EXPECT_EQ(0, expect_held_through(b, raise_watermarks, "with kswapd"));
	expect_other_swapped(b);
}

/* What is in the swap cache when it is pinned, and so has a place to go to. */
TEST_F(event, R12_C1_pinned_in_the_swap_cache)
{
	struct fake_dma_page pages[NR_PAGES];
	struct buffer *b = &self->b;
	int i, cached = 0;
	uint32_t handle;
	pid_t child;

	if (variant->kind == HUGETLB)
		SKIP(return, "hugetlb is not swapped");
	make_other(b);
	give_back(b);
	ASSERT_EQ(true, swap_out(b->m.map, b->m.len / PAGE));
	/* A fast device is read without the cache, unless for two processes. */
	child = make_child(WAY_FORK, child_waits, &b->p);
	ASSERT_LT(0, child);
	for (i = 0; i < NR_PAGES; i++)
		pin_get(b->m.mem + i * PAGE);
	*b->p.stage = 1;
	EXPECT_EQ(0, reap(child));
	ASSERT_EQ(0, pin_range(b->p.dev, b->m.mem, NR_PAGES * PAGE,
			       FAKE_DMA_PIN_GET, FAKE_DMA_CALL_FAST, &handle));
	ASSERT_EQ(0, pin_query(b->p.dev, handle, 0, NR_PAGES, pages));
	ASSERT_EQ(0, pin_unpin(b->p.dev, handle, 0));
	for (i = 0; i < NR_PAGES; i++)
		cached += !!(pages[i].flags & FAKE_DMA_PAGE_SWAPCACHE);
	ASSERT_LT(0, cached);
	take(b);
	EXPECT_EQ(0, expect_held_through(b, page_out, "with MADV_PAGEOUT"));
	expect_other_swapped(b);
}

/* Pins come and go while reclaim is at it. */
static atomic_int stop;

static int page_out_until(struct buffer *b)
{
	while (!stop)
		madvise(b->m.map, b->m.len, MADV_PAGEOUT);
	return 0;
}

static void race_once(struct buffer *b, uint64_t value)
{
	bool write = b->flags & FAKE_DMA_PIN_WRITE;
	struct __test_metadata *_metadata = b->p.test;
	uint64_t seen[2];
	uint32_t handle;
	char *word;
	int i, n;

	/* Reclaim gets a chance: what is on the LRU lists, for a while. */
	for (i = 0; i < NR_PAGES; i++)
		pin_get(b->m.mem + i * PAGE);
	madvise(other, PAGE, MADV_COLD);
	for (i = 0; i < value * 97 % 30000; i++)
		__asm__ __volatile__("" ::: "memory");
	ASSERT_EQ(0, pin_range(b->p.dev, b->m.mem, NR_PAGES * PAGE, b->flags,
			       b->call, &handle));
	for (n = 0; n < 3; n++, value++) {
		for (i = 0; i < NR_PAGES; i++) {
			word = b->m.mem + i * PAGE;
			pin_set(word, value);
			seen[0] = 0;
			ASSERT_EQ(0, pin_read(b->p.dev, handle, i * PAGE, seen,
					      sizeof(seen)));
			ASSERT_EQ(value, seen[0]);
			if (!write)
				continue;
			seen[0] = ~value;
			ASSERT_EQ(0, pin_write(b->p.dev, handle, i * PAGE,
					       seen, sizeof(seen[0])));
			ASSERT_EQ(~value, pin_get(word));
		}
	}
	ASSERT_EQ(0, pin_unpin(b->p.dev, handle,
			       write ? FAKE_DMA_UNPIN_DIRTY : 0));
}

TEST_F(event, R12_R16_C1_pins_that_race_with_reclaim)
{
	struct ongoing o = { .b = &self->b, .event = page_out_until };
	struct buffer *b = &self->b;
	long long before, taken;
	pthread_t thread;
	int n = 0;

	if (variant->kind == HUGETLB)
		SKIP(return, "hugetlb is not reclaimed");
	make_other(b);
	give_back(b);
	before = pin_vmstat("pswpout");
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_ongoing, &o));
	/* Until reclaim has taken what was not pinned often enough. */
	do {
		race_once(b, 3 * n + 1);
		taken = ++n % RACES ? 0 : pin_vmstat("pswpout") - before;
	} while (taken < RACES / 10 && n < 1000 * RACES);
	stop = 1;
	pthread_join(thread, NULL);
	EXPECT_LE(RACES / 10, taken);
}

/*
 * Pages of files: of one in memory, and of a disk, whose pages have buffers.
 * They would be found again, so what is looked at is that they stay mapped, and
 * keep their buffers, where nobody touches them; for as long as the file has
 * them.
 */
#define DISK		"/dev/ram1"
#define HAS_BUFFERS	35	/* PG_private, in /proc/kpageflags */

FIXTURE(file) {
	struct buffer b;
	int fd;
	bool disk;
};

FIXTURE_VARIANT(file) {
	bool disk;
	uint32_t flags;
	uint32_t call;
};

FIXTURE_VARIANT_ADD(file, memory_read_fast) {
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(file, memory_write_slow) {
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(file, disk_read_slow) {
	.disk = true,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(file, disk_write_fast) {
	.disk = true,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

static char *map_file(int fd)
{
	char *mem = mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE,
			 MAP_SHARED, fd, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

FIXTURE_SETUP(file)
{
	struct buffer *b = &self->b;

	open_device(_metadata, &b->p);
	self->disk = variant->disk;
	if (self->disk) {
		/* Not of a disk that anybody has mounted */
		self->fd = open(DISK, O_RDWR | O_EXCL | O_CLOEXEC);
		if (self->fd < 0)
			SKIP(_exit(255), "%s: %s", DISK, strerror(errno));
	} else {
		self->fd = memfd_create("pin_reclaim", MFD_CLOEXEC);
		ASSERT_LE(0, self->fd);
		ASSERT_EQ(0, ftruncate(self->fd, NR_PAGES * PAGE));
	}
	b->m.len = NR_PAGES * PAGE;
	b->m.pool = -1;
	b->m.map = map_file(self->fd);
	b->m.mem = b->m.map;
	ASSERT_NE(NULL, b->m.map);
	b->flags = variant->flags;
	b->call = variant->call;
	take(b);
	/* What is clean needs no more than to be unmapped. */
	ASSERT_EQ(0, msync(b->m.map, b->m.len, MS_SYNC));
	make_other(b);
	drain_lru();
}

FIXTURE_TEARDOWN(file)
{
	struct buffer *b = &self->b;

	if (b->p.handle)
		give_back(b);
	drop_memory(&b->m);
	close(self->fd);
}

static void expect_mapped(struct buffer *b, const uint64_t *pfns,
			  const char *when)
{
	struct __test_metadata *_metadata = b->p.test;
	uint64_t now[NR_PAGES];
	int i, same = 0;

	ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, now));
	for (i = 0; i < NR_PAGES; i++)
		same += pfns[i] && now[i] == pfns[i];
	EXPECT_EQ(NR_PAGES, same) {
		TH_LOG("%s: so many of the pages are still mapped", when);
	}
}

/* Of a page of order 0 that has one */
static int pin_references(const struct fake_dma_page *page)
{
	return page->flags & FAKE_DMA_PAGE_MAYBE_PINNED ? 1024 : 1;
}

/* The pages are mapped that were mapped, and those of a disk have buffers. */
static void expect_left_alone(FIXTURE_DATA(file) * self, const uint64_t *pfns,
			      const char *when)
{
	struct __test_metadata *_metadata = self->b.p.test;
	int i, buffers = 0;

	expect_mapped(&self->b, pfns, when);
	for (i = 0; i < NR_PAGES; i++)
		buffers += pin_page_has(pfns[i], HAS_BUFFERS);
	EXPECT_EQ(self->disk ? NR_PAGES : 0, buffers) {
		TH_LOG("%s: so many of the pages have buffers", when);
	}
}

TEST_F(file, R16_stays_mapped)
{
	struct buffer *b = &self->b;
	uint64_t pfns[NR_PAGES];
	int n, i, left = NR_PAGES;

	ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
	expect_left_alone(self, pfns, "pinned");
	EXPECT_EQ(0, page_out(b));
	expect_left_alone(self, pfns, "after MADV_PAGEOUT");
	EXPECT_EQ(0, raise_watermarks(b));
	expect_left_alone(self, pfns, "after kswapd");
	if (!access(CGROUP "memory.high", W_OK)) {
		EXPECT_EQ(0, limit_cgroup(b));
		expect_left_alone(self, pfns, "in a cgroup that has no room");
	}
	expect_other_swapped(b);
	expect_held(b, "after reclaim");

	/* What is not pinned is taken. */
	give_back(b);
	ASSERT_EQ(0, msync(b->m.map, b->m.len, MS_SYNC));
	for (n = 0; left && n < 100; n++) {
		drain_lru();
		EXPECT_EQ(0, page_out(b));
		ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
		for (i = 0, left = 0; i < NR_PAGES; i++)
			left += !!pfns[i];
	}
	EXPECT_EQ(0, left);
}

/* Nor is what was pinned, and is not mapped any more. */
TEST_F(file, R16_keeps_its_buffers_unmapped)
{
	struct buffer *b = &self->b;
	uint64_t pfns[NR_PAGES];
	int i;

	ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
	ASSERT_EQ(0, munmap(b->m.map, b->m.len));
	if (access(CGROUP "memory.high", W_OK))
		SKIP(return, "no memory cgroup to be had");
	EXPECT_EQ(0, limit_cgroup(b));
	EXPECT_EQ(0, pin_write_file("/proc/sys/vm/drop_caches", "1"));
	b->m.map = map_file(self->fd);
	ASSERT_NE(NULL, b->m.map);
	b->m.mem = b->m.map;
	b->p.mem = b->m.map;
	for (i = 0; i < NR_PAGES; i++)
		pin_get(b->m.mem + i * PAGE);
	expect_left_alone(self, pfns, "mapped again");
	expect_held(b, "mapped again");
}

/* What has left its file has nothing that holds it when the pin is gone. */
TEST_F(file, R16_goes_when_truncated)
{
	struct fake_dma_page pages[NR_PAGES];
	struct buffer *b = &self->b;
	int n, i, held = NR_PAGES;

	ASSERT_EQ(0, self->disk ?
		  fallocate(self->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
			    0, b->m.len) :
		  ftruncate(self->fd, 0));
	for (n = 0; held && n < 100; n++) {
		drain_lru();
		ASSERT_EQ(0, pin_query(b->p.dev, b->p.handle, 0, NR_PAGES,
				       pages));
		for (i = 0, held = 0; i < NR_PAGES; i++)
			held += pages[i].refcount != pin_references(&pages[i]);
	}
	EXPECT_EQ(0, held) {
		TH_LOG("so many of the pages have other references than the pin's");
	}
}

/* Pins that come while reclaim takes the page, by the lockless walk. */
TEST_F(file, R16_pins_that_race_with_reclaim)
{
	struct ongoing o = { .b = &self->b, .event = page_out_until };
	int i, n, present, taken = 0;
	struct buffer *b = &self->b;
	uint64_t pfns[NR_PAGES];
	pthread_t thread;

	give_back(b);
	/* A disk's page that is written to is not reclaimed, but written. */
	if (self->disk)
		b->flags = 0;
	ASSERT_EQ(0, msync(b->m.map, b->m.len, MS_SYNC));
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_ongoing, &o));
	for (n = 0; n < RACES || (taken < RACES / 10 && n < 1000 * RACES); n++) {
		for (i = 0; i < NR_PAGES; i++)
			pin_get(b->m.mem + i * PAGE);
		madvise(other, PAGE, MADV_COLD);
		for (i = 0; i < n * 97 % 30000; i++)
			__asm__ __volatile__("" ::: "memory");
		ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
		for (i = 0, present = 0; i < NR_PAGES; i++)
			present += !!pfns[i];
		taken += present < NR_PAGES;
		ASSERT_EQ(0, pin_range(b->p.dev, b->m.mem, b->m.len, b->flags,
				       b->call, &b->p.handle));
		ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
		expect_mapped(b, pfns, "pinned");
		ASSERT_EQ(0, pin_unpin(b->p.dev, b->p.handle, 0));
		b->p.handle = 0;
		if (!_metadata->passed)
			break;
	}
	stop = 1;
	pthread_join(thread, NULL);
	EXPECT_LE(RACES / 10, taken);
}

static void leave_cgroup(void)
{
	pin_write_file(CGROUPS "cgroup.procs", "0");
	rmdir(CGROUP);
}

int main(int argc, char **argv)
{
	pin_need_device();
	keep_settings();
	pin_keep(MIN_FREE);
	/* All that the tests have is charged to a cgroup of theirs. */
	pin_write_file(CGROUPS "cgroup.subtree_control", "+memory");
	mkdir(CGROUP, 0755);
	pin_write_file(CGROUP "cgroup.procs", "0");
	atexit(leave_cgroup);
	return test_harness_run(argc, argv);
}
