// SPDX-License-Identifier: GPL-2.0-only
/*
 * fork() and pinned pages: the child gets a copy, now, and the parent's entry
 * stays as it is.
 *
 * Sharing the page, as fork does with all others, would write-protect it in
 * the parent: the parent's next write would take the copy, and leave the
 * device with a page that nobody looks at.
 */
#include <linux/mm.h>
#include <linux/gfp.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/memcontrol.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>

#include <asm/pgalloc.h>

#include <trace/events/pin.h>

#include "internal.h"
#include "pin.h"

/* Charges @page, if there is one; gives it back, or NULL. */
static struct page *charge(struct page *page, struct vm_area_struct *vma,
			   gfp_t gfp)
{
	if (!page)
		return NULL;
	if (mem_cgroup_charge(page, vma->vm_mm, gfp)) {
		put_page(page);
		return NULL;
	}
	cgroup_throttle_swaprate(page, gfp);
	return page;
}

/**
 * pin_fork_alloc() - allocate the page for the child's copy
 * @vma: the parent's mapping
 * @addr: the address that the copy will be at
 *
 * The charge goes to the memory cgroup of the parent, as that of everything
 * that fork allocates: the child has no cgroup of its own yet.
 *
 * Context: process context, no page-table lock held; may sleep.
 * Return: a charged page, or NULL if there is none to be had.
 */
struct page *pin_fork_alloc(struct vm_area_struct *vma, unsigned long addr)
{
	/* fork() can fail: nobody is killed to make room for the child. */
	const gfp_t may_fail = __GFP_RETRY_MAYFAIL | __GFP_NOWARN;

	return charge(alloc_page_vma(GFP_HIGHUSER_MOVABLE | may_fail, vma, addr),
		      vma, GFP_KERNEL | may_fail);
}

/*
 * Maps @copy, which holds the data, under the child's page-table lock. Nobody
 * shares it, so the entry is writable if the mapping is, but for what is
 * carried over: the write-protection of userfaultfd, and a clean soft-dirty
 * state, which the next write has to be seen to change.
 */
static void map_copy(struct vm_area_struct *vma, pte_t *ptep,
		     unsigned long addr, struct page *copy, bool soft_dirty,
		     bool uffd_wp)
{
	pte_t pte;

	__SetPageUptodate(copy);
	page_add_new_anon_rmap(copy, vma, addr, false);
	lru_cache_add_inactive_or_unevictable(copy, vma);
	count_vm_event(PGCOW_FORK);

	pte = pte_sw_mkyoung(mk_pte(copy, vma->vm_page_prot));
	pte = maybe_mkwrite(pte_mkdirty(pte), vma);
	/* Both are found out by a fault, so the entry must not be writable. */
	if (IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) && !soft_dirty)
		pte = pte_wrprotect(pte_clear_soft_dirty(pte));
	if (uffd_wp)
		pte = pte_wrprotect(pte_mkuffd_wp(pte));
	set_pte_at(vma->vm_mm, addr, ptep, pte);
}

/**
 * pin_fork_copy_pte() - map a copy of a pinned page in the child
 * @dst_vma: the child's mapping
 * @src_vma: the parent's mapping
 * @dst_pte: the child's entry, still empty
 * @src_pte: the value of the parent's entry
 * @addr: the address that both entries map
 * @page: the page that @src_pte maps, anonymous
 * @copy: the page to copy it to, from pin_fork_alloc(); is the child's then
 *
 * The child's entry is writable if its mapping is, but for what is carried
 * over: see map_copy().
 *
 * Context: fork, mmap_lock of both held for writing, and both page-table locks.
 */
void pin_fork_copy_pte(struct vm_area_struct *dst_vma,
		       struct vm_area_struct *src_vma, pte_t *dst_pte,
		       pte_t src_pte, unsigned long addr, struct page *page,
		       struct page *copy)
{
	VM_BUG_ON_PAGE(!PageAnon(page), page);
	VM_BUG_ON_VMA(!is_cow_mapping(src_vma->vm_flags), src_vma);

	copy_user_highpage(copy, page, addr, src_vma);
	map_copy(dst_vma, dst_pte, addr, copy, pte_soft_dirty(src_pte),
		 userfaultfd_pte_wp(dst_vma, src_pte));
	trace_pin_fork_copy(addr, page, copy);
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/* A charged huge page for the child's copy, or NULL. */
static struct page *alloc_huge(struct vm_area_struct *vma, unsigned long addr)
{
	gfp_t gfp = alloc_hugepage_direct_gfpmask(vma);
	struct page *page = alloc_hugepage_vma(gfp, vma, addr, HPAGE_PMD_ORDER);

	if (page)
		prep_transhuge_page(page);
	return charge(page, vma, gfp);
}

/* Maps base pages in the child that are copies of the subpages of @page. */
static int copy_to_base_pages(struct vm_area_struct *dst_vma,
			      struct vm_area_struct *src_vma, pmd_t *dst_pmd,
			      pmd_t src_pmd, unsigned long addr,
			      struct page *page, pgtable_t pgtable)
{
	struct mm_struct *mm = dst_vma->vm_mm;
	spinlock_t *ptl = pmd_lock(mm, dst_pmd);
	struct page *copy;
	pte_t *pte;
	int i;

