/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * PG_anon_exclusive: one mm maps the page, and no other mm shares the page
 * copy-on-write.
 *
 * The flag is on an order-0 anonymous page, on the subpage that a PTE maps, or
 * on the head page that a PMD or a hugetlb entry maps. It says nothing about
 * references. A page without the flag may still be exclusive.
 *
 * mm/ sets the flag
 *
 *  - when it maps a page that it allocated for the mm;
 *  - when a fault finds, under the page lock, that nobody else maps or
 *    references the page;
 *  - when a migration ends whose entry was writable;
 *  - on the subpages, when it splits a PMD whose head page has the flag;
 *
 * and clears the flag
 *
 *  - when fork() shares the page;
 *  - when KSM merges the page;
 *  - when a swap or migration entry replaces the mapping: fork() copies such an
 *    entry without looking at the page.
 *
 * Both happen under the lock of the one page table that maps the page. Code that
 * goes by the flag holds that lock too.
 *
 * GUP-fast holds no lock. It reads the flag after it took its pin and rechecked
 * the entry.
 *
 * A present entry of an anonymous page is writable only if the flag is set.
 * All references to a page with the flag were taken while the page was exclusive.
 * So a write fault reuses such a page, whatever its refcount.
 */
#ifndef _MM_ANON_EXCLUSIVE_H
#define _MM_ANON_EXCLUSIVE_H

#include <linux/page-flags.h>

/* Clear PG_anon_exclusive of @page, which need not be anonymous. */
static inline void page_clear_anon_exclusive(struct page *page)
{
	if (PageAnon(page) && PageAnonExclusive(page))
		ClearPageAnonExclusive(page);
}

#endif /* _MM_ANON_EXCLUSIVE_H */
