// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls of a process on its own mapping of pinned memory (R12, C1). The pinned page
 * stays mapped or moves with its mapping. If the process unmaps it, it stays with
 * the device alone.
 */
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "pin_event.h"

#define LEN		(NR_PAGES * PAGE)
#define TRIES		500
#define ROUNDS		20

/* The pinned pages, to check them after the unpin. */
static struct fake_dma_page was[NR_PAGES];

static void remember_pages(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;

	ASSERT_EQ(0, pin_query(b->p.dev, b->p.handle, 0, NR_PAGES, was));
}

/* Count pages of @was that are anonymous, allocated and not mapped. */
static int count_lost(void)
{
	int i, lost = 0;

	for (i = 0; i < NR_PAGES; i++)
		lost += pin_page_lost(was[i].pfn);
	return lost;
}

/* Expect that the pages of @was are free, or mapped elsewhere. */
static void expect_freed(struct buffer *b, enum kind what)
{
	struct __test_metadata *_metadata = b->p.test;
	int n;

	if (what == HUGETLB) {
		EXPECT_EQ(NR_POOL, pin_number("/proc/meminfo",
					      "HugePages_Free:"));
		return;
	}
	for (n = 0; count_lost() && n < TRIES; n++) {
		drain_lru();
		usleep(1000);
	}
	EXPECT_EQ(0, count_lost()) {
		TH_LOG("%d of %d pages are neither free nor mapped after the unpin, expected 0",
		       count_lost(), NR_PAGES);
	}
}

/* Expect C1 of memory that the process cannot write now. */
static void expect_held_read_only(struct buffer *b, bool readable,
				  const char *when)
{
	struct __test_metadata *_metadata = b->p.test;
	struct fake_dma_page pages[NR_PAGES];
	struct pinned *p = &b->p;
	int i, apart = 0;

	if (b->flags & FAKE_DMA_PIN_WRITE) {
		pin_fill(p->bounce, NR_PAGES, ++p->seed);
		ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, LEN));
	}
	EXPECT_EQ(-1, readable ? pin_differs(p->mem, NR_PAGES, p->seed) : -1) {
		TH_LOG("%s: the process sees other bytes than the device wrote in page %ld",
		       when, pin_differs(p->mem, NR_PAGES, p->seed));
	}
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, LEN));
	EXPECT_EQ(-1, pin_differs(p->bounce, NR_PAGES, p->seed)) {
		TH_LOG("%s: the device sees other bytes than the process in page %ld",
		       when, pin_differs(p->bounce, NR_PAGES, p->seed));
	}
	ASSERT_EQ(0, pin_query(p->dev, p->handle, 0, NR_PAGES, pages));
	for (i = 0; i < NR_PAGES; i++)
		apart += pages[i].pfn != pin_pfn(getpid(), p->mem + i * PAGE);
	EXPECT_EQ(0, apart) {
		TH_LOG("%s: %d of %d mapped pages are not the pinned ones, expected 0",
		       when, apart, NR_PAGES);
	}
	if (readable && b->flags & FAKE_DMA_PIN_WRITE && _metadata->passed)
		expect_stamped(p, when);
}

/*
 * Expect that the process has new zeroed pages at its address, and that the device
 * keeps the old ones with their last bytes.
 */
static void expect_apart(struct buffer *b, const char *when)
{
	struct __test_metadata *_metadata = b->p.test;
	struct fake_dma_page pages[NR_PAGES];
	struct pinned *p = &b->p;
	uint32_t seed = p->seed;
	int i, same = 0;
	size_t n;

	for (n = 0; n < LEN && !p->mem[n]; n++)
		;
	EXPECT_EQ(LEN, n) {
		TH_LOG("%s: byte %zu of %lu is not zero for the process", when, n, LEN);
	}
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, LEN));
	EXPECT_EQ(-1, pin_differs(p->bounce, NR_PAGES, seed)) {
		TH_LOG("%s: page %ld of the device has lost its bytes", when,
		       pin_differs(p->bounce, NR_PAGES, seed));
	}

	pin_fill(p->mem, NR_PAGES, ++p->seed);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, LEN));
	EXPECT_EQ(-1, pin_differs(p->bounce, NR_PAGES, seed)) {
		TH_LOG("%s: page %ld of the device has bytes that the process wrote", when,
		       pin_differs(p->bounce, NR_PAGES, seed));
	}
	if (b->flags & FAKE_DMA_PIN_WRITE) {
		pin_fill(p->bounce, NR_PAGES, seed + 2);
		ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, LEN));
	}
	EXPECT_EQ(-1, pin_differs(p->mem, NR_PAGES, p->seed)) {
		TH_LOG("%s: page %ld of the process has bytes that the device wrote", when,
		       pin_differs(p->mem, NR_PAGES, p->seed));
	}
	ASSERT_EQ(0, pin_query(p->dev, p->handle, 0, NR_PAGES, pages));
	for (i = 0; i < NR_PAGES; i++)
		same += pages[i].pfn == pin_pfn(getpid(), p->mem + i * PAGE) ||
			pin_get(p->mem + i * PAGE + STAMP);
	EXPECT_EQ(0, same) {
		TH_LOG("%s: %d of %d pages are the device's or have its stamp, expected 0",
		       when, same, NR_PAGES);
	}
}

