// SPDX-License-Identifier: GPL-2.0-only
/*
 * Count the instructions of getting, pinning, putting and unpinning user pages.
 * This needs qemu -icount shift=0, where the TSC counts instructions.
 * pin_bench.h describes PIN_BENCH_RUN, the call of /dev/pin_bench.
 */
#include <linux/hugetlb.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/uaccess.h>

#include "pin_bench.h"

/*
 * Number of measurements of each call. The least counts, as a timer tick may
 * hit any of them.
 */
#define ROUNDS	5

/* Number of instructions to test that the TSC counts instructions. */
#define NOPS	1000

typedef long (*take_fn)(unsigned long addr, unsigned long nr,
			struct page **pages);
typedef void (*give_fn)(struct page **pages, unsigned long nr);

struct cost {
	u32 take;
	u32 give;
};

static long take_nothing(unsigned long addr, unsigned long nr,
			 struct page **pages)
{
	return nr;
}

static void give_nothing(struct page **pages, unsigned long nr)
{
}

static long get_fast(unsigned long addr, unsigned long nr, struct page **pages)
{
	return get_user_pages_fast(addr, nr, FOLL_WRITE, pages);
}

static long get_slow(unsigned long addr, unsigned long nr, struct page **pages)
{
	return get_user_pages(addr, nr, FOLL_WRITE, pages, NULL);
}

static void put(struct page **pages, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++)
		put_page(pages[i]);
}

static void put_dirty(struct page **pages, unsigned long nr)
{
	unsigned long i;

	for (i = 0; i < nr; i++) {
		if (!PageDirty(compound_head(pages[i])))
			set_page_dirty_lock(pages[i]);
		put_page(pages[i]);
	}
}

#ifdef GUP_PIN_COUNTING_BIAS
static long pin_fast(unsigned long addr, unsigned long nr, struct page **pages)
{
	return pin_user_pages_fast(addr, nr, FOLL_WRITE, pages);
}

static long pin_slow(unsigned long addr, unsigned long nr, struct page **pages)
{
	return pin_user_pages(addr, nr, FOLL_WRITE, pages, NULL);
}

static void unpin(struct page **pages, unsigned long nr)
{
	unpin_user_pages(pages, nr);
}

static void unpin_dirty(struct page **pages, unsigned long nr)
{
	unpin_user_pages_dirty_lock(pages, nr, true);
}
#else	/* a kernel without pins */
#define pin_fast	NULL
#define pin_slow	NULL
#define unpin		NULL
#define unpin_dirty	NULL
#endif

static const take_fn take_fns[] = {
	[0]				= get_fast,
	[PIN_BENCH_PIN]			= pin_fast,
	[PIN_BENCH_SLOW]		= get_slow,
	[PIN_BENCH_SLOW | PIN_BENCH_PIN] = pin_slow,
};

static const give_fn give_fns[] = {
	[0]				= put,
	[PIN_BENCH_PIN]			= unpin,
	[PIN_BENCH_DIRTY]		= put_dirty,
	[PIN_BENCH_DIRTY | PIN_BENCH_PIN] = unpin_dirty,
};

/* Take and give one batch. Return false if @take does not get all of it. */
static noinline bool measure(take_fn take, give_fn give, unsigned long addr,
			     unsigned long nr, struct page **pages,
			     struct cost *cost)
{
	u64 start, taken, given;
	long got;

	start = rdtsc();
	got = take(addr, nr, pages);
	taken = rdtsc();
	if (got != nr) {
		if (got > 0)
			give(pages, got);
		return false;
	}
	give(pages, nr);
	given = rdtsc();

	cost->take = min_t(u64, cost->take, taken - start);
	cost->give = min_t(u64, cost->give, given - taken);
	return true;
}

static bool right_kind(struct page *page, enum pin_bench_kind kind)
{
	switch (kind) {
	case PIN_BENCH_BASE:
		return !PageCompound(page) && PageAnon(page);
	case PIN_BENCH_THP:
		/* It must be PMD-mapped only. */
		return PageCompound(page) && !PageHuge(page) &&
		       compound_mapcount(page) == 1 &&
		       page_mapcount(page) == 1;
	case PIN_BENCH_HUGETLB:
		return PageHuge(page);
	}
	return false;
}

/*
 * Mark a page accessed until it is active and referenced. The slow walk marks
 * pages accessed, which must cost the same in each round. A page becomes active
 * when its pagevec is full, after at most 15 calls. Return true on success.
 */
static bool settle(struct page *page)
{
	int tries = 64;

	page = compound_head(page);
	if (PageHuge(page))
		return true;
	while (!PageActive(page) || !PageReferenced(page)) {
		if (!tries--)
			return false;
		mark_page_accessed(page);
	}
	return true;
}

