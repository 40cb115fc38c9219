// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reclaim and pinned memory (R12, R16, C1). Every way to reclaim leaves pinned
 * pages mapped and takes unpinned pages instead. Pinned file pages keep their
 * buffers.
 */
#define _GNU_SOURCE
#include <linux/elf.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include "pin_event.h"

#define CGROUPS		"/sys/fs/cgroup/"
#define CGROUP		CGROUPS "pin_reclaim/"
#define MIN_FREE	"/proc/sys/vm/min_free_kbytes"
#define NR_OTHER	256	/* unpinned pages */
#define ROUNDS		10
#define RACES		300

/* Unpinned memory, for reclaim to take. */
static char *other;

/* Count the pages that are swapped out. */
static size_t swapped(const char *mem, size_t nr)
{
	size_t i, out = 0;

	for (i = 0; i < nr; i++)
		out += pin_pagemap(getpid(), mem + i * PAGE) >> 62 & 1;
	return out;
}

/* Turn on swap space and make unpinned memory. */
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

/* Expect that reclaim took unpinned pages and no pinned one. */
static void expect_other_swapped(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;

	/* Pages in pagevecs stay: expect half of them. */
	EXPECT_LT(NR_OTHER / 2, swapped(other, NR_OTHER));
	EXPECT_EQ(0, swapped(b->m.mem, NR_PAGES));
	EXPECT_EQ(-1, pin_differs(other, NR_OTHER, 1));
}

/* Page out by MADV_PAGEOUT. Return 0 or a negative errno. */
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
	EXPECT_EQ(0, expect_held_through(b, page_out, "during MADV_PAGEOUT"));
	expect_other_swapped(b);

	give_back(b);
	EXPECT_EQ(true, swap_out(b->m.map, b->m.len / PAGE));
}

/* Page out pages that are write-protected and cold: reclaim takes such first. */
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

/* Reclaim all memory of the cgroup. Return 0 or a negative errno. */
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
		SKIP(return, "no memory cgroup at " CGROUP);
	EXPECT_EQ(0, expect_held_through(b, limit_cgroup,
					 "while the cgroup is reclaimed"));
	expect_other_swapped(b);
}

/*
 * Share clean pages with a child: an R/O pin has unshared them, or they come from
 * swap. MADV_FREE by the parent must not discard them for the child.
 */
TEST_F(event, R10_C2_madv_free_by_one_of_two)
{
	struct buffer *b = &self->b;
	pid_t child;

	if (variant->kind == HUGETLB)
		SKIP(return, "MADV_FREE does not apply to hugetlb");
	if (access(CGROUP "memory.high", W_OK))
		SKIP(return, "no memory cgroup at " CGROUP);
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

/* Raise the watermarks above the free memory, which starts kswapd. */
static int raise_watermarks(struct buffer *b)
{
	long long was = pin_file_number(MIN_FREE);
	long long free = pin_number("/proc/meminfo", "MemFree:");
	long long scanned = pin_vmstat("pgscan_kswapd");
	int n, ret;
	char *mem;

	/* The low watermark is a fourth above the minimum: put free memory between. */
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
	EXPECT_EQ(0, expect_held_through(b, raise_watermarks, "while kswapd runs"));
	expect_other_swapped(b);
}

/* Pin pages that are in the swap cache, so that reclaim need not write them. */
TEST_F(event, R12_C1_pinned_in_the_swap_cache)
{
	struct fake_dma_page pages[NR_PAGES];
	struct buffer *b = &self->b;
	int i, cached = 0;
	uint32_t handle;
	pid_t child;

	if (variant->kind == HUGETLB)
		SKIP(return, "hugetlb pages are not swapped");
	make_other(b);
	give_back(b);
	ASSERT_EQ(true, swap_out(b->m.map, b->m.len / PAGE));
	/* Swap-in from a fast device skips the cache, unless two processes share it. */
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
	EXPECT_EQ(0, expect_held_through(b, page_out, "during MADV_PAGEOUT"));
	expect_other_swapped(b);
}

static atomic_int stop;

/* Page out the buffer until @stop is set. */
static int page_out_until(struct buffer *b)
{
	while (!stop)
		madvise(b->m.map, b->m.len, MADV_PAGEOUT);
	return 0;
}

/* Pin, look at both directions three times, unpin. */
static void race_once(struct buffer *b, uint64_t value)
{
	bool write = b->flags & FAKE_DMA_PIN_WRITE;
	struct __test_metadata *_metadata = b->p.test;
	uint64_t seen[2];
	uint32_t handle;
	char *word;
	int i, n;

	/* Drain this CPU's pagevecs and wait a little, so that reclaim meets the pages. */
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
		SKIP(return, "hugetlb pages are not reclaimed");
	make_other(b);
	give_back(b);
	before = pin_vmstat("pswpout");
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_ongoing, &o));
	/* Race until reclaim has taken enough unpinned pages. */
	do {
		race_once(b, 3 * n + 1);
		taken = ++n % RACES ? 0 : pin_vmstat("pswpout") - before;
	} while (taken < RACES / 10 && n < 1000 * RACES);
	stop = 1;
	pthread_join(thread, NULL);
	EXPECT_LE(RACES / 10, taken);
}