static int call_madvise(struct buffer *b, int advice)
{
	return madvise(b->m.map, b->m.len, advice) ? -errno : 0;
}

TEST_F(event, R12_C1_dontneed)
{
	struct buffer *b = &self->b;

	remember_pages(b);
	if (variant->kind == HUGETLB) {
		EXPECT_EQ(-EINVAL, call_madvise(b, MADV_DONTNEED));
		expect_held(b, "after a failed MADV_DONTNEED");
		return;
	}
	if (variant->kind == THP_SPLIT)
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len,
				      PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, call_madvise(b, MADV_DONTNEED));
	EXPECT_EQ(0, pin_pfn(getpid(), b->p.mem));
	expect_apart(b, "after MADV_DONTNEED");
	give_back(b);
	expect_freed(b, variant->kind);
	take(b);
}

/* Discard one pinned page: the others stay. */
TEST_F(event, R12_C1_dontneed_in_part)
{
	struct buffer *b = &self->b;
	struct pinned *p = &b->p;
	uint64_t seen[2] = { 0 };

	if (variant->kind == HUGETLB) {
		EXPECT_EQ(-1, madvise(p->mem + 3 * PAGE, PAGE, MADV_DONTNEED));
		EXPECT_EQ(EINVAL, errno);
		expect_held(b, "after a failed MADV_DONTNEED");
		return;
	}
	ASSERT_EQ(0, madvise(p->mem + 3 * PAGE, PAGE, MADV_DONTNEED));
	EXPECT_EQ(0, pin_get(p->mem + 3 * PAGE));
	pin_set(p->mem + 3 * PAGE, 0x1111);
	pin_set(p->mem + 4 * PAGE, 0x2222);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 3 * PAGE, &seen[0], 8));
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 4 * PAGE, &seen[1], 8));
	EXPECT_NE(0x1111, seen[0]);
	EXPECT_EQ(0x2222, seen[1]);
	p->nr = 3;
	expect_held(b, "before the discarded page");
	give_back(b);
	take(b);
}

/*
 * After MADV_FREE, reclaim may discard a page until it is written again. It does
 * not discard a pinned one.
 */

/* Free and reclaim unpinned pages. Return true if all of them go. */
static bool was_reclaimed(char *map, size_t len, char *mem)
{
	int i, n, left = 1;

	/* Try until the pagevecs of other CPUs are drained. */
	for (n = 0; left && n < TRIES; n++) {
		if (madvise(map, len, MADV_FREE) ||
		    madvise(map, len, MADV_PAGEOUT))
			return false;
		for (i = 0, left = 0; i < NR_PAGES; i++)
			left += !!(pin_pagemap(getpid(), mem + i * PAGE) >> 62);
		if (left)
			drain_lru();
	}
	return !left;
}

/* Unpinned memory of the same kind. */
static char *neighbour;

/* Free and reclaim the buffer, and the neighbour until it goes. */
static int reclaim_free(struct buffer *b)
{
	int n;

	for (n = 0; n < 3; n++)
		if (call_madvise(b, MADV_FREE) || call_madvise(b, MADV_PAGEOUT))
			return -errno;
	return was_reclaimed(neighbour, b->m.len, neighbour) ? 0 : -EBUSY;
}

static void make_neighbour(struct buffer *b, enum kind what)
{
	struct __test_metadata *_metadata = b->p.test;

	if (what == BASE || what == SWAPPED)
		neighbour = pin_map_small(NR_PAGES);
	else
		neighbour = pin_map_thp(b->p.dev, 1);
	ASSERT_NE(NULL, neighbour);
	pin_fill(neighbour, NR_PAGES, AT_FORK);
}

