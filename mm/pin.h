/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Pins inside mm: how they are counted, and the rules that make them hold. Each
 * rule stands above the functions that keep it.
 *
 * Counting. A pin adds GUP_PIN_COUNTING_BIAS to the refcount of a page of order
 * 0 or 1. A larger compound page has its pins counted at the head page: a pin
 * of any subpage adds one reference and one to compound_pincount. The task that
 * pins or unpins changes both counts with atomic operations, under no lock:
 *
 *  - It takes the reference first and drops it last. So a pinned page is never
 *    free. The references also keep a compound page from being split, so a
 *    pinned page does not change the way its pins are counted.
 *  - It raises the count, then has a full barrier, in try_pin_compound() and
 *    try_pin_base_page(), then looks at the page-table entry for the last time.
 *    Code that removes or changes an entry and then looks for pins has a full
 *    barrier between the two. So one of the two sees the other.
 */
#ifndef _MM_PIN_H
#define _MM_PIN_H

#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/page_ref.h>
#include <linux/rmap.h>
#include <linux/sched/signal.h>
#include <linux/vmstat.h>

#include "anon_exclusive.h"

/*
 * No pin is taken above this refcount. The upper half is headroom for the last
 * batch of pins and for ordinary references, which have no limit.
 */
#define PIN_REF_LIMIT	(INT_MAX / 2)

void put_page_refs(struct page *page, int refs);

/* GUP walks, for the pin_user_pages*() calls of mm/pin.c */
long gup_locked(struct mm_struct *mm, unsigned long start,
		unsigned long nr_pages, struct page **pages,
		struct vm_area_struct **vmas, int *locked, unsigned int flags);
long __gup_longterm_locked(struct mm_struct *mm, unsigned long start,
			   unsigned long nr_pages, struct page **pages,
			   struct vm_area_struct **vmas,
			   unsigned int gup_flags);
long __gup_longterm_unlocked(unsigned long start, unsigned long nr_pages,
			     unsigned int gup_flags, struct page **pages);
long internal_get_user_pages_fast(unsigned long start, unsigned long nr_pages,
				  unsigned int gup_flags, struct page **pages);

/* Add @nr to the refcount of @page, if the page is in use and below the limit. */
static __always_inline bool pin_ref_add(struct page *page, int nr)
{
	int old = page_ref_count(page);

	do {
		/* As unsigned, 0 - 1 is above the limit too. */
		if (unlikely((unsigned int)old - 1 >= PIN_REF_LIMIT))
			return false;
	} while (unlikely(!atomic_try_cmpxchg(&page->_refcount, &old, old + nr)));

	if (page_ref_tracepoint_active(page_ref_mod_unless))
		__page_ref_mod_unless(page, nr, 1);
	return true;
}

/*
 * Pin @page if it is an order-0 page: a tail page and a free page have no
 * references to add to, and a head page shows PG_head.
 *
 * GUP-fast may call this for a page that was freed and is being made a compound
 * page. Its last look at the page-table entry finds that. It then backs off with
 * put_page_refs() and not with unpin_page_refs(), which would go by the new
 * state of the page.
 */
static __always_inline bool try_pin_base_page(struct page *page)
{
	if (unlikely(!pin_ref_add(page, GUP_PIN_COUNTING_BIAS)))
		return false;
	if (likely(!test_bit(PG_head, &page->flags)))
		return true;
	put_page_refs(page, GUP_PIN_COUNTING_BIAS);
	return false;
}

struct page *try_pin_compound(struct page *page, int refs);
int unpin_page_refs(struct page *head, int refs);
void unpin_pages(struct page **pages, unsigned long npages);

/* Return subpage @nr after @page. Only sections without a vmemmap have gaps. */
static inline struct page *subpage_after(struct page *page, unsigned long nr)
{
	if (IS_ENABLED(CONFIG_FLATMEM) || IS_ENABLED(CONFIG_SPARSEMEM_VMEMMAP))
		return page + nr;
	return nth_page(page, nr);
}

