// SPDX-License-Identifier: GPL-2.0-only
// Take FOLL_PIN out of the core, with the code that counts pins and checks for them.
// spatch removes a comment with the code after it.

// Remove functions, their declarations and constants

@@
declarer name EXPORT_SYMBOL, EXPORT_SYMBOL_GPL;
identifier f =~ "^(un)?pin_user_page";
@@
(
- EXPORT_SYMBOL(f);
|
- EXPORT_SYMBOL_GPL(f);
)

@@
identifier f =~ "^((un)?pin_user_page|hpage_pincount_|(head_)?compound_pincount|(page_maybe_dma_pinned|pte_is_pinned|verify_dma_pinned|try_grab_compound_head|put_compound_head|is_valid_gup_flags|copy_present_page|page_copy_prealloc)$)";
@@
- f(...) { ... }

@@
type T;
identifier f =~ "^(un)?pin_user_page";
parameter list ps;
@@
- T f(ps);

@@
expression e;
@@
- #define GUP_PIN_COUNTING_BIAS e

// Let only FOLL_GET take a page in gup

@@
expression page, refs, flags;
@@
- try_grab_compound_head(page, refs, flags)
+ try_get_compound_head(page, refs, flags)

@@
identifier page, flags;
@@
  try_grab_page(struct page *page, unsigned int flags)
  {
- ...
+ return !(flags & FOLL_GET) || try_get_page(page);
  }

@@
expression page, refs, flags;
@@
- put_compound_head(page, refs, flags)
+ put_page_refs(page, refs)

@@
identifier flags;
@@
  undo_dev_pagemap(int *nr, int nr_start,
- 		   unsigned int flags,
  		   struct page **pages)
  { ... }

@@
expression nr, start, flags, pages;
@@
- undo_dev_pagemap(nr, start, flags, pages)
+ undo_dev_pagemap(nr, start, pages)

@@
expression e, flags;
statement S;
@@
- if (e && !(flags & FOLL_PIN))
+ if (e)
  	S

@@
expression flags;
statement S;
@@
(
- if (WARN_ON_ONCE((flags & (FOLL_PIN | FOLL_GET)) == (FOLL_PIN | FOLL_GET))) S
|
- if (WARN_ON_ONCE(flags & FOLL_PIN)) S
|
- if (!is_valid_gup_flags(flags)) S
)

@@
@@
- (FOLL_GET | FOLL_PIN)
+ FOLL_GET

@@
expression flags;
statement S1, S2;
@@
(
- if (flags & FOLL_PIN) S1 else
  S2
|
- if (flags & FOLL_PIN) S1
)

@@
identifier seq;
@@
  lockless_pages_from_mm(...)
  {
  	...
- 	unsigned seq;
  	...
  }

// Remove the copies that fork makes of pages, and its sequence count

@@
identifier prealloc;
@@
- int
+ void
  copy_present_pte(struct vm_area_struct *dst_vma, struct vm_area_struct *src_vma,
  		   pte_t *dst_pte, pte_t *src_pte, unsigned long addr, int *rss
- 		   , struct page **prealloc
  		   )
  {
  	<...
- 	int retval;
- 	retval = copy_present_page(...);
- 	if (retval <= 0)
- 		return retval;
  	...>
- 	return 0;
  }

@@
identifier prealloc;
expression list[6] es;
statement S;
@@
  copy_pte_range(...)
  {
  	...
- 	struct page *prealloc = NULL;
  	<...
(
- 	ret = copy_present_pte(es, &prealloc);
+ 	copy_present_pte(es);
|
- 	if (unlikely(ret == -EAGAIN))
- 		break;
|
- 	if (unlikely(prealloc)) S
)
  	...>
  }

@@
@@
  copy_pte_range(...)
  {
  	<...
  	if (entry.val) { ... }
- 	else if (ret) { ... }
  	...>
  }

@@
expression mm;
@@
- mmap_assert_write_locked(mm);
- raw_write_seqcount_begin(&mm->write_protect_seq);

@@
expression mm;
@@
(
- raw_write_seqcount_end(&mm->write_protect_seq);
|
- seqcount_init(&mm->write_protect_seq);
|
- atomic_set(&mm->has_pinned, 0);
)

// Remove the checks for pinned pages

@@
expression mapping, mm, page;
statement S;
@@
(
- if (unlikely(mapping && atomic_read(&mm->has_pinned) && page_maybe_dma_pinned(page))) S
|
- if (page_maybe_dma_pinned(page)) S
|
- if (pte_is_pinned(...)) S
)

@@
@@
- verify_dma_pinned(...);

@@
expression page;
statement S;
@@
(
- if (hpage_pincount_available(page)) S else {
  ...
- }
|
- if (hpage_pincount_available(page)) S
)

@@
expression page;
@@
- atomic_set(compound_pincount_ptr(page), 0);
