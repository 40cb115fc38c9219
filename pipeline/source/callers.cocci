// SPDX-License-Identifier: GPL-2.0-only
// Convert the call sites to get_user_pages*() and put_page().
//
// A loop puts the pages of an array. Its counter is signed: if a get failed, some
// callers pass its error as the number of pages. The loop then puts no page.

@@
@@
(
- pin_user_pages
+ get_user_pages
|
- pin_user_pages_fast
+ get_user_pages_fast
|
- pin_user_pages_fast_only
+ get_user_pages_fast_only
|
- pin_user_pages_locked
+ get_user_pages_locked
|
- pin_user_pages_remote
+ get_user_pages_remote
|
- pin_user_pages_unlocked
+ get_user_pages_unlocked
|
- unpin_user_page
+ put_page
)
  (...)

@@
expression pages, nr, a, b;
@@
  unpin_user_pages_dirty_lock(pages, nr,
- 	a || b
+ 	(a || b)
  )

// Put one page, or a slice of an array, in a form that reads better than the general loop.

@@
identifier page;
@@
- unpin_user_pages_dirty_lock(&page, 1, true);
+ if (!PageDirty(compound_head(page)))
+ 	set_page_dirty_lock(compound_head(page));
+ put_page(page);

@@
identifier page;
expression dirty;
@@
- unpin_user_pages_dirty_lock(&page, 1, dirty);
+ if (dirty && !PageDirty(compound_head(page)))
+ 	set_page_dirty_lock(compound_head(page));
+ put_page(page);

@@
expression pages, nr;
@@
- unpin_user_pages_dirty_lock(pages, nr, 0)
+ unpin_user_pages(pages, nr)

@@
expression pages, nr, from;
@@
- unpin_user_pages(&pages[from], nr);
+ {
+ 	long nr_put;
+
+ 	for (nr_put = 0; nr_put < (long)nr; nr_put++)
+ 		put_page(pages[from + nr_put]);
+ }

@@
expression pages, nr;
@@
- unpin_user_pages(pages, nr);
+ {
+ 	long nr_put;
+
+ 	for (nr_put = 0; nr_put < (long)nr; nr_put++)
+ 		put_page(pages[nr_put]);
+ }

@@
expression pages, nr;
@@
- unpin_user_pages_dirty_lock(pages, nr, true);
+ {
+ 	long nr_put;
+
+ 	for (nr_put = 0; nr_put < (long)nr; nr_put++) {
+ 		struct page *put_head = compound_head(pages[nr_put]);
+
+ 		if (!PageDirty(put_head))
+ 			set_page_dirty_lock(put_head);
+ 		put_page(put_head);
+ 	}
+ }

@@
expression pages, nr, dirty;
@@
- unpin_user_pages_dirty_lock(pages, nr, dirty);
+ {
+ 	long nr_put;
+
+ 	for (nr_put = 0; nr_put < (long)nr; nr_put++) {
+ 		struct page *put_head = compound_head(pages[nr_put]);
+
+ 		if (dirty && !PageDirty(put_head))
+ 			set_page_dirty_lock(put_head);
+ 		put_page(put_head);
+ 	}
+ }
