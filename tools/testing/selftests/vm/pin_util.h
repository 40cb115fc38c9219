/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers of the pin_*.c tests: the calls of /dev/fake_dma, /proc files and
 * memory. Unless they say otherwise, they return 0 or a negative errno.
 *
 * The name of a test lists the promises that it tests:
 *
 *  C1   identity: process and device see each other's bytes from pin to unpin
 *  C2   isolation: a child sees the bytes of the time of fork, not later ones
 *  C3   accounting: each pin can be unpinned once, and no pin is left behind
 *  C6   cost: a process that never pinned pays nothing measurable
 *
 *  R1   a pin is distinct from a plain reference
 *  R2   page_maybe_dma_pinned() returns true for every pinned page
 *  R3   counts do not wrap; a wrong unpin is reported and changes nothing
 *  R4   nr_foll_pin_acquired and nr_foll_pin_released in /proc/vmstat
 *  R5   the calls, their flags and errors
 *  R6   a partial pin returns its number of pages; a failed call pins nothing
 *  R7   fork copies pinned pages for the child
 *  R8   fork against GUP-fast
 *  R9   if fork cannot copy, it fails without leaks; copies are charged
 *  R10  an R/O pin is taken on an exclusive page
 *  R11  a write fault reuses a pinned page
 *  R12  any other operation of mm leaves a pinned page in place, or fails
 *  R14  a reference from before fork cannot read bytes written after it
 *  R15  pins are visible in counters, smaps, kpageflags and trace events
 *  R16  reclaim leaves pinned pages alone
 *  R21  FOLL_LONGTERM refuses memory that a filesystem must take back
 *  R22  FOLL_LONGTERM first moves pages out of CMA and ZONE_MOVABLE
 */
#ifndef PIN_UTIL_H
#define PIN_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#include <linux/kernel-page-flags.h>

#include "../../../../drivers/misc/fake_dma/fake_dma.h"
#include "../kselftest.h"

/* Stop only tests that hang: an emulator may be slow and busy. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

#define PIN_DEVICE	"/dev/fake_dma"

#define PAGE		4096UL
#define HUGE_PAGE	(2UL << 20)

/* Open the device. Return a file descriptor or a negative errno. */
static inline int pin_open(void)
{
	int fd = open(PIN_DEVICE, O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static inline int pin_ioctl(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) ? -errno : 0;
}

/* Skip the whole program if there is no device. Call it first in main(). */
static inline void pin_need_device(void)
{
	int fd = pin_open();

	if (fd < 0) {
		ksft_print_header();
		ksft_exit_skip("cannot open %s: %s\n", PIN_DEVICE, strerror(-fd));
	}
	close(fd);
}

/* Return FAKE_DMA_CAP_* flags, or 0 if the call fails. */
static inline uint32_t pin_caps(int fd)
{
	struct fake_dma_caps caps = { 0 };

	return pin_ioctl(fd, FAKE_DMA_CAPS, &caps) ? 0 : caps.caps;
}

/* Pin memory of process @pid with FAKE_DMA_CALL_REMOTE. */
static inline int pin_range_pid(int fd, pid_t pid, const void *addr, size_t len,
				uint32_t flags, uint32_t *handle)
{
	struct fake_dma_pin pin = {
		.addr = (uintptr_t)addr,
		.len = len,
		.flags = flags,
		.call = FAKE_DMA_CALL_REMOTE,
		.pid = pid,
	};
	int ret = pin_ioctl(fd, FAKE_DMA_PIN, &pin);

	*handle = ret ? 0 : pin.handle;
	return ret;
}

/* Pin our own memory by any FAKE_DMA_CALL_* but the remote one. */
static inline int pin_range(int fd, const void *addr, size_t len,
			    uint32_t flags, uint32_t call, uint32_t *handle)
{
	struct fake_dma_pin pin = {
		.addr = (uintptr_t)addr,
		.len = len,
		.flags = flags,
		.call = call,
	};
	int ret = pin_ioctl(fd, FAKE_DMA_PIN, &pin);

	*handle = ret ? 0 : pin.handle;
	return ret;
}

/*
 * Pin as much of the range in @pin as possible and set its handle. Return the
 * number of pages or a negative errno.
 */
static inline long long pin_partial(int fd, struct fake_dma_pin *pin)
{
	int ret;

	pin->flags |= FAKE_DMA_PIN_PARTIAL;
	ret = pin_ioctl(fd, FAKE_DMA_PIN, pin);
	return ret ? ret : (long long)pin->nr_pages;
}

static inline int pin_unpin(int fd, uint32_t handle, uint32_t flags)
{
	struct fake_dma_unpin unpin = { .handle = handle, .flags = flags };

	return pin_ioctl(fd, FAKE_DMA_UNPIN, &unpin);
}

/* Make the device write @len bytes of @buf at @offset of its pinned range. */
static inline int pin_write(int fd, uint32_t handle, uint64_t offset,
			    const void *buf, size_t len)
{
	struct fake_dma_xfer xfer = {
		.handle = handle,
		.offset = offset,
		.len = len,
		.buf = (uintptr_t)buf,
	};

	return pin_ioctl(fd, FAKE_DMA_WRITE, &xfer);
}

/* Make the device read @len bytes at @offset of its pinned range into @buf. */
static inline int pin_read(int fd, uint32_t handle, uint64_t offset,
			   void *buf, size_t len)
{
	struct fake_dma_xfer xfer = {
		.handle = handle,
		.offset = offset,
		.len = len,
		.buf = (uintptr_t)buf,
	};

	return pin_ioctl(fd, FAKE_DMA_READ, &xfer);
}

static inline int pin_start(int fd, uint32_t handle, uint32_t offset,
			    uint64_t period_us)
{
	struct fake_dma_start start = {
		.handle = handle,
		.offset = offset,
		.period_us = period_us,
	};

	return pin_ioctl(fd, FAKE_DMA_START, &start);
}

/* Stop the engine. Set @rounds, which may be NULL, to its number of rounds. */
static inline int pin_stop(int fd, uint32_t handle, uint64_t *rounds)
{
	struct fake_dma_stop stop = { .handle = handle };
	int ret = pin_ioctl(fd, FAKE_DMA_STOP, &stop);

	if (rounds)
		*rounds = ret ? 0 : stop.rounds;
	return ret;
}

static inline int pin_query(int fd, uint32_t handle, uint64_t first,
			    uint64_t nr, struct fake_dma_page *pages)
{
	struct fake_dma_query query = {
		.handle = handle,
		.first = first,
		.nr = nr,
		.buf = (uintptr_t)pages,
	};

	return pin_ioctl(fd, FAKE_DMA_QUERY, &query);
}

/* Write @text to a file of proc, sysfs or a cgroup. */
static inline int pin_write_file(const char *name, const char *text)
{
	int fd = open(name, O_WRONLY | O_CLOEXEC), ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* Return the number after @name at the start of a line in the file, or -1. */
static inline long long pin_number(const char *path, const char *name)
{
	long long value, found = -1;
	char line[256], key[64];
	FILE *file = fopen(path, "r");

	if (!file)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file))
		if (sscanf(line, "%63s %lld", key, &value) == 2 &&
		    !strcmp(key, name))
			found = value;
	fclose(file);
	return found;
}

