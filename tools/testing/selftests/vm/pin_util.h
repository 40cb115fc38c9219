/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the pin_*.c tests share: the calls of /dev/fake_dma and the counters
 * of /proc/vmstat. Calls give 0, or a negative errno.
 *
 * The names of tests say which promises they hold mm to:
 *
 *  C1   identity: process and device see each other's bytes, from pin to unpin
 *  C2   isolation: a child sees what was there at fork, and nothing later
 *  C3   accounting: what was pinned can be unpinned, once, and is all given back
 *  C6   cost: who never pinned pays nothing that can be measured
 *
 *  R1   a pinned page can be told from one that has references
 *  R2   page_maybe_dma_pinned() never says no to a pinned page
 *  R3   counts do not wrap; a wrong unpin is reported and changes nothing
 *  R4   nr_foll_pin_acquired and nr_foll_pin_released in /proc/vmstat
 *  R5   the calls, their flags and errors
 *  R6   a call that pins a part says how much, and one that fails pins nothing
 *  R7   fork copies what is pinned for the child
 *  R8   fork against the lockless walk
 *  R9   fork that cannot copy fails, without leaks; copies are charged
 *  R10  a pin for reading is of a page that the process has to itself
 *  R11  a write fault leaves a pinned page where it is
 *  R12  so does all else that mm does, or the call fails
 *  R14  what is written after a fork cannot be read by way of a reference
 *  R15  what can be seen: counters, smaps, kpageflags, trace events
 *  R16  reclaim does not take pinned pages
 *  R21  FOLL_LONGTERM refuses what a filesystem must be able to take back
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

#include <linux/fake_dma.h>
#include <linux/kernel-page-flags.h>

#include "../kselftest.h"

/* Only what hangs is to be stopped: an emulator may be slow, and busy. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

#define PIN_DEVICE	"/dev/fake_dma"

#define PAGE		4096UL
#define HUGE_PAGE	(2UL << 20)

/* A file descriptor, or a negative errno: -ENOENT without the driver. */
static inline int pin_open(void)
{
	int fd = open(PIN_DEVICE, O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

static inline int pin_ioctl(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) ? -errno : 0;
}

/* Ends the program as skipped where there is no device: for the top of main(). */
static inline void pin_need_device(void)
{
	int fd = pin_open();

	if (fd < 0) {
		ksft_print_header();
		ksft_exit_skip("%s: %s\n", PIN_DEVICE, strerror(-fd));
	}
	close(fd);
}

/* FAKE_DMA_CAP_*, none where the driver cannot be asked. */
static inline uint32_t pin_caps(int fd)
{
	struct fake_dma_caps caps = { 0 };

	return pin_ioctl(fd, FAKE_DMA_CAPS, &caps) ? 0 : caps.caps;
}

/* Pins memory of process @pid with FAKE_DMA_CALL_REMOTE. */
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

/* Pins our own memory; @call is any FAKE_DMA_CALL_* but the remote one. */
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
 * Keeps what can be pinned of a range: gives the number of pages, and the
 * handle of @pin, whose other fields say what to pin.
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

/* The device writes @len bytes of @buf to its pages, from byte @offset on. */
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

/* The device reads its pages, and @buf is what it saw. */
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

/* @rounds may be NULL. */
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

/* For the files of proc, sysfs and cgroups */
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

/* The number that a line of a file has after @name, or -1 without such a line. */
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
 * One counter of /proc/vmstat, or -1 where the kernel does not have it. CPUs
 * keep a part of it to themselves for a second or so: stat_refresh collects.
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

/* How many pins are held in the whole machine now. */
static inline long long pin_held(void)
{
	return pin_vmstat("nr_foll_pin_acquired") -
	       pin_vmstat("nr_foll_pin_released");
}

/* The number that is all of a file, or -1. */
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

/* Numbers that files hold, to be as before when the program ends. */
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
 * For main(), before the tests, which may fail and leave anything behind: the
 * number that the file holds now is put back when the program ends.
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

/* Sets the size of the pool of huge pages, and says what it was. */
static inline long pin_set_pool(long nr)
{
	long old = pin_file_number(PIN_POOL);

	pin_write_number(PIN_POOL, nr);
	return old;
}

/* Memory for anonymous pages; NULL if there is none. */
static inline void *pin_map(size_t len, int flags)
{
	void *mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
			 MAP_ANONYMOUS | flags, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

/* The same, mapped by page table entries whatever the settings for THP are. */
static inline void *pin_map_small(size_t nr_pages)
{
	void *mem = pin_map(nr_pages * PAGE, MAP_PRIVATE);

	if (mem)
		madvise(mem, nr_pages * PAGE, MADV_NOHUGEPAGE);
	return mem;
}

/* Transparent huge pages, touched; NULL if they could not be had. */
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

/* Entries of a process' pagemap, from that of @addr on */
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

/* One of them; 0, as of nothing mapped, if the process has none. */
static inline uint64_t pin_pagemap(pid_t pid, const void *addr)
{
	uint64_t entry;

	return pin_pagemaps(pid, addr, 1, &entry) ? entry : 0;
}

/* The page that an entry is of, 0 for none */
static inline uint64_t pin_pfn_of(uint64_t entry)
{
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

/* The page a process has mapped at an address, 0 for none. */
static inline uint64_t pin_pfn(pid_t pid, const void *addr)
{
	return pin_pfn_of(pin_pagemap(pid, addr));
}

/* The pages we have mapped from @mem on, 0 where there is none. */
static inline bool pin_pfns(const char *mem, size_t nr, uint64_t *pfn)
{
	size_t i;

	if (!pin_pagemaps(getpid(), mem, nr, pfn))
		return false;
	for (i = 0; i < nr; i++)
		pfn[i] = pin_pfn_of(pfn[i]);
	return true;
}

/* What /proc/kpageflags or kpagecount has of a page, 0 for nothing. */
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

/* Whether a page has a flag, KPF_*. */
static inline bool pin_page_has(uint64_t pfn, int flag)
{
	return pin_page_number("/proc/kpageflags", pfn) >> flag & 1;
}

/* An anonymous page that nobody maps is pinned, swapped, or lost. */
static inline bool pin_page_lost(uint64_t pfn)
{
	return pin_page_has(pfn, KPF_ANON) &&
	       !pin_page_number("/proc/kpagecount", pfn);
}

/* Whether we wrote to the page at @mem since clear_refs. */
static inline int pin_soft_dirty(const void *mem)
{
	return pin_pagemap(getpid(), mem) >> 55 & 1;
}

/* A word that the device and other processes look at, too. */
static inline void pin_set(void *mem, uint64_t value)
{
	__atomic_store_n((uint64_t *)mem, value, __ATOMIC_RELAXED);
}

static inline uint64_t pin_get(const void *mem)
{
	return __atomic_load_n((const uint64_t *)mem, __ATOMIC_RELAXED);
}

/* The words that tell a buffer: one in each cache line. */
#define PIN_STRIDE	(64 / sizeof(uint64_t))

/* Each of these words gets to tell its place in the buffer, and the seed. */
static inline void pin_fill(void *buf, size_t nr_pages, uint32_t seed)
{
	size_t i, nr = nr_pages * PAGE / sizeof(uint64_t);
	uint64_t *word = buf;

	for (i = 0; i < nr; i += PIN_STRIDE)
		pin_set(word + i, (uint64_t)seed << 32 | i);
}

/* The first page that is not as pin_fill() made it, or -1. */
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