/*
 * Pin and record @nr consecutive subpages of one huge page, from @page on, with one
 * operation. @vma maps @page at @addr. The caller has pinned and recorded the first
 * @pinned of them, or holds the page-table lock. Return false, with nothing pinned
 * or recorded, if the count of the huge page is at PIN_REF_LIMIT.
 */
static inline bool pin_subpages(struct page *page, unsigned long nr,
				unsigned long pinned,
				struct vm_area_struct *vma, unsigned long addr,
				struct page **pages,
				struct vm_area_struct **vmas)
{
	unsigned long i;

	if (nr > pinned && !try_pin_compound(page, nr - pinned))
		return false;
	for (i = pinned; i < nr; i++) {
		pages[i] = subpage_after(page, i);
		/* GUP never flushes hugetlb pages. */
		if (!is_vm_hugetlb_page(vma)) {
			flush_anon_page(vma, pages[i], addr + i * PAGE_SIZE);
			flush_dcache_page(pages[i]);
		}
	}
	for (i = pinned; vmas && i < nr; i++)
		vmas[i] = vma;
	return true;
}

/*
 * Invariant 1: a pin is only taken on an anonymous page if the page is exclusive
 * (mm/anon_exclusive.h). If a private mapping has another page, a write fault or
 * a FAULT_FLAG_UNSHARE fault gives the mm a page of its own first.
 */

/* Return true if GUP with @flags pins for reading, and so may have to unshare. */
static __always_inline bool gup_pins_readonly(unsigned int flags)
{
	return (flags & (FOLL_PIN | FOLL_WRITE)) == FOLL_PIN;
}

/*
 * Return true if @page must not be pinned for reading before a
 * FAULT_FLAG_UNSHARE fault. The page is mapped by a @writable entry of @vma. The
 * slow path calls this under the page-table lock.
 *
 * GUP-fast does not know the mapping, so @vma is NULL. It leaves every page that
 * is neither writable nor exclusive to the slow path. It holds no lock, so it
 * calls this after it took the pin and rechecked the entry.
 */
static __always_inline bool gup_must_unshare(struct vm_area_struct *vma,
					     unsigned int flags,
					     struct page *page, bool writable)
{
	if (writable || likely(!gup_pins_readonly(flags)))
		return false;
	if (vma && !is_cow_mapping(vma->vm_flags))
		return false;
	if (!vma)
		smp_rmb();	/* pairs with page_try_share_anon_rmap() */
	return !PageAnon(page) || !PageAnonExclusive(page);
}

/*
 * Invariant 2: fork() never shares a page that may be pinned. It copies the page
 * for the child.
 *
 * mm->has_pinned is set before the first pin of an mm and never cleared. The
 * task that pins sets it, before or after it takes mmap_lock for reading.
 * fork() reads it under mmap_lock held for writing, so it sees the store of a
 * slow path that has dropped the lock.
 *
 * mm->write_protect_seq orders GUP-fast, which takes no lock. The sequence count
 * is odd while a fork() of the mm runs. Only fork() writes it, under mmap_lock
 * held for writing:
 *
 *     pin_user_pages_fast()                fork()
 *     ---------------------                ------
 *     has_pinned = 1                       write_protect_seq++ (odd)
 *     s = write_protect_seq, even          smp_mb()              (A)
 *     smp_rmb()                 (B)        read has_pinned
 *     for each entry:                      for each entry:
 *         count += pin, full barrier (C)       read the page's pins
 *         entry is unchanged                   pinned: copy the page
 *         entry is writable, or                else: write-protect the entry,
 *             the page is exclusive                clear PG_anon_exclusive
 *     s == write_protect_seq               smp_wmb()             (D)
 *                                          write_protect_seq++ (even)
 *
 * (A) pairs with (C). Either fork() sees the pin, and has_pinned, which was set
 * before the pin. Or GUP-fast sees the odd count, backs off and takes the slow
 * path, which waits for mmap_lock. (B) pairs with (D): a GUP-fast that starts
 * after the fork() sees the entries write-protected and the flags cleared.
 */

