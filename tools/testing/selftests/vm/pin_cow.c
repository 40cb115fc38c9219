// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copy-on-write and references to pages. An R/O pin is taken on an exclusive page
 * (R10, C1). A write fault reuses a pinned page (R11). A reference to a page that
 * was shared at fork does not show later writes (R14, CVE-2020-29374).
 */
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <setjmp.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#include "pin_memory.h"

/*
 * R10: R/O pins.
 */
FIXTURE(read_pin) {
	struct pinned p;
	struct memory m;
	bool filled;		/* the memory holds AT_FORK */
};

FIXTURE_VARIANT(read_pin) {
	enum kind kind;
	uint32_t call;
	uint32_t flags;
};

FIXTURE_VARIANT_ADD(read_pin, base_fast) {
	.kind = BASE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, base_slow) {
	.kind = BASE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, swapped_fast) {
	.kind = SWAPPED,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, swapped_slow) {
	.kind = SWAPPED,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, thp_fast) {
	.kind = THP,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, thp_slow) {
	.kind = THP,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, thp_split_fast) {
	.kind = THP_SPLIT,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, thp_split_slow) {
	.kind = THP_SPLIT,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, thp_partial_fast) {
	.kind = THP_PARTIAL,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, thp_partial_slow) {
	.kind = THP_PARTIAL,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, thp_swapped_fast) {
	.kind = THP_SWAPPED,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, thp_swapped_slow) {
	.kind = THP_SWAPPED,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, hugetlb_fast) {
	.kind = HUGETLB,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, hugetlb_slow) {
	.kind = HUGETLB,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, ksm_fast) {
	.kind = KSM_PAGE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, ksm_slow) {
	.kind = KSM_PAGE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, zero_fast) {
	.kind = ZERO,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, zero_slow) {
	.kind = ZERO,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, huge_zero_fast) {
	.kind = HUGE_ZERO,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, huge_zero_slow) {
	.kind = HUGE_ZERO,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, file_fast) {
	.kind = FILE_PAGE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, file_slow) {
	.kind = FILE_PAGE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, file_hugetlb_fast) {
	.kind = FILE_HUGETLB,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(read_pin, file_hugetlb_slow) {
	.kind = FILE_HUGETLB,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(read_pin, base_longterm) {
	.kind = BASE,
	.call = FAKE_DMA_CALL_FAST,
	.flags = FAKE_DMA_PIN_LONGTERM,
};

FIXTURE_SETUP(read_pin)
{
	open_device(_metadata, &self->p);
	make_memory(_metadata, &self->p, &self->m, variant->kind);
	self->p.mem = self->m.mem;
	self->p.nr = NR_PAGES;
	self->filled = variant->kind != ZERO && variant->kind != HUGE_ZERO &&
		       variant->kind != KSM_PAGE;
}

FIXTURE_TEARDOWN(read_pin)
{
	drop_memory(&self->m);
}

/* Pin pages R/O while a child shares them, then write to them. */
TEST_F(read_pin, R10_C1_C2_written_after_the_pin)
{
	struct pinned *p = &self->p;
	pid_t child;

	child = make_child(WAY_FORK, self->filled ? child_looks_late :
			   child_waits, p);
	ASSERT_LT(0, child);
	pin(p, p->mem, NR_PAGES, variant->flags, variant->call);
	if (self->filled) {
		ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce,
				      NR_PAGES * PAGE));
		EXPECT_EQ(-1, pin_differs(p->bounce, NR_PAGES, AT_FORK));
	}
	expect_seen(p, "beside the child");
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	expect_seen(p, "after the child's exit");
	EXPECT_EQ(0, pin_unpin(p->dev, p->handle, 0));
	EXPECT_EQ(0, pin_held());
}

/* Pin pages R/O, fork, then write to them in the parent. */
TEST_F(read_pin, R7_R10_C1_fork_after_the_pin)
{
	struct pinned *p = &self->p;
	pid_t child;

	pin(p, p->mem, NR_PAGES, variant->flags, variant->call);
	child = make_child(WAY_FORK, self->filled ? child_looks_late :
			   child_waits, p);
	ASSERT_LT(0, child);
	expect_seen(p, "beside the child");
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	expect_seen(p, "after the child's exit");
	EXPECT_EQ(0, pin_unpin(p->dev, p->handle, 0));
}

