// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that a reference to a page does not show another process' writes after
 * fork() (CVE-2020-29374).
 *
 * Parent and child share private anonymous pages copy-on-write. One process,
 * the holder, takes a reference to a page with vmsplice() and unmaps the page.
 * The other process, the writer, is then the only one to map it. If its write
 * fault reuses the page, the holder reads the new data from the pipe: a child
 * without privileges spies on its parent. The write fault has to copy the page.
 * If a hugetlb pool has no page for the copy, the writer gets SIGBUS instead.
 *
 * Run it as root, with 1 GB of memory. A missing part skips only the variants
 * that need it:
 *  - swap_*: CONFIG_SWAP, mkswap, and CONFIG_BLK_DEV_RAM for /dev/ram0, which
 *    is overwritten;
 *  - thp*: CONFIG_TRANSPARENT_HUGEPAGE, enabled as "always" or "madvise";
 *  - hugetlb*: CONFIG_HUGETLBFS, and no other user of hugetlb pages of 2 MB.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kernel-page-flags.h>
#include <linux/mman.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/swap.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../kselftest_harness.h"

/* An emulator on a busy machine is slow: stop only a test that hangs. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	300

#define PAGE		4096UL
#define HUGE_PAGE	(2UL << 20)
#define POOL		"/sys/kernel/mm/hugepages/hugepages-2048kB/"
#define SWAP_DEVICE	"/dev/ram0"

/* The word in the page before fork(), and the word to write after it */
#define BEFORE		0xb4b4b4b4UL
#define AFTER		0xafafafafUL

static bool have_swap;
static long old_pool;
static sigjmp_buf retreat;

/* The words that the two processes saw, in memory that both map shared */
struct seen {
	uint64_t held;		/* in the pipe, after the write */
	uint64_t written;	/* in the page, after the write */
	uint64_t rewritten;	/* the same, with the reference gone */
};

FIXTURE(leak) {
	const FIXTURE_VARIANT(leak) * variant;
	struct __test_metadata *test;
	char *map;
	uint64_t *word;		/* at the start of one of its base pages */
	bool held;		/* the pipe has a reference to that one */
	int pipe[2];
	int turn;		/* a socket to the other process */
	struct seen *seen;
};

FIXTURE_VARIANT(leak) {
	size_t len;
	int pool;		/* hugetlb pages, or 0 for other memory */
	bool split;		/* map the THP by PTEs */
	bool swap;		/* fork() finds a swap entry */
	bool read_first;	/* the writer reads before it writes */
};

FIXTURE_VARIANT_ADD(leak, base) {
	.len = PAGE,
};

FIXTURE_VARIANT_ADD(leak, swap_read) {
	.len = PAGE,
	.swap = true,
	.read_first = true,
};

FIXTURE_VARIANT_ADD(leak, swap_write) {
	.len = PAGE,
	.swap = true,
};

FIXTURE_VARIANT_ADD(leak, thp) {
	.len = HUGE_PAGE,
};

FIXTURE_VARIANT_ADD(leak, thp_split) {
	.len = HUGE_PAGE,
	.split = true,
};

FIXTURE_VARIANT_ADD(leak, hugetlb) {
	.len = HUGE_PAGE,
	.pool = 2,
};

FIXTURE_VARIANT_ADD(leak, hugetlb_empty) {
	.len = HUGE_PAGE,
	.pool = 1,
};

/* Return the number in a file, or -1 if it cannot be read. */
static long get_number(const char *name)
{
	FILE *file = fopen(name, "r");
	long value;

	if (!file)
		return -1;
	if (fscanf(file, "%ld", &value) != 1)
		value = -1;
	fclose(file);
	return value;
}

static void set_number(const char *name, long value)
{
	FILE *file = fopen(name, "w");

	if (!file)
		return;
	fprintf(file, "%ld", value);
	fclose(file);
}

/* Return an entry of pagemap or kpageflags, or 0 if it cannot be read. */
static uint64_t get_entry(const char *name, uint64_t index)
{
	int fd = open(name, O_RDONLY);
	uint64_t entry;

	if (pread(fd, &entry, sizeof(entry), index * sizeof(entry)) !=
	    sizeof(entry))
		entry = 0;
	close(fd);
	return entry;
}