/*
 * File pages: of a memfd, and of a block device, whose pages have buffers. The page
 * cache still holds a page after reclaim unmaps it. So these tests do not touch
 * the pages and expect that they stay mapped and keep their buffers, until the
 * file is truncated.
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
		/* O_EXCL fails if the disk is mounted. */
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
	/* Clean the pages: reclaim only has to unmap these. */
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

/* Expect the pages @pfns at their addresses. */
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
		TH_LOG("%s: %d of %d pages are mapped, expected all", when, same,
		       NR_PAGES);
	}
}

/* Return how many references one pin adds to the base page @page. */
static int pin_references(const struct fake_dma_page *page)
{
	return page->flags & FAKE_DMA_PAGE_MAYBE_PINNED ? 1024 : 1;
}

/* Expect that the pages are still mapped, and have buffers if they are of a disk. */
static void expect_left_alone(FIXTURE_DATA(file) * self, const uint64_t *pfns,
			      const char *when)
{
	struct __test_metadata *_metadata = self->b.p.test;
	int i, buffers = 0;

	expect_mapped(&self->b, pfns, when);
	for (i = 0; i < NR_PAGES; i++)
		buffers += pin_page_has(pfns[i], HAS_BUFFERS);
	EXPECT_EQ(self->disk ? NR_PAGES : 0, buffers) {
		TH_LOG("%s: %d of %d pages have buffers, expected %d", when, buffers,
		       NR_PAGES, self->disk ? NR_PAGES : 0);
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
		expect_left_alone(self, pfns, "after reclaim of the cgroup");
	}
	expect_other_swapped(b);
	expect_held(b, "after reclaim");

	/* Reclaim unmaps the unpinned pages. */
	give_back(b);
	ASSERT_EQ(0, msync(b->m.map, b->m.len, MS_SYNC));
	for (n = 0; left && n < 100; n++) {
		drain_lru();
		EXPECT_EQ(0, page_out(b));
		ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
		for (i = 0, left = 0; i < NR_PAGES; i++)
			left += !!pfns[i];
	}
	EXPECT_EQ(0, left) {
		TH_LOG("%d of %d unpinned pages are mapped after reclaim, expected 0",
		       left, NR_PAGES);
	}
}

/* Unmap pinned pages and reclaim: they stay in the page cache, with buffers. */
TEST_F(file, R16_keeps_its_buffers_unmapped)
{
	struct buffer *b = &self->b;
	uint64_t pfns[NR_PAGES];
	int i;

	ASSERT_EQ(true, pin_pfns(b->m.mem, NR_PAGES, pfns));
	ASSERT_EQ(0, munmap(b->m.map, b->m.len));
	if (access(CGROUP "memory.high", W_OK))
		SKIP(return, "no memory cgroup at " CGROUP);
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

/* Truncate pinned pages: their buffers go, and only the pin holds them. */
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
		TH_LOG("%d of %d truncated pages have references besides the pin's, expected 0",
		       held, NR_PAGES);
	}
}

