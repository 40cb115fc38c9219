/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The calls of /dev/fake_dma, a device that plays a DMA engine on user memory
 * for tests of page pinning. The tests in tools/testing/selftests/vm include
 * this header; it is no user ABI and may change with them.
 *
 * FAKE_DMA_PIN pins a range of user memory and returns a handle. The device
 * then reads and writes the pages of the handle until FAKE_DMA_UNPIN. It does
 * not use the page tables of the process. The last close of the file drops all
 * its handles.
 *
 * Addresses, lengths and offsets are in bytes. If a reserved field or an
 * unknown flag is not zero, the call fails with EINVAL.
 */
#ifndef _DRIVERS_MISC_FAKE_DMA_H
#define _DRIVERS_MISC_FAKE_DMA_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* struct fake_dma_caps: caps */
#define FAKE_DMA_CAP_PIN	0x01  /* pins; without it, only references */
#define FAKE_DMA_CAP_MISUSE	0x02  /* misuse is reported and harmless */
#define FAKE_DMA_CAP_UNLOCKED	0x04  /* CALL_UNLOCKED takes PIN_LONGTERM */

/**
 * struct fake_dma_caps - capabilities of the driver on this kernel
 * @caps:	out, FAKE_DMA_CAP_*
 * @reserved:	out, 0
 */
struct fake_dma_caps {
	__u32 caps;
	__u32 reserved;
};

/* struct fake_dma_pin: flags */
#define FAKE_DMA_PIN_WRITE	0x01  /* the device may write: FOLL_WRITE */
#define FAKE_DMA_PIN_LONGTERM	0x02  /* FOLL_LONGTERM */
#define FAKE_DMA_PIN_GET	0x04  /* references: get_user_pages*() */
#define FAKE_DMA_PIN_PARTIAL	0x08  /* keep the pages of a short pin */
#define FAKE_DMA_PIN_BADFLAGS	0x10  /* misuse: mix FOLL_GET and FOLL_PIN */

/* struct fake_dma_pin: call, a member of the pin_user_pages() family */
#define FAKE_DMA_CALL_FAST	0	/* pin_user_pages_fast() */
#define FAKE_DMA_CALL_FAST_ONLY	1	/* pin_user_pages_fast_only() */
#define FAKE_DMA_CALL_SLOW	2	/* pin_user_pages() */
#define FAKE_DMA_CALL_LOCKED	3	/* pin_user_pages_locked() */
#define FAKE_DMA_CALL_UNLOCKED	4	/* pin_user_pages_unlocked() */
#define FAKE_DMA_CALL_REMOTE	5	/* pin_user_pages_remote() of @pid */

/* Without FAKE_DMA_CAP_MISUSE, the misuse flags give EOPNOTSUPP. */

/**
 * struct fake_dma_pin - pin a range of user memory and map it for the device
 * @addr:	in, first byte
 * @len:	in, length, not 0
 * @flags:	in, FAKE_DMA_PIN_*
 * @call:	in, FAKE_DMA_CALL_*
 * @pid:	in, owner of the memory with FAKE_DMA_CALL_REMOTE, else 0
 * @handle:	out, the pinned range, never 0
 * @nr_pages:	out, pages pinned
 *
 * If no page can be pinned, the call fails with the error of the pin, or EFAULT.
 * If only the first pages can be pinned, it fails with EFAULT and pins nothing.
 * With FAKE_DMA_PIN_PARTIAL, it succeeds and the handle covers these pages.
 *
 * FAKE_DMA_PIN_LONGTERM gives EINVAL with FAKE_DMA_PIN_GET and with
 * FAKE_DMA_CALL_LOCKED, and with FAKE_DMA_CALL_UNLOCKED if
 * FAKE_DMA_CAP_UNLOCKED is not set. EOVERFLOW: the range goes beyond the end of
 * the address space or has more than INT_MAX pages. ESRCH: no process @pid.
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
#define FAKE_DMA_UNPIN_DIRTY	0x01  /* unpin_user_pages_dirty_lock() */
#define FAKE_DMA_UNPIN_RANGE	0x02  /* runs of pages: *_range_dirty_lock() */
#define FAKE_DMA_UNPIN_MISUSE	0x04  /* unpin plain references; keep the handle */

