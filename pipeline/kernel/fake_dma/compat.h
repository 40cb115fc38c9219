/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Definitions for drivers/misc/fake_dma/fake_dma.c that a kernel without the series
 * lacks. The build includes them in front of the driver.
 *
 * On stock, pins are stock's own. On the baseline nothing can be pinned: the
 * driver's pins are plain references, and its caps say so. Neither stops
 * misuse: stock takes a wrong unpin off the page's reference count.
 */
#include <linux/mm.h>

#ifdef FOLL_PIN	/* stock */

#define FAKE_DMA_KERNEL_CAPS	FAKE_DMA_CAP_PIN

static inline int page_pincount(struct page *page)
{
	page = compound_head(page);
	if (hpage_pincount_available(page))
		return compound_pincount(page);
	return page_ref_count(page) / (int)GUP_PIN_COUNTING_BIAS;
}

#else	/* baseline */

#define FAKE_DMA_KERNEL_CAPS	0
#define FOLL_PIN		0

#define pin_user_pages		get_user_pages
#define pin_user_pages_fast	get_user_pages_fast
#define pin_user_pages_fast_only	get_user_pages_fast_only
#define pin_user_pages_locked	get_user_pages_locked
#define pin_user_pages_remote	get_user_pages_remote
#define pin_user_pages_unlocked	get_user_pages_unlocked

static inline void
unpin_user_pages_dirty_lock(struct page **pages, unsigned long npages,
			    bool make_dirty)
{
	unsigned long i;

	for (i = 0; i < npages; i++) {
		if (make_dirty)
			set_page_dirty_lock(pages[i]);
		put_page(pages[i]);
	}
}

static inline void unpin_user_pages(struct page **pages, unsigned long npages)
{
	unpin_user_pages_dirty_lock(pages, npages, false);
}

static inline int page_pincount(struct page *page)
{
	return 0;
}

static inline bool page_maybe_dma_pinned(struct page *page)
{
	return false;
}

#endif

static inline void
unpin_user_page_range_dirty_lock(struct page *page, unsigned long npages,
				 bool make_dirty)
{
	unsigned long i;

	for (i = 0; i < npages; i++) {
		struct page *one = page + i;

		unpin_user_pages_dirty_lock(&one, 1, make_dirty);
	}
}
