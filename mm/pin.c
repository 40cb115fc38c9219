// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pins of user pages: taking, counting and giving them back.
 *
 * The page-table walks that find the pages are in mm/gup.c; the rules that the
 * counts go by are in mm/pin.h.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/ratelimit.h>
#include <linux/vmstat.h>

#define CREATE_TRACE_POINTS
#include <trace/events/pin.h>

#include "internal.h"
#include "pin.h"

/**
 * try_pin_head() - pin a compound page
 * @page: the head page, or any tail page
 * @refs: how many pins to take, not more than the page has subpages
 *
 * Context: any. The caller need not hold a reference to @page.
 * Return: the head page, or NULL if @page is not part of a compound page, is
 * not in use, or its count is at PIN_REF_LIMIT.
 */
struct page *try_pin_head(struct page *page, int refs)
{
	struct page *head = compound_head(page);
	unsigned int order = compound_order(head);
	int nr = order > 1 ? refs : refs * GUP_PIN_COUNTING_BIAS;

	if (!order || unlikely(!pin_ref_add(head, nr)))
		return NULL;

	/* Now it cannot be split or freed. Was it, before, and made anew? */
	if (unlikely(compound_head(page) != head || !PageHead(head)))
		goto changed;
	smp_rmb();	/* pairs with prep_compound_page() */
	if (unlikely(head[1].compound_order != order))
		goto changed;

	if (order > 1) {
		atomic_add(refs, compound_pincount_ptr(head));
		/* the full barrier that mm/pin.h asks for */
		smp_mb__after_atomic();
	}
	return head;

changed:
	put_page_refs(head, nr);
	return NULL;
}

/**
 * page_seems_pinned() - whether a page looks pinned
 * @page: any page, or subpage, in whatever state
 *
 * For statistics, for giving up early what is going to fail, and for what
 * reclaim leaves alone. Other than page_maybe_dma_pinned() this does not take a
 * small page for pinned because it is mapped a thousand times; but mappings that
 * come and go while it looks can make it miss a pin.
 *
 * Context: any.
 * Return: true if more than its mappings say so.
 */
bool page_seems_pinned(struct page *page)
{
	page = compound_head(page);
	if (page_has_pincount(page))
		return page_pincount(page) > 0;
	/* The map count of what is never mapped may say something else. */
	return page_ref_count(page) - max(atomic_read(&page->_mapcount) + 1, 0) >=
	       GUP_PIN_COUNTING_BIAS;
}

/**
 * unpin_head() - give pins of a page back, without a word to the statistics
 * @head: a head page, or a page that is not compound
 * @refs: how many pins to give back
 *
 * Pins that the page does not have are reported, and not taken off.
 *
 * Context: any context in which put_page() may be called.
 * Return: the number of pins given back.
 */
int unpin_head(struct page *head, int refs)
{
	int nr = refs, old;

	if (page_has_pincount(head)) {
		old = atomic_read(compound_pincount_ptr(head));
		do {
			nr = min(nr, old);
		} while (nr && !atomic_try_cmpxchg(compound_pincount_ptr(head),
						   &old, old - nr));
		if (nr && page_ref_sub_and_test(head, nr))
			__put_page(head);
	} else {
		/* All but one reference, which may be the last of a DAX page */
		old = page_ref_count(head);
		do {
			nr = clamp(old / GUP_PIN_COUNTING_BIAS, 0, nr);
		} while (nr && !atomic_try_cmpxchg(&head->_refcount, &old,
				old - nr * GUP_PIN_COUNTING_BIAS + 1));
		if (nr && page_ref_tracepoint_active(page_ref_mod))
			__page_ref_mod(head, 1 - nr * GUP_PIN_COUNTING_BIAS);
		if (nr)
			put_page(head);
	}
	WARN_RATELIMIT(nr < refs,
		       "pin: unpin of a page that is not pinned: pfn %#lx, %d of %d\n",
		       page_to_pfn(head), refs - nr, refs);
	return nr;
}

