/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pin

#if !defined(_TRACE_PIN_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_PIN_H

#include <linux/mm.h>
#include <linux/tracepoint.h>

/* Trace a call of the pin_user_pages() family: its arguments, first page and result. */
TRACE_EVENT(pin_user_pages,
	    TP_PROTO(unsigned long start, unsigned long nr_pages,
		     unsigned int gup_flags, struct page **pages, long ret),

	    TP_ARGS(start, nr_pages, gup_flags, pages, ret),

	    TP_STRUCT__entry(__field(unsigned long, start)
			     __field(unsigned long, nr_pages)
			     __field(unsigned int, gup_flags)
			     __field(unsigned long, pfn)
			     __field(long, ret)),

	    TP_fast_assign(__entry->start = start;
			   __entry->nr_pages = nr_pages;
			   __entry->gup_flags = gup_flags;
			   __entry->pfn = ret > 0 ? page_to_pfn(*pages) : 0;
			   __entry->ret = ret;),

	    TP_printk("start=0x%lx nr_pages=%lu gup_flags=0x%x pfn=0x%lx ret=%ld",
		      __entry->start, __entry->nr_pages, __entry->gup_flags,
		      __entry->pfn, __entry->ret)
);

/* Trace a call of the unpin_user_pages() family: its arguments and first page. */
TRACE_EVENT(unpin_user_pages,
	    TP_PROTO(struct page **pages, unsigned long npages,
		     bool make_dirty),

	    TP_ARGS(pages, npages, make_dirty),

	    TP_STRUCT__entry(__field(unsigned long, pfn)
			     __field(unsigned long, npages)
			     __field(bool, make_dirty)),

	    TP_fast_assign(__entry->pfn = npages ? page_to_pfn(*pages) : 0;
			   __entry->npages = npages;
			   __entry->make_dirty = make_dirty;),

	    TP_printk("pfn=0x%lx npages=%lu make_dirty=%d",
		      __entry->pfn, __entry->npages, __entry->make_dirty)
);

/* Trace the copy of a pinned page that fork() made for the child. */
TRACE_EVENT(pin_fork_copy,
	    TP_PROTO(unsigned long addr, struct page *page, struct page *copy),

	    TP_ARGS(addr, page, copy),

	    TP_STRUCT__entry(__field(unsigned long, addr)
			     __field(unsigned long, pfn)
			     __field(unsigned long, copy)
			     __field(unsigned int, order)),

	    TP_fast_assign(__entry->addr = addr;
			   __entry->pfn = page_to_pfn(page);
			   __entry->copy = page_to_pfn(copy);
			   __entry->order = compound_order(copy);),

	    TP_printk("addr=0x%lx pfn=0x%lx copy=0x%lx order=%u",
		      __entry->addr, __entry->pfn, __entry->copy,
		      __entry->order)
);

#endif /* _TRACE_PIN_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