static uint64_t get_pagemap(const void *addr)
{
	return get_entry("/proc/self/pagemap", (uintptr_t)addr / PAGE);
}

/* Return true if a THP is mapped, by a PMD or by PTEs. */
static bool is_thp(const void *addr)
{
	uint64_t pfn = get_pagemap(addr) & ((1ULL << 55) - 1);

	return get_entry("/proc/kpageflags", pfn) >> KPF_THP & 1;
}

/* Map memory of the variant's kind, with BEFORE in it. */
static void make_page(FIXTURE_DATA(leak) * self)
{
	struct __test_metadata *_metadata = self->test;
	size_t len = self->variant->len;
	bool thp = len == HUGE_PAGE && !self->variant->pool;
	int flags = self->variant->pool ? MAP_HUGETLB | MAP_HUGE_2MB : 0;

	self->map = mmap(NULL, thp ? 2 * len : len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
	ASSERT_NE(MAP_FAILED, self->map);
	if (thp) {
		self->map = (char *)(((uintptr_t)self->map + len - 1) & -len);
		madvise(self->map, len, MADV_HUGEPAGE);
	}
	self->word = (uint64_t *)(self->map + len - PAGE);
	*self->word = BEFORE;
	if (thp && !is_thp(self->word))
		SKIP(_exit(255), "no THP of 2 MB; "
		     "run as root, with 1 GB of memory and THP enabled as \"madvise\"");
	if (self->variant->split) {
		ASSERT_EQ(0, mprotect(self->map, PAGE, PROT_READ));
		ASSERT_TRUE(is_thp(self->word));
	}
}

/* Replace the page by a swap entry: bit 62 in pagemap. */
static void swap_out(FIXTURE_DATA(leak) * self)
{
	struct __test_metadata *_metadata = self->test;
	uint64_t entry = 0;
	int tries;

	for (tries = 0; tries < 100 && !(entry >> 62 & 1); tries++) {
		ASSERT_EQ(0, madvise(self->word, PAGE, MADV_PAGEOUT));
		entry = get_pagemap(self->word);
	}
	ASSERT_TRUE(entry >> 62 & 1) {
		TH_LOG("pagemap entry after %d times MADV_PAGEOUT: %#lx, expected bit 62 set",
		       tries, entry);
	}
}

static void on_sigbus(int sig)
{
	siglongjmp(retreat, 1);
}

FIXTURE_SETUP(leak)
{
	cpu_set_t cpu;
	long nr_free;

	self->test = _metadata;
	self->variant = variant;
	if (variant->swap && !have_swap)
		SKIP(_exit(255), "no swap space on " SWAP_DEVICE "; "
		     "run as root, with CONFIG_SWAP, CONFIG_BLK_DEV_RAM and mkswap");
	if (variant->pool) {
		set_number(POOL "nr_hugepages", variant->pool);
		nr_free = get_number(POOL "free_hugepages");
		if (nr_free != variant->pool)
			SKIP(_exit(255), "%ld free hugetlb pages of 2 MB, expected %d; "
			     "run as root, with CONFIG_HUGETLBFS, 1 GB of memory and no other user",
			     nr_free, variant->pool);
	}
	/* Stay on one CPU: MADV_PAGEOUT drains only its own CPU's LRU caches. */
	CPU_ZERO(&cpu);
	CPU_SET(sched_getcpu(), &cpu);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(cpu), &cpu));
	make_page(self);
	if (variant->swap)
		swap_out(self);
	self->seen = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->seen);
	ASSERT_EQ(0, pipe(self->pipe));
	signal(SIGBUS, on_sigbus);
}

/* The end of the test's process frees its memory. */
FIXTURE_TEARDOWN(leak)
{
}

/* Let the other process go on. If it has ended, wait_turn() fails. */
static void pass_turn(FIXTURE_DATA(leak) * self)
{
	send(self->turn, "", 1, MSG_NOSIGNAL);
}