/* Unpins an order-0 page that stays in use; leaves all others alone. */
static __always_inline bool unpin_small(struct page *page)
{
	int old = page_ref_count(page);

	/* A tail page has no references of its own. */
	if (unlikely(test_bit(PG_head, &page->flags) ||
		     page_is_devmap_managed(page)))
		return false;
	do {
		if (unlikely(old <= GUP_PIN_COUNTING_BIAS))
			return false;
	} while (unlikely(!atomic_try_cmpxchg(&page->_refcount, &old,
					      old - GUP_PIN_COUNTING_BIAS)));

	if (page_ref_tracepoint_active(page_ref_mod))
		__page_ref_mod(page, -GUP_PIN_COUNTING_BIAS);
	return true;
}

/* How many pages there are from @page to the end of its compound page. */
static unsigned long pages_to_end(struct page *head, struct page *page)
{
	return compound_nr(head) - (page_to_pfn(page) - page_to_pfn(head));
}

/* The device is done with it: a page that is dirty by now needs no lock. */
static void unpin_dirty(struct page *page)
{
	page = compound_head(page);
	if (!PageDirty(page) && page_maybe_dma_pinned(page))
		set_page_dirty_lock(page);
}

/*
 * Unpins an array of pages, with one operation for each run of consecutive
 * subpages. Returns the number of pins given back.
 */
static __always_inline unsigned long
unpin_array(struct page **pages, unsigned long npages, bool make_dirty)
{
	struct page **end = pages + npages;
	unsigned long nr, most, missing = 0;
	struct page *head;

	while (pages < end) {
		if (make_dirty)
			unpin_dirty(*pages);
		if (likely(unpin_small(*pages))) {
			pages++;
			continue;
		}
		head = compound_head(*pages);
		most = end - pages;
		if (most > 1)
			most = min(most, pages_to_end(head, *pages));
		for (nr = 1; nr < most; nr++)
			if (pages[nr] != nth_page(*pages, nr))
				break;
		missing += nr - unpin_head(head, nr);
		pages += nr;
	}
	return npages - missing;
}

/**
 * unpin_pages() - give pins back, without a word to the statistics
 * @pages: the pages
 * @npages: number of pages
 *
 * For pins that no caller has seen.
 *
 * Context: any context in which put_page() may be called.
 */
void unpin_pages(struct page **pages, unsigned long npages)
{
	unpin_array(pages, npages, false);
}

/**
 * unpin_user_page() - give the pin of a page back
 * @page: a page that pin_user_pages*() returned
 *
 * The pages of one pin_user_pages*() call may be given back one at a time and
 * in any order; unpin_user_pages() is cheaper for many. If the device wrote to
 * the page, use unpin_user_pages_dirty_lock() instead.
 *
 * If the page has no pin to give back, as far as its count can tell, that is
 * reported with a stack trace, and the page is left as it is. An unpin that
 * takes somebody else's pin cannot be told from theirs.
 *
 * Context: any context in which put_page() may be called.
 */
void unpin_user_page(struct page *page)
{
	unpin_user_pages(&page, 1);
}
EXPORT_SYMBOL(unpin_user_page);

/**
 * unpin_user_pages() - give the pins of an array of pages back
 * @pages: pages that pin_user_pages*() returned
 * @npages: number of pages
 *
 * For pages that the device only read: see unpin_user_pages_dirty_lock() for
 * the others. Runs of subpages that follow each other in @pages, as
 * pin_user_pages*() returns them, cost one operation each.
 *
 * An error from pin_user_pages*() passed as @npages is reported and ignored.
 *
 * Context: any context in which put_page() may be called.
 */
void unpin_user_pages(struct page **pages, unsigned long npages)
{
	if (WARN_ON_ONCE(IS_ERR_VALUE(npages)))
		return;
	trace_unpin_user_pages(pages, npages, false);
	count_vm_events(NR_FOLL_PIN_RELEASED,
			unpin_array(pages, npages, false));
}
EXPORT_SYMBOL(unpin_user_pages);