/* Pin in the child the pages that it shares with the parent. */
static uint32_t child_call, child_flags;

static int child_pins(struct pinned *p)
{
	struct __test_metadata *_metadata = p->test;
	struct pinned own = { 0 };

	open_device(_metadata, &own);
	pin(&own, p->mem, p->nr, child_flags, child_call);
	expect_seen(&own, "in the child");
	++*p->arrived;
	wait_stage(p, 1);
	ASSERT_EQ(0, pin_read(own.dev, own.handle, 0, own.bounce,
			      own.nr * PAGE));
	EXPECT_EQ(-1, pin_differs(own.bounce, own.nr, own.seed)) {
		TH_LOG("page %ld of the child's pin has other bytes than the child wrote",
		       pin_differs(own.bounce, own.nr, own.seed));
	}
	expect_seen(&own, "in the child, after the parent wrote");
	return !_metadata->passed;
}

TEST_F(read_pin, R10_C1_C2_pinned_by_the_child)
{
	struct pinned *p = &self->p;
	pid_t child;

	child_call = variant->call;
	child_flags = variant->flags;
	child = make_child(WAY_FORK, child_pins, p);
	ASSERT_LT(0, child);
	wait_arrived(p, 1);
	if (self->filled)
		EXPECT_EQ(-1, pin_differs(p->mem, p->nr, AT_FORK));
	pin_fill(p->mem, p->nr, 0x1234);
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	EXPECT_EQ(-1, pin_differs(p->mem, p->nr, 0x1234));
}

/* Take an R/O pin and a write pin of the same pages, in either order. */
TEST_F(read_pin, R10_R11_C1_beside_a_pin_for_writing)
{
	struct pinned *p = &self->p;
	uint32_t read, write;

	ASSERT_EQ(0, pin_range(p->dev, p->mem, NR_PAGES * PAGE, variant->flags,
			       variant->call, &read));
	ASSERT_EQ(0, pin_range(p->dev, p->mem, NR_PAGES * PAGE,
			       FAKE_DMA_PIN_WRITE | variant->flags,
			       variant->call, &write));
	p->handle = write;
	expect_identity(p, "write pin");
	p->handle = read;
	expect_seen(p, "R/O pin");
	ASSERT_EQ(0, pin_unpin(p->dev, read, 0));
	ASSERT_EQ(0, pin_range(p->dev, p->mem, NR_PAGES * PAGE, variant->flags,
			       variant->call, &read));
	p->handle = read;
	expect_seen(p, "second R/O pin");
	ASSERT_EQ(0, pin_unpin(p->dev, read, 0));
	ASSERT_EQ(0, pin_unpin(p->dev, write, 0));
}

/*
 * R10, R11: unsharing keeps the state that tracks writes (soft-dirty bits,
 * userfaultfd write protection), and tracking does not replace a pinned page.
 */
FIXTURE(tracked) {
	struct pinned p;
	struct memory m;
};

FIXTURE_VARIANT(tracked) {
	enum kind kind;
	uint32_t flags;
};

FIXTURE_VARIANT_ADD(tracked, base_read) {
	.kind = BASE,
};