/* Note that @mm is going to pin. Call it before the first pin. */
static inline void mm_set_has_pinned(struct mm_struct *mm)
{
	if (!READ_ONCE(mm->has_pinned))
		WRITE_ONCE(mm->has_pinned, true);
}

/* Return true if any page of @mm may be pinned. */
static inline bool mm_has_pinned(struct mm_struct *mm)
{
	return READ_ONCE(mm->has_pinned);
}

/*
 * Return true if fork() must copy @page of an mm that has pinned memory. Test
 * the pins first: most pages have none.
 */
static inline bool page_needs_cow_for_dma(struct page *page)
{
	return page_maybe_dma_pinned(page) && PageAnon(page) &&
	       PageAnonExclusive(page);
}

/* Next step of copy_pte_range() for an entry of the parent */
enum pin_fork_action {
	PIN_FORK_SHARE,		/* share the page with the child */
	PIN_FORK_COPIED,	/* nothing: the child has its copy */
	PIN_FORK_NEED_PAGE,	/* drop the locks, call pin_fork_prepare(), retry */
};

/* State of copying the entries of a page table: the page for the copy at @addr */
struct pin_fork_state {
	struct page *copy;
	unsigned long addr;
};

/* No entry is at such an address. */
#define PIN_FORK_STATE	{ .addr = ~0UL }

struct page *pin_fork_alloc(struct vm_area_struct *vma, unsigned long addr);
void pin_fork_copy_pte(struct vm_area_struct *dst_vma,
		       struct vm_area_struct *src_vma, pte_t *dst_pte,
		       pte_t src_pte, unsigned long addr, struct page *page,
		       struct page *copy);

/*
 * Copy @page, which @src_pte maps and which may be NULL, for the child if it may
 * be pinned. If it was unpinned while the locks were dropped, it is shared.
 */
static __always_inline enum pin_fork_action
pin_fork_pte(struct pin_fork_state *state, struct vm_area_struct *dst_vma,
	     struct vm_area_struct *src_vma, pte_t *dst_pte, pte_t src_pte,
	     unsigned long addr, struct page *page)
{
	if (likely(!page || !page_needs_cow_for_dma(page)))
		return PIN_FORK_SHARE;
	if (state->addr != addr)
		return PIN_FORK_NEED_PAGE;
	pin_fork_copy_pte(dst_vma, src_vma, dst_pte, src_pte, addr, page,
			  state->copy);
	state->copy = NULL;
	return PIN_FORK_COPIED;
}

/* Free the page for a copy that was not made. */
static __always_inline void pin_fork_finish(struct pin_fork_state *state)
{
	if (unlikely(state->copy))
		put_page(state->copy);
}

/*
 * Allocate the page for the copy at @addr of the parent's mapping @vma. Call it
 * without page-table locks when pin_fork_pte() needs a page. A page that is left
 * is of another address, which was unpinned: free it, @addr may need another node.
 * Return 0, -ENOMEM, or -EINTR if the process is being killed.
 */
static __always_inline int pin_fork_prepare(struct pin_fork_state *state,
					    struct vm_area_struct *vma,
					    unsigned long addr)
{
	pin_fork_finish(state);
	state->copy = NULL;
	if (fatal_signal_pending(current))
		return -EINTR;
	state->copy = pin_fork_alloc(vma, addr);
	state->addr = addr;
	return state->copy ? 0 : -ENOMEM;
}

int pin_fork_copy_pmd(struct vm_area_struct *dst_vma,
		      struct vm_area_struct *src_vma, pmd_t *dst_pmd,
		      pmd_t *src_pmd, unsigned long addr, struct page *page,
		      pgtable_t pgtable);
int pin_fork_copy_hugetlb(struct vm_area_struct *dst_vma,
			  struct vm_area_struct *src_vma, pte_t *dst_pte,
			  pte_t *src_pte, unsigned long addr,
			  struct page *page);

