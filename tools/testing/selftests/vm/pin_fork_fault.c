// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test fork of a process with pinned memory if an allocation fails (R9): fork
 * fails with ENOMEM, does not change the parent and leaks nothing. The copies
 * are charged to the process that forks.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <glob.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../kselftest_harness.h"
#include "pin_util.h"

#define NR_PAGES	64	/* pinned pages; the copy of each can fail */
#define PASSES		4	/* passes over all allocations, to find leaks */
#define STACK		(64UL << 10)

#define FAULTS		"/sys/kernel/debug/"
#define CGROUPS		"/sys/fs/cgroup/"
#define CGROUP		CGROUPS "pin_fork_fault/"
#define EVENTS		CGROUP "memory.events"
#define CHILD_CGROUP	CGROUPS "pin_fork_fault.child/"

/* Move to a new memory cgroup. Return 0 or a negative errno. */
static int enter_cgroup(void)
{
	int ret = pin_write_file(CGROUPS "cgroup.subtree_control", "+memory");

	if (ret)
		return ret;
	if (mkdir(CGROUP, 0755) && errno != EEXIST)
		return -errno;
	return pin_write_file(CGROUP "cgroup.procs", "0");
}

static void leave_cgroup(void)
{
	pin_write_file(CGROUPS "cgroup.procs", "0");
	rmdir(CGROUP);
}

/* Return the number of pages charged to our cgroup. */
static long charged(void)
{
	return pin_file_number(CGROUP "memory.current") / (long)PAGE;
}

/* Return the number of hugetlb pages charged to our cgroup. */
static long hugetlb_charged(void)
{
	return pin_file_number(CGROUP "hugetlb.2MB.current") / (long)HUGE_PAGE;
}

/*
 * Return the difference of charges that is noise: each CPU keeps up to 32 pages
 * that are charged but unused, and kernel objects are freed with a delay.
 */
static long charge_noise(void)
{
	return 2 * 32 * sysconf(_SC_NPROCESSORS_CONF);
}

/* Shrink all slab caches, as KASAN keeps freed objects charged until then. */
static void shrink_slabs(void)
{
	glob_t caches;
	size_t i;

	if (glob("/sys/kernel/slab/*/shrink", GLOB_NOSORT, NULL, &caches))
		return;
	for (i = 0; i < caches.gl_pathc; i++)
		pin_write_file(caches.gl_pathv[i], "1");
	globfree(&caches);
}

/* Wait until the charge stops falling, as kernel memory is freed late. */
static long charged_at_rest(void)
{
	long now, last;
	int same = 0;

	shrink_slabs();
	now = charged();
	while (same < 5) {
		usleep(20000);
		last = now;
		now = charged();
		same = now < last ? 0 : same + 1;
	}
	return now;
}

/* Return true if process and device access the same pages in both directions. */
static bool same_pages(int dev, uint32_t handle, char *mem, size_t nr,
		       uint32_t seed)
{
	static char bounce[NR_PAGES * PAGE];
	struct fake_dma_page pages[NR_PAGES];
	size_t i;

	pin_fill(mem, nr, seed);
	if (pin_read(dev, handle, 0, bounce, nr * PAGE) ||
	    pin_differs(bounce, nr, seed) >= 0)
		return false;
	pin_fill(bounce, nr, seed + 1);
	if (pin_write(dev, handle, 0, bounce, nr * PAGE) ||
	    pin_differs(mem, nr, seed + 1) >= 0)
		return false;
	if (pin_query(dev, handle, 0, nr, pages))
		return false;
	for (i = 0; i < nr; i += 8)
		if (pages[i].pfn != pin_pfn(getpid(), mem + i * PAGE))
			return false;
	return true;
}

enum kind { BASE_PAGES, THP, HUGETLB };

/* Map memory of one kind. Return NULL on failure. */
static char *map_kind(int dev, enum kind kind, size_t nr_pages)
{
	size_t nr_huge = (nr_pages * PAGE + HUGE_PAGE - 1) / HUGE_PAGE;

	switch (kind) {
	case THP:
		return pin_map_thp(dev, nr_huge);
	case HUGETLB:
		pin_set_pool(2 * nr_huge);
		return pin_map(nr_huge * HUGE_PAGE, MAP_PRIVATE | MAP_HUGETLB);
	default:
		return pin_map_small(nr_pages);
	}
}

/*
 * Test the failure of each allocation. The thread that forks has its stack and
 * its errno in shared memory, and so has the child. So neither has page faults
 * that allocate, and the failure can only hit fork.
 */
