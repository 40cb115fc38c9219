/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Pins: references to user pages that a device, or another context, reads and
 * writes without going through the page tables.
 *
 * See Documentation/core-api/pin_user_pages.rst for the choice of the call.
 * <linux/mm.h> includes this header.
 */
#ifndef _LINUX_PIN_USER_PAGES_H
#define _LINUX_PIN_USER_PAGES_H

#include <linux/mm.h>

/*
 * One pin adds this to the refcount of a page without a pin count of its own: an
 * order-0 page or an order-1 compound page.
 *
 * It is big enough that a page seldom has as many ordinary references, and small
 * enough that a million pins fit below PIN_REF_LIMIT (mm/pin.h).
 */
#define GUP_PIN_COUNTING_BIAS	1024

/*
 * Return true if the compound page of @head has an exact pin count. The count
 * lives in the second tail page, so the order has to be 2 or more.
 */
static inline bool page_has_pincount(struct page *head)
{
	return PageHead(head) && head[1].compound_order > 1;
}

/**
 * page_pincount() - read the number of pins of a page
 * @page: the page, or any subpage of a compound page, which the caller has
 *	mapped, pinned or holds a reference to
 *
 * The pins of a compound page are counted together, at its head.
 *
 * Context: any. The value can change at once, unless the caller excludes new
 * pins (see mm/pin.h).
 * Return: the exact number of pins of a compound page of order 2 and up. For a
 * smaller page, at least the number of pins, and one more for every
 * GUP_PIN_COUNTING_BIAS ordinary references.
 */
static inline int page_pincount(struct page *page)
{
	page = compound_head(page);
	if (page_has_pincount(page))
		return atomic_read(compound_pincount_ptr(page));
	return (unsigned int)page_ref_count(page) / GUP_PIN_COUNTING_BIAS;
}

/**
 * page_maybe_dma_pinned() - tell whether a device may be using a page
 * @page: the page, or any subpage of a compound page, which the caller has
 *	mapped, pinned or holds a reference to
 *
 * Context: any. If the answer has to stay true, exclude new pins first; mm/pin.h
 * has the rules.
 * Return: true for every pinned page. Also true for an unpinned page smaller
 * than order 2 that has GUP_PIN_COUNTING_BIAS or more ordinary references. False
 * otherwise.
 */
static inline bool page_maybe_dma_pinned(struct page *page)
{
	return page_pincount(page) > 0;
}

bool page_likely_pinned(struct page *page);
bool release_page_private(struct page *page, gfp_t gfp_mask);

/* Start a new mm without pins, in mm_init(). */
static inline void pin_mm_init(struct mm_struct *mm)
{
	mm->has_pinned = false;
	seqcount_init(&mm->write_protect_seq);
}

/*
 * Keep GUP-fast from pinning pages of @mm until pin_fork_end(). fork() calls this
 * before it looks at the first page-table entry of @mm.
 *
 * Use the raw calls, because fork() sleeps in between. The readers never wait.
 */
static inline void pin_fork_begin(struct mm_struct *mm)
{
	mmap_assert_write_locked(mm);
	raw_write_seqcount_begin(&mm->write_protect_seq);
	smp_mb();	/* (A) in mm/pin.h: pairs with try_pin_base_page() */
}

/* Let GUP-fast pin pages of @mm again. */
static inline void pin_fork_end(struct mm_struct *mm)
{
	raw_write_seqcount_end(&mm->write_protect_seq);	/* (D) in mm/pin.h */
}

long pin_user_pages(unsigned long start, unsigned long nr_pages,
		    unsigned int gup_flags, struct page **pages,
		    struct vm_area_struct **vmas);
long pin_user_pages_locked(unsigned long start, unsigned long nr_pages,
			   unsigned int gup_flags, struct page **pages,
			   int *locked);
long pin_user_pages_unlocked(unsigned long start, unsigned long nr_pages,
			     struct page **pages, unsigned int gup_flags);
long pin_user_pages_remote(struct mm_struct *mm, unsigned long start,
			   unsigned long nr_pages, unsigned int gup_flags,
			   struct page **pages, struct vm_area_struct **vmas,
			   int *locked);
int pin_user_pages_fast(unsigned long start, int nr_pages,
			unsigned int gup_flags, struct page **pages);
int pin_user_pages_fast_only(unsigned long start, int nr_pages,
			     unsigned int gup_flags, struct page **pages);

void unpin_user_page(struct page *page);
void unpin_user_pages(struct page **pages, unsigned long npages);
void unpin_user_pages_dirty_lock(struct page **pages, unsigned long npages,
				 bool make_dirty);
void unpin_user_page_range_dirty_lock(struct page *page, unsigned long npages,
				      bool make_dirty);

#endif /* _LINUX_PIN_USER_PAGES_H */
