// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test fork and pinned anonymous memory. The process that pinned a page keeps
 * it (R7, C1). The child gets the bytes of the time of fork, not later ones (C2).
 */
#define _GNU_SOURCE
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "pin_process.h"

#define NR_PAGES	32	/* pages of a buffer */
#define FIRST		8	/* index of the first pinned page */
#define NR_PINNED	16

/* Check the bytes of the time of fork, then write and expect no others. */
static int child_writes(struct pinned *p)
{
	int ret = child_looks(p);
	long page;

	pin_fill(p->mem, p->nr, 0xc0c0);
	++*p->arrived;
	wait_stage(p, 1);
	page = pin_differs(p->mem, p->nr, 0xc0c0);
	if (page >= 0) {
		fprintf(stderr, "# child: page %ld of %zu has lost the child's write\n",
			page, p->nr);
		return 1;
	}
	return ret;
}

/* Write a word to each page. Return the number of minor faults. */
static long write_faults(char *mem, size_t nr)
{
	static struct rusage before, after;
	size_t i;

	getrusage(RUSAGE_SELF, &before);
	for (i = 0; i < nr; i++)
		pin_set(mem + i * PAGE, i);
	getrusage(RUSAGE_SELF, &after);
	return after.ru_minflt - before.ru_minflt;
}

/*
 * Test each kind of fork with each kind of pin.
 */
FIXTURE(fork) {
	struct pinned p;
	char *buf;		/* NR_PAGES pages, NR_PINNED of them pinned */
};

FIXTURE_VARIANT(fork) {
	enum way way;
	uint32_t call;
	uint32_t flags;
};