TEST_F(event, R12_C1_free)
{
	struct buffer *b = &self->b;

	if (variant->kind == HUGETLB) {
		EXPECT_EQ(-EINVAL, call_madvise(b, MADV_FREE));
		expect_held(b, "after a failed MADV_FREE");
		return;
	}
	make_neighbour(b, variant->kind);
	/* Without a write of the process in between */
	ASSERT_EQ(0, reclaim_free(b));
	EXPECT_EQ(0, pin_get(neighbour));
	expect_held_read_only(b, true, "after MADV_FREE");
	munmap(neighbour, b->m.len);
	make_neighbour(b, variant->kind);
	ASSERT_EQ(0, expect_held_through(b, reclaim_free, "while MADV_FREE runs"));

	/* A write of the device keeps the page as well, if the unpin dirties it. */
	if (b->flags & FAKE_DMA_PIN_WRITE) {
		ASSERT_EQ(0, call_madvise(b, MADV_FREE));
		expect_held_read_only(b, true, "after MADV_FREE");
		give_back(b);
		ASSERT_EQ(0, call_madvise(b, MADV_PAGEOUT));
		EXPECT_EQ(-1, pin_differs(b->p.mem, NR_PAGES, b->p.seed));
	} else {
		give_back(b);
	}
	EXPECT_EQ(true, was_reclaimed(b->m.map, b->m.len, b->m.mem));
	EXPECT_EQ(0, pin_get(b->m.mem));
	pin_fill(b->m.mem, NR_PAGES, AT_FORK);
	take(b);
}

TEST_F(event, R12_C1_munmap)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED |
		    (variant->kind == HUGETLB ? MAP_HUGETLB : 0);
	struct buffer *b = &self->b;
	struct memory *m = &b->m;

	remember_pages(b);
	ASSERT_EQ(0, munmap(m->map, m->len));
	EXPECT_EQ(0, pin_pfn(getpid(), m->mem));
	if (b->flags & FAKE_DMA_PIN_WRITE) {
		pin_fill(b->p.bounce, NR_PAGES, ++b->p.seed);
		ASSERT_EQ(0, pin_write(b->p.dev, b->p.handle, 0, b->p.bounce,
				       LEN));
	}
	ASSERT_EQ(m->map, mmap(m->map, m->len, PROT_READ | PROT_WRITE, flags,
			       -1, 0));
	expect_apart(b, "after munmap()");
	ASSERT_EQ(0, munmap(m->map, m->len));
	if (variant->kind == HUGETLB) {
		EXPECT_EQ(NR_POOL - 1, pin_number("/proc/meminfo",
						  "HugePages_Free:"));
	} else {
		EXPECT_EQ(NR_PAGES, count_lost());
	}
	give_back(b);
	expect_freed(b, variant->kind);
}

/* Move the whole mapping to @to. Return the new address or a negative errno. */
static long try_move(struct buffer *b, char *to, int flags)
{
	void *ret = mremap(b->m.map, b->m.len, b->m.len,
			   MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);

	return ret == MAP_FAILED ? -errno : (long)ret;
}

/* Note that the mapping is at @map with @len bytes, and expect C1. */
static void moved(struct buffer *b, char *map, size_t len, const char *how)
{
	struct __test_metadata *_metadata = b->p.test;

	if (map != b->m.map)
		EXPECT_EQ(0, pin_pfn(getpid(), b->p.mem));
	b->m.mem += map - b->m.map;
	b->p.mem = b->m.mem;
	b->m.map = map;
	b->m.len = len;
	expect_held(b, how);
}

