// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory errors and pinned memory (R12): a page that only may break soon is
 * pinned, and stays (C1); one that is broken is taken from its process whether
 * it is pinned or not, and the pins can still be given back (C3).
 *
 * Every test costs the machine a few pages, or a huge one, until it reboots.
 */
#define _GNU_SOURCE
#include <linux/mman.h>
#include <setjmp.h>
#include <sys/prctl.h>

#include "pin_event.h"

#define SOFT_OFFLINE	"/sys/devices/system/memory/soft_offline_page"

static bool have_memory_failure(void)
{
	return !access(SOFT_OFFLINE, F_OK);
}

/* How many pages the kernel has given up. */
static long long pages_lost(void)
{
	return pin_number("/proc/meminfo", "HardwareCorrupted:") * 1024 /
	       (long long)PAGE;
}

static int inject(char *mem, int advice)
{
	return madvise(mem, PAGE, advice) ? -errno : 0;
}

/* Somebody may be looking at a page just then: it is tried more than once. */
static int soft_offline(char *mem)
{
	int n, ret = inject(mem, MADV_SOFT_OFFLINE);

	for (n = 0; ret == -EBUSY && n < 100; n++)
		ret = inject(mem, MADV_SOFT_OFFLINE);
	return ret;
}

/* A page that nobody has pinned, of memory of that kind. */
static char *make_other(struct pinned *p, enum kind what)
{
	char *mem;

	if (what == THP || what == THP_SPLIT)
		mem = pin_map_thp(p->dev, 1);
	else if (what == HUGETLB)
		mem = pin_map(HUGE_PAGE, MAP_PRIVATE | MAP_HUGETLB);
	else
		mem = pin_map_small(1);
	if (!mem)
		return NULL;
	if (what != BASE && what != SWAPPED)
		mem += FIRST * PAGE;
	pin_fill(mem, 1, AT_FORK);
	return mem;
}

/* Asks in both ways for each page, and gives how often it was not refused. */
static int soft_offline_pinned(struct buffer *b)
{
	char address[32];
	int i, wrong = 0;

	for (i = 0; i < NR_PAGES; i++) {
		char *page = b->m.mem + i * PAGE;

		wrong += inject(page, MADV_SOFT_OFFLINE) != -EBUSY;
		snprintf(address, sizeof(address), "%#lx",
			 (unsigned long)(pin_pfn(getpid(), page) * PAGE));
		wrong += pin_write_file(SOFT_OFFLINE, address) != -EBUSY;
	}
	return wrong;
}

TEST_F(event, R12_C1_soft_offline)
{
	struct buffer *b = &self->b;
	long long lost = pages_lost();
	uint64_t pfn;
	char *other;

	if (!have_memory_failure())
		SKIP(return, "no CONFIG_MEMORY_FAILURE");
	EXPECT_EQ(0, expect_held_through(b, soft_offline_pinned,
					 "soft offlining"));
	EXPECT_EQ(lost, pages_lost());

	other = make_other(&b->p, variant->kind);
	ASSERT_NE(NULL, other);
	pfn = pin_pfn(getpid(), other);
	EXPECT_EQ(0, soft_offline(other));
	EXPECT_NE(pfn, pin_pfn(getpid(), other));
	EXPECT_EQ(-1, pin_differs(other, 1, AT_FORK));
	EXPECT_EQ(lost + 1, pages_lost());
	expect_held(b, "after another page was taken offline");

	give_back(b);
	pfn = pin_pfn(getpid(), b->m.mem);
	EXPECT_EQ(0, soft_offline(b->m.mem));
	EXPECT_NE(pfn, pin_pfn(getpid(), b->m.mem));
	EXPECT_EQ(-1, pin_differs(b->m.mem, NR_PAGES, b->p.seed));
	EXPECT_EQ(lost + 2, pages_lost());
	take(b);
}

/*
 * Broken memory. One that reads it gets a signal.
 */
static sigjmp_buf retreat;
static siginfo_t fault, advisory;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	if (info->si_code == BUS_MCEERR_AO) {
		advisory = *info;
		return;
	}
	fault = *info;
	siglongjmp(retreat, 1);
}

static void catch_sigbus(void)
{
	struct sigaction sa = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO,
	};

	sigaction(SIGBUS, &sa, NULL);
}

static bool readable(const char *mem)
{
	if (sigsetjmp(retreat, 1))
		return false;
	pin_get(mem);
	return true;
}

/* What breaks is the last of the pinned pages. */
static char *bad_page(const struct pinned *p)
{
	return p->mem + (NR_PAGES - 1) * PAGE;
}

/* What is broken with it: a THP with pins cannot be split, so nothing is done. */
enum loss { LOSS_PAGE, LOSS_HUGE_PAGE, LOSS_NONE };

static enum loss loss_of(enum kind what)
{
	if (what == THP || what == THP_SPLIT)
		return LOSS_NONE;
	return what == HUGETLB ? LOSS_HUGE_PAGE : LOSS_PAGE;
}

static void expect_lost(struct __test_metadata *_metadata,
			const struct pinned *p, enum loss what)
{
	char *bad = bad_page(p);

	EXPECT_EQ(what == LOSS_NONE, readable(bad));
	EXPECT_EQ(what != LOSS_HUGE_PAGE, readable(p->mem));
	if (what == LOSS_NONE)
		return;
	EXPECT_EQ(BUS_MCEERR_AR, fault.si_code);
	EXPECT_EQ(what == LOSS_PAGE ? 12 : 21, fault.si_addr_lsb);
	EXPECT_EQ((what == LOSS_PAGE ? bad : p->mem), fault.si_addr);
}

