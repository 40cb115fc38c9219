/* SPDX-License-Identifier: GPL-2.0-only */
/* What pin_bench.ko and the program that drives it say to each other. */
#ifndef PIN_BENCH_H
#define PIN_BENCH_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* How the pages are mapped: the module refuses to measure anything else. */
enum pin_bench_kind { PIN_BENCH_BASE, PIN_BENCH_THP, PIN_BENCH_HUGETLB };

/* What is called. */
#define PIN_BENCH_PIN	1	/* pin and unpin, else get and put */
#define PIN_BENCH_SLOW	2	/* walk under mmap_lock, else lockless */
#define PIN_BENCH_DIRTY	4	/* dirty the pages when giving them back */
#define PIN_BENCH_OPS	8

/**
 * struct pin_bench - one measurement
 * @addr: first page of the range
 * @pages: how many, all of them present and writable
 * @batch: pages a call, divides @pages
 * @kind: enum pin_bench_kind
 * @op: PIN_BENCH_PIN, PIN_BENCH_SLOW and PIN_BENCH_DIRTY
 * @take: result: instructions that getting or pinning all pages takes
 * @give: result: instructions that giving them back takes
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

/* EOPNOTSUPP: this kernel has no pins. EUCLEAN: not the pages you said. */
#define PIN_BENCH_RUN	_IOWR('p', 0xb0, struct pin_bench)

#endif