	mm_inc_nr_ptes(mm);
	smp_wmb();	/* the table is empty before it can be seen to be there */
	pmd_populate(mm, dst_pmd, pgtable);
	spin_unlock(ptl);

	for (i = 0; i < HPAGE_PMD_NR; i++, addr += PAGE_SIZE) {
		copy = fatal_signal_pending(current) ?
		       NULL : pin_fork_alloc(src_vma, addr);
		if (!copy)
			return -ENOMEM;
		copy_user_highpage(copy, page + i, addr, src_vma);
		pte = pte_offset_map_lock(mm, dst_pmd, addr, &ptl);
		map_copy(dst_vma, pte, addr, copy, pmd_soft_dirty(src_pmd),
			 userfaultfd_huge_pmd_wp(dst_vma, src_pmd));
		inc_mm_counter(mm, MM_ANONPAGES);
		trace_pin_fork_copy(addr, page + i, copy);
		pte_unmap_unlock(pte, ptl);
		cond_resched();
	}
	return 0;
}

/**
 * pin_fork_copy_pmd() - map a copy of a pinned huge page in the child
 * @dst_vma: the child's mapping
 * @src_vma: the parent's mapping
 * @dst_pmd: the child's entry, still empty
 * @src_pmd: the parent's entry
 * @addr: the address of the huge page
 * @page: the anonymous huge page that @src_pmd maps, or mapped when the caller
 *	held its lock; the caller has a reference
 * @pgtable: a page table for the child; is used up, unless -EAGAIN is returned
 *
 * The copy is a huge page if one can be had, and base pages if not. The
 * parent's entry stays a huge one. As in pin_fork_copy_pte(), the copy is
 * writable but for what has to be seen by a fault.
 *
 * The copy is made without the page-table locks. The reference keeps @page from
 * being split, migrated or freed, and mmap_lock keeps the parent from mapping
 * anything else in its place. What may happen, by way of the reverse map, is
 * that the huge entry is replaced by a page table; or, if the page is unpinned
 * meanwhile, by a migration entry, which is shared.
 *
 * Context: fork, mmap_lock of both held for writing, no page-table lock; sleeps.
 * Return: 0, -ENOMEM, or -EAGAIN if @src_pmd does not map @page any more, and
 * nothing was done.
 */
int pin_fork_copy_pmd(struct vm_area_struct *dst_vma,
		      struct vm_area_struct *src_vma, pmd_t *dst_pmd,
		      pmd_t *src_pmd, unsigned long addr, struct page *page,
		      pgtable_t pgtable)
{
	struct mm_struct *mm = dst_vma->vm_mm;
	spinlock_t *dst_ptl, *src_ptl;
	struct page *copy;
	pmd_t src, pmd;
	int ret = 0;

	VM_BUG_ON_PAGE(!PageAnon(page) || !PageTransHuge(page), page);
	VM_BUG_ON_VMA(!is_cow_mapping(src_vma->vm_flags), src_vma);

	/* A process that is being killed need not copy on. */
	if (fatal_signal_pending(current)) {
		pte_free(mm, pgtable);
		return -ENOMEM;
	}

	copy = __transparent_hugepage_enabled(src_vma) ?
	       alloc_huge(src_vma, addr) : NULL;
	if (copy) {
		copy_user_huge_page(copy, page, addr, src_vma, HPAGE_PMD_NR);
		__SetPageUptodate(copy);
	}

	dst_ptl = pmd_lock(mm, dst_pmd);
	src_ptl = pmd_lockptr(src_vma->vm_mm, src_pmd);
	spin_lock_nested(src_ptl, SINGLE_DEPTH_NESTING);
	src = *src_pmd;
	if (unlikely(!pmd_trans_huge(src) || pmd_page(src) != page)) {
		ret = -EAGAIN;
	} else if (copy) {
		page_add_new_anon_rmap(copy, dst_vma, addr, true);
		lru_cache_add_inactive_or_unevictable(copy, dst_vma);
		pmd = mk_huge_pmd(copy, dst_vma->vm_page_prot);
		pmd = maybe_pmd_mkwrite(pmd_mkdirty(pmd), dst_vma);
		if (IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) && !pmd_soft_dirty(src))
			pmd = pmd_wrprotect(pmd_clear_soft_dirty(pmd));
		if (userfaultfd_huge_pmd_wp(dst_vma, src))
			pmd = pmd_wrprotect(pmd_mkuffd_wp(pmd));
		pgtable_trans_huge_deposit(mm, dst_pmd, pgtable);
		set_pmd_at(mm, addr, dst_pmd, pmd);
		add_mm_counter(mm, MM_ANONPAGES, HPAGE_PMD_NR);
		mm_inc_nr_ptes(mm);
		count_vm_event(PGCOW_FORK);
		trace_pin_fork_copy(addr, page, copy);
	}
	spin_unlock(src_ptl);
	spin_unlock(dst_ptl);

	if (!ret && !copy)
		return copy_to_base_pages(dst_vma, src_vma, dst_pmd, src, addr,
					  page, pgtable);
	if (ret && copy)
		put_page(copy);
	return ret;
}
#endif /* CONFIG_TRANSPARENT_HUGEPAGE */