FIXTURE_VARIANT_ADD(tracked, base_write) {
	.kind = BASE,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(tracked, swapped_read) {
	.kind = SWAPPED,
};

FIXTURE_VARIANT_ADD(tracked, swapped_write) {
	.kind = SWAPPED,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(tracked, thp_read) {
	.kind = THP,
};

FIXTURE_VARIANT_ADD(tracked, thp_write) {
	.kind = THP,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(tracked, thp_split_read) {
	.kind = THP_SPLIT,
};

FIXTURE_VARIANT_ADD(tracked, thp_split_write) {
	.kind = THP_SPLIT,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_SETUP(tracked)
{
	open_device(_metadata, &self->p);
	make_memory(_metadata, &self->p, &self->m, variant->kind);
	self->p.mem = self->m.mem;
	self->p.nr = NR_PAGES;
}

FIXTURE_TEARDOWN(tracked)
{
	drop_memory(&self->m);
}

TEST_F(tracked, R10_R11_C1_soft_dirty)
{
	struct pinned *p = &self->p;
	pid_t child;
	int i;

	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);
	ASSERT_EQ(0, pin_write_file("/proc/self/clear_refs", "4"));
	ASSERT_EQ(0, pin_soft_dirty(p->mem));
	pin(p, p->mem, NR_PAGES, variant->flags, FAKE_DMA_CALL_FAST);
	/* An R/O pin writes nothing. */
	for (i = 0; !variant->flags && i < NR_PAGES; i++)
		EXPECT_EQ(0, pin_soft_dirty(p->mem + i * PAGE));
	expect_seen(p, "beside the child");
	EXPECT_EQ(1, pin_soft_dirty(p->mem));
	ASSERT_EQ(0, pin_write_file("/proc/self/clear_refs", "4"));
	EXPECT_EQ(0, pin_soft_dirty(p->mem));
	expect_seen(p, "after another clear_refs");
	EXPECT_EQ(1, pin_soft_dirty(p->mem));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	EXPECT_EQ(0, pin_unpin(p->dev, p->handle, 0));
}

/* State of the thread that removes the protection of each page that faults. */
struct uffd {
	int fd;
	atomic_int faults;
};

static void *uffd_unprotect(void *arg)
{
	struct uffd *u = arg;
	struct uffd_msg msg;

	while (read(u->fd, &msg, sizeof(msg)) == sizeof(msg)) {
		struct uffdio_writeprotect wp = {
			.range.start = msg.arg.pagefault.address & ~(PAGE - 1),
			.range.len = PAGE,
		};

		if (!(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP))
			break;
		u->faults++;
		if (ioctl(u->fd, UFFDIO_WRITEPROTECT, &wp))
			break;
	}
	return NULL;
}

TEST_F(tracked, R10_R11_C1_userfaultfd_wp)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct pinned *p = &self->p;
	struct uffd u = { 0 };
	pthread_t thread;
	pid_t child;
	int i;

	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);
	for (i = 0; i < NR_PAGES; i++)	/* swap entries are not protected */
		pin_get(p->mem + i * PAGE);
	u.fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	ASSERT_LE(0, u.fd);
	ASSERT_EQ(0, ioctl(u.fd, UFFDIO_API, &api));
	reg.range.start = (uintptr_t)p->mem;
	reg.range.len = NR_PAGES * PAGE;
	wp.range = reg.range;
	ASSERT_EQ(0, ioctl(u.fd, UFFDIO_REGISTER, &reg));
	ASSERT_EQ(0, ioctl(u.fd, UFFDIO_WRITEPROTECT, &wp));
	ASSERT_EQ(0, pthread_create(&thread, NULL, uffd_unprotect, &u));

	/* A write pin faults as a write does. An R/O pin does not. */
	pin(p, p->mem, NR_PAGES, variant->flags, FAKE_DMA_CALL_FAST);
	EXPECT_EQ(variant->flags ? NR_PAGES : 0, u.faults);
	expect_seen(p, "beside the child");
	EXPECT_EQ(NR_PAGES, u.faults);
	ASSERT_EQ(0, ioctl(u.fd, UFFDIO_WRITEPROTECT, &wp));
	expect_seen(p, "protected again");
	EXPECT_EQ(2 * NR_PAGES, u.faults);
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	EXPECT_EQ(0, pin_unpin(p->dev, p->handle, 0));
	pthread_cancel(thread);
	pthread_join(thread, NULL);
	close(u.fd);
}

/*
 * A debugger writes to a page that is mapped read-only and pinned.
 */
FIXTURE(poked) {
	struct pinned p;
	struct memory m;
};

FIXTURE_VARIANT(poked) {
	enum kind kind;
};

FIXTURE_VARIANT_ADD(poked, base) {
	.kind = BASE,
};

FIXTURE_VARIANT_ADD(poked, swapped) {
	.kind = SWAPPED,
};

FIXTURE_VARIANT_ADD(poked, thp) {
	.kind = THP,
};

FIXTURE_VARIANT_ADD(poked, thp_split) {
	.kind = THP_SPLIT,
};

FIXTURE_VARIANT_ADD(poked, ksm) {
	.kind = KSM_PAGE,
};

FIXTURE_SETUP(poked)
{
	open_device(_metadata, &self->p);
	make_memory(_metadata, &self->p, &self->m, variant->kind);
	self->p.mem = self->m.mem;
	self->p.nr = NR_PAGES;
}

FIXTURE_TEARDOWN(poked)
{
	drop_memory(&self->m);
}

static int tracee(struct pinned *p)
{
	if (mprotect(p->mem, NR_PAGES * PAGE, PROT_READ))
		return 1;
	ptrace(PTRACE_TRACEME);
	raise(SIGSTOP);
	return pin_get(p->mem) == 0x5678 ? 0 : 2;
}

TEST_F(poked, R10_R12_C1_ptrace_poke)
{
	struct pinned *p = &self->p;
	uint64_t seen = 0;
	pid_t child;
	int status;

	child = make_child(WAY_FORK, tracee, p);
	ASSERT_LT(0, child);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_TRUE(WIFSTOPPED(status));
	ASSERT_EQ(0, pin_range_pid(p->dev, child, p->mem, NR_PAGES * PAGE, 0,
				   &p->handle));
	ASSERT_EQ(0, ptrace(PTRACE_POKEDATA, child, p->mem, 0x5678L));
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, &seen, sizeof(seen)));
	EXPECT_EQ(0x5678, seen) {
		TH_LOG("the device reads %#llx in the first word, expected the debugger's 0x5678",
		       (unsigned long long)seen);
	}
	EXPECT_NE(0x5678, pin_get(p->mem));
	ASSERT_EQ(0, ptrace(PTRACE_CONT, child, 0, 0));
	EXPECT_EQ(0, reap(child));
	EXPECT_EQ(0, pin_unpin(p->dev, p->handle, 0));
}

