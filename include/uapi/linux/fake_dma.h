/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * A character device that plays a DMA engine on user memory, for tests of
 * page pinning.
 *
 * A range of user memory is pinned with FAKE_DMA_PIN, which gives a handle.
 * The device then writes to or reads from the pages behind the handle, never
 * through the page tables of the process, until FAKE_DMA_UNPIN. All handles
 * go with the last close of the file.
 *
 * Addresses, lengths and offsets are in bytes. Reserved fields and unknown
 * flags must be zero, else the call fails with EINVAL.
 */
#ifndef _UAPI_LINUX_FAKE_DMA_H
#define _UAPI_LINUX_FAKE_DMA_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* struct fake_dma_caps: caps */
#define FAKE_DMA_CAP_PIN	(1U << 0)  /* PIN pins; else it can only get */
#define FAKE_DMA_CAP_MISUSE	(1U << 1)  /* the kernel stops misuse: it can be tried */
#define FAKE_DMA_CAP_UNLOCKED	(1U << 2)  /* CALL_UNLOCKED takes PIN_LONGTERM */

/**
 * struct fake_dma_caps - what the driver can do on this kernel
 * @caps:	out, FAKE_DMA_CAP_*
 * @reserved:	out, 0
 */
struct fake_dma_caps {
	__u32 caps;
	__u32 reserved;
};

/* struct fake_dma_pin: flags */
#define FAKE_DMA_PIN_WRITE	(1U << 0)  /* the device may write: FOLL_WRITE */
#define FAKE_DMA_PIN_LONGTERM	(1U << 1)  /* FOLL_LONGTERM */
#define FAKE_DMA_PIN_GET	(1U << 2)  /* get_user_pages*(), for contrast */
#define FAKE_DMA_PIN_PARTIAL	(1U << 3)  /* keep what a short pin gave */
#define FAKE_DMA_PIN_BADFLAGS	(1U << 4)  /* misuse: mix FOLL_GET and FOLL_PIN */

/* struct fake_dma_pin: call, the member of the pin_user_pages() family */
#define FAKE_DMA_CALL_FAST	0	/* pin_user_pages_fast() */
#define FAKE_DMA_CALL_FAST_ONLY	1	/* pin_user_pages_fast_only() */
#define FAKE_DMA_CALL_SLOW	2	/* pin_user_pages() */
#define FAKE_DMA_CALL_LOCKED	3	/* pin_user_pages_locked() */
#define FAKE_DMA_CALL_UNLOCKED	4	/* pin_user_pages_unlocked() */
#define FAKE_DMA_CALL_REMOTE	5	/* pin_user_pages_remote() of @pid */

/* Without FAKE_DMA_CAP_MISUSE, misuse is not tried: EOPNOTSUPP. */

/**
 * struct fake_dma_pin - pin a range of user memory and map it for the device
 * @addr:	in, first byte
 * @len:	in, length, not 0
 * @flags:	in, FAKE_DMA_PIN_*
 * @call:	in, FAKE_DMA_CALL_*
 * @pid:	in, whose memory, with FAKE_DMA_CALL_REMOTE; else 0
 * @handle:	out, names the pinned range, never 0
 * @nr_pages:	out, pages pinned
 *
 * Without FAKE_DMA_PIN_PARTIAL, a range that cannot be pinned whole fails
 * with EFAULT and nothing stays pinned. With it, the handle covers the pages
 * that were pinned; none at all is the call's error, or EFAULT.
 *
 * FAKE_DMA_PIN_LONGTERM goes with neither FAKE_DMA_PIN_GET nor
 * FAKE_DMA_CALL_LOCKED, nor, without FAKE_DMA_CAP_UNLOCKED, with
 * FAKE_DMA_CALL_UNLOCKED: EINVAL. A range beyond the end of the address space
 * or of more than INT_MAX pages: EOVERFLOW. No process @pid: ESRCH.
 */
struct fake_dma_pin {
	__u64 addr;
	__u64 len;
	__u32 flags;
	__u32 call;
	__s32 pid;
	__u32 handle;
	__u64 nr_pages;
};

/* struct fake_dma_unpin: flags */
#define FAKE_DMA_UNPIN_DIRTY	(1U << 0)  /* unpin_user_pages_dirty_lock() */
#define FAKE_DMA_UNPIN_RANGE	(1U << 1)  /* runs of pages: *_range_dirty_lock() */
#define FAKE_DMA_UNPIN_MISUSE	(1U << 2)  /* unpin what was only got; handle stays */

/**
 * struct fake_dma_unpin - stop the device's access to a handle and let it go
 * @handle:	in
 * @flags:	in, FAKE_DMA_UNPIN_*
 *
 * EBUSY while an engine runs on the handle. FAKE_DMA_UNPIN_MISUSE is for
 * handles made with FAKE_DMA_PIN_GET alone, FAKE_DMA_UNPIN_RANGE without it
 * for the others: else EINVAL.
 */