/*
 * Return a counter of /proc/vmstat, or -1 if the kernel lacks it. CPUs keep
 * differences for about a second; stat_refresh adds them up first.
 */
static inline long long pin_vmstat(const char *name)
{
	int fd = open("/proc/sys/vm/stat_refresh", O_WRONLY);

	if (fd >= 0) {
		if (write(fd, "1", 1) != 1)
			perror("stat_refresh");
		close(fd);
	}
	return pin_number("/proc/vmstat", name);
}

/* Return the number of pins held in the whole machine. */
static inline long long pin_held(void)
{
	return pin_vmstat("nr_foll_pin_acquired") -
	       pin_vmstat("nr_foll_pin_released");
}

/* Return the number in a file that has nothing else, or -1. */
static inline long pin_file_number(const char *name)
{
	FILE *file = fopen(name, "r");
	long value = -1;

	if (!file)
		return -1;
	if (fscanf(file, "%ld", &value) != 1)
		value = -1;
	fclose(file);
	return value;
}

static inline int pin_write_number(const char *name, long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", value);
	return pin_write_file(name, text);
}

/* Numbers in files, to be restored when the program ends. */
static struct {
	const char *name;
	long value;
} pin_kept[16];
static int pin_nr_kept;

static inline void pin_put_back(void)
{
	for (; pin_nr_kept; pin_nr_kept--)
		pin_write_number(pin_kept[pin_nr_kept - 1].name,
				 pin_kept[pin_nr_kept - 1].value);
}

/*
 * Restore the number in the file when the program ends, as tests that fail do
 * not clean up. Call it in main() before the tests.
 */
static inline void pin_keep(const char *name)
{
	long value = pin_file_number(name);

	if (value < 0)
		return;
	if (!pin_nr_kept)
		atexit(pin_put_back);
	pin_kept[pin_nr_kept].name = name;
	pin_kept[pin_nr_kept++].value = value;
}

#define PIN_POOL	"/proc/sys/vm/nr_hugepages"

/* Set the size of the huge page pool. Return its old size. */
static inline long pin_set_pool(long nr)
{
	long old = pin_file_number(PIN_POOL);

	pin_write_number(PIN_POOL, nr);
	return old;
}