/*
 * R14: a process that holds a reference to a shared page does not see later
 * writes of the other process.
 */
FIXTURE(leak) {
	struct pinned p;
	struct memory m;
};

FIXTURE_VARIANT(leak) {
	enum kind kind;
	bool get;		/* the device holds the references, not a pipe */
};

FIXTURE_VARIANT_ADD(leak, base_vmsplice) {
	.kind = BASE,
};

FIXTURE_VARIANT_ADD(leak, base_get) {
	.kind = BASE,
	.get = true,
};

FIXTURE_VARIANT_ADD(leak, swapped_vmsplice) {
	.kind = SWAPPED,
};

FIXTURE_VARIANT_ADD(leak, swapped_get) {
	.kind = SWAPPED,
	.get = true,
};

FIXTURE_VARIANT_ADD(leak, thp_vmsplice) {
	.kind = THP,
};

FIXTURE_VARIANT_ADD(leak, thp_get) {
	.kind = THP,
	.get = true,
};

FIXTURE_VARIANT_ADD(leak, thp_split_vmsplice) {
	.kind = THP_SPLIT,
};

FIXTURE_VARIANT_ADD(leak, thp_split_get) {
	.kind = THP_SPLIT,
	.get = true,
};

FIXTURE_VARIANT_ADD(leak, thp_partial_vmsplice) {
	.kind = THP_PARTIAL,
};

FIXTURE_VARIANT_ADD(leak, thp_partial_get) {
	.kind = THP_PARTIAL,
	.get = true,
};

FIXTURE_VARIANT_ADD(leak, thp_swapped_vmsplice) {
	.kind = THP_SWAPPED,
};

FIXTURE_VARIANT_ADD(leak, thp_swapped_get) {
	.kind = THP_SWAPPED,
	.get = true,
};

FIXTURE_VARIANT_ADD(leak, hugetlb_vmsplice) {
	.kind = HUGETLB,
};

FIXTURE_VARIANT_ADD(leak, hugetlb_get) {
	.kind = HUGETLB,
	.get = true,
};

/* References to NR_PAGES pages */
struct held {
	bool get;
	uint32_t handle;
	int pipe[2];
};

static struct held held;
static struct memory memory;

FIXTURE_SETUP(leak)
{
	open_device(_metadata, &self->p);
	make_memory(_metadata, &self->p, &self->m, variant->kind);
	self->p.mem = self->m.mem;
	self->p.nr = NR_PAGES;
	held.get = variant->get;
	memory = self->m;
}

FIXTURE_TEARDOWN(leak)
{
	drop_memory(&self->m);
}

/* Take read references to the pages. Return 0 or a negative errno. */
static int hold(struct pinned *p)
{
	struct iovec iov = { .iov_base = p->mem, .iov_len = NR_PAGES * PAGE };

	if (held.get)
		return pin_range(p->dev, p->mem, NR_PAGES * PAGE,
				 FAKE_DMA_PIN_GET, FAKE_DMA_CALL_FAST,
				 &held.handle);
	if (pipe(held.pipe) ||
	    vmsplice(held.pipe[1], &iov, 1, 0) != NR_PAGES * PAGE)
		return -errno;
	return 0;
}