/* Return 0 if all pages are of the kind and GUP-fast can get them. */
static int check_range(const struct pin_bench *b, struct page **pages)
{
	unsigned long at, i;

	for (at = 0; at < b->pages; at += b->batch) {
		int got = get_user_pages_fast_only(b->addr + at * PAGE_SIZE,
						   b->batch, FOLL_WRITE, pages);
		bool right = got == b->batch;

		for (i = 0; i < got; i++) {
			right &= right_kind(pages[i], b->kind) &&
				 settle(pages[i]);
			put_page(pages[i]);
		}
		if (!right)
			return -EUCLEAN;
	}
	return 0;
}

static int run(struct pin_bench *b, struct page **pages, struct cost *costs)
{
	take_fn take = take_fns[b->op & ~PIN_BENCH_DIRTY];
	give_fn give = give_fns[b->op & ~PIN_BENCH_SLOW];
	unsigned long nr = b->pages / b->batch;
	struct cost nothing = { U32_MAX, U32_MAX };
	unsigned long i;
	int round;
	int ret;

	if (!take || !give)
		return -EOPNOTSUPP;
	ret = check_range(b, pages);
	if (ret)
		return ret;

	memset(costs, 0xff, nr * sizeof(*costs));
	if (b->op & PIN_BENCH_SLOW)
		mmap_read_lock(current->mm);
	for (round = 0; round < ROUNDS; round++) {
		measure(take_nothing, give_nothing, b->addr, b->batch, pages,
			&nothing);
		for (i = 0; i < nr; i++) {
			if (!measure(take, give,
				     b->addr + i * b->batch * PAGE_SIZE,
				     b->batch, pages, &costs[i]))
				ret = -EFAULT;
		}
	}
	if (b->op & PIN_BENCH_SLOW)
		mmap_read_unlock(current->mm);
	if (ret)
		return ret;

	b->take = 0;
	b->give = 0;
	for (i = 0; i < nr; i++) {
		b->take += costs[i].take - nothing.take;
		b->give += costs[i].give - nothing.give;
	}
	/* No page may have been split meanwhile. */
	return check_range(b, pages);
}

static long pin_bench_ioctl(struct file *file, unsigned int cmd,
			    unsigned long arg)
{
	void __user *user = (void __user *)arg;
	struct page **pages;
	struct cost *costs;
	struct pin_bench b;
	long ret;

	if (cmd != PIN_BENCH_RUN)
		return -ENOTTY;
	if (copy_from_user(&b, user, sizeof(b)))
		return -EFAULT;
	if (!b.batch || b.pages % b.batch || b.pages > INT_MAX / PAGE_SIZE ||
	    !PAGE_ALIGNED(b.addr) || b.op >= PIN_BENCH_OPS || b.reserved)
		return -EINVAL;

	pages = kvcalloc(b.batch, sizeof(*pages), GFP_KERNEL);
	costs = kvcalloc(b.pages / b.batch, sizeof(*costs), GFP_KERNEL);
	ret = pages && costs ? run(&b, pages, costs) : -ENOMEM;
	kvfree(costs);
	kvfree(pages);
	if (!ret && copy_to_user(user, &b, sizeof(b)))
		ret = -EFAULT;
	return ret;
}

static const struct file_operations pin_bench_fops = {
	.owner		= THIS_MODULE,
	.unlocked_ioctl	= pin_bench_ioctl,
};

static struct miscdevice pin_bench_device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "pin_bench",
	.fops	= &pin_bench_fops,
	.mode	= 0600,
};

static int __init pin_bench_init(void)
{
	unsigned long flags;
	u64 start, empty, full;

	local_irq_save(flags);
	start = rdtsc();
	empty = rdtsc();
	asm volatile(".rept %c0; nop; .endr" : : "i" (NOPS));
	full = rdtsc();
	local_irq_restore(flags);

	/* The compiler may save registers between the two readings. */
	if (full - empty < NOPS || full - empty > NOPS + 2 * (empty - start)) {
		pr_err("pin_bench: the TSC counts %llu for %d instructions: run this under qemu -icount shift=0\n",
		       full - empty, NOPS);
		return -ENODEV;
	}
	return misc_register(&pin_bench_device);
}
module_init(pin_bench_init);

static void __exit pin_bench_exit(void)
{
	misc_deregister(&pin_bench_device);
}
module_exit(pin_bench_exit);

MODULE_DESCRIPTION("Instructions that getting and pinning user pages takes");
MODULE_LICENSE("GPL v2");