FIXTURE_VARIANT_ADD(fork, fork_fast) {
	.way = WAY_FORK,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(fork, fork_slow) {
	.way = WAY_FORK,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(fork, fork_longterm) {
	.way = WAY_FORK,
	.call = FAKE_DMA_CALL_FAST,
	.flags = FAKE_DMA_PIN_LONGTERM,
};

FIXTURE_VARIANT_ADD(fork, clone_fast) {
	.way = WAY_CLONE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(fork, clone3_slow) {
	.way = WAY_CLONE3,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(fork, thread_fast) {
	.way = WAY_THREAD,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(fork, thread_slow) {
	.way = WAY_THREAD,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_SETUP(fork)
{
	open_device(_metadata, &self->p);
	self->buf = pin_map_small(NR_PAGES);
	ASSERT_NE(NULL, self->buf);
	pin_fill(self->buf, NR_PAGES, 1);
	pin(&self->p, self->buf + FIRST * PAGE, NR_PINNED,
	    FAKE_DMA_PIN_WRITE | variant->flags, variant->call);
	expect_identity(&self->p, "before fork");
	pin_fill(self->p.mem, NR_PINNED, AT_FORK);
}

FIXTURE_TEARDOWN(fork)
{
	expect_identity(&self->p, "when all is over");
	EXPECT_EQ(0, pin_unpin(self->p.dev, self->p.handle,
			       FAKE_DMA_UNPIN_DIRTY));
}

TEST_F(fork, R7_C1_child_exits_first)
{
	pid_t child = make_child(variant->way, child_exits, &self->p);

	ASSERT_EQ(0, reap(child));
	expect_identity(&self->p, "after the child's exit");
}

TEST_F(fork, R7_C1_C2_parent_writes_first)
{
	pid_t child = make_child(variant->way, child_looks_late, &self->p);

	ASSERT_LT(0, child);
	expect_identity(&self->p, "beside the child");
	*self->p.stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(fork, R7_C1_C2_device_writes_first)
{
	struct pinned *p = &self->p;
	pid_t child = make_child(variant->way, child_looks_late, p);

	ASSERT_LT(0, child);
	pin_fill(p->bounce, p->nr, 2);
	ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	EXPECT_EQ(-1, pin_differs(p->mem, p->nr, 2));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(fork, R7_C1_C2_child_writes_first)
{
	struct pinned *p = &self->p;
	pid_t child = make_child(variant->way, child_writes, p);

	ASSERT_LT(0, child);
	wait_arrived(p, 1);
	EXPECT_EQ(-1, pin_differs(p->mem, p->nr, AT_FORK));
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	EXPECT_EQ(-1, pin_differs(p->bounce, p->nr, AT_FORK));
	expect_identity(p, "beside a child that wrote");
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(fork, R7_C1_parent_entry_stays_writable)
{
	struct pinned *p = &self->p;
	pid_t child = make_child(variant->way, child_looks_late, p);

	ASSERT_LT(0, child);
	/* Writes to shared pages fault, which proves that faults are counted. */
	EXPECT_LE(FIRST, write_faults(self->buf, FIRST));
	EXPECT_EQ(0, write_faults(p->mem, p->nr));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(fork, R7_C6_only_pinned_pages_are_copied)
{
	pid_t child = make_child(variant->way, child_looks_late, &self->p);
	uint64_t ours, theirs;
	bool pinned;
	int i;

	ASSERT_LT(0, child);
	for (i = 0; i < NR_PAGES; i++) {
		ours = pin_pfn(getpid(), self->buf + i * PAGE);
		theirs = pin_pfn(child, self->buf + i * PAGE);
		ASSERT_NE(0, ours);
		ASSERT_NE(0, theirs);
		pinned = i >= FIRST && i < FIRST + NR_PINNED;
		EXPECT_EQ(pinned, ours != theirs);
	}
	*self->p.stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(fork, R7_C6_shares_again_after_unpin)
{
	struct pinned *p = &self->p;
	pid_t child;
	size_t i;

	ASSERT_EQ(0, reap(make_child(variant->way, child_exits, p)));
	expect_identity(p, "while still pinned");
	pin_fill(p->mem, p->nr, AT_FORK);
	ASSERT_EQ(0, pin_unpin(p->dev, p->handle, 0));

	child = make_child(variant->way, child_looks_late, p);
	ASSERT_LT(0, child);
	for (i = 0; i < p->nr; i++)
		EXPECT_EQ(pin_pfn(getpid(), p->mem + i * PAGE),
			  pin_pfn(child, p->mem + i * PAGE));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));

	pin(p, p->mem, p->nr, FAKE_DMA_PIN_WRITE, variant->call);
}

TEST_F(fork, R7_C1_C2_many_children)
{
	pid_t child[64];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(child); i++) {
		child[i] = make_child(variant->way, i % 2 ? child_writes :
				      child_looks_late, &self->p);
		ASSERT_LT(0, child[i]);
	}
	wait_arrived(&self->p, ARRAY_SIZE(child));
	expect_identity(&self->p, "beside 64 children");
	*self->p.stage = 1;
	for (i = 0; i < ARRAY_SIZE(child); i++)
		EXPECT_EQ(0, reap(child[i]));
}

/* Pin the child's own copy and fork: a grandchild sees the same promises. */
static int child_pins_and_forks(struct pinned *p)
{
	struct __test_metadata *_metadata = p->test;
	struct pinned own = { 0 };
	pid_t child;

	open_device(_metadata, &own);
	pin(&own, p->mem, p->nr, FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST);
	EXPECT_EQ(0, child_looks(&own));
	child = make_child(WAY_FORK, child_looks_late, &own);
	expect_identity(&own, "in the child");
	*own.stage = 1;
	EXPECT_EQ(0, reap(child));
	expect_identity(&own, "in the child, after the grandchild's exit");
	return !_metadata->passed;
}

/* Fork in a child without pins: child and grandchild share pages. */
static int child_forks(struct pinned *p)
{
	struct __test_metadata *_metadata = p->test;
	pid_t child = make_child(WAY_FORK, child_looks_late, p);
	int ret;

	EXPECT_EQ(pin_pfn(getpid(), p->mem), pin_pfn(child, p->mem));
	++*p->arrived;
	ret = reap(child);
	return ret ? ret : child_looks(p) || !_metadata->passed;
}

TEST_F(fork, R7_C1_C2_child_forks)
{
	struct pinned *p = &self->p;
	pid_t child[2];

	child[0] = make_child(variant->way, child_forks, p);
	ASSERT_LT(0, child[0]);
	child[1] = make_child(variant->way, child_pins_and_forks, p);
	ASSERT_LT(0, child[1]);
	/* Wait for the first child and for its child. */
	wait_arrived(p, 2);
	expect_identity(p, "beside child and grandchild");
	*p->stage = 1;
	EXPECT_EQ(0, reap(child[0]));
	EXPECT_EQ(0, reap(child[1]));
}

/* Offset of the engine's stamp; write_faults() writes another word. */
#define STAMP	64

/* Return the stamp in a page. */
static uint64_t stamp(char *mem, size_t page)
{
	return pin_get(mem + page * PAGE + STAMP);
}

/* Return 0 if the stamps stay as they were at fork. */
static int child_watches_stamps(struct pinned *p)
{
	uint64_t at_fork[NR_MAX];
	size_t i;
	int n;

	for (i = 0; i < p->nr; i++)
		at_fork[i] = stamp(p->mem, i);
	for (n = 0; n < 5; n++) {
		usleep(1000);
		for (i = 0; i < p->nr; i++) {
			if (stamp(p->mem, i) == at_fork[i])
				continue;
			fprintf(stderr, "# child: the device writes to page %zu of the child\n",
				i);
			return 1;
		}
	}
	return 0;
}

TEST_F(fork, R7_C1_C2_while_the_device_writes)
{
	struct pinned *p = &self->p;
	uint64_t before[NR_PINNED], rounds;
	size_t i, late;
	pid_t child;
	int n, wait;

	ASSERT_EQ(0, pin_start(p->dev, p->handle, STAMP, 50));
	for (n = 0; n < 10; n++) {
		child = make_child(variant->way, child_watches_stamps, p);
		ASSERT_LT(0, child);
		write_faults(p->mem, p->nr);
		for (i = 0; i < p->nr; i++)
			before[i] = stamp(p->mem, i);
		/* Wait for seconds, as the engine may share its CPU. */
		for (wait = 0, late = p->nr; late && wait < 3000; wait++) {
			usleep(1000);
			for (i = 0, late = 0; i < p->nr; i++)
				late += stamp(p->mem, i) == before[i];
		}
		EXPECT_EQ(0, late) {
			TH_LOG("fork %d: %zu of %zu pages get no new stamp",
			       n, late, p->nr);
		}
		EXPECT_EQ(0, reap(child));
		if (!_metadata->passed)
			break;
	}
	ASSERT_EQ(0, pin_stop(p->dev, p->handle, &rounds));
	for (i = 0; i < p->nr; i++)
		EXPECT_EQ(rounds, stamp(p->mem, i));
}

/*
 * Test children that execute a program. Until exec, a child of vfork() or
 * posix_spawn() uses the parent's memory, so only fork() loses data on a kernel
 * without pins. The program is this one; it ends with its input.
 */
#define CHILD_PROGRAM	"/proc/self/exe"

static char *const child_argv[] = { "pin_fork", "child", NULL };

static int child_program(void)
{
	char c;

	return read(STDIN_FILENO, &c, 1) != 0;
}

FIXTURE(exec) {
	struct pinned p;
	int in[2];
};

FIXTURE_VARIANT(exec) {
	pid_t (*start)(int in, char *mem);
};

/* Start the program by vfork(). The child writes to the parent's memory. */
static pid_t start_vfork(int in, char *mem)
{
	pid_t pid = vfork();

	if (!pid) {
		pin_set(mem, 0xabcd);
		dup2(in, STDIN_FILENO);
		execv(CHILD_PROGRAM, child_argv);
		_exit(1);
	}
	return pid;
}

static pid_t start_fork(int in, char *mem)
{
	pid_t pid = fork();

	if (!pid) {
		dup2(in, STDIN_FILENO);
		execv(CHILD_PROGRAM, child_argv);
		_exit(1);
	}
	pin_set(mem, 0xabcd);
	return pid;
}

static pid_t start_spawn(int in, char *mem)
{
	posix_spawn_file_actions_t actions;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
	if (posix_spawn(&pid, CHILD_PROGRAM, &actions, NULL, child_argv, NULL))
		pid = -1;
	posix_spawn_file_actions_destroy(&actions);
	pin_set(mem, 0xabcd);
	return pid;
}

FIXTURE_VARIANT_ADD(exec, vfork) {
	.start = start_vfork,
};

FIXTURE_VARIANT_ADD(exec, fork) {
	.start = start_fork,
};

FIXTURE_VARIANT_ADD(exec, posix_spawn) {
	.start = start_spawn,
};

FIXTURE_SETUP(exec)
{
	char *mem = pin_map_small(NR_PINNED);

	open_device(_metadata, &self->p);
	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, pipe2(self->in, O_CLOEXEC));
	pin(&self->p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST);
	expect_identity(&self->p, "before");
}

FIXTURE_TEARDOWN(exec)
{
	EXPECT_EQ(0, pin_unpin(self->p.dev, self->p.handle, 0));
}

TEST_F(exec, R7_C1_program_is_started)
{
	struct pinned *p = &self->p;
	uint64_t seen = 0;
	pid_t child;

	child = variant->start(self->in[0], p->mem);
	ASSERT_LT(0, child);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, &seen, sizeof(seen)));
	EXPECT_EQ(0xabcd, seen);
	expect_identity(p, "beside the program");
	close(self->in[1]);
	EXPECT_EQ(0, reap(child));
	expect_identity(p, "after the program");
}

/*
 * Test kinds of memory and of mappings with fork().
 */
FIXTURE(layout) {
	struct pinned p;
};

FIXTURE_VARIANT(layout) {
	uint32_t call;
};

FIXTURE_VARIANT_ADD(layout, fast) {
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(layout, slow) {
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_SETUP(layout)
{
	open_device(_metadata, &self->p);
}

FIXTURE_TEARDOWN(layout)
{
}

/* Fork. Check parent, child and device before and after the child's exit. */
static void expect_survives_fork(struct pinned *p)
{
	struct __test_metadata *_metadata = p->test;
	pid_t child;

	expect_identity(p, "before fork");
	pin_fill(p->mem, p->nr, AT_FORK);
	*p->stage = 0;
	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);
	expect_identity(p, "beside the child");
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	expect_identity(p, "after the child's exit");
}

TEST_F(layout, R7_never_touched_before_the_pin)
{
	char *mem = pin_map_small(NR_PINNED);

	ASSERT_NE(NULL, mem);
	pin(&self->p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	expect_survives_fork(&self->p);
}

TEST_F(layout, R7_private_file_page_written_before_the_pin)
{
	int fd = memfd_create("pin_fork", MFD_CLOEXEC);
	char *mem;

	ASSERT_EQ(0, ftruncate(fd, NR_PINNED * PAGE));
	mem = mmap(NULL, NR_PINNED * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE,
		   fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	pin_fill(mem, NR_PINNED, 1);
	pin(&self->p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	expect_survives_fork(&self->p);
}

TEST_F(layout, R7_private_file_page_written_by_the_pin)
{
	int fd = memfd_create("pin_fork", MFD_CLOEXEC);
	char *mem;

	ASSERT_EQ(0, ftruncate(fd, NR_PINNED * PAGE));
	mem = mmap(NULL, NR_PINNED * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE,
		   fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	pin(&self->p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	expect_survives_fork(&self->p);
}

/* Shared memory stays shared with the child, pinned or not. */
TEST_F(layout, R7_shared_memory_is_not_copied)
{
	struct pinned *p = &self->p;
	char *mem = pin_map(NR_PINNED * PAGE, MAP_SHARED);
	pid_t child;
	size_t i;

	ASSERT_NE(NULL, mem);
	pin(p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);
	expect_identity(p, "beside the child");
	/* The child of this test must see a write after fork. */
	pin_fill(p->bounce, p->nr, AT_FORK);
	ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	for (i = 0; i < p->nr; i++)
		ASSERT_NE(0, pin_pfn(getpid(), p->mem + i * PAGE));
}

static int child_unprotects(struct pinned *p)
{
	wait_stage(p, 1);
	if (mprotect(p->mem, p->nr * PAGE, PROT_READ))
		return 1;
	return child_looks(p);
}

/* Only read after fork: other tests cover write faults. */
TEST_F(layout, R7_protected_after_the_pin)
{
	const int prot[] = { PROT_READ, PROT_NONE };
	struct pinned *p = &self->p;
	pid_t child;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(prot); i++) {
		char *mem = pin_map_small(NR_PINNED);

		ASSERT_NE(NULL, mem);
		pin(p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
		expect_identity(p, "before mprotect");
		pin_fill(mem, NR_PINNED, AT_FORK);
		ASSERT_EQ(0, mprotect(mem, NR_PINNED * PAGE, prot[i]));

		*p->stage = 0;
		child = make_child(WAY_FORK, child_unprotects, p);
		ASSERT_LT(0, child);
		pin_fill(p->bounce, p->nr, 2);
		ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce,
				       p->nr * PAGE));
		ASSERT_EQ(0, mprotect(mem, NR_PINNED * PAGE, PROT_READ));
		EXPECT_EQ(-1, pin_differs(mem, NR_PINNED, 2));
		*p->stage = 1;
		EXPECT_EQ(0, reap(child));

		pin_fill(p->bounce, p->nr, 3);
		ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce,
				       p->nr * PAGE));
		EXPECT_EQ(-1, pin_differs(mem, NR_PINNED, 3));
		ASSERT_EQ(0, pin_unpin(p->dev, p->handle, 0));
	}
}

static int child_has_no_mapping(struct pinned *p)
{
	unsigned char in_core;

	return !(mincore(p->mem, PAGE, &in_core) && errno == ENOMEM);
}

TEST_F(layout, R7_dontfork_is_still_honoured)
{
	char *mem = pin_map_small(NR_PINNED);
	pid_t child;

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, madvise(mem, NR_PINNED * PAGE, MADV_DONTFORK));
	pin(&self->p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	child = make_child(WAY_FORK, child_has_no_mapping, &self->p);
	EXPECT_EQ(0, reap(child));
	expect_identity(&self->p, "after the child's exit");
}

static int child_sees_zeros(struct pinned *p)
{
	size_t i;

	for (i = 0; i < p->nr * PAGE; i++)
		if (p->mem[i])
			return 1;
	return 0;
}

TEST_F(layout, R7_wipeonfork_is_still_honoured)
{
	char *mem = pin_map_small(NR_PINNED);
	pid_t child;

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, madvise(mem, NR_PINNED * PAGE, MADV_WIPEONFORK));
	pin(&self->p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	expect_identity(&self->p, "before fork");
	child = make_child(WAY_FORK, child_sees_zeros, &self->p);
	EXPECT_EQ(0, reap(child));
	expect_identity(&self->p, "after the child's exit");
}

TEST_F(layout, R7_R12_moved_by_mremap_after_the_pin)
{
	char *mem = pin_map_small(NR_PINNED), *to = pin_map_small(NR_PINNED);

	ASSERT_NE(NULL, mem);
	ASSERT_NE(NULL, to);
	pin(&self->p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	ASSERT_EQ(to, mremap(mem, NR_PINNED * PAGE, NR_PINNED * PAGE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	self->p.mem = to;
	expect_survives_fork(&self->p);
}

static int child_writes_and_is_tracked(struct pinned *p)
{
	if (pin_soft_dirty(p->mem) != 0)
		return 1;
	p->mem[0] = 'c';
	return pin_soft_dirty(p->mem) == 1 ? 0 : 2;
}

TEST_F(layout, R7_soft_dirty_state_of_the_copy)
{
	struct pinned *p = &self->p;
	char *mem = pin_map_small(1);
	int fd;

	ASSERT_NE(NULL, mem);
	pin_fill(mem, 1, AT_FORK);
	p->mem = mem;
	p->nr = 1;
	ASSERT_EQ(0, pin_range(p->dev, mem, PAGE, FAKE_DMA_PIN_WRITE,
			       variant->call, &p->handle));
	fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(1, write(fd, "4", 1));
	close(fd);
	EXPECT_EQ(0, reap(make_child(WAY_FORK, child_writes_and_is_tracked, p)));
}

/* In the first and the last page, only the CPU accesses the other bytes. */
TEST_F(layout, R7_range_starts_and_ends_within_pages)
{
	struct pinned *p = &self->p;
	const size_t start = 1000, len = 3 * PAGE - 2000;
	char *mem = pin_map_small(3);
	pid_t child;

	ASSERT_NE(NULL, mem);
	pin_fill(mem, 3, AT_FORK);
	p->mem = mem;
	p->nr = 3;
	ASSERT_EQ(0, pin_range(p->dev, mem + start, len, FAKE_DMA_PIN_WRITE,
			       variant->call, &p->handle));
	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);

	memset(mem, 'p', 3 * PAGE);
	memset(p->bounce, 'd', len);
	ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, len));
	EXPECT_EQ('p', mem[start - 1]);
	EXPECT_EQ('d', mem[start]);
	EXPECT_EQ('d', mem[start + len - 1]);
	EXPECT_EQ('p', mem[start + len]);
	memset(mem, 'q', 3 * PAGE);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, len));
	EXPECT_EQ('q', p->bounce[0]);
	EXPECT_EQ('q', p->bounce[len - 1]);

	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(layout, R7_pinned_twice_and_unpinned_once)
{
	struct pinned *p = &self->p;
	char *mem = pin_map_small(NR_PINNED);
	uint32_t other;

	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, pin_range(p->dev, mem, NR_PINNED * PAGE,
			       FAKE_DMA_PIN_WRITE, variant->call, &other));
	pin(p, mem, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	ASSERT_EQ(0, pin_unpin(p->dev, other, 0));
	expect_survives_fork(p);
}

/*
 * Let another process pin our memory, then fork. Our child must see the same as
 * after a pin of our own.
 */
static int child_is_pinned_and_forks(struct pinned *p)
{
	int ret;

	++*p->arrived;
	wait_stage(p, 1);
	pin_fill(p->mem, p->nr, AT_FORK);
	ret = reap(make_child(WAY_FORK, child_looks, p));
	if (ret)
		return ret;
	pin_fill(p->mem, p->nr, 2);
	++*p->arrived;
	wait_stage(p, 2);
	return pin_differs(p->mem, p->nr, 3) >= 0;
}

TEST_F(layout, R5_R7_pinned_by_another_process)
{
	struct pinned *p = &self->p;
	pid_t child;
	long differs;
	int status;

	p->mem = pin_map_small(NR_PINNED);
	p->nr = NR_PINNED;
	ASSERT_NE(NULL, p->mem);
	child = make_child(WAY_FORK, child_is_pinned_and_forks, p);
	ASSERT_LT(0, child);
	wait_arrived(p, 1);
	ASSERT_EQ(0, pin_range_pid(p->dev, child, p->mem, p->nr * PAGE,
				   FAKE_DMA_PIN_WRITE, &p->handle));
	*p->stage = 1;
	wait_arrived(p, 2);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	differs = pin_differs(p->bounce, p->nr, 2);
	EXPECT_EQ(-1, differs) {
		TH_LOG("page %ld: the device does not read the bytes that the owner wrote",
		       differs);
	}
	pin_fill(p->bounce, p->nr, 3);
	ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	*p->stage = 2;
	status = reap(child);
	EXPECT_EQ(0, status) {
		TH_LOG("the owner exits with %d, not 0: it or its child read wrong bytes",
		       status);
	}
}

TEST_F(layout, R7_subpages_of_a_split_thp_mapping)
{
	char *mem;
	int i;

	for (i = 0; i < 4; i++) {
		mem = pin_map_thp(self->p.dev, 1);
		if (!mem)
			SKIP(return, "cannot map a transparent huge page");
		if (i & 1)
			pin(&self->p, mem + 100 * PAGE, NR_PINNED,
			    FAKE_DMA_PIN_WRITE, variant->call);
		/* This leaves the rest PTE-mapped. */
		ASSERT_EQ(0, i & 2 ? munmap(mem + HUGE_PAGE - PAGE, PAGE) :
				     mprotect(mem + PAGE, PAGE, PROT_READ));
		if (!(i & 1))
			pin(&self->p, mem + 100 * PAGE, NR_PINNED,
			    FAKE_DMA_PIN_WRITE, variant->call);
		expect_survives_fork(&self->p);
		ASSERT_EQ(0, pin_unpin(self->p.dev, self->p.handle, 0));
		*self->p.stage = 0;
	}
}

/* Unmapping and moving parts of a THP does not change the rest. */
TEST_F(layout, R7_R12_parts_of_a_thp_unmapped_and_moved)
{
	struct pinned *p = &self->p;
	char *mem = pin_map_thp(p->dev, 1), *to = pin_map_small(NR_PINNED);

	if (!mem)
		SKIP(return, "cannot map a transparent huge page");
	ASSERT_NE(NULL, to);
	pin(p, mem + 100 * PAGE, NR_PINNED, FAKE_DMA_PIN_WRITE, variant->call);
	ASSERT_EQ(0, munmap(mem + 90 * PAGE, 5 * PAGE));
	expect_survives_fork(p);
	ASSERT_EQ(to, mremap(p->mem, NR_PINNED * PAGE, NR_PINNED * PAGE,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	p->mem = to;
	expect_survives_fork(p);
}

/*
 * Test huge pages: the parent keeps its page and its huge entry, and the child
 * gets a huge copy.
 */
#define NR_HUGE		2
#define NR_POOL		4	/* NR_HUGE, a copy by fork, a copy on write */

struct huge {
	struct pinned p;
	char *buf;		/* NR_HUGE huge pages, the first one pinned */
	size_t size;		/* size of a huge page */
	bool hugetlb;
	long pool_size;		/* pool size to restore */
};

FIXTURE(huge) {
	struct huge h;
};

FIXTURE_VARIANT(huge) {
	size_t hugetlb;		/* page size, 0 for transparent huge pages */
	uint32_t call;
	size_t nr;		/* pages to pin */
	size_t first;		/* index of the first of them */
};

FIXTURE_VARIANT_ADD(huge, thp_fast) {
	.call = FAKE_DMA_CALL_FAST,
	.nr = NR_PINNED,
	.first = 100,
};

FIXTURE_VARIANT_ADD(huge, thp_slow) {
	.call = FAKE_DMA_CALL_SLOW,
	.nr = NR_PINNED,
	.first = 100,
};

FIXTURE_VARIANT_ADD(huge, thp_one_subpage) {
	.call = FAKE_DMA_CALL_FAST,
	.nr = 1,
	.first = 511,
};

FIXTURE_VARIANT_ADD(huge, thp_whole) {
	.call = FAKE_DMA_CALL_FAST,
	.nr = 512,
};

FIXTURE_VARIANT_ADD(huge, hugetlb_fast) {
	.hugetlb = HUGE_PAGE,
	.call = FAKE_DMA_CALL_FAST,
	.nr = NR_PINNED,
	.first = 100,
};

FIXTURE_VARIANT_ADD(huge, hugetlb_slow) {
	.hugetlb = HUGE_PAGE,
	.call = FAKE_DMA_CALL_SLOW,
	.nr = NR_PINNED,
	.first = 100,
};

FIXTURE_VARIANT_ADD(huge, hugetlb_whole) {
	.hugetlb = HUGE_PAGE,
	.call = FAKE_DMA_CALL_FAST,
	.nr = 512,
};

FIXTURE_VARIANT_ADD(huge, hugetlb_1g) {
	.hugetlb = 1UL << 30,
	.call = FAKE_DMA_CALL_FAST,
	.nr = NR_PINNED,
	.first = 200000,
};

#define POOL	"/sys/kernel/mm/hugepages/hugepages-%zukB/%s"

/* Return a number of the pool of huge pages of @size, or -1. */
static long pool(size_t size, const char *what)
{
	char name[128];

	snprintf(name, sizeof(name), POOL, size >> 10, what);
	return pin_file_number(name);
}

/* Set the number of huge pages of the pool. Return the resulting number. */
static long set_pool(size_t size, long nr)
{
	char name[128];

	snprintf(name, sizeof(name), POOL, size >> 10, "nr_hugepages");
	pin_write_number(name, nr);
	return pin_file_number(name);
}

/* Return how many kB of the mapping at @mem a process maps by huge entries. */
static long huge_kb(pid_t pid, char *mem)
{
	unsigned long start, end;
	char name[64], line[256];
	bool ours = false;
	long kb, sum = 0;
	FILE *file;

	snprintf(name, sizeof(name), "/proc/%d/smaps", pid);
	file = fopen(name, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			ours = start <= (uintptr_t)mem && (uintptr_t)mem < end;
		else if (ours && (sscanf(line, "AnonHugePages: %ld", &kb) == 1 ||
				  sscanf(line, "Private_Hugetlb: %ld", &kb) == 1 ||
				  sscanf(line, "Shared_Hugetlb: %ld", &kb) == 1))
			sum += kb;
	}
	fclose(file);
	return sum;
}

/* Return mmap() flags for huge pages of @size. */
static int map_hugetlb(size_t size)
{
	return MAP_PRIVATE | MAP_HUGETLB | (ffsl(size) - 1) << MAP_HUGE_SHIFT;
}

/* Map NR_HUGE pages of size @hugetlb from the pool, or THPs if it is 0. */
static void map_huge(struct __test_metadata *_metadata, struct huge *h,
		     size_t hugetlb)
{
	open_device(_metadata, &h->p);
	h->hugetlb = hugetlb;
	h->size = hugetlb ?: HUGE_PAGE;
	if (hugetlb) {
		h->pool_size = pool(h->size, "nr_hugepages");
		if (set_pool(h->size, NR_POOL) != NR_POOL) {
			set_pool(h->size, h->pool_size);
			SKIP(_exit(255), "cannot allocate a pool of %d huge pages of %zu MB",
			     NR_POOL, h->size >> 20);
		}
		h->buf = pin_map(NR_HUGE * h->size, map_hugetlb(h->size));
	} else {
		h->buf = pin_map_thp(h->p.dev, NR_HUGE);
		if (!h->buf)
			SKIP(_exit(255), "cannot map %d transparent huge pages",
			     NR_HUGE);
	}
	ASSERT_NE(NULL, h->buf);
	pin_set(h->buf + h->size, 1);
}

static void pin_huge(struct __test_metadata *_metadata, struct huge *h,
		     size_t first, size_t nr, uint32_t call)
{
	pin(&h->p, h->buf + first * PAGE, nr, FAKE_DMA_PIN_WRITE, call);
	expect_identity(&h->p, "before fork");
	pin_fill(h->p.mem, h->p.nr, AT_FORK);
}

static void unpin_huge(struct __test_metadata *_metadata, struct huge *h)
{
	expect_identity(&h->p, "when all is over");
	EXPECT_EQ(0, pin_unpin(h->p.dev, h->p.handle, 0));
	munmap(h->buf, NR_HUGE * h->size);
	if (h->hugetlb) {
		EXPECT_EQ(NR_POOL, pool(h->size, "free_hugepages"));
		EXPECT_EQ(0, pool(h->size, "resv_hugepages"));
		set_pool(h->size, h->pool_size);
	}
}

FIXTURE_SETUP(huge)
{
	map_huge(_metadata, &self->h, variant->hugetlb);
	pin_huge(_metadata, &self->h, variant->first, variant->nr,
		 variant->call);
}

FIXTURE_TEARDOWN(huge)
{
	unpin_huge(_metadata, &self->h);
}

TEST_F(huge, R7_C1_C2_child_and_parent)
{
	struct pinned *p = &self->h.p;
	pid_t child;

	child = make_child(WAY_FORK, child_writes, p);
	ASSERT_LT(0, child);
	wait_arrived(p, 1);
	EXPECT_EQ(-1, pin_differs(p->mem, p->nr, AT_FORK));
	expect_identity(p, "beside a child that wrote");
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	expect_identity(p, "after the child's exit");
}

TEST_F(huge, R7_C1_C2_device_writes_first)
{
	struct pinned *p = &self->h.p;
	pid_t child = make_child(WAY_FORK, child_looks_late, p);

	ASSERT_LT(0, child);
	pin_fill(p->bounce, p->nr, 2);
	ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	EXPECT_EQ(-1, pin_differs(p->mem, p->nr, 2));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
}

/* The parent's entry is neither split nor write-protected, the copy is huge. */
TEST_F(huge, R7_C1_C6_entries_of_both)
{
	struct pinned *p = &self->h.p;
	long kb = NR_HUGE * self->h.size >> 10;
	pid_t child = make_child(WAY_FORK, child_looks_late, p);

	ASSERT_LT(0, child);
	/* A write to the shared page faults, which proves that faults are counted. */
	EXPECT_LT(0, write_faults(self->h.buf + self->h.size, 1));
	EXPECT_EQ(0, write_faults(p->mem, p->nr));
	/* This write has split a shared THP. */
	EXPECT_EQ(variant->hugetlb ? kb : kb / NR_HUGE,
		  huge_kb(getpid(), self->h.buf));
	EXPECT_EQ(kb, huge_kb(child, self->h.buf));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(huge, R7_C6_only_the_pinned_page_is_copied)
{
	char *other = self->h.buf + self->h.size;
	pid_t child = make_child(WAY_FORK, child_looks_late, &self->h.p);

	ASSERT_LT(0, child);
	EXPECT_NE(pin_pfn(getpid(), self->h.buf), pin_pfn(child, self->h.buf));
	ASSERT_NE(0, pin_pfn(child, self->h.buf));
	EXPECT_EQ(pin_pfn(getpid(), other), pin_pfn(child, other));
	ASSERT_NE(0, pin_pfn(child, other));
	*self->h.p.stage = 1;
	EXPECT_EQ(0, reap(child));
}

TEST_F(huge, R7_C6_shares_again_after_unpin)
{
	struct pinned *p = &self->h.p;
	pid_t child;

	ASSERT_EQ(0, reap(make_child(WAY_FORK, child_exits, p)));
	ASSERT_EQ(0, pin_unpin(p->dev, p->handle, 0));
	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);
	EXPECT_EQ(pin_pfn(getpid(), p->mem), pin_pfn(child, p->mem));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	pin(p, p->mem, p->nr, FAKE_DMA_PIN_WRITE, variant->call);
}

/*
 * Test the hugetlb pool that copies come from.
 */
FIXTURE(pool) {
	struct huge h;
};

FIXTURE_VARIANT(pool) {
	size_t size;
};

FIXTURE_VARIANT_ADD(pool, 2m) {
	.size = HUGE_PAGE,
};

FIXTURE_VARIANT_ADD(pool, 1g) {
	.size = 1UL << 30,
};

FIXTURE_SETUP(pool)
{
	map_huge(_metadata, &self->h, variant->size);
	pin_huge(_metadata, &self->h, 100, NR_PINNED, FAKE_DMA_CALL_FAST);
}

FIXTURE_TEARDOWN(pool)
{
	unpin_huge(_metadata, &self->h);
}

/* Use up @nr pages. A pool of 1 GB pages that was shrunk may not grow again. */
static char *take_from_pool(struct huge *h, size_t nr)
{
	char *mem = pin_map(nr * h->size, map_hugetlb(h->size));
	size_t i;

	for (i = 0; mem && i < nr; i++)
		pin_set(mem + i * h->size, 1);
	return mem;
}

TEST_F(pool, R9_empty_pool_fails_fork)
{
	static const char *const numbers[] = {
		"nr_hugepages", "free_hugepages", "resv_hugepages",
		"surplus_hugepages"
	};
	size_t i, nr = NR_POOL - NR_HUGE, size = self->h.size;
	struct pinned *p = &self->h.p;
	long before[ARRAY_SIZE(numbers)];
	char *taken = take_from_pool(&self->h, nr);

	ASSERT_NE(NULL, taken);
	for (i = 0; i < ARRAY_SIZE(numbers); i++)
		before[i] = pool(size, numbers[i]);
	EXPECT_EQ(0, before[1]);
	ASSERT_EQ(-1, make_child(WAY_FORK, child_exits, p));
	EXPECT_EQ(ENOMEM, errno);
	for (i = 0; i < ARRAY_SIZE(numbers); i++)
		EXPECT_EQ(before[i], pool(size, numbers[i]));
	expect_identity(p, "after the fork that failed");
	EXPECT_EQ(-1, waitpid(-1, NULL, WNOHANG));
	ASSERT_EQ(0, munmap(taken, nr * size));
	pin_fill(p->mem, p->nr, AT_FORK);
	EXPECT_EQ(0, reap(make_child(WAY_FORK, child_looks, p)));
}

/* The copy does not take a page that the parent has reserved. */
TEST_F(pool, R9_reservation_of_the_parent)
{
	size_t nr = NR_POOL - NR_HUGE - 1, size = self->h.size;
	char *taken = take_from_pool(&self->h, nr);
	char *reserved = pin_map(size, map_hugetlb(size));

	ASSERT_NE(NULL, taken);
	ASSERT_NE(NULL, reserved);
	EXPECT_EQ(1, pool(size, "resv_hugepages"));
	ASSERT_EQ(-1, make_child(WAY_FORK, child_exits, &self->h.p));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_EQ(1, pool(size, "resv_hugepages"));
	EXPECT_EQ(1, pool(size, "free_hugepages"));
	pin_set(reserved, 1);
	EXPECT_EQ(0, pool(size, "free_hugepages"));
	ASSERT_EQ(0, munmap(reserved, size));
	ASSERT_EQ(0, munmap(taken, nr * size));
	EXPECT_EQ(0, reap(make_child(WAY_FORK, child_looks, &self->h.p)));
}

/*
 * R2, C6: fork must not copy a page that only looks pinned because it has 1024
 * references.
 */
#define MANY	1100

FIXTURE(many) {
	struct pinned p;
	pid_t child[MANY];
	int nr;
};

FIXTURE_SETUP(many)
{
	open_device(_metadata, &self->p);
	self->p.mem = pin_map_small(2);
	self->p.nr = 1;
	ASSERT_NE(NULL, self->p.mem);
	pin_fill(self->p.mem, 2, AT_FORK);
}

FIXTURE_TEARDOWN(many)
{
	int i;

	for (i = 0; i < self->nr; i++)
		kill(self->child[i], SIGKILL);
	for (i = 0; i < self->nr; i++)
		waitpid(self->child[i], NULL, 0);
}

/* Sleep until the parent kills us or dies. */
static int child_pauses(struct pinned *p)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() == parent)
		pause();
	return 1;
}

TEST_F(many, R2_C6_unpinned_page_is_shared_with_any_number)
{
	struct pinned *p = &self->p;
	struct fake_dma_page page;
	uint32_t handle;
	pid_t child;

	while (self->nr < MANY) {
		child = make_child(WAY_FORK, child_pauses, p);
		ASSERT_LT(0, child);
		self->child[self->nr++] = child;
	}
	ASSERT_EQ(0, pin_range(p->dev, p->mem, PAGE, FAKE_DMA_PIN_GET,
			       FAKE_DMA_CALL_FAST, &handle));
	ASSERT_EQ(0, pin_query(p->dev, handle, 0, 1, &page));
	ASSERT_EQ(0, pin_unpin(p->dev, handle, 0));
	ASSERT_LT(1024, page.refcount);

	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);
	EXPECT_EQ(page.pfn, pin_pfn(getpid(), p->mem));
	EXPECT_EQ(page.pfn, pin_pfn(child, p->mem));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));

	/* A pin of another page must not change that. */
	ASSERT_EQ(0, pin_range(p->dev, p->mem + PAGE, PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &handle));
	*p->stage = 0;
	child = make_child(WAY_FORK, child_looks_late, p);
	ASSERT_LT(0, child);
	EXPECT_EQ(page.pfn, pin_pfn(child, p->mem));
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], child_argv[1]))
		return child_program();
	pin_need_device();
	pin_keep(PIN_POOL);
	return test_harness_run(argc, argv);
}