/* Pin pages while reclaim unmaps them. */
TEST_F(file, R16_pins_that_race_with_reclaim)
{
	struct ongoing o = { .b = &self->b, .event = page_out_until };
	int i, n, present, taken = 0;
	struct buffer *b = &self->b;
	uint64_t pfns[NR_PAGES];
	pthread_t thread;

	give_back(b);
	/* Pin disk pages R/O: a write pin dirties a page, and reclaim only writes it. */
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

/*
 * Pages of a program that runs from a file system with buffers. khugepaged
 * collapses them into a huge page. It skips a range that has a pinned page, but
 * pages can be pinned after that check. For each page in turn, it then locks the
 * page, releases its buffers and unmaps it, before it sees the pin and gives up.
 */
#define PROGRAM_DISK	"/dev/ram2"
#define PROGRAM_DIR	"/tmp/pin_reclaim"
#define PROGRAM		PROGRAM_DIR "/program"
#define TEXT		(64 * HUGE_PAGE)	/* address of the program */
#define CODE		512			/* offset of its first instruction */
#define SUBPAGES	(HUGE_PAGE / PAGE)
#define BEGUN		64			/* index of a page that the program never maps */
#define LAST		(SUBPAGES - 1)		/* index of the pinned page */
#define NR_MAPPINGS	16			/* to slow down the unmapping */
#define TRIES		100000

FIXTURE(program) {
	struct pinned p;
	char *map[NR_MAPPINGS];
	uint64_t pfn[SUBPAGES];
	pid_t pid;
};

FIXTURE_VARIANT(program) {
	uint32_t flags;
};

FIXTURE_VARIANT_ADD(program, read) {
	.flags = 0,
};

FIXTURE_VARIANT_ADD(program, write) {
	.flags = FAKE_DMA_PIN_WRITE,
};

/* Ask for huge pages, and wait. This runs as a copy, so it calls no function. */
static void program_code(void)
{
#ifdef __x86_64__
	long ret;

	__asm__ __volatile__("syscall" : "=a" (ret)
			     : "a" (SYS_madvise), "D" (TEXT), "S" (HUGE_PAGE),
			       "d" (MADV_HUGEPAGE)
			     : "rcx", "r11", "memory");
	for (;;)
		__asm__ __volatile__("syscall" : "=a" (ret) : "a" (SYS_pause)
				     : "rcx", "r11", "memory");
#endif
}

/* Write a new program of one huge page. Its pages have buffers and are clean. */
static void write_program(FIXTURE_DATA(program) * self)
{
	struct __test_metadata *_metadata = self->p.test;
	char *bytes = self->p.bounce;
	struct {
		struct elf64_hdr e;
		struct elf64_phdr p;
	} head = {
		.e = {
			.e_ident = {
				ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64,
				ELFDATA2LSB, EV_CURRENT,
			},
			.e_type = ET_EXEC,
			.e_machine = EM_X86_64,
			.e_version = EV_CURRENT,
			.e_entry = TEXT + CODE,
			.e_phoff = sizeof(head.e),
			.e_ehsize = sizeof(head.e),
			.e_phentsize = sizeof(head.p),
			.e_phnum = 1,
		},
		.p = {
			.p_type = PT_LOAD,
			.p_flags = PF_R | PF_X,
			.p_vaddr = TEXT,
			.p_filesz = HUGE_PAGE,
			.p_memsz = HUGE_PAGE,
			.p_align = PAGE,
		},
	};
	int fd;

	/* khugepaged may still be at the last file: never write to that one. */
	unlink(PROGRAM);
	fd = open(PROGRAM, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
	ASSERT_LE(0, fd);
	pin_fill(bytes, SUBPAGES, AT_FORK);
	memcpy(bytes, &head, sizeof(head));
	memcpy(bytes + CODE, program_code, PAGE - CODE);
	ASSERT_EQ(HUGE_PAGE, write(fd, bytes, HUGE_PAGE));
	ASSERT_EQ(0, fsync(fd));
	close(fd);
}

/* Map @nr pages of the program shared. Return NULL on failure. */
static char *map_program(size_t first, size_t nr, int prot)
{
	int fd = open(PROGRAM, (prot & PROT_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	char *mem = mmap(NULL, nr * PAGE, prot, MAP_SHARED | MAP_POPULATE, fd,
			 first * PAGE);

	close(fd);
	return mem == MAP_FAILED ? NULL : mem;
}

/* Map all pages of a new program NR_MAPPINGS times, and run it. */
static void start_program(FIXTURE_DATA(program) * self)
{
	struct __test_metadata *_metadata = self->p.test;
	int i;

	write_program(self);
	for (i = 0; i < NR_MAPPINGS; i++) {
		self->map[i] = map_program(0, SUBPAGES, PROT_READ);
		ASSERT_NE(NULL, self->map[i]);
	}
	drain_lru();
	ASSERT_EQ(true, pin_pfns(self->map[0], SUBPAGES, self->pfn));
	self->pid = fork();
	ASSERT_LE(0, self->pid);
	if (!self->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl(PROGRAM, PROGRAM, NULL);
		perror(PROGRAM);
		_exit(1);
	}
}

static void stop_program(FIXTURE_DATA(program) * self)
{
	if (!self->pid)
		return;
	kill(self->pid, SIGKILL);
	reap(self->pid);
	self->pid = 0;
}

static void unmap_program(FIXTURE_DATA(program) * self)
{
	int i;

	stop_program(self);
	for (i = 0; i < NR_MAPPINGS; i++)
		munmap(self->map[i], HUGE_PAGE);
}

static bool has_buffers(FIXTURE_DATA(program) * self, int page)
{
	return pin_page_has(self->pfn[page], HAS_BUFFERS);
}

/* Return false when khugepaged has unmapped the page, after releasing its buffers. */
static bool is_mapped(FIXTURE_DATA(program) * self, int page)
{
	return pin_pfn(getpid(), self->map[0] + page * PAGE) == self->pfn[page];
}

/* Run an unpinned program. Return true if khugepaged collapses its pages. */
static bool collapses(FIXTURE_DATA(program) * self)
{
	bool huge = false;
	int n;

	start_program(self);
	for (n = 0; !huge && n < TRIES / 100; n++) {
		usleep(10000);
		pin_get(self->map[0]);
		huge = pin_page_has(pin_pfn(getpid(), self->map[0]), KPF_THP);
	}
	unmap_program(self);
	return huge;
}

/* Unmount the file system. khugepaged may have a file open for a moment. */
static void unmount_disk(void)
{
	int n;

	for (n = 0; umount(PROGRAM_DIR) && errno == EBUSY && n < TRIES; n++)
		usleep(50);
	rmdir(PROGRAM_DIR);
}

FIXTURE_SETUP(program)
{
	int fd;

	unmount_disk();		/* a failed test leaves it mounted */
	fd = open(PROGRAM_DISK, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		SKIP(_exit(255), "%s: %s", PROGRAM_DISK, strerror(errno));
	close(fd);
#ifndef __x86_64__
	SKIP(_exit(255), "the program is for x86-64 only");
#endif
	if (system("mke2fs -F " PROGRAM_DISK " >/dev/null 2>&1"))
		SKIP(_exit(255), "no ext2 on " PROGRAM_DISK ": mke2fs failed");
	mkdir(PROGRAM_DIR, 0700);
	if (mount(PROGRAM_DISK, PROGRAM_DIR, "ext2", 0, NULL))
		SKIP(_exit(255), "mount of ext2 on " PROGRAM_DISK ": %s", strerror(errno));
	open_device(_metadata, &self->p);
	khugepaged_hurry();
	if (!collapses(self)) {
		unmount_disk();
		SKIP(_exit(255), "no CONFIG_READ_ONLY_THP_FOR_FS");
	}
}

FIXTURE_TEARDOWN(program)
{
	khugepaged_rest();
	unmount_disk();
}

/*
 * Pin the last page R/O while khugepaged collapses the pages before it. Return
 * false if it was too late: khugepaged has replaced the page.
 */
static bool pin_ahead(FIXTURE_DATA(program) * self)
{
	struct __test_metadata *_metadata = self->p.test;
	struct fake_dma_page page;
	int n;

	for (n = 0; is_mapped(self, BEGUN) && n < TRIES; n++)
		usleep(50);
	ASSERT_LT(n, TRIES);
	ASSERT_EQ(0, pin_range(self->p.dev, self->map[0] + LAST * PAGE, PAGE, 0,
			       FAKE_DMA_CALL_FAST, &self->p.handle));
	ASSERT_EQ(0, pin_query(self->p.dev, self->p.handle, 0, 1, &page));
	return page.pfn == self->pfn[LAST];
}

/*
 * Replace the R/O pin by a write pin, which outlives its mapping and descriptor.
 * Leave the page clean. The file can be opened for writing once the program ends.
 * Linux 5.10 oopses if khugepaged then completes the huge page, so keep the R/O
 * pin until the write pin is taken.
 */
static void pin_for_writing(FIXTURE_DATA(program) * self)
{
	struct __test_metadata *_metadata = self->p.test;
	uint32_t read = self->p.handle;
	char *mem;

	stop_program(self);
	mem = map_program(LAST, 1, PROT_READ | PROT_WRITE);
	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, pin_range(self->p.dev, mem, PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &self->p.handle));
	ASSERT_EQ(0, pin_unpin(self->p.dev, read, 0));
	ASSERT_EQ(0, msync(mem, PAGE, MS_SYNC));
	ASSERT_EQ(0, munmap(mem, PAGE));
}

/* Write by the device, unpin, and return true if the bytes reach the disk. */
static bool bytes_arrive(FIXTURE_DATA(program) * self)
{
	struct __test_metadata *_metadata = self->p.test;
	int fd = open(PROGRAM, O_RDONLY | O_CLOEXEC);
	char *seen = self->p.bounce + PAGE;

	pin_fill(self->p.bounce, 1, ++self->p.seed);
	ASSERT_EQ(0, pin_write(self->p.dev, self->p.handle, 0, self->p.bounce, PAGE));
	ASSERT_EQ(0, pin_unpin(self->p.dev, self->p.handle, FAKE_DMA_UNPIN_DIRTY));
	unmap_program(self);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fsync(fd));
	ASSERT_EQ(0, posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	ASSERT_EQ(PAGE, pread(fd, seen, PAGE, LAST * PAGE));
	close(fd);
	return pin_differs(seen, 1, self->p.seed) < 0;
}

TEST_F(program, R16_keeps_its_buffers_from_khugepaged)
{
	bool write = variant->flags & FAKE_DMA_PIN_WRITE, meets;
	int n, round, met = 0, buffers = 0, bytes = 0;

	for (round = 0; met < ROUNDS && round < 100 * ROUNDS; round++) {
		start_program(self);
		meets = pin_ahead(self);
		if (meets) {
			if (write)
				pin_for_writing(self);
			meets = is_mapped(self, LAST - 1);
			/* khugepaged unlocks the first page when it gives up. */
			for (n = 0; pin_page_has(self->pfn[0], KPF_LOCKED); n++) {
				ASSERT_LT(n, TRIES);
				usleep(50);
			}
			meets = meets && !has_buffers(self, LAST - 1);
		}
		met += meets;
		buffers += meets && has_buffers(self, LAST);
		if (write && meets)
			bytes += bytes_arrive(self);
		else
			ASSERT_EQ(0, pin_unpin(self->p.dev, self->p.handle, 0));
		unmap_program(self);
	}
	EXPECT_EQ(ROUNDS, met) {
		TH_LOG("khugepaged met a pinned page in %d of %d rounds, expected %d",
		       met, round, ROUNDS);
	}
	EXPECT_EQ(met, buffers) {
		TH_LOG("%d of %d pinned pages kept their buffers, expected all",
		       buffers, met);
	}
	EXPECT_EQ(write ? met : 0, bytes) {
		TH_LOG("%d of %d writes of the device reached the disk, expected all",
		       bytes, met);
	}
	EXPECT_EQ(true, collapses(self)) {
		TH_LOG("khugepaged does not collapse an unpinned program");
	}
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
	/* Charge all memory of the tests to a cgroup of their own. */
	pin_write_file(CGROUPS "cgroup.subtree_control", "+memory");
	mkdir(CGROUP, 0755);
	pin_write_file(CGROUP "cgroup.procs", "0");
	atexit(leave_cgroup);
	return test_harness_run(argc, argv);
}