static int let_go_of_mapping(void)
{
	return munmap(memory.map, memory.len);
}

/* Return 0 if the references show the bytes of the time of fork. */
static int look_at_held(struct pinned *p)
{
	size_t done = 0;
	ssize_t n;

	if (held.get) {
		if (pin_read(p->dev, held.handle, 0, p->bounce,
			     NR_PAGES * PAGE))
			return 2;
	} else {
		while (done < NR_PAGES * PAGE) {
			n = read(held.pipe[0], p->bounce + done,
				 NR_PAGES * PAGE - done);
			if (n <= 0)
				return 3;
			done += n;
		}
	}
	if (pin_differs(p->bounce, NR_PAGES, AT_FORK) < 0)
		return 0;
	fprintf(stderr, "# reference to page %ld shows other bytes than at fork\n",
		pin_differs(p->bounce, NR_PAGES, AT_FORK));
	return 1;
}

static int child_holds(struct pinned *p)
{
	int ret = hold(p);

	if (ret || let_go_of_mapping()) {
		fprintf(stderr, "# child: references or munmap() failed: %d, expected 0\n",
			ret);
		ret = 4;
	}
	++*p->arrived;
	wait_stage(p, 1);
	return ret ?: look_at_held(p);
}

TEST_F(leak, R14_child_holds_parent_writes)
{
	struct pinned *p = &self->p;
	pid_t child = make_child(WAY_FORK, child_holds, p);

	ASSERT_LT(0, child);
	wait_arrived(p, 1);
	pin_fill(p->mem, NR_PAGES, 2);
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	EXPECT_EQ(-1, pin_differs(p->mem, NR_PAGES, 2));
}

static int child_writes_late(struct pinned *p)
{
	int ret;

	wait_stage(p, 1);
	ret = child_looks(p);
	pin_fill(p->mem, NR_PAGES, 3);
	++*p->arrived;
	wait_stage(p, 2);
	return ret ?: pin_differs(p->mem, NR_PAGES, 3) >= 0;
}

TEST_F(leak, R14_parent_holds_child_writes)
{
	struct pinned *p = &self->p;
	pid_t child = make_child(WAY_FORK, child_writes_late, p);

	ASSERT_LT(0, child);
	ASSERT_EQ(0, hold(p));
	ASSERT_EQ(0, let_go_of_mapping());
	*p->stage = 1;
	wait_arrived(p, 1);
	EXPECT_EQ(0, look_at_held(p));
	*p->stage = 2;
	EXPECT_EQ(0, reap(child));
}

TEST_F(leak, R14_parent_held_before_fork_child_writes)
{
	struct pinned *p = &self->p;
	pid_t child;

	ASSERT_EQ(0, hold(p));
	child = make_child(WAY_FORK, child_writes_late, p);
	ASSERT_LT(0, child);
	ASSERT_EQ(0, let_go_of_mapping());
	*p->stage = 1;
	wait_arrived(p, 1);
	EXPECT_EQ(0, look_at_held(p));
	*p->stage = 2;
	EXPECT_EQ(0, reap(child));
}

/*
 * If the hugetlb pool is empty, a write cannot copy a page that has other
 * references. It waits for their holders for a while, and then gets SIGBUS.
 */
FIXTURE(last) {
	struct pinned p;
	long pool;
	char *mem;
};

FIXTURE_VARIANT(last) {
	bool file;		/* private mapping of a file with one page */
};

FIXTURE_VARIANT_ADD(last, anonymous) {
	.file = false,
};

FIXTURE_VARIANT_ADD(last, file) {
	.file = true,
};

static char *map_last(bool file)
{
	int fd = file ? memfd_create("pin_cow", MFD_CLOEXEC | MFD_HUGETLB) : -1;
	int anonymous = file ? 0 : MAP_ANONYMOUS | MAP_HUGETLB;
	char *mem;

	if (file) {
		if (fd < 0 || ftruncate(fd, HUGE_PAGE))
			return NULL;
		mem = mmap(NULL, HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
			   fd, 0);
		if (mem == MAP_FAILED)
			return NULL;
		pin_set(mem, 1);
		munmap(mem, HUGE_PAGE);
	}
	mem = mmap(NULL, HUGE_PAGE, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | anonymous, fd, 0);
	close(fd);
	return mem == MAP_FAILED ? NULL : mem;
}

