// SPDX-License-Identifier: GPL-2.0-only
/*
 * Copy pinned pages for the child at fork(), and leave the parent's entries as
 * they are.
 *
 * fork() shares all other pages, and write-protects them in the parent. The
 * parent's next write would then copy the page, and the device would go on with
 * a page that the parent no longer maps.
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

/* Charge @page, which may be NULL. Return it, or NULL with the page freed. */
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
 * The charge goes to the memory cgroup of the parent, as everything that fork()
 * allocates: the child has no cgroup of its own yet.
 *
 * Context: process context, no page-table lock held; may sleep.
 * Return: a charged page, or NULL if that fails.
 */
struct page *pin_fork_alloc(struct vm_area_struct *vma, unsigned long addr)
{
	/* fork() can fail, so nobody is killed to make room for the child. */
	const gfp_t may_fail = __GFP_RETRY_MAYFAIL | __GFP_NOWARN;

	return charge(alloc_page_vma(GFP_HIGHUSER_MOVABLE | may_fail, vma, addr),
		      vma, GFP_KERNEL | may_fail);
}

/*
 * Map @copy, which holds the data, under the child's page-table lock. Nobody
 * shares the copy, so make the entry writable if the mapping is. Carry over what
 * the next write must report by a fault: userfaultfd write-protection and a
 * clean soft-dirty state.
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
	if (IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) && !soft_dirty)
		pte = pte_wrprotect(pte_clear_soft_dirty(pte));
	if (uffd_wp)
		pte = pte_wrprotect(pte_mkuffd_wp(pte));
	set_pte_at(vma->vm_mm, addr, ptep, pte);
}

/**
 * pin_fork_copy_pte() - copy a pinned page that a PTE maps for the child
 * @dst_vma: the child's mapping
 * @src_vma: the parent's mapping
 * @dst_pte: the child's entry, still empty
 * @src_pte: the value of the parent's entry
 * @addr: the address that both entries map
 * @page: the page that @src_pte maps, anonymous
 * @copy: the page to copy it to, from pin_fork_alloc(); is the child's then
 *
 * The child's entry is writable if its mapping is, unless the next write must
 * report something by a fault.
 *
 * Context: fork(), mmap_lock of both held for writing, and both page-table locks.
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
/* Allocate and charge a huge page for the child's copy. Return NULL if that fails. */
static struct page *alloc_huge_copy(struct vm_area_struct *vma,
				    unsigned long addr)
{
	gfp_t gfp = alloc_hugepage_direct_gfpmask(vma);
	struct page *page = alloc_hugepage_vma(gfp, vma, addr, HPAGE_PMD_ORDER);

	if (page)
		prep_transhuge_page(page);
	return charge(page, vma, gfp);
}

/* Map base pages in the child that are copies of the subpages of @page. */
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
	/*
	 * Order the empty table before the PMD; pairs with the address
	 * dependency of lockless walks.
	 */
	smp_wmb();
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
 * pin_fork_copy_pmd() - copy a pinned huge page that a PMD maps for the child
 * @dst_vma: the child's mapping
 * @src_vma: the parent's mapping
 * @dst_pmd: the child's entry, still empty
 * @src_pmd: the parent's entry
 * @addr: the address of the huge page
 * @page: the anonymous huge page that @src_pmd mapped when the caller held the
 *	lock; the caller has a reference
 * @pgtable: a page table for the child; is used up, unless -EAGAIN is returned
 *
 * Copy to a huge page if one can be allocated, and to base pages otherwise. The
 * parent's entry stays a huge one. The copy is writable if the mapping is, unless
 * the next write must report something by a fault.
 *
 * Copy without the page-table locks. The reference keeps @page from being split,
 * migrated or freed. mmap_lock keeps the parent from mapping another page in its
 * place. But an rmap walk may replace the huge entry by a page table or, once the
 * page is unpinned, by a migration entry, which fork() shares.
 *
 * Context: fork(), mmap_lock of both held for writing, no page-table lock; sleeps.
 * Return: 0, -ENOMEM, or -EAGAIN, with nothing done, if @src_pmd does not map
 * @page any more.
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

	/* Stop copying when the process is being killed. */
	if (fatal_signal_pending(current)) {
		pte_free(mm, pgtable);
		return -ENOMEM;
	}

	copy = __transparent_hugepage_enabled(src_vma) ?
	       alloc_huge_copy(src_vma, addr) : NULL;
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