TEST_F(event, R12_C1_mremap)
{
	size_t len = self->b.m.len, some = self->b.m.mem - self->b.m.map + LEN;
	struct buffer *b = &self->b;
	struct memory *m = &b->m;
	char *place, *old;

	place = mmap(NULL, 16 * HUGE_PAGE, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, place);
	place = (char *)(((uintptr_t)place + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));

	if (variant->kind == HUGETLB) {
		EXPECT_EQ(-EINVAL, try_move(b, place, 0));
		EXPECT_EQ(-EINVAL, try_move(b, place, MREMAP_DONTUNMAP));
		EXPECT_EQ(MAP_FAILED, mremap(m->map, len, 2 * len,
					     MREMAP_MAYMOVE));
		EXPECT_EQ(EINVAL, errno);
		EXPECT_EQ(MAP_FAILED, mremap(m->map, len, some, 0));
		EXPECT_EQ(EINVAL, errno);
		expect_held(b, "after a failed mremap()");
		return;
	}
	if (variant->kind == THP_SPLIT)	/* mremap() moves one mapping */
		ASSERT_EQ(0, mprotect(m->map, len, PROT_READ | PROT_WRITE));

	ASSERT_EQ((long)place, try_move(b, place, 0));
	moved(b, place, len, "moved");
	ASSERT_EQ(0, munmap(place + len, len));
	ASSERT_EQ(place, mremap(place, len, 2 * len, 0));
	moved(b, place, 2 * len, "grown");
	pin_fill(place + len, len / PAGE, 1);
	expect_held(b, "with the new part used");
	/* The reserved range follows, so the mapping has to move. */
	old = place;
	place = mremap(place, 2 * len, 3 * len, MREMAP_MAYMOVE);
	ASSERT_NE(MAP_FAILED, place);
	EXPECT_NE(old, place);
	moved(b, place, 3 * len, "grown and moved");
	EXPECT_EQ(-1, pin_differs(place + len, len / PAGE, 1));
	ASSERT_EQ(place, mremap(place, 3 * len, some, 0));
	moved(b, place, some, "shrunk");

	place = old + 4 * HUGE_PAGE + PAGE;
	ASSERT_EQ((long)place, try_move(b, place, 0));
	moved(b, place, some, "moved unaligned");

	/* Move half of the pinned pages away and back. */
	old = old + 8 * HUGE_PAGE + 2 * PAGE;
	ASSERT_EQ(old, mremap(b->p.mem, LEN / 2, LEN / 2,
			      MREMAP_MAYMOVE | MREMAP_FIXED, old));
	EXPECT_EQ(0, pin_pfn(getpid(), b->p.mem));
	remember_pages(b);
	EXPECT_EQ(was[0].pfn, pin_pfn(getpid(), old));
	EXPECT_EQ(was[NR_PAGES - 1].pfn,
		  pin_pfn(getpid(), b->p.mem + LEN - PAGE));
	ASSERT_EQ(b->p.mem, mremap(old, LEN / 2, LEN / 2,
				   MREMAP_MAYMOVE | MREMAP_FIXED, b->p.mem));
	expect_held(b, "half of it moved back");

	/* Move the pages away from a mapping that stays. */
	place = b->m.map;
	ASSERT_EQ((long)old, try_move(b, old, MREMAP_DONTUNMAP));
	moved(b, old, some, "moved away from its mapping");
	old = b->p.mem - b->m.map + place;
	EXPECT_EQ(0, pin_get(old));
	pin_fill(old, NR_PAGES, 2);
	expect_held(b, "with new pages where it was");
	EXPECT_EQ(-1, pin_differs(old, NR_PAGES, 2));
	remember_pages(b);
	ASSERT_EQ(0, munmap(b->m.map, some));
	give_back(b);
	expect_freed(b, variant->kind);
}

TEST_F(event, R11_R12_C1_mprotect)
{
	struct buffer *b = &self->b;
	char *part = b->m.mem + 2 * PAGE;
	int round, ret = variant->kind == HUGETLB ? -1 : 0;	/* of a part */

	for (round = 0; round < ROUNDS && _metadata->passed; round++) {
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len, PROT_READ));
		expect_held_read_only(b, true, "all of it read-only");
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len, PROT_NONE));
		expect_held_read_only(b, false, "all of it PROT_NONE");
		if (round % 2)
			ASSERT_EQ(0, mprotect(b->m.map, b->m.len, PROT_READ));
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len,
				      PROT_READ | PROT_WRITE));
		expect_held(b, "all of it writable");

		ASSERT_EQ(ret, mprotect(part, 3 * PAGE, PROT_READ));
		expect_held_read_only(b, true, "a part read-only");
		ASSERT_EQ(ret, mprotect(part + PAGE, PAGE, PROT_NONE));
		expect_held_read_only(b, false, "a part PROT_NONE");
		ASSERT_EQ(0, mprotect(part, 3 * PAGE, PROT_READ | PROT_WRITE));
		expect_held(b, "a part writable again");
	}
}

/* Run @child in a child that does not inherit the buffer. Return its status. */
static int remote_ret(struct buffer *b, int (*child)(struct pinned *p))
{
	struct __test_metadata *_metadata = b->p.test;
	pid_t pid;

	ASSERT_EQ(0, call_madvise(b, MADV_DONTFORK));
	pid = make_child(WAY_FORK, child, &b->p);
	ASSERT_LT(0, pid);
	prctl(PR_SET_PTRACER, pid);	/* Yama requires it */
	return reap(pid);
}

static uint32_t remote_seed;

static int child_writev(struct pinned *p)
{
	struct iovec local = { .iov_base = p->bounce, .iov_len = LEN };
	struct iovec remote = { .iov_base = p->mem, .iov_len = LEN };

	pin_fill(p->bounce, NR_PAGES, remote_seed);
	return process_vm_writev(parent, &local, 1, &remote, 1, 0) != LEN;
}