FIXTURE(fault) {
	int dev;
	char *mem;
	uint32_t handle;
	long long held;

	long pool;

	char *stack, *child_stack;
	int nth;		/* number of the allocation to fail */
	int left;		/* fail-nth after fork: 0 if it failed one */
	int pid;		/* child, or a negative errno */
};

FIXTURE_VARIANT(fault) {
	enum kind kind;
	const char *wanted, *other;
	size_t least;		/* allocations that must fail fork */
};

FIXTURE_VARIANT_ADD(fault, fail_page_alloc) {
	.wanted = FAULTS "fail_page_alloc/",
	.other = FAULTS "failslab/",
	.least = NR_PAGES,
};

FIXTURE_VARIANT_ADD(fault, failslab) {
	.wanted = FAULTS "failslab/",
	.other = FAULTS "fail_page_alloc/",
	.least = 10,
};

/* If no huge page can be allocated, fork copies to base pages. */
FIXTURE_VARIANT_ADD(fault, fail_page_alloc_thp) {
	.kind = THP,
	.wanted = FAULTS "fail_page_alloc/",
	.other = FAULTS "failslab/",
	.least = 5,
};

FIXTURE_VARIANT_ADD(fault, failslab_thp) {
	.kind = THP,
	.wanted = FAULTS "failslab/",
	.other = FAULTS "fail_page_alloc/",
	.least = 10,
};

FIXTURE_VARIANT_ADD(fault, fail_page_alloc_hugetlb) {
	.kind = HUGETLB,
	.wanted = FAULTS "fail_page_alloc/",
	.other = FAULTS "failslab/",
	.least = 5,
};

FIXTURE_VARIANT_ADD(fault, failslab_hugetlb) {
	.kind = HUGETLB,
	.wanted = FAULTS "failslab/",
	.other = FAULTS "fail_page_alloc/",
	.least = 10,
};

/* Include allocations that may sleep in one kind of fault injection, or not. */
static int set_fault(const char *dir, bool on)
{
	char name[128];
	int ret;

	snprintf(name, sizeof(name), "%signore-gfp-wait", dir);
	ret = pin_write_file(name, on ? "N" : "Y");
	snprintf(name, sizeof(name), "%smin-order", dir);
	pin_write_file(name, on ? "0" : "1");
	snprintf(name, sizeof(name), "%signore-gfp-highmem", dir);
	pin_write_file(name, on ? "N" : "Y");
	return ret;
}

/* Turn the backtraces of injected failures on or off. */
static void set_verbose(bool on)
{
	pin_write_file(FAULTS "fail_page_alloc/verbose", on ? "2" : "0");
	pin_write_file(FAULTS "failslab/verbose", on ? "2" : "0");
}

FIXTURE_SETUP(fault)
{
	self->dev = pin_open();
	ASSERT_LE(0, self->dev);
	if (set_fault(variant->wanted, true))
		SKIP(_exit(255), "needs %s: set CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC",
		     variant->wanted);
	set_fault(variant->other, false);
	set_verbose(false);
	if (enter_cgroup())
		SKIP(_exit(255), "needs the memory controller in %s", CGROUPS);

	self->pool = pin_file_number(PIN_POOL);
	self->mem = map_kind(self->dev, variant->kind, NR_PAGES);
	self->stack = pin_map(STACK, MAP_SHARED | MAP_POPULATE);
	self->child_stack = pin_map(STACK, MAP_SHARED | MAP_POPULATE);
	ASSERT_NE(NULL, self->mem);
	ASSERT_NE(NULL, self->stack);
	ASSERT_NE(NULL, self->child_stack);
	self->held = pin_held();
	ASSERT_EQ(0, pin_range(self->dev, self->mem, NR_PAGES * PAGE,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &self->handle));
}

FIXTURE_TEARDOWN(fault)
{
	EXPECT_EQ(0, pin_unpin(self->dev, self->handle, 0));
	EXPECT_EQ(self->held, pin_held());
	pin_set_pool(self->pool);
	set_fault(FAULTS "fail_page_alloc/", false);
	set_fault(FAULTS "failslab/", false);
	set_verbose(true);
	leave_cgroup();
}

static int child_exits(void *arg)
{
	return 0;
}