/*
 * Invariant 3: reclaim, migration and KSM do not take a page that may be pinned.
 * They check after they cleared its entry. If the page may be pinned, they put
 * the entry back. So a pinned page keeps PG_anon_exclusive while it is mapped,
 * and a write fault reuses it. munmap(), MADV_DONTNEED, truncation, memory errors
 * and uprobes still remove the page.
 *
 * An entry that comes back with the same value would deceive GUP-fast. So code
 * that may put the same value back clears PG_anon_exclusive first, if the page
 * is not pinned, and GUP-fast checks the flag last.
 */

/*
 * Return true if @page, an anonymous page or subpage, may be pinned and has to
 * stay mapped. The caller has cleared its entry.
 */
static inline bool anon_page_pinned_after_clear(struct page *page)
{
	if (!PageAnonExclusive(page))
		return false;
	smp_mb();	/* pairs with try_pin_base_page(), try_pin_compound() */
	return page_maybe_dma_pinned(page);
}

/*
 * Return false if @page, an anonymous page or subpage, may be pinned. Otherwise
 * clear PG_anon_exclusive before the caller installs a shared, swap or migration
 * entry. The caller has cleared the entry.
 */
static inline bool page_try_share_anon_rmap(struct page *page)
{
	if (anon_page_pinned_after_clear(page))
		return false;
	page_clear_anon_exclusive(page);
	smp_mb__after_atomic();	/* pairs with gup_must_unshare() */
	return true;
}

/*
 * File pages. The page cache still holds a file page after it is unmapped, but
 * the file system must find the buffers of the page when the unpin makes it
 * dirty.
 *
 * So reclaim keeps a pinned file page mapped, and release_page_private() does not
 * release the buffers of a pinned file page, mapped or not. It checks under the
 * page lock. Only clean pages have buffers that can be released. If the file
 * system tracks writes, a clean page has no writable entry. A write pin then
 * needs a fault, which takes the page lock. Truncation does release buffers: they
 * would hold the page after the last unpin.
 */

/*
 * Return true if @page of a file may be pinned and has to stay mapped. The
 * caller has cleared its entry. Compound file pages are ignored: they can be
 * faulted in again, and reclaim splits them first.
 */
static inline bool file_page_pinned_after_clear(struct page *page)
{
	if (PageCompound(page))
		return false;
	smp_mb();	/* pairs with try_pin_base_page() */
	return page_maybe_dma_pinned(page) && page_likely_pinned(page);
}

#ifdef CONFIG_MMU
/*
 * Put the entry back and return true if @subpage of @page may be pinned and has
 * to stay mapped. The caller, an rmap walk at @pvmw, has cleared the entry, which
 * was @pteval. A page with a memory error is unmapped even if it is pinned.
 */
static inline bool pin_keeps_mapped(struct page_vma_mapped_walk *pvmw,
				    struct page *page, struct page *subpage,
				    pte_t pteval)
{
	struct mm_struct *mm = pvmw->vma->vm_mm;

	if (PageHWPoison(page) ||
	    !(PageAnon(page) ? anon_page_pinned_after_clear(subpage) :
			       file_page_pinned_after_clear(page)))
		return false;
#ifdef CONFIG_HUGETLB_PAGE
	if (PageHuge(page)) {
		set_huge_pte_at(mm, pvmw->address, pvmw->pte, pteval);
		return true;
	}
#endif
	set_pte_at(mm, pvmw->address, pvmw->pte, pteval);
	return true;
}
#endif /* CONFIG_MMU */

/* State of offline_pages(): the pinned page that it tries to migrate */
struct pin_offline_state {
	unsigned long pfn;
	unsigned long deadline;
	int tries;
};

bool pin_blocks_offline(struct pin_offline_state *state, unsigned long pfn);

/*
 * Count a write fault that made the entry of @page in @mm writable without a
 * copy. @page is NULL if the entry maps no struct page.
 */
static inline void count_wp_reuse(struct mm_struct *mm, struct page *page)
{
	count_vm_event(PGREUSE);
	if (unlikely(mm_has_pinned(mm)) && page && PageAnon(page) &&
	    page_maybe_dma_pinned(page))
		count_vm_event(PGREUSE_PINNED);
}

#endif /* _MM_PIN_H */