static int child_readv(struct pinned *p)
{
	struct iovec local = { .iov_base = p->bounce, .iov_len = LEN };
	struct iovec remote = { .iov_base = p->mem, .iov_len = LEN };

	if (process_vm_readv(parent, &local, 1, &remote, 1, 0) != LEN)
		return 1;
	return pin_differs(p->bounce, NR_PAGES, remote_seed) < 0 ? 0 : 2;
}

TEST_F(event, R12_C1_process_vm)
{
	struct buffer *b = &self->b;
	struct pinned *p = &b->p;

	/* The child writes, the device reads. */
	remote_seed = ++p->seed;
	EXPECT_EQ(0, remote_ret(b, child_writev));
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, LEN));
	EXPECT_EQ(-1, pin_differs(p->bounce, NR_PAGES, remote_seed));
	EXPECT_EQ(-1, pin_differs(p->mem, NR_PAGES, remote_seed));
	expect_held(b, "after process_vm_writev()");

	/* The device or the parent writes, the child reads. */
	remote_seed = ++p->seed;
	if (b->flags & FAKE_DMA_PIN_WRITE) {
		pin_fill(p->bounce, NR_PAGES, remote_seed);
		ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, LEN));
	} else {
		pin_fill(p->mem, NR_PAGES, remote_seed);
	}
	EXPECT_EQ(0, remote_ret(b, child_readv));
	expect_held(b, "after process_vm_readv()");
}

/* Return the word to poke into @page. */
static unsigned long poked(int page)
{
	return (unsigned long)remote_seed << 32 | page;
}

static int child_pokes(struct pinned *p)
{
	int i, status, ret = 0;
	char *word;

	if (ptrace(PTRACE_SEIZE, parent, 0, 0) ||
	    ptrace(PTRACE_INTERRUPT, parent, 0, 0) ||
	    waitpid(parent, &status, __WALL) != parent)
		return 1;
	for (i = 0; i < NR_PAGES && !ret; i++) {
		word = p->mem + i * PAGE + 2 * STAMP;
		if (ptrace(PTRACE_POKEDATA, parent, word, poked(i)))
			ret = 2;
		errno = 0;
		if (ptrace(PTRACE_PEEKDATA, parent, word, 0) != poked(i))
			ret = 3;
	}
	ptrace(PTRACE_DETACH, parent, 0, 0);
	return ret;
}

/* Count the poked words that the device sees. */
static int count_poked(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;
	uint64_t seen;
	int i, nr = 0;

	for (i = 0; i < NR_PAGES; i++) {
		ASSERT_EQ(0, pin_read(b->p.dev, b->p.handle,
				      i * PAGE + 2 * STAMP, &seen, 8));
		nr += seen == poked(i);
	}
	return nr;
}

TEST_F(event, R11_R12_C1_ptrace)
{
	static const int prots[] = {
		PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE,
	};
	struct buffer *b = &self->b;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(prots) && _metadata->passed; i++) {
		remote_seed = 0x4444 + i;
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len, prots[i]));
		EXPECT_EQ(0, remote_ret(b, child_pokes));
		EXPECT_EQ(NR_PAGES, count_poked(b)) {
			TH_LOG("with protection %d, the device sees %d poked words, expected %d",
			       prots[i], count_poked(b), NR_PAGES);
		}
		expect_held_read_only(b, prots[i], "after a poke");
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len,
				      PROT_READ | PROT_WRITE));
		expect_held(b, "after a poke");
	}
}

/* Write to a read-only mapping through /proc/PID/mem, which uses FOLL_FORCE. */
TEST_F(event, R11_R12_C1_proc_mem)
{
	struct buffer *b = &self->b;
	struct pinned *p = &b->p;
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, mprotect(b->m.map, b->m.len, PROT_READ));
	pin_fill(p->bounce, NR_PAGES, ++p->seed);
	ASSERT_EQ(LEN, pwrite(fd, p->bounce, LEN, (uintptr_t)p->mem));
	expect_held_read_only(b, true, "after a forced write");
	ASSERT_EQ(0, mprotect(b->m.map, b->m.len, PROT_READ | PROT_WRITE));
	expect_held(b, "after a forced write");
	close(fd);
}

/*
 * userfaultfd
 */
struct uffd {
	struct __test_metadata *test;
	int fd, stop[2];
	size_t size;		/* of a page */
	char *source;		/* bytes for missing pages */
	char *start;		/* address that the source stands for */
	pthread_t thread;
	atomic_int faults, error;
};