static void *fork_in_thread(void *arg)
{
	FIXTURE_DATA(fault) * self = arg;
	int fd = open("/proc/thread-self/fail-nth", O_RDWR), pid = -ENOENT;
	char nth[16], left[16] = "0";

	if (fd >= 0) {
		snprintf(nth, sizeof(nth), "%d", self->nth);
		if (pwrite(fd, nth, strlen(nth), 0) > 0) {
			/* Write to no private page until fail-nth is 0. */
			pid = clone(child_exits, self->child_stack + STACK,
				    SIGCHLD, NULL);
			if (pid < 0)
				pid = -errno;
			if (pread(fd, left, sizeof(left) - 1, 0) <= 0 ||
			    pwrite(fd, "0", 1, 0) != 1)
				pid = -EIO;
		}
		close(fd);
	}
	self->pid = pid;
	self->left = atoi(left);
	return NULL;
}

/* Fork while allocation @nth fails, and reap the child. */
static void fork_failing(struct __test_metadata *_metadata,
			 FIXTURE_DATA(fault) * self, int nth)
{
	pthread_attr_t attr;
	pthread_t thread;
	int status;

	self->nth = nth;
	ASSERT_EQ(0, pthread_attr_init(&attr));
	ASSERT_EQ(0, pthread_attr_setstack(&attr, self->stack, STACK));
	ASSERT_EQ(0, pthread_create(&thread, &attr, fork_in_thread, self));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	if (self->pid < 0)
		return;
	ASSERT_EQ(self->pid, waitpid(self->pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_F(fault, R9_each_allocation_fails_in_turn)
{
	long at_rest = 0, anon = 0, tables = 0, huge = 0;
	size_t failed, optional;
	int pass, nth;

	for (pass = 0; pass <= PASSES; pass++) {
		failed = 0;
		optional = 0;
		for (nth = 1; ; nth++) {
			fork_failing(_metadata, self, nth);
			if (self->left)
				break;
			if (self->pid < 0)
				failed++;
			else
				optional++;
			ASSERT_TRUE(self->pid > 0 || self->pid == -ENOMEM) {
				TH_LOG("allocation %d: fork gives %d, not a child or -ENOMEM",
				       nth, self->pid);
			}
			ASSERT_TRUE(same_pages(self->dev, self->handle,
					       self->mem, NR_PAGES, nth)) {
				TH_LOG("allocation %d: process and device must share %d pages",
				       nth, NR_PAGES);
			}
		}
		/* Fork has fewer than nth allocations: it must succeed. */
		ASSERT_LT(0, self->pid);
		EXPECT_LE(variant->least, failed);
		EXPECT_EQ(-1, waitpid(-1, NULL, WNOHANG));
		if (pass)
			continue;
		/* The first pass has filled the caches. */
		TH_LOG("fork fails for %zu allocations and succeeds without %zu",
		       failed, optional);
		at_rest = charged_at_rest();
		anon = pin_vmstat("nr_anon_pages");
		tables = pin_vmstat("nr_page_table_pages");
		huge = pin_number("/proc/meminfo", "HugePages_Free:");
	}
	/* A leak of one page a fork would be more than PASSES times NR_PAGES. */
	EXPECT_GE(at_rest + charge_noise(), charged_at_rest());
	EXPECT_GE(anon + NR_PAGES / 4, pin_vmstat("nr_anon_pages"));
	EXPECT_GE(tables + NR_PAGES / 4, pin_vmstat("nr_page_table_pages"));
	EXPECT_EQ(huge, pin_number("/proc/meminfo", "HugePages_Free:"));
}

/*
 * Test the cgroup charges of the copies.
 */
#define NR_CHARGED	2048

FIXTURE(charge) {
	int dev;
	char *mem;
};

FIXTURE_VARIANT(charge) {
	enum kind kind;
};

FIXTURE_VARIANT_ADD(charge, base_pages) {
	.kind = BASE_PAGES,
};

FIXTURE_VARIANT_ADD(charge, thp) {
	.kind = THP,
};

FIXTURE_SETUP(charge)
{
	self->dev = pin_open();
	ASSERT_LE(0, self->dev);
	if (enter_cgroup())
		SKIP(_exit(255), "needs the memory controller in %s", CGROUPS);
	self->mem = map_kind(self->dev, variant->kind, NR_CHARGED);
	ASSERT_NE(NULL, self->mem);
	pin_fill(self->mem, NR_CHARGED, 1);
}

FIXTURE_TEARDOWN(charge)
{
	leave_cgroup();
}

/* Return our cgroup's charge for a child in @cgroup, or in ours if it is -1. */
static long charge_of_child_in(struct __test_metadata *_metadata, int cgroup)
{
	struct clone_args args = {
		.flags = cgroup < 0 ? 0 : CLONE_INTO_CGROUP,
		.exit_signal = SIGCHLD,
		.cgroup = cgroup < 0 ? 0 : cgroup,
	};
	long before = charged_at_rest(), cost;
	pid_t parent = getpid(), child;

	child = syscall(SYS_clone3, &args, sizeof(args));
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			pause();
		_exit(1);
	}
	EXPECT_LT(0, child);
	cost = charged_at_rest() - before;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	EXPECT_GE(before + charge_noise(), charged_at_rest());
	return cost;
}

static long charge_of_child(struct __test_metadata *_metadata)
{
	return charge_of_child_in(_metadata, -1);
}

TEST_F(charge, R9_copies_are_charged_to_the_memory_cgroup)
{
	long shared, copied;
	uint32_t handle;

	shared = charge_of_child(_metadata);
	ASSERT_EQ(0, pin_range(self->dev, self->mem, NR_CHARGED * PAGE,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &handle));
	copied = charge_of_child(_metadata);
	EXPECT_LE(shared + NR_CHARGED - charge_noise(), copied);
	EXPECT_GE(shared + NR_CHARGED + charge_noise(), copied);
	ASSERT_EQ(0, pin_unpin(self->dev, handle, 0));
	EXPECT_GE(shared + charge_noise(), charge_of_child(_metadata));
}

static void expect_fork_fails(struct __test_metadata *_metadata)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	EXPECT_EQ(-1, child);
	EXPECT_EQ(ENOMEM, errno);
	if (child > 0)
		waitpid(child, NULL, 0);
}

/* Fork charges copies to the parent's cgroup, like all its allocations. */
TEST_F(charge, R9_copies_for_a_child_in_another_cgroup)
{
	uint32_t handle;
	int cgroup;

	mkdir(CHILD_CGROUP, 0755);
	cgroup = open(CHILD_CGROUP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ASSERT_LE(0, cgroup);
	ASSERT_EQ(0, pin_range(self->dev, self->mem, NR_CHARGED * PAGE,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &handle));
	EXPECT_LE(NR_CHARGED, charge_of_child_in(_metadata, cgroup) +
		  charge_noise());
	ASSERT_EQ(0, pin_unpin(self->dev, handle, 0));
	EXPECT_GT(NR_CHARGED / 2, charge_of_child_in(_metadata, cgroup));
	close(cgroup);
	EXPECT_EQ(0, rmdir(CHILD_CGROUP));
}

TEST_F(charge, R9_limit_fails_fork_and_kills_nobody)
{
	uint32_t handle;

	ASSERT_EQ(0, pin_range(self->dev, self->mem, NR_CHARGED * PAGE,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &handle));
	ASSERT_EQ(0, pin_number(EVENTS, "oom_kill"));
	/* Allow all other allocations of fork, and half of the copies. */
	ASSERT_EQ(0, pin_write_number(CGROUP "memory.max",
				      (charged_at_rest() + NR_CHARGED / 2) *
				      PAGE));
	expect_fork_fails(_metadata);
	EXPECT_LT(0, pin_number(EVENTS, "max"));
	EXPECT_EQ(0, pin_number(EVENTS, "oom_kill"));
	ASSERT_EQ(0, pin_write_file(CGROUP "memory.max", "max"));
	EXPECT_LE(NR_CHARGED, charge_of_child(_metadata) + charge_noise());
	ASSERT_EQ(0, pin_unpin(self->dev, handle, 0));
}

/*
 * Test the hugetlb cgroup and the pool.
 */
#define NR_HUGE		4

FIXTURE(hugetlb_charge) {
	int dev;
	uint32_t handle;
	char *mem;
	long pool;
};

FIXTURE_SETUP(hugetlb_charge)
{
	self->dev = pin_open();
	ASSERT_LE(0, self->dev);
	if (pin_write_file(CGROUPS "cgroup.subtree_control", "+hugetlb") ||
	    enter_cgroup())
		SKIP(_exit(255), "needs the hugetlb controller in %s", CGROUPS);
	self->pool = pin_set_pool(2 * NR_HUGE);
	if (pin_number("/proc/meminfo", "HugePages_Free:") < 2 * NR_HUGE) {
		pin_set_pool(self->pool);
		leave_cgroup();
		SKIP(_exit(255), "cannot allocate a pool of %d huge pages",
		     2 * NR_HUGE);
	}
	self->mem = pin_map(NR_HUGE * HUGE_PAGE, MAP_PRIVATE | MAP_HUGETLB);
	ASSERT_NE(NULL, self->mem);
	pin_fill(self->mem, NR_HUGE * HUGE_PAGE / PAGE, 1);
	ASSERT_EQ(0, pin_range(self->dev, self->mem, NR_HUGE * HUGE_PAGE,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &self->handle));
}

FIXTURE_TEARDOWN(hugetlb_charge)
{
	EXPECT_EQ(0, pin_unpin(self->dev, self->handle, 0));
	munmap(self->mem, NR_HUGE * HUGE_PAGE);
	EXPECT_EQ(2 * NR_HUGE, pin_number("/proc/meminfo", "HugePages_Free:"));
	EXPECT_EQ(0, pin_number("/proc/meminfo", "HugePages_Rsvd:"));
	EXPECT_EQ(0, hugetlb_charged());
	pin_set_pool(self->pool);
	leave_cgroup();
}

TEST_F(hugetlb_charge, R9_copies_are_charged_to_the_hugetlb_cgroup)
{
	int stop[2], status;
	pid_t child;
	char c;

	EXPECT_EQ(NR_HUGE, hugetlb_charged());
	ASSERT_EQ(0, pipe(stop));
	child = fork();
	if (!child) {
		close(stop[1]);
		_exit(read(stop[0], &c, 1) != 0);
	}
	ASSERT_LT(0, child);
	EXPECT_EQ(2 * NR_HUGE, hugetlb_charged());
	EXPECT_EQ(0, pin_number("/proc/meminfo", "HugePages_Free:"));
	close(stop[1]);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(NR_HUGE, hugetlb_charged());
	EXPECT_EQ(NR_HUGE, pin_number("/proc/meminfo", "HugePages_Free:"));
}

TEST_F(hugetlb_charge, R9_limit_of_the_hugetlb_cgroup_fails_fork)
{
	ASSERT_EQ(0, pin_write_number(CGROUP "hugetlb.2MB.max",
				      (NR_HUGE + 2) * HUGE_PAGE));
	expect_fork_fails(_metadata);
	EXPECT_EQ(NR_HUGE, hugetlb_charged());
	EXPECT_EQ(NR_HUGE, pin_number("/proc/meminfo", "HugePages_Free:"));
	EXPECT_TRUE(same_pages(self->dev, self->handle, self->mem, NR_PAGES, 5));
	ASSERT_EQ(0, pin_write_file(CGROUP "hugetlb.2MB.max", "max"));
}

/* Fail the allocation of huge pages, or no longer. */
static void fail_huge_pages(bool on)
{
	/* Start to fail last, so that no write below fails. */
	pin_write_file(FAULTS "fail_page_alloc/probability", "0");
	pin_write_file(FAULTS "fail_page_alloc/min-order", on ? "9" : "1");
	pin_write_file(FAULTS "fail_page_alloc/ignore-gfp-wait", on ? "N" : "Y");
	pin_write_file(FAULTS "fail_page_alloc/ignore-gfp-highmem", on ? "N" : "Y");
	pin_write_file(FAULTS "fail_page_alloc/times", on ? "-1" : "1");
	set_verbose(!on);
	if (on)
		pin_write_file(FAULTS "fail_page_alloc/probability", "100");
}

/* R7: if no huge page can be allocated, fork copies to base pages. */
TEST(R7_base_pages_where_no_huge_page_can_be_had)
{
	int dev = pin_open(), status;
	uint32_t handle;
	pid_t child;
	char *mem;

	if (access(FAULTS "fail_page_alloc", F_OK))
		SKIP(return, "needs %sfail_page_alloc: set CONFIG_FAIL_PAGE_ALLOC",
		     FAULTS);
	mem = pin_map_thp(dev, 1);
	ASSERT_NE(NULL, mem);
	pin_fill(mem, HUGE_PAGE / PAGE, 7);
	ASSERT_EQ(0, pin_range(dev, mem + 5 * PAGE, PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &handle));
	fail_huge_pages(true);
	child = fork();
	if (!child)
		_exit(pin_number("/proc/self/smaps_rollup",
				 "AnonHugePages:") != 0 ||
		      pin_differs(mem, HUGE_PAGE / PAGE, 7) >= 0);
	fail_huge_pages(false);
	ASSERT_LT(0, child);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	/* The parent's page is still PMD-mapped. */
	EXPECT_EQ(HUGE_PAGE >> 10, pin_number("/proc/self/smaps_rollup",
					      "AnonHugePages:"));
	EXPECT_TRUE(same_pages(dev, handle, mem + 5 * PAGE, 1, 8));
	EXPECT_EQ(0, pin_unpin(dev, handle, 0));
}

int main(int argc, char **argv)
{
	pin_need_device();
	pin_keep(PIN_POOL);
	return test_harness_run(argc, argv);
}
