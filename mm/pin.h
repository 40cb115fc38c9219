/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Pins, inside mm: how they are counted, and the rules that make them hold.
 *
 * Invariants, for anonymous memory:
 *
 *  1. A pin is only taken on a page that its mm has to itself. If it does not,
 *     a FAULT_FLAG_UNSHARE or write fault makes it so first.
 *     pin_must_unshare() and pin_fast_must_unshare() see to that.
 *  2. fork() never shares a page that may be pinned (mm/pin_fork.c,
 *     mm/hugetlb.c).
 *  3. Neither reclaim nor migration nor KSM takes a page that may be pinned;
 *     that is asked when its entry is cleared (unmapped_page_pinned()). So a
 *     write fault may write to it: it is still the mm's own. What the process
 *     does itself (munmap(), MADV_DONTNEED), truncation, memory errors and
 *     uprobes do take it away.
 *
 * PG_anon_exclusive marks a page that one mm has to itself: of an anonymous
 * page of order 0, a subpage that a page-table entry maps, or the head of a
 * huge page that a PMD or a hugetlb entry maps. It says nothing of references,
 * of which there may be any number, and is not set on every page that could
 * have it. It is
 *
 *  - set when a page is mapped that was made for the mm; when a fault has found
 *    out, under the page lock, that nobody else maps or references a page; and
 *    when a migration ends whose entry was writable. A PMD that is split hands
 *    it on to the subpages;
 *  - cleared when fork() shares the page, KSM merges it, or its mapping becomes
 *    a swap or migration entry, of which a fork makes two without a look at the
 *    page. But for memory errors, none of these happens while the page may be
 *    pinned;
 *  - both under the lock of the page table that maps the page, of which there
 *    is one. Whoever goes by it holds that lock, too, or is the lockless walk.
 *
 * An entry of an anonymous page is writable only if the page is marked, and a
 * page that is pinned is marked for as long as it is mapped.
 *
 * A page of a file is found again by whoever looks, so it may be unmapped and
 * mapped again. But its file system misses the buffers when the pin makes it
 * dirty. So reclaim leaves a pinned page mapped, and whoever takes the buffers
 * of a page to take it out of the page cache, to move it or to give it other
 * blocks leaves those of a pinned page, mapped or not. That is asked under the
 * page lock. Buffers that can be taken are clean, and where the file system
 * wants to be told of writes, no entry is writable then: a fault that makes one
 * so needs the page lock, and comes before a pin for writing. A page that has
 * left its file, by truncation, keeps none: they would hold it when the pin has
 * made it dirty and is gone.
 *
 * Counting. A page of order 0 or 1 has GUP_PIN_COUNTING_BIAS added to its
 * reference count for each pin. A larger compound page has one reference and
 * one of compound_pincount added, both at its head, for each pin of any of its
 * subpages. Both are changed with atomic operations alone, by whoever pins or
 * unpins, under no lock:
 *
 *  - the reference comes first and goes last, so that a page with pins is
 *    never free, and a compound page with pins is never split (its references
 *    are in the way), which keeps "which of the two counts" stable;
 *  - the count is up before the page-table entry is looked at for the last
 *    time, with a full barrier between the two (in try_pin_head() and
 *    try_pin_small()). Who takes an entry away and then wants to know whether
 *    the page is pinned pairs with it by clearing the entry first, and a full
 *    barrier before reading the count: one of the two sees the other. An entry
 *    that comes back with the same value would deceive the walk; so the mark
 *    goes before that, and the walk looks at the mark last.
 *
 * mm->has_pinned is set before the first pin of an mm and never cleared. It is
 * written by whoever pins (mm_set_has_pinned()), before or after taking
 * mmap_lock for reading. It is read by fork, under mmap_lock held for writing,
 * so fork sees what the slow path wrote before it let go of the lock. The
 * lockless fast path is ordered by mm->write_protect_seq, a sequence count, odd
 * while a fork of the mm runs. Its only writer is fork, under mmap_lock held
 * for writing:
 *
 *     pin_user_pages_fast()                fork
 *     ---------------------                ----
 *     has_pinned = 1                       write_protect_seq++ (odd)
 *     s = write_protect_seq, even          smp_mb()              (A)
 *     smp_rmb()                 (B)        read has_pinned
 *     for each entry:                      for each entry:
 *         count += pin, full barrier (C)       read the page's pins
 *         entry is unchanged                   pinned: copy it
 *         entry is writable, or                else: write-protect the entry
 *             the page is marked                   and clear the mark
 *     s == write_protect_seq               smp_wmb()             (D)
 *                                          write_protect_seq++ (even)
 *
 * (A) pairs with (C): either fork sees the pin, and has_pinned, which was set
 * before it; or the fast path sees the count odd, takes its pins back and goes
 * to the slow path, which waits for mmap_lock. (B) pairs with (D): a fast path
 * that starts after the fork sees the entries write-protected and the pages
 * without the mark.
 */
#ifndef _MM_PIN_H
#define _MM_PIN_H

#include <linux/mm.h>
#include <linux/page_ref.h>
#include <linux/vmstat.h>

/*
 * No pin is added to a reference count above this. The other half is left to
 * the last pins that were added, which may be many at once of a huge page, and
 * to ordinary references, which have no limit of their own.
 */
#define PIN_REF_LIMIT	(INT_MAX / 2)

/* Before the first pin. */
static inline void mm_set_has_pinned(struct mm_struct *mm)
{
	if (!READ_ONCE(mm->has_pinned))
		WRITE_ONCE(mm->has_pinned, true);
}

/* Whether any page of @mm may be pinned. */
static inline bool mm_has_pinned(struct mm_struct *mm)
{
	return READ_ONCE(mm->has_pinned);
}