/* Resolve a fault: remove the protection, or copy the missing page. */
static void uffd_resolve(struct uffd *u, const struct uffd_msg *msg)
{
	uint64_t addr = msg->arg.pagefault.address & ~(u->size - 1);
	struct uffdio_writeprotect wp = {
		.range.start = addr,
		.range.len = u->size,
	};
	struct uffdio_copy copy = {
		.dst = addr,
		.src = (uintptr_t)u->source + (addr - (uintptr_t)u->start),
		.len = u->size,
	};

	u->faults++;
	if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
		if (ioctl(u->fd, UFFDIO_WRITEPROTECT, &wp))
			u->error = errno;
	} else if (ioctl(u->fd, UFFDIO_COPY, &copy)) {
		u->error = errno;
	}
}

static void *uffd_handler(void *arg)
{
	struct uffd *u = arg;
	struct pollfd polls[2] = {
		{ .fd = u->fd, .events = POLLIN },
		{ .fd = u->stop[0], .events = POLLIN },
	};
	struct uffd_msg msg;

	while (poll(polls, 2, -1) > 0 && !polls[1].revents)
		if (read(u->fd, &msg, sizeof(msg)) == sizeof(msg))
			uffd_resolve(u, &msg);
	return NULL;
}

static void uffd_open(struct uffd *u, struct buffer *b, enum kind what)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct __test_metadata *_metadata = b->p.test;

	memset(u, 0, sizeof(*u));
	u->size = what == HUGETLB ? HUGE_PAGE : PAGE;
	u->start = b->m.map;
	u->source = pin_map(b->m.len, MAP_PRIVATE);
	ASSERT_NE(NULL, u->source);
	u->fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	ASSERT_LE(0, u->fd);
	ASSERT_EQ(0, ioctl(u->fd, UFFDIO_API, &api));
	ASSERT_EQ(0, pipe(u->stop));
	ASSERT_EQ(0, pthread_create(&u->thread, NULL, uffd_handler, u));
}

static void uffd_close(struct uffd *u, struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;

	EXPECT_EQ(1, write(u->stop[1], "", 1));
	pthread_join(u->thread, NULL);
	EXPECT_EQ(0, u->error);
	close(u->stop[0]);
	close(u->stop[1]);
	close(u->fd);
}

static int uffd_register(struct uffd *u, char *mem, size_t len, int mode)
{
	struct uffdio_register reg = {
		.range.start = (uintptr_t)mem,
		.range.len = len,
		.mode = mode,
	};

	return ioctl(u->fd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

static int uffd_copy(struct uffd *u, char *to, size_t len)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)u->source,
		.len = len,
	};

	return ioctl(u->fd, UFFDIO_COPY, &copy) ? -errno : 0;
}

static int uffd_zero(struct uffd *u, char *to, size_t len)
{
	struct uffdio_zeropage zero = {
		.range.start = (uintptr_t)to,
		.range.len = len,
	};

	return ioctl(u->fd, UFFDIO_ZEROPAGE, &zero) ? -errno : 0;
}

/* Copy to, and zero, pages that are present: this fails and leaves them. */
TEST_F(event, R12_C1_userfaultfd_present)
{
	struct buffer *b = &self->b;
	struct uffd u;
	size_t off;
	char *empty;

	uffd_open(&u, b, variant->kind);
	off = u.size == PAGE ? b->m.mem - b->m.map : 0;
	empty = pin_map(u.size, MAP_PRIVATE |
			(u.size == HUGE_PAGE ? MAP_HUGETLB : 0));
	ASSERT_NE(NULL, empty);
	ASSERT_EQ(0, uffd_register(&u, b->m.map, b->m.len,
				   UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(0, uffd_register(&u, empty, u.size,
				   UFFDIO_REGISTER_MODE_MISSING));
	ASSERT_EQ(0, uffd_copy(&u, empty, u.size));
	EXPECT_EQ(-EEXIST, uffd_copy(&u, b->m.map + off, u.size));
	expect_held(b, "after a failed UFFDIO_COPY");
	EXPECT_EQ(u.size == PAGE ? -EEXIST : -EINVAL,
		  uffd_zero(&u, b->m.map + off, u.size));
	expect_held(b, "after a failed UFFDIO_ZEROPAGE");
	EXPECT_EQ(0, u.faults);
	uffd_close(&u, b);
	expect_held(b, "after userfaultfd");
	munmap(empty, u.size);
}

/* Pin missing pages: userfaultfd copies them in during the call. */
TEST_F(event, R12_C1_userfaultfd_missing)
{
	struct buffer *b = &self->b;
	struct memory *m = &b->m;
	struct pinned *p = &b->p;
	uint32_t handle;
	struct uffd u;

	give_back(b);
	ASSERT_EQ(0, munmap(m->map, m->len));
	ASSERT_EQ(m->map, mmap(m->map, m->len, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED |
			       (variant->kind == HUGETLB ? MAP_HUGETLB : 0),
			       -1, 0));
	if (variant->kind == THP || variant->kind == THP_SPLIT)
		ASSERT_EQ(0, call_madvise(b, MADV_HUGEPAGE));
	uffd_open(&u, b, variant->kind);
	pin_fill(u.source + (m->mem - m->map), NR_PAGES, ++p->seed);
	ASSERT_EQ(0, uffd_register(&u, m->map, m->len,
				   UFFDIO_REGISTER_MODE_MISSING));
	/* With mmap_lock held, pin_user_pages() cannot wait for the handler. */
	if (b->call == FAKE_DMA_CALL_SLOW) {
		EXPECT_EQ(-EFAULT, pin_range(p->dev, m->mem, LEN, b->flags,
					     b->call, &handle));
		EXPECT_EQ(0, pin_held());
		EXPECT_EQ(0, u.faults);
		b->call = FAKE_DMA_CALL_UNLOCKED;
	}
	pin(p, m->mem, NR_PAGES, b->flags, b->call);
	EXPECT_EQ(u.size == PAGE ? NR_PAGES : 1, u.faults);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, LEN));
	EXPECT_EQ(-1, pin_differs(p->bounce, NR_PAGES, p->seed));
	if (b->flags & FAKE_DMA_PIN_WRITE)
		ASSERT_EQ(0, pin_start(p->dev, p->handle, STAMP, 50));
	expect_held_read_only(b, true, "copied in");
	expect_held(b, "copied in");
	uffd_close(&u, b);
	expect_held(b, "after userfaultfd");
}

