/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Make and drop every kind of memory that can be pinned.
 */
#ifndef PIN_MEMORY_H
#define PIN_MEMORY_H

#include <sys/swap.h>

#include "pin_process.h"

#define NR_PAGES	8	/* pages that a test pins */
#define FIRST		100	/* index of their first one in a huge page */
#define NR_POOL		8	/* hugetlb pages, enough for every copy */
#define SWAP_DEVICE	"/dev/ram0"
#define CMA		"/sys/kernel/debug/cma/cma-reserved/"

/* A kind of memory, as it is just before the pin. */
enum kind {
	BASE,
	SWAPPED,
	THP,
	THP_SPLIT,		/* PTE-mapped */
	THP_PARTIAL,		/* PTE-mapped, and one page is unmapped */
	THP_SWAPPED,
	HUGETLB,
	KSM_PAGE,
	ZERO,
	HUGE_ZERO,
	FILE_PAGE,		/* private mapping of a memfd, before any write */
	FILE_HUGETLB,		/* the same of a hugetlb memfd */
};

struct memory {
	char *map;		/* the whole mapping */
	size_t len;
	char *mem;		/* the NR_PAGES pages of it to pin */
	bool swap;		/* swap space is on */
	long pool;		/* hugetlb pool to restore, unless negative */
};

/* Allocate @nr pages of the CMA area and free them. Return 0 or a negative errno. */
static inline int cma_make_room(long nr)
{
	int ret = pin_write_number(CMA "alloc", nr);

	if (!ret)
		pin_write_number(CMA "free", nr);
	return ret;
}

/* Turn an unused RAM disk into swap space. Return 0 or a negative errno. */
static inline int swap_on(void)
{
	union {
		struct {
			char boot[1024];
			uint32_t version, last_page, nr_badpages;
		};
		char page[PAGE];
	} header = { .version = 1 };
	off_t size;
	int fd, ret;

	swapoff(SWAP_DEVICE);	/* a failed test leaves it on */
	fd = open(SWAP_DEVICE, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	size = lseek(fd, 0, SEEK_END);
	header.last_page = size / PAGE - 1;
	memcpy(header.page + PAGE - 10, "SWAPSPACE2", 10);
	ret = pwrite(fd, &header, PAGE, 0) == PAGE && !fsync(fd) ? 0 : -errno;
	close(fd);
	return ret ?: swapon(SWAP_DEVICE, 0) ? -errno : 0;
}

/* Move the pages in the pagevecs of all CPUs to the LRU lists. */
static inline void drain_lru(void)
{
	pin_write_file("/proc/sys/vm/compact_memory", "1");
}

/*
 * Swap out the pages at @mem. Return false if some stay in memory. Reclaim finds
 * pages on the LRU lists only, and MADV_PAGEOUT drains the pagevecs of its own
 * CPU only. So call it on every CPU in turn.
 */
static inline bool swap_out(char *mem, size_t nr)
{
	int nr_cpus = sysconf(_SC_NPROCESSORS_ONLN), n;
	cpu_set_t was, cpu;
	size_t i, left = nr;

	sched_getaffinity(0, sizeof(was), &was);
	for (n = 0; left && n < 100; n++) {
		CPU_ZERO(&cpu);
		CPU_SET(n % nr_cpus, &cpu);
		sched_setaffinity(0, sizeof(cpu), &cpu);
		if (madvise(mem, nr * PAGE, MADV_PAGEOUT))
			break;
		for (i = 0, left = 0; i < nr; i++)
			left += !(pin_pagemap(getpid(), mem + i * PAGE) >> 62 & 1);
	}
	sched_setaffinity(0, sizeof(was), &was);
	return !left;
}

#define KSM	"/sys/kernel/mm/ksm/"

/*
 * Run KSM until it has merged pages @one and @other, and for two more scans of
 * all memory. Restore its settings. Return false if it does not merge them.
 */
static inline bool ksm_merges(const char *one, const char *other)
{
	static const char *const names[] = {
		KSM "pages_to_scan", KSM "sleep_millisecs", KSM "run"
	};
	static const char *const values[] = { "1000", "1", "1" };
	long before[ARRAY_SIZE(names)], scans = -1;
	size_t i;
	int n;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		before[i] = pin_file_number(names[i]);
		if (pin_write_file(names[i], values[i]))
			return false;
	}
	for (n = 0; n < 6000; n++) {
		if (scans < 0 && pin_pfn(getpid(), one) == pin_pfn(getpid(), other))
			scans = pin_file_number(KSM "full_scans");
		if (scans >= 0 && pin_file_number(KSM "full_scans") > scans + 2)
			break;
		usleep(10000);
	}
	for (i = 0; i < ARRAY_SIZE(names); i++)
		pin_write_number(names[i], before[i]);
	return n < 6000;
}

#define KHUGEPAGED	"/sys/kernel/mm/transparent_hugepage/khugepaged/"

static struct {
	const char *name;
	long hurry, before;
} khugepaged[] = {
	{ KHUGEPAGED "alloc_sleep_millisecs", 0 },
	{ KHUGEPAGED "pages_to_scan", 1000000 },
	{ KHUGEPAGED "scan_sleep_millisecs", 0 },
};