/* Share the page with a child that exits, and take a reference to it. */
static void share_last(struct __test_metadata *_metadata,
		       FIXTURE_DATA(last) * self)
{
	struct pinned *p = &self->p;

	pin_fill(self->mem, NR_PAGES, AT_FORK);
	ASSERT_EQ(0, reap(make_child(WAY_FORK, child_exits, p)));
	ASSERT_EQ(0, pin_range(p->dev, self->mem, NR_PAGES * PAGE,
			       FAKE_DMA_PIN_GET, FAKE_DMA_CALL_FAST,
			       &p->handle));
}

FIXTURE_SETUP(last)
{
	struct pinned *p = &self->p;

	open_device(_metadata, p);
	self->pool = pin_set_pool(1 + variant->file);
	self->mem = map_last(variant->file);
	if (!self->mem) {
		pin_set_pool(self->pool);
		SKIP(_exit(255), "a hugetlb pool of %d pages was not allocated",
		     1 + variant->file);
	}
	share_last(_metadata, self);
}

FIXTURE_TEARDOWN(last)
{
	munmap(self->mem, HUGE_PAGE);
	pin_set_pool(self->pool);
}

static __thread sigjmp_buf retreat;

static void on_sigbus(int sig)
{
	siglongjmp(retreat, 1);
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Write to all pages. Return NULL, or @mem if SIGBUS ended the writing. */
static void *write_last(void *mem)
{
	if (sigsetjmp(retreat, 1))
		return mem;
	pin_fill(mem, NR_PAGES, 2);
	return NULL;
}

struct holder {
	struct pinned *p;
	uint64_t began, ended;	/* times around the unpin, in ms */
	int ret;
};

static void *let_go_later(void *arg)
{
	struct holder *h = arg;

	usleep(100000);
	h->began = now_ms();
	h->ret = pin_unpin(h->p->dev, h->p->handle, 0);
	h->ended = now_ms();
	return NULL;
}

/*
 * Write from two threads while a third holds a reference and drops it soon. Both
 * writes wait for it, and not for each other. If the machine is busy, the third
 * thread may be late, so try again.
 */
TEST_F(last, R14_write_waits_for_a_reference)
{
	struct holder h = { .p = &self->p };
	pthread_t thread, writer;
	void *killed, *too;
	uint64_t began;
	int tries;

	signal(SIGBUS, on_sigbus);
	for (tries = 0; tries < 20; tries++) {
		if (tries)
			share_last(_metadata, self);
		ASSERT_EQ(0, pthread_create(&thread, NULL, let_go_later, &h));
		began = now_ms();
		ASSERT_EQ(0, pthread_create(&writer, NULL, write_last,
					    self->mem));
		killed = write_last(self->mem);
		ASSERT_EQ(0, pthread_join(writer, &too));
		ASSERT_EQ(0, pthread_join(thread, NULL));
		ASSERT_EQ(0, h.ret);
		if (began < h.began && h.ended < began + 500)
			break;
	}
	ASSERT_LT(tries, 20);
	EXPECT_EQ(NULL, killed);
	EXPECT_EQ(NULL, too);
	EXPECT_EQ(-1, pin_differs(self->mem, NR_PAGES, 2));
}

TEST_F(last, R14_write_does_not_wait_for_ever)
{
	struct pinned *p = &self->p;

	signal(SIGBUS, on_sigbus);
	if (!sigsetjmp(retreat, 1)) {
		pin_fill(self->mem, NR_PAGES, 2);
		EXPECT_TRUE(false) {
			TH_LOG("the write to a page with a reference succeeded, expected SIGBUS");
		}
	}
	EXPECT_EQ(-1, pin_differs(self->mem, NR_PAGES, AT_FORK));
	EXPECT_EQ(0, pin_unpin(p->dev, p->handle, 0));
	pin_fill(self->mem, NR_PAGES, 3);
	EXPECT_EQ(-1, pin_differs(self->mem, NR_PAGES, 3));
}

int main(int argc, char **argv)
{
	pin_need_device();
	keep_settings();
	return test_harness_run(argc, argv);
}
