// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pins of user pages: take them, count them, give them back.
 *
 * The page-table walks that find the pages are in mm/gup.c. The rules for the
 * counts are in mm/pin.h.
 */
#include <linux/jiffies.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/ratelimit.h>
#include <linux/vmstat.h>

#define CREATE_TRACE_POINTS
#include <trace/events/pin.h>

#include "internal.h"
#include "pin.h"

/**
 * try_pin_compound() - pin a compound page
 * @page: any page; only a compound page gets pinned
 * @refs: how many pins to take, at most the number of subpages
 *
 * Context: any. The caller need not hold a reference to @page.
 * Return: the head page, or NULL if @page is not part of a compound page, is
 * not in use, changes meanwhile, or its count is at PIN_REF_LIMIT.
 */
struct page *try_pin_compound(struct page *page, int refs)
{
	struct page *head = compound_head(page);
	unsigned int order = compound_order(head);
	int nr = order > 1 ? refs : refs * GUP_PIN_COUNTING_BIAS;

	if (!order || unlikely(!pin_ref_add(head, nr)))
		return NULL;

	/*
	 * The reference keeps the page from being split or freed. Recheck that
	 * it is still the same compound page.
	 */
	if (unlikely(compound_head(page) != head || !PageHead(head)))
		goto changed;
	smp_rmb();	/* pairs with prep_compound_page() */
	if (unlikely(head[1].compound_order != order))
		goto changed;

	if (order > 1) {
		atomic_add(refs, compound_pincount_ptr(head));
		/* Order the count before the last look at the entry. */
		smp_mb__after_atomic();
	}
	return head;

changed:
	put_page_refs(head, nr);
	return NULL;
}

/* Return the number of pages from @page to the end of its compound page. */
static unsigned long pages_to_end(struct page *head, struct page *page)
{
	return compound_nr(head) - (page_to_pfn(page) - page_to_pfn(head));
}

/**
 * page_likely_pinned() - tell whether a page is pinned, not just mapped often
 * @page: any page, or subpage, in whatever state
 *
 * Unlike page_maybe_dma_pinned(), this subtracts mappings from the refcount, so
 * that 1024 mappings do not look like a pin.
 *
 * Each mapping has a reference. But the two counts cannot be read at one moment,
 * so mappings that come or go meanwhile can make the map count too high, which
 * would hide a pin. This bounds the error:
 *
 *  - A map count below GUP_PIN_COUNTING_BIAS / 2 is not subtracted. So a pin of a
 *    page that has fewer mappings is never missed.
 *  - The lower of two map counts is subtracted, read before and after the
 *    refcount. So a pin is missed only if the map count dips at that moment:
 *    mappings go before and others come after, each time more than the page has
 *    references that are neither mappings nor pins. On weakly ordered machines,
 *    each fork() in flight can add one mapping to the error.
 *  - Every pin beyond the first takes another GUP_PIN_COUNTING_BIAS of them.
 *
 * A caller that protects a file page by the answer holds the page lock. The lock
 * excludes faults that map the page, so only fork() adds mappings. The page cache
 * and the caller have a reference each, and the buffers have one. So for a miss,
 * while 512 entries map the page, three of its mappings go, with their references,
 * between the first two loads, and fork() copies three entries of it between the
 * last two; one more each if it has buffers. The loads are adjacent: that takes
 * as many CPUs at once, or an interrupt in both gaps.
 *
 * Context: any.
 * Return: true for a pinned page, within these bounds. Also true for an unpinned
 * page of order 0 or 1 with GUP_PIN_COUNTING_BIAS or more references, if fewer
 * than GUP_PIN_COUNTING_BIAS / 2 of them are mappings, or if
 * GUP_PIN_COUNTING_BIAS or more of them are not. False otherwise.
 */
bool page_likely_pinned(struct page *page)
{
	int refs, mapped;

	page = compound_head(page);
	if (page_has_pincount(page))
		return page_pincount(page) > 0;
	if (page_ref_count(page) < GUP_PIN_COUNTING_BIAS)
		return false;

	mapped = atomic_read(&page->_mapcount) + 1;
	smp_rmb();	/* after the map count: fork() adds the reference first */
	refs = page_ref_count(page);
	smp_rmb();	/* pairs with put_page() after page_remove_rmap() */
	mapped = min(mapped, atomic_read(&page->_mapcount) + 1);
	if (mapped < GUP_PIN_COUNTING_BIAS / 2)
		return refs >= GUP_PIN_COUNTING_BIAS;
	return refs - mapped >= GUP_PIN_COUNTING_BIAS;
}