/**
 * unpin_user_pages_dirty_lock() - dirty an array of pages, give the pins back
 * @pages: pages that pin_user_pages*() returned
 * @npages: number of pages
 * @make_dirty: whether the device may have written to the pages
 *
 * With @make_dirty, pages that are clean are made dirty under the page lock
 * before they are unpinned. Without it, this is unpin_user_pages().
 *
 * Context: may sleep if @make_dirty, else as unpin_user_pages().
 */
void unpin_user_pages_dirty_lock(struct page **pages, unsigned long npages,
				 bool make_dirty)
{
	if (!make_dirty) {
		unpin_user_pages(pages, npages);
		return;
	}
	if (WARN_ON_ONCE(IS_ERR_VALUE(npages)))
		return;
	trace_unpin_user_pages(pages, npages, true);
	count_vm_events(NR_FOLL_PIN_RELEASED, unpin_array(pages, npages, true));
}
EXPORT_SYMBOL(unpin_user_pages_dirty_lock);

/**
 * unpin_user_page_range_dirty_lock() - dirty consecutive pages, give the pins back
 * @page: the first page
 * @npages: number of pages, consecutive in physical memory
 * @make_dirty: whether the device may have written to the pages
 *
 * For callers that keep ranges and not an array, such as scatterlists: every
 * page of the range must have been returned by pin_user_pages*().
 *
 * Context: may sleep if @make_dirty, else as unpin_user_pages().
 */
void unpin_user_page_range_dirty_lock(struct page *page, unsigned long npages,
				      bool make_dirty)
{
	unsigned long i, nr, unpinned = 0;

	if (WARN_ON_ONCE(IS_ERR_VALUE(npages)))
		return;
	trace_unpin_user_pages(&page, npages, make_dirty);
	for (i = 0; i < npages; i += nr) {
		struct page *next = nth_page(page, i);
		struct page *head = compound_head(next);

		nr = min(npages - i, pages_to_end(head, next));
		if (make_dirty)
			unpin_dirty(head);
		unpinned += unpin_head(head, nr);
	}
	count_vm_events(NR_FOLL_PIN_RELEASED, unpinned);
}
EXPORT_SYMBOL(unpin_user_page_range_dirty_lock);

/*
 * Whether the flags and arguments of a pin_user_pages*() call can be had:
 * FOLL_PIN and FOLL_UNSHARE are ours to set, and exclude FOLL_GET.
 */
static bool pin_args_valid(struct page **pages, unsigned int gup_flags)
{
	return !WARN_ON_ONCE(!pages || gup_flags & (FOLL_PIN | FOLL_GET |
						    FOLL_UNSHARE));
}

/* A pin for writing breaks copy-on-write anyway. */
static unsigned int pin_flags(unsigned int gup_flags)
{
	return (gup_flags | FOLL_PIN | FOLL_UNSHARE) ^
	       (gup_flags & FOLL_WRITE ? FOLL_UNSHARE : 0);
}

static noinline long trace_pins(unsigned long start, unsigned long nr_pages,
				unsigned int gup_flags, struct page **pages,
				long nr)
{
	trace_pin_user_pages(start, nr_pages, gup_flags, pages, nr);
	return nr;
}

/*
 * Finishes a pin_user_pages*() call that pinned @nr pages, or failed with
 * that error: counts them, and gives the architecture its say on pages that a
 * device is going to use. Returns what the call returns.
 */
static __always_inline long
pin_finish(unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
	   struct page **pages, long nr)
{
	long i;
	int ret;

	for (i = 0; i < nr; i++) {
		ret = arch_make_page_accessible(pages[i]);
		if (ret) {
			unpin_pages(pages + i, nr - i);
			nr = i ?: ret;
		}
	}
	if (likely(nr > 0))
		count_vm_events(NR_FOLL_PIN_ACQUIRED, nr);
	/* A tail call: nothing else is kept for it. */
	if (trace_pin_user_pages_enabled())
		return trace_pins(start, nr_pages, gup_flags, pages, nr);
	return nr;
}

