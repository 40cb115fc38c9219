/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Pins: user pages that a device, or another context, reads and writes behind
 * the back of the page tables.
 *
 * See Documentation/core-api/pin_user_pages.rst for which call to use when;
 * <linux/mm.h> includes this header.
 */
#ifndef _LINUX_PIN_USER_PAGES_H
#define _LINUX_PIN_USER_PAGES_H

#include <linux/mm.h>

/*
 * What one pin adds to the reference count of a page that has no room for a
 * pin count of its own: an order-0 page, or an order-1 compound page.
 *
 * Big enough that a page seldom has as many ordinary references, small enough
 * that a million pins fit below PIN_REF_LIMIT (mm/pin.h).
 */
#define GUP_PIN_COUNTING_BIAS	1024

/*
 * Whether the compound page of @head has an exact pin count: it lives in the
 * second tail page, so the order has to be 2 or more.
 */
static inline bool page_has_pincount(struct page *head)
{
	return PageHead(head) && head[1].compound_order > 1;
}

/**
 * page_pincount() - how many pins a page has
 * @page: the page, or any subpage of a compound page, which the caller has
 *	mapped, pinned or holds a reference to
 *
 * The pins of a compound page are counted together, at its head.
 *
 * Context: any. The value can change at once, unless the caller shuts new pins
 * out (see mm/pin.h).
 * Return: the exact number of pins of a compound page of order 2 and up. For
 * smaller pages, never less than the number of pins, but more by one for every
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
 * page_maybe_dma_pinned() - whether a device may be using a page
 * @page: the page, or any subpage of a compound page, which the caller has
 *	mapped, pinned or holds a reference to
 *
 * Context: any. Who needs the answer to stay true has to shut new pins out
 * first; mm/pin.h has the rules.
 * Return: true for every pinned page. Also true for a page smaller than
 * order 2 that is not pinned but has GUP_PIN_COUNTING_BIAS or more ordinary
 * references. False otherwise.
 */
static inline bool page_maybe_dma_pinned(struct page *page)
{
	return page_pincount(page) > 0;
}

bool page_seems_pinned(struct page *page);

/* For mm_init(): a new mm has pinned nothing. */
static inline void pin_mm_init(struct mm_struct *mm)
{
	mm->has_pinned = false;
	seqcount_init(&mm->write_protect_seq);
}

/*
 * For fork(), before it looks at the first page-table entry of @mm: from here
 * to pin_fork_end(), pin_user_pages_fast() does without its lockless walk.
 *
 * The raw calls, because the section may sleep: its readers never wait for it.
 */
static inline void pin_fork_begin(struct mm_struct *mm)
{
	mmap_assert_write_locked(mm);
	raw_write_seqcount_begin(&mm->write_protect_seq);
	smp_mb();	/* (A) in mm/pin.h */
}

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