/**
 * release_page_private() - release the buffers of a file page, unless it is pinned
 * @page: the page, locked
 * @gfp_mask: see try_to_release_page()
 *
 * Call this to release the buffers or other private data of a page that is to be
 * freed or used otherwise. The buffers of a pinned page are kept: the file system
 * needs them when the unpin makes the page dirty.
 *
 * Truncation does not call this, nor do memory errors where the file system
 * truncates the page. The page leaves its file, and the buffers would hold the
 * page after the last unpin. Data without PG_private is released too: a network
 * file system drops its local copy (PG_private_2) when the server has changed the
 * file.
 *
 * Context: may sleep if @gfp_mask allows.
 * Return: true if the page has no private data now.
 */
bool release_page_private(struct page *page, gfp_t gfp_mask)
{
	if (!page_has_private(page))
		return true;
	if (PagePrivate(page) && page->mapping && page_likely_pinned(page))
		return false;
	return try_to_release_page(page, gfp_mask);
}
EXPORT_SYMBOL_GPL(release_page_private);

/* Limits for offline_pages() to migrate a pinned page: both must pass */
#define PIN_OFFLINE_TIMEOUT	HZ
#define PIN_OFFLINE_TRIES	10

/**
 * pin_blocks_offline() - tell offline_pages() to give up on a pinned page
 * @state: zeroed before the first call, and kept from one call to the next
 * @pfn: the first page that is still to be migrated
 *
 * Pins of I/O in flight are dropped soon. Other pins may stay.
 *
 * Context: process context; the caller offlines the memory of @pfn.
 * Return: true if the same page was pinned for longer than PIN_OFFLINE_TIMEOUT
 * and in more than PIN_OFFLINE_TRIES calls.
 */
bool pin_blocks_offline(struct pin_offline_state *state, unsigned long pfn)
{
	if (pfn != state->pfn || !page_likely_pinned(pfn_to_page(pfn))) {
		state->pfn = pfn;
		state->deadline = jiffies + PIN_OFFLINE_TIMEOUT;
		state->tries = 0;
		return false;
	}
	return ++state->tries > PIN_OFFLINE_TRIES &&
	       time_after(jiffies, state->deadline);
}

/**
 * unpin_page_refs() - give pins of a page back without updating vmstat
 * @head: a head page, or a page that is not compound
 * @refs: how many pins to give back
 *
 * Report pins that the page does not have, and do not take them off.
 *
 * Context: any context in which put_page() may be called.
 * Return: the number of pins given back.
 */
int unpin_page_refs(struct page *head, int refs)
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
		/* Leave one reference to put_page(), which knows DAX pages. */
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

/* Unpin an order-0 page that stays in use. Leave every other page alone. */
static __always_inline bool unpin_base_page(struct page *page)
{
	int old = page_ref_count(page);

	/* A tail page has no references, so the loop refuses it. */
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

/* Make a pinned page dirty. Skip the page lock if it is dirty already. */
static void unpin_dirty(struct page *page)
{
	page = compound_head(page);
	if (!PageDirty(page) && page_maybe_dma_pinned(page))
		set_page_dirty_lock(page);
}

/*
 * Unpin an array of pages, with one operation for each run of consecutive
 * subpages. Return the number of pins given back.
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
		if (likely(unpin_base_page(*pages))) {
			pages++;
			continue;
		}
		head = compound_head(*pages);
		most = end - pages;
		if (most > 1)
			most = min(most, pages_to_end(head, *pages));
		for (nr = 1; nr < most; nr++)
			if (pages[nr] != subpage_after(*pages, nr))
				break;
		missing += nr - unpin_page_refs(head, nr);
		pages += nr;
	}
	return npages - missing;
}

/**
 * unpin_pages() - give pins back without updating vmstat
 * @pages: the pages
 * @npages: number of pages
 *
 * Use it for pins that no caller of pin_user_pages*() has seen.
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
 * If the count of the page shows no pin, warn and do nothing. If another caller
 * has a pin, an unpin too many takes that pin and cannot be detected.
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
 * Use it if the device only read the pages, unpin_user_pages_dirty_lock()
 * otherwise. A run of subpages that follow each other in @pages, as
 * pin_user_pages*() returns them, costs one operation.
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
 * @make_dirty: true if the device may have written to the pages
 *
 * With @make_dirty, make each clean page dirty under the page lock before it is
 * unpinned. Without it, this is unpin_user_pages().
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
 * @make_dirty: true if the device may have written to the pages
 *
 * Use it for ranges, such as those of scatterlists. Every page of the range must
 * have been returned by pin_user_pages*().
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
		unpinned += unpin_page_refs(head, nr);
	}
	count_vm_events(NR_FOLL_PIN_RELEASED, unpinned);
}
EXPORT_SYMBOL(unpin_user_page_range_dirty_lock);

/* Validate the arguments: FOLL_PIN is set here, and excludes FOLL_GET. */
static bool pin_args_valid(struct page **pages, unsigned int gup_flags)
{
	return !WARN_ON_ONCE(!pages || gup_flags & (FOLL_PIN | FOLL_GET));
}

/* Trace a pin_user_pages*() call, and return what it returns. */
static noinline long trace_pins(unsigned long start, unsigned long nr_pages,
				unsigned int gup_flags, struct page **pages,
				long nr)
{
	trace_pin_user_pages(start, nr_pages, gup_flags, pages, nr);
	return nr;
}

/*
 * Finish a pin_user_pages*() call that pinned @nr pages, or failed with that
 * error. Let the architecture make the pages accessible for the device, and
 * count them. Return what the call returns.
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
	/* Tail call: a disabled tracepoint costs no spills. */
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
 * or one of its variants.
 *
 * Context: mmap_lock held for reading or writing, and not dropped; may sleep.
 * @vmas are valid for as long as it is held.
 * Return: how many pages were pinned, from the first on, if any. Else, with
 * nothing pinned:
 *
 * * 0 if @nr_pages is 0, or FOLL_NOWAIT would have had to wait
 * * -EFAULT if @start is not mapped as @gup_flags require
 * * -ENOMEM if there is no memory, the page has too many pins already or, with
 *   FOLL_LONGTERM, cannot be moved out of a CMA area
 * * -EOPNOTSUPP for FOLL_LONGTERM of fs-dax memory
 * * -EHWPOISON, with FOLL_HWPOISON, for a page with a memory error; -EFAULT
 *   without the flag
 * * -EINTR if the process is being killed; -EFAULT from hugetlb
 * * -EINVAL for flags that callers must not set
 * * the error of arch_make_page_accessible()
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
				   gup_flags | FOLL_PIN);
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL(pin_user_pages);