/* Write-protect pinned pages by userfaultfd; writes remove the protection. */
TEST_F(event, R11_R12_C1_userfaultfd_wp)
{
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct buffer *b = &self->b;
	struct uffd u;
	int round;

	uffd_open(&u, b, variant->kind);
	if (variant->kind == HUGETLB) {
		EXPECT_EQ(-EINVAL, uffd_register(&u, b->m.map, b->m.len,
						 UFFDIO_REGISTER_MODE_WP));
		uffd_close(&u, b);
		expect_held(b, "after a failed UFFDIO_REGISTER");
		return;
	}
	if (variant->kind == THP_SPLIT)	/* userfaultfd protects one mapping */
		ASSERT_EQ(0, mprotect(b->m.map, b->m.len,
				      PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, uffd_register(&u, b->m.map, b->m.len,
				   UFFDIO_REGISTER_MODE_WP));
	for (round = 1; round <= ROUNDS && _metadata->passed; round++) {
		/* All of it, or in every third round the pinned pages only */
		wp.range.start = (uintptr_t)(round % 3 ? b->m.map : b->m.mem);
		wp.range.len = round % 3 ? b->m.len : LEN;
		ASSERT_EQ(0, ioctl(u.fd, UFFDIO_WRITEPROTECT, &wp));
		expect_held_read_only(b, true, "write-protected");
		EXPECT_EQ((round - 1) * NR_PAGES, u.faults);
		expect_held(b, "writable again");
		EXPECT_EQ(round * NR_PAGES, u.faults);
	}
	/* Remove the protection before any write. */
	ASSERT_EQ(0, ioctl(u.fd, UFFDIO_WRITEPROTECT, &wp));
	wp.mode = 0;
	ASSERT_EQ(0, ioctl(u.fd, UFFDIO_WRITEPROTECT, &wp));
	expect_held(b, "unprotected without a write");
	EXPECT_EQ(ROUNDS * NR_PAGES, u.faults);
	ASSERT_EQ(0, ioctl(u.fd, UFFDIO_UNREGISTER, &wp.range));
	uffd_close(&u, b);
	expect_held(b, "after userfaultfd");
}

/*
 * mlock
 */
/* Wait until no more pages are unevictable than before, and expect it. */
static void expect_unlocked(struct buffer *b, long long locked,
			    long long unevictable, const char *when)
{
	struct __test_metadata *_metadata = b->p.test;
	int n;

	for (n = 0; n < TRIES && pin_vmstat("nr_unevictable") != unevictable;
	     n++) {
		drain_lru();
		usleep(1000);
	}
	EXPECT_EQ(locked, pin_vmstat("nr_mlock")) {
		TH_LOG("%s: nr_mlock is %lld, expected %lld", when,
		       pin_vmstat("nr_mlock"), locked);
	}
	EXPECT_EQ(unevictable, pin_vmstat("nr_unevictable")) {
		TH_LOG("%s: nr_unevictable is %lld, expected %lld", when,
		       pin_vmstat("nr_unevictable"), unevictable);
	}
}

TEST_F(event, R12_C1_mlock)
{
	long long unevictable = pin_vmstat("nr_unevictable");
	long long locked = pin_vmstat("nr_mlock");
	bool counted = variant->kind != HUGETLB && variant->kind != THP_SPLIT;
	struct buffer *b = &self->b;
	struct memory *m = &b->m;

	ASSERT_EQ(0, mlock(m->map, m->len));
	expect_held(b, "locked");
	EXPECT_EQ(counted, pin_vmstat("nr_mlock") > locked);
	if (variant->kind != HUGETLB)
		EXPECT_EQ(-EINVAL, call_madvise(b, MADV_DONTNEED));
	ASSERT_EQ(0, munlock(m->map, m->len));
	expect_held(b, "unlocked");
	expect_unlocked(b, locked, unevictable, "munlock()");

	ASSERT_EQ(0, syscall(SYS_mlock2, m->map, m->len, MLOCK_ONFAULT));
	expect_held(b, "locked on fault");
	ASSERT_EQ(0, munlock(m->map, m->len));
	expect_held(b, "unlocked after lock on fault");
	expect_unlocked(b, locked, unevictable, "after mlock2()");

	if (variant->kind != HUGETLB)	/* a part of it */
		ASSERT_EQ(0, mlock(m->mem + PAGE, 2 * PAGE));
	expect_held(b, "locked in part");
	ASSERT_EQ(0, munlock(m->map, m->len));
	expect_unlocked(b, locked, unevictable, "after a part was locked");

	ASSERT_EQ(0, mlockall(MCL_CURRENT | MCL_FUTURE));
	expect_held(b, "all locked");
	ASSERT_EQ(0, munlockall());
	expect_held(b, "all unlocked");
	ASSERT_EQ(0, mlockall(MCL_CURRENT | MCL_ONFAULT));
	expect_held(b, "all locked on fault");
	ASSERT_EQ(0, munlockall());
	expect_held(b, "all unlocked after lock on fault");
	expect_unlocked(b, locked, unevictable, "munlockall()");

	/* Lock pages, and unmap them while they are pinned. */
	ASSERT_EQ(0, mlock(m->map, m->len));
	remember_pages(b);
	ASSERT_EQ(0, munmap(m->map, m->len));
	expect_unlocked(b, locked, unevictable, "munmap()");
	give_back(b);
	expect_freed(b, variant->kind);
	expect_unlocked(b, locked, unevictable, "unpinned");
}

/* Return value @name of the mapping at @mem in smaps, in kB, or -1. */
static long smaps_number(const void *mem, const char *name)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long start, end;
	long value, found = -1;
	char line[256], key[64];
	bool here = false;

	if (!file)
		return -1;
	while (found < 0 && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = (uintptr_t)mem >= start && (uintptr_t)mem < end;
		else if (here && sscanf(line, "%63s %ld", key, &value) == 2 &&
			 !strcmp(key, name))
			found = value;
	}
	fclose(file);
	return found;
}