static enum loss child_loss;

/* It has no other pages than its parent left it. */
static int child_meets_loss(struct pinned *p)
{
	struct __test_metadata *_metadata = p->test;

	expect_lost(_metadata, p, child_loss);
	return !_metadata->passed ||
	       (child_loss != LOSS_HUGE_PAGE && child_looks(p));
}

/* Whether any of many new pages is that one. */
static bool comes_back(uint64_t pfn)
{
	size_t i, nr = 4096;
	char *mem = pin_map_small(nr);
	bool ret = !mem;

	for (i = 0; mem && i < nr; i++) {
		pin_set(mem + i * PAGE, 1);
		ret |= pin_pfn(getpid(), mem + i * PAGE) == pfn;
	}
	munmap(mem, nr * PAGE);
	return ret;
}

TEST_F(event, R12_C1_C3_memory_failure)
{
	enum loss loss = loss_of(variant->kind);
	struct buffer *b = &self->b;
	long long lost = pages_lost();
	char *bad = bad_page(&b->p);
	uint32_t handle;
	uint64_t pfn = pin_pfn(getpid(), bad);
	char *other;
	pid_t child;

	if (!have_memory_failure())
		SKIP(return, "no CONFIG_MEMORY_FAILURE");
	catch_sigbus();

	/* It is there, and others go on without it. */
	other = make_other(&b->p, variant->kind);
	ASSERT_NE(NULL, other);
	EXPECT_EQ(0, inject(other, MADV_HWPOISON));
	EXPECT_FALSE(readable(other));
	EXPECT_EQ(lost + 1, pages_lost());
	expect_held(b, "after another page broke");

	/* Somebody uses it still, so it is not dealt with entirely. */
	EXPECT_EQ(-EBUSY, inject(bad, MADV_HWPOISON));
	EXPECT_EQ(lost + 2, pages_lost());
	expect_lost(_metadata, &b->p, loss);
	EXPECT_EQ(0, pin_read(b->p.dev, b->p.handle, 0, b->p.bounce,
			      NR_PAGES * PAGE));
	EXPECT_EQ(-1, pin_differs(b->p.bounce, NR_PAGES, b->p.seed));

	if (loss == LOSS_PAGE)
		b->p.nr--;
	if (loss != LOSS_HUGE_PAGE) {
		expect_held(b, "after a page broke");
		pin_fill(b->p.mem, b->p.nr, AT_FORK);
	}
	child_loss = loss;
	child = make_child(WAY_FORK, child_meets_loss, &b->p);
	EXPECT_EQ(0, reap(child));
	if (loss != LOSS_HUGE_PAGE)
		expect_held(b, "after the fork");
	if (loss != LOSS_NONE)
		EXPECT_EQ(-EFAULT, pin_range(b->p.dev, b->p.mem,
					     NR_PAGES * PAGE, b->flags,
					     b->call, &handle));

	give_back(b);
	EXPECT_EQ(0, munmap(b->m.map, b->m.len));
	EXPECT_FALSE(comes_back(pfn));
}

/* Who wants to know early is told at once, and not killed. */
TEST_F(event, R12_C3_early_kill)
{
	enum loss loss = loss_of(variant->kind);
	struct buffer *b = &self->b;
	char *bad = bad_page(&b->p);

	if (!have_memory_failure())
		SKIP(return, "no CONFIG_MEMORY_FAILURE");
	catch_sigbus();
	ASSERT_EQ(0, prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY,
			   0, 0));
	EXPECT_EQ(-EBUSY, inject(bad, MADV_HWPOISON));
	if (loss == LOSS_NONE) {
		EXPECT_EQ(0, advisory.si_signo);
	} else {
		EXPECT_EQ(SIGBUS, advisory.si_signo);
		EXPECT_EQ((loss == LOSS_PAGE ? bad : b->m.map),
			  advisory.si_addr);
		EXPECT_EQ(loss == LOSS_PAGE ? 12 : 21, advisory.si_addr_lsb);
	}
	expect_lost(_metadata, &b->p, loss);
	give_back(b);
}

/* A process that dies of it leaves no pins, and its parent alone. */
static struct buffer *parents;

static int child_dies(struct pinned *p)
{
	struct __test_metadata *_metadata = p->test;
	struct buffer own = *parents;

	open_device(_metadata, &own.p);
	take(&own);
	EXPECT_EQ(-EBUSY, inject(bad_page(&own.p), MADV_HWPOISON));
	if (!_metadata->passed)
		return 1;
	pin_get(bad_page(&own.p));
	return 2;
}

TEST_F(event, R12_C2_C3_killed)
{
	struct buffer *b = &self->b;
	int status = 0;
	pid_t child;

	if (!have_memory_failure())
		SKIP(return, "no CONFIG_MEMORY_FAILURE");
	give_back(b);
	pin_fill(b->m.mem, NR_PAGES, AT_FORK);
	parents = b;
	child = make_child(WAY_FORK, child_dies, &b->p);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(SIGBUS, WTERMSIG(status));
	EXPECT_EQ(0, pin_held());
	EXPECT_EQ(-1, pin_differs(b->m.mem, NR_PAGES, AT_FORK));
	take(b);
}

int main(int argc, char **argv)
{
	pin_need_device();
	keep_settings();
	return test_harness_run(argc, argv);
}
