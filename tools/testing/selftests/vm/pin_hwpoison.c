// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory errors and pinned memory (R12). Soft offlining, for a page that may break
 * soon, fails if the page is pinned (C1). A memory error takes a broken page from
 * its process even if it is pinned, and the pins can still be dropped (C3).
 *
 * Every test takes a few base pages or a huge page from the machine until reboot.
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

/* Return the number of pages that the kernel has given up. */
static long long pages_lost(void)
{
	return pin_number("/proc/meminfo", "HardwareCorrupted:") * 1024 /
	       (long long)PAGE;
}

/* Inject a memory error of kind @advice. Return 0 or a negative errno. */
static int inject(char *mem, int advice)
{
	return madvise(mem, PAGE, advice) ? -errno : 0;
}

/* Soft offline a page. It may have another reference for a moment, so try again. */
static int soft_offline(char *mem)
{
	int n, ret = inject(mem, MADV_SOFT_OFFLINE);

	for (n = 0; ret == -EBUSY && n < 100; n++)
		ret = inject(mem, MADV_SOFT_OFFLINE);
	return ret;
}

/* Make an unpinned page of kind @what. Return NULL on failure. */
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

/*
 * Soft offline each page by madvise() and by sysfs. Return how many calls do not
 * fail with EBUSY.
 */
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
	expect_held(b, "after an unpinned page was soft offlined");

	give_back(b);
	pfn = pin_pfn(getpid(), b->m.mem);
	EXPECT_EQ(0, soft_offline(b->m.mem));
	EXPECT_NE(pfn, pin_pfn(getpid(), b->m.mem));
	EXPECT_EQ(-1, pin_differs(b->m.mem, NR_PAGES, b->p.seed));
	EXPECT_EQ(lost + 2, pages_lost());
	take(b);
}

/*
 * Broken memory. A read of it raises SIGBUS.
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

/* Return the pinned page that the tests break: the last one. */
static char *bad_page(const struct pinned *p)
{
	return p->mem + (NR_PAGES - 1) * PAGE;
}

/* Memory that the process loses: none of a THP with pins, which cannot be split. */
enum loss { LOSS_PAGE, LOSS_HUGE_PAGE, LOSS_NONE };

static enum loss loss_of(enum kind what)
{
	if (what == THP || what == THP_SPLIT)
		return LOSS_NONE;
	return what == HUGETLB ? LOSS_HUGE_PAGE : LOSS_PAGE;
}

/* Expect that exactly the lost memory raises SIGBUS, with its address and size. */
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

/* Expect in a child the same loss, and the bytes of the time of fork elsewhere. */
static int child_meets_loss(struct pinned *p)
{
	struct __test_metadata *_metadata = p->test;

	expect_lost(_metadata, p, child_loss);
	return !_metadata->passed ||
	       (child_loss != LOSS_HUGE_PAGE && child_looks(p));
}

/* Return true if one of many new pages is page @pfn. */
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

	/* An error in an unpinned page: the pinned ones stay. */
	other = make_other(&b->p, variant->kind);
	ASSERT_NE(NULL, other);
	EXPECT_EQ(0, inject(other, MADV_HWPOISON));
	EXPECT_FALSE(readable(other));
	EXPECT_EQ(lost + 1, pages_lost());
	expect_held(b, "after an unpinned page broke");

	/* The pin still holds the page, so handling of the error ends with EBUSY. */
	EXPECT_EQ(-EBUSY, inject(bad, MADV_HWPOISON));
	EXPECT_EQ(lost + 2, pages_lost());
	expect_lost(_metadata, &b->p, loss);
	EXPECT_EQ(0, pin_read(b->p.dev, b->p.handle, 0, b->p.bounce,
			      NR_PAGES * PAGE));
	EXPECT_EQ(-1, pin_differs(b->p.bounce, NR_PAGES, b->p.seed));

	if (loss == LOSS_PAGE)
		b->p.nr--;
	if (loss != LOSS_HUGE_PAGE) {
		expect_held(b, "after a pinned page broke");
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

/* Signal a process that asked for early notice at once, and do not kill it. */
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

/* Kill a child by a memory error. It leaves no pins, and its parent's bytes stay. */
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