/**
 * pin_user_pages() - pin pages of the current process
 * @start: address of the first page; need not be page-aligned
 * @nr_pages: number of pages
 * @gup_flags: FOLL_WRITE if the device writes, FOLL_LONGTERM if user space
 *	decides how long, other FOLL_* as for get_user_pages(), but neither
 *	FOLL_GET nor FOLL_PIN
 * @pages: array of @nr_pages that receives the pages
 * @vmas: array of @nr_pages that receives the mapping of each page, or NULL
 *
 * The pages are faulted in as needed. Give them back with unpin_user_pages()
 * or one of its kin.
 *
 * Context: mmap_lock held for reading or writing, and not dropped; may sleep.
 * @vmas are valid for as long as it is held.
 * Return: how many pages were pinned, from the first on, if any. Else, with
 * nothing pinned: 0 if @nr_pages is 0, or FOLL_NOWAIT would have had to wait,
 * -EFAULT if @start is not mapped so that @gup_flags allow, -ENOMEM if there
 * is no memory, the page has too many pins already or, with FOLL_LONGTERM,
 * cannot be moved out of a CMA area, -EOPNOTSUPP for FOLL_LONGTERM of fs-dax
 * memory, -EHWPOISON with FOLL_HWPOISON for a page with a memory error (-EFAULT
 * without), -EINTR if the process is being killed (but -EFAULT from hugetlb),
 * -EINVAL for flags that are not the caller's to set, or what
 * arch_make_page_accessible() gives.
 */
long pin_user_pages(unsigned long start, unsigned long nr_pages,
		    unsigned int gup_flags, struct page **pages,
		    struct vm_area_struct **vmas)
{
	long nr;

	if (!pin_args_valid(pages, gup_flags))
		return -EINVAL;