/* Let khugepaged scan without a pause, until khugepaged_rest(). */
static inline void khugepaged_hurry(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(khugepaged); i++)
		pin_write_number(khugepaged[i].name, khugepaged[i].hurry);
}

static inline void khugepaged_rest(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(khugepaged); i++)
		pin_write_number(khugepaged[i].name, khugepaged[i].before);
}

static inline void swap_off(void)
{
	swapoff(SWAP_DEVICE);
}

/*
 * Restore at exit every setting that making memory changes. Call it in main()
 * before the tests, as pin_keep().
 */
static inline void keep_settings(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(khugepaged); i++) {
		khugepaged[i].before = pin_file_number(khugepaged[i].name);
		pin_keep(khugepaged[i].name);
	}
	pin_keep(PIN_POOL);
	pin_keep(KSM "pages_to_scan");
	pin_keep(KSM "sleep_millisecs");
	pin_keep(KSM "run");
	atexit(swap_off);
}

/* Make memory of kind @what and fill it with AT_FORK, if writing keeps its kind. */
static inline void make_memory(struct __test_metadata *_metadata,
			       struct pinned *p, struct memory *m,
			       enum kind what)
{
	bool thp = what == THP || what == THP_SPLIT || what == THP_PARTIAL ||
		   what == THP_SWAPPED;
	size_t first;
	int fd, n;

	m->len = thp || what == HUGETLB || what == FILE_HUGETLB ||
		 what == HUGE_ZERO ? HUGE_PAGE : NR_PAGES * PAGE;
	first = m->len == HUGE_PAGE ? FIRST * PAGE : 0;
	m->pool = -1;
	if (what == HUGETLB || what == FILE_HUGETLB) {
		m->pool = pin_set_pool(NR_POOL);
		if (pin_number("/proc/meminfo", "HugePages_Free:") < NR_POOL) {
			pin_set_pool(m->pool);
			SKIP(_exit(255), "fewer than %d hugetlb pages are free",
			     NR_POOL);
		}
	}
	if (thp) {
		m->map = pin_map_thp(p->dev, 1);
		if (!m->map)
			SKIP(_exit(255), "no transparent huge page was allocated");
	} else if (what == HUGETLB) {
		m->map = pin_map(m->len, MAP_PRIVATE | MAP_HUGETLB);
	} else if (what == FILE_PAGE || what == FILE_HUGETLB) {
		fd = memfd_create("pin_cow", what == FILE_PAGE ? 0 : MFD_HUGETLB);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, ftruncate(fd, m->len));
		m->map = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_SHARED,
			      fd, 0);
		ASSERT_NE(MAP_FAILED, m->map);
		pin_fill(m->map + first, NR_PAGES, AT_FORK);
		ASSERT_EQ(0, munmap(m->map, m->len));
		m->map = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_PRIVATE,
			      fd, 0);
		close(fd);
	} else if (what == HUGE_ZERO) {
		m->map = pin_map(2 * HUGE_PAGE, MAP_PRIVATE);
		ASSERT_NE(NULL, m->map);
		m->map = (char *)(((uintptr_t)m->map + HUGE_PAGE - 1) &
				  ~(HUGE_PAGE - 1));
		ASSERT_EQ(0, madvise(m->map, HUGE_PAGE, MADV_HUGEPAGE));
	} else {
		m->map = pin_map_small(NR_PAGES);
	}
	ASSERT_NE(NULL, m->map);
	ASSERT_NE(MAP_FAILED, m->map);
	m->mem = m->map + first;

	if (what == ZERO || what == HUGE_ZERO) {
		for (n = 0; n < NR_PAGES; n++)
			ASSERT_EQ(0, pin_get(m->mem + n * PAGE));
	} else if (what == FILE_PAGE || what == FILE_HUGETLB) {
		ASSERT_EQ(-1, pin_differs(m->mem, NR_PAGES, AT_FORK));
	} else {
		pin_fill(m->mem, NR_PAGES, AT_FORK);
	}

	if (what == THP_SPLIT)
		ASSERT_EQ(0, mprotect(m->map, PAGE, PROT_READ));
	if (what == THP_PARTIAL)
		ASSERT_EQ(0, munmap(m->map + HUGE_PAGE - PAGE, PAGE));
	if (what == SWAPPED || what == THP_SWAPPED) {
		if (swap_on())
			SKIP(_exit(255), "no swap space on " SWAP_DEVICE);
		m->swap = true;
		ASSERT_EQ(true, swap_out(m->map, m->len / PAGE));
	}
	if (what == KSM_PAGE) {
		if (madvise(m->map, m->len, MADV_MERGEABLE))
			SKIP(_exit(255), "no CONFIG_KSM");
		for (n = 0; n < NR_PAGES; n++)
			memset(m->map + n * PAGE, 'k', PAGE);
		ASSERT_EQ(true, ksm_merges(m->mem, m->mem + (NR_PAGES - 1) * PAGE));
	}
}

static inline void drop_memory(struct memory *m)
{
	munmap(m->map, m->len);
	if (m->swap)
		swapoff(SWAP_DEVICE);
	if (m->pool >= 0)
		pin_set_pool(m->pool);
}

#endif /* PIN_MEMORY_H */