/* Map anonymous memory. Return NULL on failure. */
static inline void *pin_map(size_t len, int flags)
{
	void *mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
			 MAP_ANONYMOUS | flags, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

/* Map anonymous memory that never gets THPs. Return NULL on failure. */
static inline void *pin_map_small(size_t nr_pages)
{
	void *mem = pin_map(nr_pages * PAGE, MAP_PRIVATE);

	if (mem)
		madvise(mem, nr_pages * PAGE, MADV_NOHUGEPAGE);
	return mem;
}

/* Map @nr THPs and fault them in. Return NULL if any of them is not huge. */
static inline void *pin_map_thp(int fd, size_t nr)
{
	char *mem = pin_map((nr + 1) * HUGE_PAGE, MAP_PRIVATE);
	struct fake_dma_page page = { 0 };
	uint32_t handle;
	size_t i;

	if (!mem)
		return NULL;
	mem = (char *)(((uintptr_t)mem + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	if (madvise(mem, nr * HUGE_PAGE, MADV_HUGEPAGE))
		return NULL;
	for (i = 0; i < nr; i++) {
		mem[i * HUGE_PAGE] = 1;
		if (pin_range(fd, mem + i * HUGE_PAGE, PAGE, FAKE_DMA_PIN_GET,
			      FAKE_DMA_CALL_FAST, &handle))
			return NULL;
		pin_query(fd, handle, 0, 1, &page);
		pin_unpin(fd, handle, 0);
		if (!(page.flags & FAKE_DMA_PAGE_COMPOUND))
			return NULL;
	}
	return mem;
}

/* Read @nr pagemap entries of a process from @addr on. Return true if read. */
static inline bool pin_pagemaps(pid_t pid, const void *addr, size_t nr,
				uint64_t *entry)
{
	ssize_t len = nr * sizeof(*entry);
	char name[64];
	bool ret;
	int fd;

	snprintf(name, sizeof(name), "/proc/%d/pagemap", pid);
	fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ret = pread(fd, entry, len,
		    (uintptr_t)addr / PAGE * sizeof(*entry)) == len;
	close(fd);
	return ret;
}

/* Return the pagemap entry of an address, or 0 if it cannot be read. */
static inline uint64_t pin_pagemap(pid_t pid, const void *addr)
{
	uint64_t entry;

	return pin_pagemaps(pid, addr, 1, &entry) ? entry : 0;
}

/* Return the PFN in a pagemap entry, or 0 if no page is present. */
static inline uint64_t pin_pfn_of(uint64_t entry)
{
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

/* Return the PFN that a process maps at an address, or 0. */
static inline uint64_t pin_pfn(pid_t pid, const void *addr)
{
	return pin_pfn_of(pin_pagemap(pid, addr));
}

/* Read the PFNs that we map from @mem on, 0 for no page. Return true if read. */
static inline bool pin_pfns(const char *mem, size_t nr, uint64_t *pfn)
{
	size_t i;

	if (!pin_pagemaps(getpid(), mem, nr, pfn))
		return false;
	for (i = 0; i < nr; i++)
		pfn[i] = pin_pfn_of(pfn[i]);
	return true;
}

/* Return a page's entry in /proc/kpageflags or kpagecount, or 0. */
static inline uint64_t pin_page_number(const char *name, uint64_t pfn)
{
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	uint64_t number = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &number, sizeof(number), pfn * sizeof(number)) !=
	    sizeof(number))
		number = 0;
	close(fd);
	return number;
}

/* Return true if a page has a KPF_* flag. */
static inline bool pin_page_has(uint64_t pfn, int flag)
{
	return pin_page_number("/proc/kpageflags", pfn) >> flag & 1;
}

/* Return true if an unmapped anonymous page is pinned, in swap, or leaked. */
static inline bool pin_page_lost(uint64_t pfn)
{
	return pin_page_has(pfn, KPF_ANON) &&
	       !pin_page_number("/proc/kpagecount", pfn);
}

/* Return 1 if we wrote to the page at @mem since clear_refs, else 0. */
static inline int pin_soft_dirty(const void *mem)
{
	return pin_pagemap(getpid(), mem) >> 55 & 1;
}

/* Store a word that the device and other processes read concurrently. */
static inline void pin_set(void *mem, uint64_t value)
{
	__atomic_store_n((uint64_t *)mem, value, __ATOMIC_RELAXED);
}

static inline uint64_t pin_get(const void *mem)
{
	return __atomic_load_n((const uint64_t *)mem, __ATOMIC_RELAXED);
}

/* Distance of the words that pin_fill() sets: one in each cache line. */
#define PIN_STRIDE	(64 / sizeof(uint64_t))

/* Set these words of a buffer to values of their position and @seed. */
static inline void pin_fill(void *buf, size_t nr_pages, uint32_t seed)
{
	size_t i, nr = nr_pages * PAGE / sizeof(uint64_t);
	uint64_t *word = buf;

	for (i = 0; i < nr; i += PIN_STRIDE)
		pin_set(word + i, (uint64_t)seed << 32 | i);
}

/* Return the index of the first page that differs from pin_fill(), or -1. */
static inline long pin_differs(const void *buf, size_t nr_pages, uint32_t seed)
{
	size_t i, nr = nr_pages * PAGE / sizeof(uint64_t);
	const uint64_t *word = buf;

	for (i = 0; i < nr; i += PIN_STRIDE)
		if (pin_get(word + i) != ((uint64_t)seed << 32 | i))
			return i * sizeof(uint64_t) / PAGE;
	return -1;
}

#endif /* PIN_UTIL_H */