	mm_set_has_pinned(current->mm);
	nr = __gup_longterm_locked(current->mm, start, nr_pages, pages, vmas,
				   pin_flags(gup_flags));
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL(pin_user_pages);

/**
 * pin_user_pages_locked() - pin pages, letting go of mmap_lock if that helps
 * @start: see pin_user_pages()
 * @nr_pages: see pin_user_pages()
 * @gup_flags: see pin_user_pages(); not FOLL_LONGTERM
 * @pages: see pin_user_pages()
 * @locked: 1; is set to 0 if mmap_lock was dropped, and is not held on return
 *
 * Context: mmap_lock held for reading; may sleep.
 * Return: see pin_user_pages(); -EINVAL for FOLL_LONGTERM.
 */
long pin_user_pages_locked(unsigned long start, unsigned long nr_pages,
			   unsigned int gup_flags, struct page **pages,
			   int *locked)
{
	long nr;

	if (!pin_args_valid(pages, gup_flags) ||
	    WARN_ON_ONCE(gup_flags & FOLL_LONGTERM))
		return -EINVAL;

	mm_set_has_pinned(current->mm);
	nr = gup_locked(current->mm, start, nr_pages, pages, NULL, locked,
			pin_flags(gup_flags));
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL(pin_user_pages_locked);

/**
 * pin_user_pages_unlocked() - pin pages, under mmap_lock taken inside
 * @start: see pin_user_pages()
 * @nr_pages: see pin_user_pages()
 * @pages: see pin_user_pages()
 * @gup_flags: see pin_user_pages()
 *
 * Context: mmap_lock not held; may sleep. pin_user_pages_fast() is the better
 * choice, unless a flag is wanted that it does not take.
 * Return: see pin_user_pages().
 */
long pin_user_pages_unlocked(unsigned long start, unsigned long nr_pages,
			     struct page **pages, unsigned int gup_flags)
{
	long nr;

	if (!pin_args_valid(pages, gup_flags))
		return -EINVAL;

	mm_set_has_pinned(current->mm);
	nr = __gup_longterm_unlocked(start, nr_pages, pin_flags(gup_flags),
				     pages);
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL(pin_user_pages_unlocked);

/**
 * pin_user_pages_remote() - pin pages of another process
 * @mm: whose pages; the caller keeps it alive
 * @start: see pin_user_pages()
 * @nr_pages: see pin_user_pages()
 * @gup_flags: see pin_user_pages()
 * @pages: see pin_user_pages()
 * @vmas: see pin_user_pages()
 * @locked: see pin_user_pages_locked(), or NULL to keep mmap_lock; with
 *	@vmas or FOLL_LONGTERM it has to be NULL
 *
 * Context: mmap_lock of @mm held for reading; may sleep.
 * Return: see pin_user_pages().
 */
long pin_user_pages_remote(struct mm_struct *mm, unsigned long start,
			   unsigned long nr_pages, unsigned int gup_flags,
			   struct page **pages, struct vm_area_struct **vmas,
			   int *locked)
{
	long nr;

	if (!pin_args_valid(pages, gup_flags) ||
	    WARN_ON_ONCE(locked && (vmas || (gup_flags & FOLL_LONGTERM))))
		return -EINVAL;

	mm_set_has_pinned(mm);
	gup_flags |= FOLL_REMOTE;
	if (locked)
		nr = gup_locked(mm, start, nr_pages, pages, vmas, locked,
				pin_flags(gup_flags));
	else
		nr = __gup_longterm_locked(mm, start, nr_pages, pages, vmas,
					   pin_flags(gup_flags));
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL(pin_user_pages_remote);

/**
 * pin_user_pages_fast() - pin pages, without mmap_lock if they are mapped
 * @start: see pin_user_pages()
 * @nr_pages: see pin_user_pages()
 * @gup_flags: FOLL_WRITE, FOLL_LONGTERM and FOLL_FORCE, as for
 *	pin_user_pages()
 * @pages: see pin_user_pages()
 *
 * Walks the page tables with interrupts off, and takes mmap_lock for what it
 * did not find there, and while the process forks.
 *
 * Context: mmap_lock not held; may sleep.
 * Return: see pin_user_pages(); 0, too, for a range that wraps around.
 */
int pin_user_pages_fast(unsigned long start, int nr_pages,
			unsigned int gup_flags, struct page **pages)
{
	long nr;

	if (!pin_args_valid(pages, gup_flags))
		return -EINVAL;

	mm_set_has_pinned(current->mm);
	nr = internal_get_user_pages_fast(start, nr_pages, pin_flags(gup_flags),
					  pages);
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL_GPL(pin_user_pages_fast);

/**
 * pin_user_pages_fast_only() - pin pages that are mapped, without mmap_lock
 * @start: see pin_user_pages()
 * @nr_pages: see pin_user_pages()
 * @gup_flags: see pin_user_pages_fast()
 * @pages: see pin_user_pages()
 *
 * Without FOLL_WRITE, pins nothing of what is mapped read-only, but anonymous
 * pages that the process is known to have to itself.
 *
 * Context: any in which there is a current->mm; does not sleep, and leaves
 * mmap_lock alone. Pins nothing on architectures without the lockless walk, and
 * while the process forks.
 * Return: how many pages were pinned, from the first on; never an error.
 */
int pin_user_pages_fast_only(unsigned long start, int nr_pages,
			     unsigned int gup_flags, struct page **pages)
{
	long nr;

	if (!pin_args_valid(pages, gup_flags))
		return 0;

	mm_set_has_pinned(current->mm);
	gup_flags |= FOLL_FAST_ONLY;
	nr = internal_get_user_pages_fast(start, nr_pages, pin_flags(gup_flags),
					  pages);
	return max(0L, pin_finish(start, nr_pages, gup_flags, pages, nr));
}
EXPORT_SYMBOL_GPL(pin_user_pages_fast_only);