static void wait_turn(FIXTURE_DATA(leak) * self)
{
	struct __test_metadata *_metadata = self->test;
	char byte;

	ASSERT_EQ(1, read(self->turn, &byte, 1));
}

static void take_reference(FIXTURE_DATA(leak) * self)
{
	struct __test_metadata *_metadata = self->test;
	struct iovec iov = { .iov_base = self->word, .iov_len = PAGE };

	ASSERT_EQ(PAGE, vmsplice(self->pipe[1], &iov, 1, 0));
	self->held = true;
}

/* Unmap the page, and read it by the reference after the writer's write. */
static void hold(FIXTURE_DATA(leak) * self)
{
	struct __test_metadata *_metadata = self->test;
	uint64_t page[PAGE / sizeof(uint64_t)];

	if (!self->held)
		take_reference(self);
	ASSERT_EQ(0, munmap(self->map, self->variant->len));
	pass_turn(self);
	wait_turn(self);
	ASSERT_EQ(PAGE, read(self->pipe[0], page, PAGE));
	self->seen->held = page[0];
	pass_turn(self);
}

static void expect_word(FIXTURE_DATA(leak) * self, const char *what,
			uint64_t seen, uint64_t expected)
{
	struct __test_metadata *_metadata = self->test;

	EXPECT_EQ(expected, seen) {
		TH_LOG("%s: %#lx, expected %#lx", what, seen, expected);
	}
}

/* Return the word after an attempt to write, which SIGBUS may prevent. */
static uint64_t try_write(uint64_t *word)
{
	if (!sigsetjmp(retreat, 1))
		__atomic_store_n(word, AFTER, __ATOMIC_RELAXED);
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* Write while the holder has the reference, and again when it is gone. */
static void write_twice(FIXTURE_DATA(leak) * self)
{
	wait_turn(self);
	if (self->variant->read_first)
		expect_word(self, "word before the write", *self->word, BEFORE);
	self->seen->written = try_write(self->word);
	pass_turn(self);
	wait_turn(self);
	self->seen->rewritten = try_write(self->word);
}

static void fork_and_expect(FIXTURE_DATA(leak) * self,
			    void (*in_child)(FIXTURE_DATA(leak) * self),
			    void (*in_parent)(FIXTURE_DATA(leak) * self))
{
	struct __test_metadata *_metadata = self->test;
	struct seen *seen = self->seen;
	int turn[2], status;
	pid_t child;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, turn));
	child = fork();
	ASSERT_LE(0, child);
	self->turn = turn[!child];
	close(turn[!!child]);
	if (!child) {
		in_child(self);
		_exit(!_metadata->passed);
	}
	in_parent(self);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_EQ(0, status) {
		TH_LOG("wait status of the child: %#x, expected 0", status);
	}

	expect_word(self, "word in the pipe", seen->held, BEFORE);
	/* SIGBUS for want of a hugetlb page leaves the word as it was. */
	if (self->variant->pool != 1 || seen->written != BEFORE)
		expect_word(self, "word written beside the reference",
			    seen->written, AFTER);
	expect_word(self, "word written without the reference",
		    seen->rewritten, AFTER);
}

TEST_F(leak, child_holds_parent_writes)
{
	fork_and_expect(self, hold, write_twice);
}

TEST_F(leak, parent_holds_child_writes)
{
	fork_and_expect(self, write_twice, hold);
}

TEST_F(leak, parent_held_before_fork_child_writes)
{
	take_reference(self);
	if (variant->swap)
		swap_out(self);
	fork_and_expect(self, write_twice, hold);
}

static void put_back(void)
{
	if (have_swap)
		swapoff(SWAP_DEVICE);
	if (old_pool >= 0)
		set_number(POOL "nr_hugepages", old_pool);
}

int main(int argc, char **argv)
{
	swapoff(SWAP_DEVICE);	/* a run that was killed leaves it on */
	have_swap = !system("mkswap " SWAP_DEVICE " >/dev/null 2>&1") &&
		    !swapon(SWAP_DEVICE, 0);
	old_pool = get_number(POOL "nr_hugepages");
	atexit(put_back);
	return test_harness_run(argc, argv);
}