struct fake_dma_unpin {
	__u32 handle;
	__u32 flags;
};

/**
 * struct fake_dma_xfer - one transfer of the device
 * @handle:	in
 * @reserved:	in, 0
 * @offset:	in, from the first pinned byte
 * @len:	in, not 0
 * @buf:	in, address of the bytes to write, or where read ones go
 *
 * FAKE_DMA_WRITE needs a handle pinned with FAKE_DMA_PIN_WRITE, else EPERM.
 * EOVERFLOW if the transfer leaves the pinned range. One that fails half way
 * has moved the bytes before.
 */
struct fake_dma_xfer {
	__u32 handle;
	__u32 reserved;
	__u64 offset;
	__u64 len;
	__u64 buf;
};

/**
 * struct fake_dma_start - start an engine that stamps every pinned page
 * @handle:	in
 * @offset:	in, where in each page, a multiple of 8 below the page size
 * @period_us:	in, time between two rounds over the range; 0: no pause
 *
 * A round writes the round's number, from 1 up, as a native 64 bit integer
 * to byte @offset of every page whose pinned part has these 8 bytes. EPERM
 * without FAKE_DMA_PIN_WRITE, EBUSY if the handle has an engine already.
 */
struct fake_dma_start {
	__u32 handle;
	__u32 offset;
	__u64 period_us;
};

/**
 * struct fake_dma_stop - stop the engine of a handle
 * @handle:	in
 * @reserved:	in, 0
 * @rounds:	out, rounds the engine finished: the last number it wrote
 *
 * EINVAL if the handle has no engine.
 */
struct fake_dma_stop {
	__u32 handle;
	__u32 reserved;
	__u64 rounds;
};

/* struct fake_dma_page: flags */
#define FAKE_DMA_PAGE_MAYBE_PINNED	(1U << 0)  /* page_maybe_dma_pinned() */
#define FAKE_DMA_PAGE_ANON		(1U << 1)
#define FAKE_DMA_PAGE_DIRTY		(1U << 2)
#define FAKE_DMA_PAGE_COMPOUND		(1U << 3)
#define FAKE_DMA_PAGE_HUGETLB		(1U << 4)
#define FAKE_DMA_PAGE_KSM		(1U << 5)
#define FAKE_DMA_PAGE_SWAPCACHE		(1U << 6)
#define FAKE_DMA_PAGE_ZERO		(1U << 7)

/**
 * struct fake_dma_page - one pinned page, as struct page has it
 * @pfn:	page frame number
 * @refcount:	of the head page, raw: pins of small pages included
 * @mapcount:	page table entries that map this page
 * @pincount:	pins: exact for compound pages of order 2 and up
 * @flags:	FAKE_DMA_PAGE_*
 *
 * All but @pfn can be out of date when the caller sees it.
 */
struct fake_dma_page {
	__u64 pfn;
	__s32 refcount;
	__s32 mapcount;
	__s32 pincount;
	__u32 flags;
};

/**
 * struct fake_dma_query - look at the pages of a handle
 * @handle:	in
 * @reserved:	in, 0
 * @first:	in, index of the first page wanted
 * @nr:		in, number of pages wanted, not 0
 * @buf:	in, address of an array of @nr struct fake_dma_page
 *
 * EOVERFLOW if the handle has no such pages.
 */
struct fake_dma_query {
	__u32 handle;
	__u32 reserved;
	__u64 first;
	__u64 nr;
	__u64 buf;
};

#define FAKE_DMA_IOC_MAGIC	0xfd
#define FAKE_DMA_CAPS	_IOR(FAKE_DMA_IOC_MAGIC, 0, struct fake_dma_caps)
#define FAKE_DMA_PIN	_IOWR(FAKE_DMA_IOC_MAGIC, 1, struct fake_dma_pin)
#define FAKE_DMA_UNPIN	_IOW(FAKE_DMA_IOC_MAGIC, 2, struct fake_dma_unpin)
#define FAKE_DMA_WRITE	_IOW(FAKE_DMA_IOC_MAGIC, 3, struct fake_dma_xfer)
#define FAKE_DMA_READ	_IOW(FAKE_DMA_IOC_MAGIC, 4, struct fake_dma_xfer)
#define FAKE_DMA_START	_IOW(FAKE_DMA_IOC_MAGIC, 5, struct fake_dma_start)
#define FAKE_DMA_STOP	_IOWR(FAKE_DMA_IOC_MAGIC, 6, struct fake_dma_stop)
#define FAKE_DMA_QUERY	_IOW(FAKE_DMA_IOC_MAGIC, 7, struct fake_dma_query)

#endif /* _UAPI_LINUX_FAKE_DMA_H */
