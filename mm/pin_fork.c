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
#include <linux/memcontrol.h>
#include <linux/rmap.h>
#include <linux/swap.h>
#include <linux/userfaultfd_k.h>

#include "internal.h"
#include "pin.h"

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
	struct page *page;

	page = alloc_page_vma(GFP_HIGHUSER_MOVABLE | may_fail, vma, addr);
	if (!page)
		return NULL;
	if (mem_cgroup_charge(page, vma->vm_mm, GFP_KERNEL | may_fail)) {
		put_page(page);
		return NULL;
	}
	cgroup_throttle_swaprate(page, GFP_KERNEL);
	return page;
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
 * Nobody shares the copy, so the child's entry is writable if its mapping is,
 * but for what is carried over: the write-protection of userfaultfd, and a
 * clean soft-dirty state, which the next write has to be seen to change.
 *
 * Context: fork, mmap_lock of both held for writing, and both page-table locks.
 */
void pin_fork_copy_pte(struct vm_area_struct *dst_vma,
		       struct vm_area_struct *src_vma, pte_t *dst_pte,
		       pte_t src_pte, unsigned long addr, struct page *page,
		       struct page *copy)
{
	pte_t pte;

	VM_BUG_ON_PAGE(!PageAnon(page), page);
	VM_BUG_ON_VMA(!is_cow_mapping(src_vma->vm_flags), src_vma);

	copy_user_highpage(copy, page, addr, src_vma);
	__SetPageUptodate(copy);
	page_add_new_anon_rmap(copy, dst_vma, addr, false);
	lru_cache_add_inactive_or_unevictable(copy, dst_vma);

	pte = pte_sw_mkyoung(mk_pte(copy, dst_vma->vm_page_prot));
	pte = maybe_mkwrite(pte_mkdirty(pte), dst_vma);
	/* Both are found out by a fault, so the entry must not be writable. */
	if (IS_ENABLED(CONFIG_MEM_SOFT_DIRTY) && !pte_soft_dirty(src_pte))
		pte = pte_wrprotect(pte_clear_soft_dirty(pte));
	if (userfaultfd_pte_wp(dst_vma, src_pte))
		pte = pte_wrprotect(pte_mkuffd_wp(pte));
	set_pte_at(dst_vma->vm_mm, addr, dst_pte, pte);
}