/* The walks of mm/gup.c, for FOLL_PIN */
void put_page_refs(struct page *page, int refs);
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

/* Adds @nr to the reference count of @page, if it is in use and below the limit. */
static __always_inline bool pin_ref_add(struct page *page, int nr)
{
	int old = page_ref_count(page);

	do {
		/* 0, taken as unsigned, is above the limit too */
		if (unlikely((unsigned int)old - 1 >= PIN_REF_LIMIT))
			return false;
	} while (unlikely(!atomic_try_cmpxchg(&page->_refcount, &old, old + nr)));

	if (page_ref_tracepoint_active(page_ref_mod_unless))
		__page_ref_mod_unless(page, nr, 1);
	return true;
}

/*
 * Pins an order-0 page, if it is one: a tail page or a free page has no
 * references to add to, and a head page shows PG_head.
 *
 * The lockless walk may come here with a page that was freed, and is being
 * made a compound page just now. Its last look at the page-table entry finds
 * that out: then it takes back what was added here with put_page_refs(), not
 * with unpin_head(), which would go by what the page has become.
 */
static __always_inline bool try_pin_small(struct page *page)
{
	if (unlikely(!pin_ref_add(page, GUP_PIN_COUNTING_BIAS)))
		return false;
	if (likely(!test_bit(PG_head, &page->flags)))
		return true;
	put_page_refs(page, GUP_PIN_COUNTING_BIAS);
	return false;
}

/*
 * Whether @page, which an entry of @vma maps, @writable or not, must not be
 * pinned for reading, because its mm does not have it to itself. That is to be
 * changed with a FAULT_FLAG_UNSHARE fault. Under the page-table lock.
 */
static inline bool pin_must_unshare(struct vm_area_struct *vma,
				    unsigned int flags, struct page *page,
				    bool writable)
{
	return unlikely(flags & FOLL_UNSHARE) && !writable &&
	       is_cow_mapping(vma->vm_flags) &&
	       !(PageAnon(page) && PageAnonExclusive(page));
}

/*
 * The same for the lockless walk, which knows the entry but not the mapping: it
 * leaves what is neither writable nor anonymous to the slow path. Ask after the
 * pin was taken and the entry was looked at again.
 */
static __always_inline bool pin_fast_must_unshare(bool writable,
						  unsigned int flags,
						  struct page *page)
{
	if (likely(!(flags & FOLL_UNSHARE)) || writable)
		return false;
	smp_rmb();	/* the entry before the mark: try_share_anon_page() */
	return !PageAnon(page) || !PageAnonExclusive(page);
}

struct page *try_pin_head(struct page *page, int refs);
int unpin_head(struct page *head, int refs);
void unpin_pages(struct page **pages, unsigned long npages);

/*
 * Whether fork must not share @page, of an mm that has pinned something. Most
 * pages are not pinned, so that comes first.
 */
static inline bool pin_fork_copies(struct page *page)
{
	return page_maybe_dma_pinned(page) && PageAnon(page) &&
	       PageAnonExclusive(page);
}

/* fork shares @page, which need not be anonymous. */
static inline void share_page(struct page *page)
{
	if (PageAnon(page) && PageAnonExclusive(page))
		ClearPageAnonExclusive(page);
}

/*
 * Whether @page, an anonymous page or subpage, has to stay mapped, because it
 * may be pinned. Its entry is cleared already.
 */
static inline bool unmapped_page_pinned(struct page *page)
{
	if (!PageAnonExclusive(page))
		return false;
	smp_mb();	/* the entry before the pins: pairs with who pins */
	return page_maybe_dma_pinned(page);
}

/*
 * The same; if not, takes the mark off, for what maps the page again at once, or
 * an entry of another kind.
 */
static inline bool try_share_anon_page(struct page *page)
{
	if (unmapped_page_pinned(page))
		return false;
	share_page(page);
	/* before the entry: pairs with pin_fast_must_unshare() */
	smp_mb__after_atomic();
	return true;
}

/*
 * Whether @page, of a file, has to stay mapped. Its entry is cleared already. A
 * file maps its compound pages again whenever that is asked for, and reclaim
 * splits them first.
 */
static inline bool unmapped_file_page_pinned(struct page *page)
{
	if (PageCompound(page))
		return false;
	smp_mb();	/* as in unmapped_page_pinned() */
	return page_maybe_dma_pinned(page) && page_seems_pinned(page);
}

/* Whether the buffers of @page, which is locked, have to stay: see above. */
static inline bool page_keeps_buffers(struct page *page)
{
	return PagePrivate(page) && page->mapping && page_seems_pinned(page);
}

/*
 * A write fault made the entry of @page in @mm writable, and did not copy. NULL
 * for what has no page.
 */
static inline void count_reuse(struct mm_struct *mm, struct page *page)
{
	count_vm_event(PGREUSE);
	if (unlikely(mm_has_pinned(mm)) && page && PageAnon(page) &&
	    page_maybe_dma_pinned(page))
		count_vm_event(PGREUSE_PINNED);
}

struct page *pin_fork_alloc(struct vm_area_struct *vma, unsigned long addr);
void pin_fork_copy_pte(struct vm_area_struct *dst_vma,
		       struct vm_area_struct *src_vma, pte_t *dst_pte,
		       pte_t src_pte, unsigned long addr, struct page *page,
		       struct page *copy);
int pin_fork_copy_pmd(struct vm_area_struct *dst_vma,
		      struct vm_area_struct *src_vma, pmd_t *dst_pmd,
		      pmd_t *src_pmd, unsigned long addr, struct page *page,
		      pgtable_t pgtable);

#endif /* _MM_PIN_H */
