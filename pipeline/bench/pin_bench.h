/* SPDX-License-Identifier: GPL-2.0-only */
/* The interface of pin_bench.ko to the program that drives it. */
#ifndef PIN_BENCH_H
#define PIN_BENCH_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Kinds of mapping. The module refuses to measure pages of another kind. */
enum pin_bench_kind { PIN_BENCH_BASE, PIN_BENCH_THP, PIN_BENCH_HUGETLB };

/* The measured calls. */
#define PIN_BENCH_PIN	1	/* pin and unpin, else get and put */
#define PIN_BENCH_SLOW	2	/* walk under mmap_lock, else lockless */
#define PIN_BENCH_DIRTY	4	/* dirty the pages when giving them back */
#define PIN_BENCH_OPS	8

/**
 * struct pin_bench - one measurement
 * @addr: address of the first page
 * @pages: number of pages, all of them present and writable
 * @batch: pages a call, a divisor of @pages
 * @kind: enum pin_bench_kind
 * @op: PIN_BENCH_PIN, PIN_BENCH_SLOW and PIN_BENCH_DIRTY
 * @take: result: instructions to get or pin all pages
 * @give: result: instructions to put or unpin them
 */
struct pin_bench {
	__u64 addr;
	__u64 pages;
	__u32 batch;
	__u32 kind;
	__u32 op;
	__u32 reserved;
	__u64 take;
	__u64 give;
};

/* EOPNOTSUPP: the kernel lacks pins. EUCLEAN: a page is not as described. */
#define PIN_BENCH_RUN	_IOWR('p', 0xb0, struct pin_bench)

#endif