TEST_F(event, R11_R12_C1_clear_refs)
{
	struct buffer *b = &self->b;
	bool hugetlb = variant->kind == HUGETLB;	/* clear_refs skips it */
	char what[2] = "1";
	int round, i, dirty;

	for (round = 0; round < ROUNDS && _metadata->passed; round++) {
		ASSERT_EQ(0, pin_write_file("/proc/self/clear_refs", "4"));
		for (i = 0, dirty = 0; i < NR_PAGES; i++)
			dirty += pin_soft_dirty(b->p.mem + i * PAGE);
		EXPECT_EQ(0, dirty);
		expect_held_read_only(b, true, "after clear_refs of soft-dirty bits");
		expect_held(b, "writes after clear_refs");
		for (i = 0, dirty = 0; i < NR_PAGES; i++)
			dirty += pin_soft_dirty(b->p.mem + i * PAGE);
		EXPECT_EQ(hugetlb ? 0 : NR_PAGES, dirty);

		what[0] = '1' + round % 3;
		ASSERT_EQ(0, pin_write_file("/proc/self/clear_refs", what));
		if (!hugetlb && what[0] != '3')
			EXPECT_EQ(0, smaps_number(b->p.mem, "Referenced:"));
		/* A stale TLB entry may skip setting the accessed bit: expect C1 only. */
		expect_held(b, "after clear_refs of references");
	}
}

int main(int argc, char **argv)
{
	pin_need_device();
	keep_settings();
	return test_harness_run(argc, argv);
}