/**
 * pin_user_pages_locked() - pin pages, and drop mmap_lock if that helps
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
			gup_flags | FOLL_PIN);
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL(pin_user_pages_locked);

/**
 * pin_user_pages_unlocked() - pin pages, and take mmap_lock for it
 * @start: see pin_user_pages()
 * @nr_pages: see pin_user_pages()
 * @pages: see pin_user_pages()
 * @gup_flags: see pin_user_pages()
 *
 * Use pin_user_pages_fast() instead, unless you want a flag that it does not
 * take.
 *
 * Context: mmap_lock not held; may sleep.
 * Return: see pin_user_pages().
 */
long pin_user_pages_unlocked(unsigned long start, unsigned long nr_pages,
			     struct page **pages, unsigned int gup_flags)
{
	long nr;

	if (!pin_args_valid(pages, gup_flags))
		return -EINVAL;

	mm_set_has_pinned(current->mm);
	nr = __gup_longterm_unlocked(start, nr_pages, gup_flags | FOLL_PIN,
				     pages);
	return pin_finish(start, nr_pages, gup_flags, pages, nr);
}
EXPORT_SYMBOL(pin_user_pages_unlocked);

/**
 * pin_user_pages_remote() - pin pages of another process
 * @mm: the mm of that process; the caller keeps it alive
 * @start: see pin_user_pages()
 * @nr_pages: see pin_user_pages()
 * @gup_flags: see pin_user_pages()
 * @pages: see pin_user_pages()
 * @vmas: see pin_user_pages()
 * @locked: see pin_user_pages_locked(), or NULL to keep mmap_lock; must be NULL
 *	with @vmas or FOLL_LONGTERM
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
				gup_flags | FOLL_PIN);
	else
		nr = __gup_longterm_locked(mm, start, nr_pages, pages, vmas,
					   gup_flags | FOLL_PIN);
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
 * GUP-fast: walk the page tables with interrupts disabled. Take mmap_lock for
 * the pages that the walk did not find, and while the process forks.
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
	nr = internal_get_user_pages_fast(start, nr_pages,
					  gup_flags | FOLL_PIN, pages);
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
 * Without FOLL_WRITE, and if the entry is read-only, pin only an anonymous page
 * that is known to be exclusive.
 *
 * Context: any with a current->mm; does not sleep, and leaves mmap_lock alone.
 * Pins nothing on architectures without GUP-fast, or while the process forks.
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
	nr = internal_get_user_pages_fast(start, nr_pages,
					  gup_flags | FOLL_PIN, pages);
	return max(0L, pin_finish(start, nr_pages, gup_flags, pages, nr));
}
EXPORT_SYMBOL_GPL(pin_user_pages_fast_only);
