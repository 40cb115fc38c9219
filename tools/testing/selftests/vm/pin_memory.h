/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Memory of every kind that can be pinned, for tests of what happens to it.
 */
#ifndef PIN_MEMORY_H
#define PIN_MEMORY_H

#include <sys/swap.h>

#include "pin_process.h"

#define NR_PAGES	8	/* pinned, */
#define FIRST		100	/* from this page on of a huge one */
#define NR_POOL		8	/* huge pages, enough for every copy */
#define SWAP_DEVICE	"/dev/ram0"
#define CMA		"/sys/kernel/debug/cma/cma-reserved/"

/* What is at the address when it is pinned. */
enum kind {
	BASE,
	SWAPPED,
	THP,
	THP_SPLIT,		/* mapped by page-table entries */
	THP_PARTIAL,		/* and a part of it is unmapped */
	THP_SWAPPED,
	HUGETLB,
	KSM_PAGE,
	ZERO,
	HUGE_ZERO,
	FILE_PAGE,		/* of a private mapping, not written to yet */
	FILE_HUGETLB,		/* the same, of hugetlbfs */
};

struct memory {
	char *map;		/* the whole mapping, and */
	size_t len;
	char *mem;		/* the pages to look at */
	bool swap;
	long pool;		/* to be set again, if not negative */
};

/* Has CMA make room for so many pages, and gives them back. */
static inline int cma_make_room(long nr)
{
	int ret = pin_write_number(CMA "alloc", nr);

	if (!ret)
		pin_write_number(CMA "free", nr);
	return ret;
}

/* Makes a disk in memory, which nobody uses, the swap space. */
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

	swapoff(SWAP_DEVICE);	/* a test that failed may have left it on */
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

/* Has pages get to the LRU lists that are on their way there on any CPU. */
static inline void drain_lru(void)
{
	pin_write_file("/proc/sys/vm/compact_memory", "1");
}

/*
 * Swaps the pages at @mem out; false if some of them stay. Reclaim finds what is
 * on the LRU lists, where each CPU puts its pages by and by, and at this call:
 * so every CPU makes it in turn.
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
 * Has KSM look at all of memory, until it has merged these two pages, and then
 * twice more. Its settings are as before then.
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

static inline void swap_off(void)
{
	swapoff(SWAP_DEVICE);
}

/* For main(), as pin_keep(): what making memory changes. */
static inline void keep_settings(void)
{
	pin_keep(PIN_POOL);
	pin_keep(KSM "pages_to_scan");
	pin_keep(KSM "sleep_millisecs");
	pin_keep(KSM "run");
	atexit(swap_off);
}

/* Memory of that kind, with AT_FORK in it if it can hold anything yet. */
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
			SKIP(_exit(255), "no memory for %d huge pages", NR_POOL);
		}
	}
	if (thp) {
		m->map = pin_map_thp(p->dev, 1);
		if (!m->map)
			SKIP(_exit(255), "no transparent huge page to be had");
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
			SKIP(_exit(255), "no KSM");
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