/**
 * struct fake_dma_unpin - unmap the pages of a handle, unpin them and drop it
 * @handle:	in
 * @flags:	in, FAKE_DMA_UNPIN_*
 *
 * EBUSY: an engine runs on the handle. EINVAL: FAKE_DMA_UNPIN_MISUSE for a
 * handle of pins, or FAKE_DMA_UNPIN_RANGE without it for one of references
 * (FAKE_DMA_PIN_GET).
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
 * @buf:	in, address of the user's buffer: source of a write, target of a read
 *
 * EPERM: FAKE_DMA_WRITE to a handle without FAKE_DMA_PIN_WRITE. EOVERFLOW: the
 * transfer goes beyond the pinned range. If the buffer faults half way, the
 * bytes of earlier pages have been transferred.
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
 * @offset:	in, offset in each page, a multiple of 8 below the page size
 * @period_us:	in, time between two rounds over the range; 0: no pause
 *
 * Round N, from 1 up, writes N as a native 64 bit integer at @offset of every
 * page. It skips a page if these 8 bytes are outside the pinned range. EPERM:
 * the handle lacks FAKE_DMA_PIN_WRITE. EBUSY: it has an engine already.
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
 * @rounds:	out, rounds finished, which is the last number written
 *
 * EINVAL: the handle has no engine.
 */
struct fake_dma_stop {
	__u32 handle;
	__u32 reserved;
	__u64 rounds;
};

/* struct fake_dma_page: flags */
#define FAKE_DMA_PAGE_MAYBE_PINNED	0x01  /* page_maybe_dma_pinned() */
#define FAKE_DMA_PAGE_ANON		0x02
#define FAKE_DMA_PAGE_DIRTY		0x04
#define FAKE_DMA_PAGE_COMPOUND		0x08
#define FAKE_DMA_PAGE_HUGETLB		0x10
#define FAKE_DMA_PAGE_KSM		0x20
#define FAKE_DMA_PAGE_SWAPCACHE		0x40
#define FAKE_DMA_PAGE_ZERO		0x80

/**
 * struct fake_dma_page - state of one pinned page, read from struct page
 * @pfn:	page frame number
 * @refcount:	refcount of the head page, with the pins of base pages in it
 * @mapcount:	page table entries that map this page
 * @pincount:	pins: exact for compound pages of order 2 and up
 * @flags:	FAKE_DMA_PAGE_*
 *
 * All fields but @pfn may have changed when the caller reads them.
 */
struct fake_dma_page {
	__u64 pfn;
	__s32 refcount;
	__s32 mapcount;
	__s32 pincount;
	__u32 flags;
};

/**
 * struct fake_dma_query - read the state of pages of a handle
 * @handle:	in
 * @reserved:	in, 0
 * @first:	in, index of the first page
 * @nr:		in, number of pages, not 0
 * @buf:	in, address of an array of @nr struct fake_dma_page
 *
 * EOVERFLOW: the handle has fewer than @first + @nr pages.
 */
struct fake_dma_query {
	__u32 handle;
	__u32 reserved;
	__u64 first;
	__u64 nr;
	__u64 buf;
};

/*
 * Documentation/userspace-api/ioctl/ioctl-number.rst lists no user of this code,
 * and no other header or driver uses it. It needs no entry there: these calls
 * are no user ABI.
 */
#define FAKE_DMA_IOC_MAGIC	0xda
#define FAKE_DMA_CAPS	_IOR(FAKE_DMA_IOC_MAGIC, 0, struct fake_dma_caps)
#define FAKE_DMA_PIN	_IOWR(FAKE_DMA_IOC_MAGIC, 1, struct fake_dma_pin)
#define FAKE_DMA_UNPIN	_IOW(FAKE_DMA_IOC_MAGIC, 2, struct fake_dma_unpin)
#define FAKE_DMA_WRITE	_IOW(FAKE_DMA_IOC_MAGIC, 3, struct fake_dma_xfer)
#define FAKE_DMA_READ	_IOW(FAKE_DMA_IOC_MAGIC, 4, struct fake_dma_xfer)
#define FAKE_DMA_START	_IOW(FAKE_DMA_IOC_MAGIC, 5, struct fake_dma_start)
#define FAKE_DMA_STOP	_IOWR(FAKE_DMA_IOC_MAGIC, 6, struct fake_dma_stop)
#define FAKE_DMA_QUERY	_IOW(FAKE_DMA_IOC_MAGIC, 7, struct fake_dma_query)

#endif /* _DRIVERS_MISC_FAKE_DMA_H */
