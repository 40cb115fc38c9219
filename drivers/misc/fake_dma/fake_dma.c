// SPDX-License-Identifier: GPL-2.0-only
/*
 * A DMA engine without hardware. It pins user memory, maps it for a platform
 * device, and plays that device with the CPU. Tests of page pinning use it to
 * see memory as a device does; fake_dma.h describes the calls.
 *
 * The device accesses a page by the kernel's mapping of its struct page. So it
 * keeps using the pinned page after the page tables of the process change.
 */
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hrtimer.h>
#include <linux/kref.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/pid.h>
#include <linux/platform_device.h>
#include <linux/rwsem.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

#include "fake_dma.h"

/* A build for a kernel whose mm lacks a capability defines fewer of them. */
#ifndef FAKE_DMA_KERNEL_CAPS
#define FAKE_DMA_KERNEL_CAPS	(FAKE_DMA_CAP_PIN | FAKE_DMA_CAP_MISUSE | \
				 FAKE_DMA_CAP_UNLOCKED)
#endif

#define FAKE_DMA_PIN_FLAGS	(FAKE_DMA_PIN_WRITE | FAKE_DMA_PIN_LONGTERM | \
				 FAKE_DMA_PIN_GET | FAKE_DMA_PIN_PARTIAL | \
				 FAKE_DMA_PIN_BADFLAGS)
#define FAKE_DMA_UNPIN_FLAGS	(FAKE_DMA_UNPIN_DIRTY | FAKE_DMA_UNPIN_RANGE | \
				 FAKE_DMA_UNPIN_MISUSE)

/* The longest period of an engine that fits into a ktime_t. */
#define FAKE_DMA_PERIOD_MAX_US	(KTIME_MAX / NSEC_PER_USEC)

/**
 * struct fake_dma_file - an open file and its handles
 * @dev:	device that the pages are mapped for
 * @handles:	struct fake_dma_handle by number; 0 is never used
 */
struct fake_dma_file {
	struct device *dev;
	struct xarray handles;
};

/**
 * struct fake_dma_handle - a pinned range
 * @ref:	the file holds one while the pages are pinned, and so does each
 *		call that looked the handle up
 * @lock:	held for read to use the pages, for write to release them or to
 *		start or stop the engine. Page faults on user buffers happen
 *		under it, so it nests outside mmap_lock.
 * @dev:	device that the pages are mapped for
 * @pages:	the pages; NULL once they are released
 * @nr_pages:	number of @pages
 * @offset:	offset of the first pinned byte in the first page
 * @len:	bytes pinned
 * @got:	plain references (FAKE_DMA_PIN_GET), not pins
 * @dir:	DMA_BIDIRECTIONAL if the device may write
 * @sgt:	the range, mapped for the device
 * @engine:	thread of the engine, or NULL. It uses the pages without @lock.
 *		It is stopped before they are released.
 * @stamp:	offset in each page of the word that the engine writes
 * @period:	time between two rounds of the engine
 * @rounds:	rounds finished; only the engine uses it until it is stopped
 */
struct fake_dma_handle {
	struct kref ref;
	struct rw_semaphore lock;
	struct device *dev;
	struct page **pages;
	unsigned long nr_pages;
	unsigned long offset;
	u64 len;
	bool got;
	enum dma_data_direction dir;
	struct sg_table sgt;
	struct task_struct *engine;
	u32 stamp;
	ktime_t period;
	u64 rounds;
};

static bool fake_dma_may_write(struct fake_dma_handle *h)
{
	return h->dir == DMA_BIDIRECTIONAL;
}

static void fake_dma_handle_free(struct kref *ref)
{
	kfree(container_of(ref, struct fake_dma_handle, ref));
}

/* Look up a handle that still has its pages, and lock it. */
static struct fake_dma_handle *fake_dma_get(struct fake_dma_file *file, u32 id,
					    bool write)
{
	struct fake_dma_handle *h;
	int ret;

	xa_lock(&file->handles);
	h = xa_load(&file->handles, id);
	if (h)
		kref_get(&h->ref);
	xa_unlock(&file->handles);
	if (!h)
		return ERR_PTR(-ENOENT);

	/* The holder may sleep in a page fault for any time. */
	ret = write ? down_write_killable(&h->lock) :
		      down_read_killable(&h->lock);
	if (ret)
		goto put;
	if (!h->pages) {
		if (write)
			up_write(&h->lock);
		else
			up_read(&h->lock);
		ret = -ENOENT;
		goto put;
	}
	return h;

put:
	kref_put(&h->ref, fake_dma_handle_free);
	return ERR_PTR(ret);
}

static void fake_dma_put_read(struct fake_dma_handle *h)
{
	up_read(&h->lock);
	kref_put(&h->ref, fake_dma_handle_free);
}

static void fake_dma_put_write(struct fake_dma_handle *h)
{
	up_write(&h->lock);
	kref_put(&h->ref, fake_dma_handle_free);
}

static void fake_dma_unpin_pages(struct fake_dma_handle *h, u32 flags)
{
	bool dirty = flags & FAKE_DMA_UNPIN_DIRTY;
	unsigned long i, nr;

	if (!(flags & FAKE_DMA_UNPIN_RANGE)) {
		if (dirty)
			unpin_user_pages_dirty_lock(h->pages, h->nr_pages, true);
		else
			unpin_user_pages(h->pages, h->nr_pages);
		return;
	}

	for (i = 0; i < h->nr_pages; i += nr) {
		nr = 1;
		while (i + nr < h->nr_pages &&
		       h->pages[i + nr] == nth_page(h->pages[i], nr))
			nr++;
		unpin_user_page_range_dirty_lock(h->pages[i], nr, dirty);
	}
}

static void fake_dma_put_pages(struct fake_dma_handle *h, u32 flags)
{
	unsigned long i;

	for (i = 0; i < h->nr_pages; i++) {
		if (flags & FAKE_DMA_UNPIN_DIRTY)
			set_page_dirty_lock(h->pages[i]);
		put_page(h->pages[i]);
	}
}

static void fake_dma_release_pages(struct fake_dma_handle *h, u32 flags)
{
	if (h->got)
		fake_dma_put_pages(h, flags);
	else
		fake_dma_unpin_pages(h, flags);
	kvfree(h->pages);
	h->pages = NULL;
}

/* Unmap the range for the device, then release its pages. */
static void fake_dma_release_range(struct fake_dma_handle *h, u32 flags)
{
	dma_unmap_sgtable(h->dev, &h->sgt, h->dir, 0);
	sg_free_table(&h->sgt);
	fake_dma_release_pages(h, flags);
}

/*
 * Get the mm of a process. mm_access() and ptrace_may_access() are not exported
 * to modules, so require CAP_SYS_PTRACE, which permits tracing any process.
 */
static struct mm_struct *fake_dma_mm_of(pid_t nr)
{
	struct task_struct *task;
	struct mm_struct *mm;
	struct pid *pid;

	if (!capable(CAP_SYS_PTRACE))
		return ERR_PTR(-EPERM);

	pid = find_get_pid(nr);
	task = get_pid_task(pid, PIDTYPE_PID);
	put_pid(pid);
	if (!task)
		return ERR_PTR(-ESRCH);

	mm = get_task_mm(task);
	put_task_struct(task);
	return mm ?: ERR_PTR(-ESRCH);
}

/* Make one of the calls under mmap_lock. Return its number of pages. */
static long fake_dma_call_locked(struct mm_struct *mm, u32 call, bool get,
				 unsigned long start, unsigned long nr_pages,
				 unsigned int gup_flags, struct page **pages)
{
	int locked = 1;
	/* A long-term pin cannot drop the lock. */
	int *lockedp = gup_flags & FOLL_LONGTERM ? NULL : &locked;
	long ret;

	ret = mmap_read_lock_killable(mm);
	if (ret)
		return ret;

	if (call == FAKE_DMA_CALL_SLOW)
		ret = get ? get_user_pages(start, nr_pages, gup_flags, pages,
					   NULL) :
			    pin_user_pages(start, nr_pages, gup_flags, pages,
					   NULL);
	else if (call == FAKE_DMA_CALL_LOCKED)
		ret = get ? get_user_pages_locked(start, nr_pages, gup_flags,
						  pages, &locked) :
			    pin_user_pages_locked(start, nr_pages, gup_flags,
						  pages, &locked);
	else
		ret = get ? get_user_pages_remote(mm, start, nr_pages,
						  gup_flags, pages, NULL,
						  lockedp) :
			    pin_user_pages_remote(mm, start, nr_pages,
						  gup_flags, pages, NULL,
						  lockedp);
	if (locked)
		mmap_read_unlock(mm);
	return ret;
}

static long fake_dma_call(const struct fake_dma_pin *arg, unsigned long start,
			  unsigned long nr_pages, struct page **pages)
{
	bool get = arg->flags & FAKE_DMA_PIN_GET;
	unsigned int gup_flags = 0;
	struct mm_struct *mm;
	long ret;

	if (arg->flags & FAKE_DMA_PIN_WRITE)
		gup_flags |= FOLL_WRITE;
	if (arg->flags & FAKE_DMA_PIN_LONGTERM)
		gup_flags |= FOLL_LONGTERM;
	if (arg->flags & FAKE_DMA_PIN_BADFLAGS)
		gup_flags |= get ? FOLL_PIN : FOLL_GET;

	switch (arg->call) {
	case FAKE_DMA_CALL_FAST:
		return get ? get_user_pages_fast(start, nr_pages, gup_flags,
						 pages) :
			     pin_user_pages_fast(start, nr_pages, gup_flags,
						 pages);
	case FAKE_DMA_CALL_FAST_ONLY:
		return get ? get_user_pages_fast_only(start, nr_pages,
						      gup_flags, pages) :
			     pin_user_pages_fast_only(start, nr_pages,
						      gup_flags, pages);
	case FAKE_DMA_CALL_UNLOCKED:
		return get ? get_user_pages_unlocked(start, nr_pages, pages,
						     gup_flags) :
			     pin_user_pages_unlocked(start, nr_pages, pages,
						     gup_flags);
	case FAKE_DMA_CALL_SLOW:
	case FAKE_DMA_CALL_LOCKED:
		return fake_dma_call_locked(current->mm, arg->call, get, start,
					    nr_pages, gup_flags, pages);
	case FAKE_DMA_CALL_REMOTE:
		mm = fake_dma_mm_of(arg->pid);
		if (IS_ERR(mm))
			return PTR_ERR(mm);
		ret = fake_dma_call_locked(mm, arg->call, get, start, nr_pages,
					   gup_flags, pages);
		mmput(mm);
		return ret;
	}
	return -EINVAL;
}

static int fake_dma_check_pin(const struct fake_dma_pin *arg)
{
	bool remote = arg->call == FAKE_DMA_CALL_REMOTE;

	if (!arg->len || arg->flags & ~FAKE_DMA_PIN_FLAGS ||
	    arg->call > FAKE_DMA_CALL_REMOTE)
		return -EINVAL;
	if (remote ? arg->pid <= 0 : arg->pid != 0)
		return -EINVAL;
	/* mm refuses these with a warning, which users must not trigger. */
	if (arg->flags & FAKE_DMA_PIN_LONGTERM &&
	    (arg->flags & FAKE_DMA_PIN_GET ||
	     arg->call == FAKE_DMA_CALL_LOCKED ||
	     (arg->call == FAKE_DMA_CALL_UNLOCKED &&
	      !(FAKE_DMA_KERNEL_CAPS & FAKE_DMA_CAP_UNLOCKED))))
		return -EINVAL;
	/* Misuse warns on purpose, but mm must report it and survive. */
	if (arg->flags & FAKE_DMA_PIN_BADFLAGS &&
	    !(FAKE_DMA_KERNEL_CAPS & FAKE_DMA_CAP_MISUSE))
		return -EOPNOTSUPP;
	return 0;
}

/* Pin a range and map it for the device. The handle has no number yet. */
static struct fake_dma_handle *fake_dma_pin_range(struct device *dev,
						  const struct fake_dma_pin *arg)
{
	unsigned long offset = offset_in_page(arg->addr);
	struct fake_dma_handle *h;
	unsigned long nr_pages;
	u64 end;
	long ret;

	ret = fake_dma_check_pin(arg);
	if (ret)
		return ERR_PTR(ret);

	/* pin_user_pages_fast() counts pages in an int. */
	if (check_add_overflow(arg->addr, arg->len, &end))
		return ERR_PTR(-EOVERFLOW);
	nr_pages = ((end - 1) >> PAGE_SHIFT) - (arg->addr >> PAGE_SHIFT) + 1;
	if (nr_pages > INT_MAX)
		return ERR_PTR(-EOVERFLOW);

	h = kzalloc(sizeof(*h), GFP_KERNEL_ACCOUNT);
	if (!h)
		return ERR_PTR(-ENOMEM);
	kref_init(&h->ref);
	init_rwsem(&h->lock);
	h->dev = dev;
	h->offset = offset;
	h->got = arg->flags & FAKE_DMA_PIN_GET;
	h->dir = arg->flags & FAKE_DMA_PIN_WRITE ? DMA_BIDIRECTIONAL :
						   DMA_TO_DEVICE;

	h->pages = kvmalloc_array(nr_pages, sizeof(*h->pages),
				  GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!h->pages) {
		ret = -ENOMEM;
		goto free_handle;
	}

	ret = fake_dma_call(arg, arg->addr & PAGE_MASK, nr_pages, h->pages);
	if (ret <= 0) {
		ret = ret ?: -EFAULT;
		goto free_pages;
	}
	h->nr_pages = ret;
	if (h->nr_pages < nr_pages && !(arg->flags & FAKE_DMA_PIN_PARTIAL)) {
		ret = -EFAULT;
		goto release_pages;
	}
	h->len = min_t(u64, arg->len, h->nr_pages * PAGE_SIZE - offset);

	ret = sg_alloc_table_from_pages(&h->sgt, h->pages, h->nr_pages, offset,
					h->len, GFP_KERNEL_ACCOUNT);
	if (ret)
		goto free_table;
	ret = dma_map_sgtable(dev, &h->sgt, h->dir, 0);
	if (ret)
		goto free_table;
	return h;

free_table:
	sg_free_table(&h->sgt);
release_pages:
	fake_dma_release_pages(h, 0);
free_pages:
	kvfree(h->pages);
free_handle:
	kfree(h);
	return ERR_PTR(ret);
}

static int fake_dma_pin(struct fake_dma_file *file, void __user *argp)
{
	struct fake_dma_handle *h;
	struct fake_dma_pin arg;
	int ret;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	h = fake_dma_pin_range(file->dev, &arg);
	if (IS_ERR(h))
		return PTR_ERR(h);

	/* Reserve a number; no call finds the handle before the caller has it. */
	ret = xa_alloc(&file->handles, &arg.handle, NULL, xa_limit_32b,
		       GFP_KERNEL_ACCOUNT);
	if (ret)
		goto release;
	arg.nr_pages = h->nr_pages;
	if (copy_to_user(argp, &arg, sizeof(arg))) {
		xa_erase(&file->handles, arg.handle);
		ret = -EFAULT;
		goto release;
	}
	/* This needs no memory: the entry is reserved. */
	xa_store(&file->handles, arg.handle, h, GFP_KERNEL_ACCOUNT);
	return 0;

release:
	fake_dma_release_range(h, 0);
	kref_put(&h->ref, fake_dma_handle_free);
	return ret;
}

/*
 * Return true if a wrong unpin could drop a pin of another user. It can miss a
 * concurrent pin, so only a test that runs alone can rely on it.
 */
static bool fake_dma_maybe_pinned(struct fake_dma_handle *h)
{
	unsigned long i;

	for (i = 0; i < h->nr_pages; i++)
		if (page_maybe_dma_pinned(h->pages[i]))
			return true;
	return false;
}

static int fake_dma_unpin(struct fake_dma_file *file, void __user *argp)
{
	struct fake_dma_unpin arg;
	struct fake_dma_handle *h;
	int ret = 0;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.flags & ~FAKE_DMA_UNPIN_FLAGS)
		return -EINVAL;
	h = fake_dma_get(file, arg.handle, true);
	if (IS_ERR(h))
		return PTR_ERR(h);

	if (h->engine) {
		ret = -EBUSY;
	} else if (arg.flags & FAKE_DMA_UNPIN_MISUSE) {
		if (!h->got)
			ret = -EINVAL;
		else if (!(FAKE_DMA_KERNEL_CAPS & FAKE_DMA_CAP_MISUSE))
			ret = -EOPNOTSUPP;
		else if (fake_dma_maybe_pinned(h))
			ret = -EBUSY;
		else
			fake_dma_unpin_pages(h, arg.flags);
	} else if (h->got && arg.flags & FAKE_DMA_UNPIN_RANGE) {
		ret = -EINVAL;
	} else {
		xa_erase(&file->handles, arg.handle);
		fake_dma_release_range(h, arg.flags);
		/* Drop the file's reference; fake_dma_get() holds another. */
		kref_put(&h->ref, fake_dma_handle_free);
	}
	fake_dma_put_write(h);
	return ret;
}

/* Copy bytes within one page between @buf and the device's memory. */
static void fake_dma_copy(struct fake_dma_handle *h, u64 pos, void *buf,
			  size_t len, bool write)
{
	struct page *page = h->pages[pos >> PAGE_SHIFT];
	void *addr = kmap_atomic(page);

	if (write) {
		memcpy(addr + offset_in_page(pos), buf, len);
		flush_dcache_page(page);
	} else {
		memcpy(buf, addr + offset_in_page(pos), len);
	}
	kunmap_atomic(addr);
}

static int fake_dma_xfer_range(struct fake_dma_handle *h,
			       const struct fake_dma_xfer *arg, bool write)
{
	void __user *buf = u64_to_user_ptr(arg->buf);
	u64 pos = h->offset + arg->offset;
	u64 end = pos + arg->len;
	void *bounce;
	size_t len;
	int ret = 0;

	/* The user's buffer may fault, but not under kmap_atomic(). */
	bounce = kmalloc(min_t(u64, arg->len, PAGE_SIZE), GFP_KERNEL_ACCOUNT);
	if (!bounce)
		return -ENOMEM;

	dma_sync_sgtable_for_device(h->dev, &h->sgt, h->dir);
	for (; pos < end; pos += len, buf += len) {
		len = min_t(u64, end - pos, PAGE_SIZE - offset_in_page(pos));
		if (fatal_signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		if (write && copy_from_user(bounce, buf, len)) {
			ret = -EFAULT;
			break;
		}
		fake_dma_copy(h, pos, bounce, len, write);
		if (!write && copy_to_user(buf, bounce, len)) {
			ret = -EFAULT;
			break;
		}
		cond_resched();
	}
	dma_sync_sgtable_for_cpu(h->dev, &h->sgt, h->dir);
	kfree(bounce);
	return ret;
}

static int fake_dma_xfer(struct fake_dma_file *file, void __user *argp,
			 bool write)
{
	struct fake_dma_xfer arg;
	struct fake_dma_handle *h;
	int ret;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.reserved || !arg.len)
		return -EINVAL;
	h = fake_dma_get(file, arg.handle, false);
	if (IS_ERR(h))
		return PTR_ERR(h);

	if (write && !fake_dma_may_write(h))
		ret = -EPERM;
	else if (arg.offset > h->len || arg.len > h->len - arg.offset)
		ret = -EOVERFLOW;
	else
		ret = fake_dma_xfer_range(h, &arg, write);
	fake_dma_put_read(h);
	return ret;
}

/* Stamp all pages. A round always finishes, so all get the same number. */
static void fake_dma_round(struct fake_dma_handle *h)
{
	u64 pos, end = h->offset + h->len;
	u64 round = h->rounds + 1;

	dma_sync_sgtable_for_device(h->dev, &h->sgt, h->dir);
	for (pos = h->stamp; pos + sizeof(u64) <= end; pos += PAGE_SIZE) {
		struct page *page = h->pages[pos >> PAGE_SHIFT];
		void *addr;

		if (pos < h->offset)
			continue;
		addr = kmap_atomic(page);
		/* Use one store: a reader sees the old number or the new. */
		WRITE_ONCE(*(u64 *)(addr + offset_in_page(pos)), round);
		flush_dcache_page(page);
		kunmap_atomic(addr);
		cond_resched();
	}
	dma_sync_sgtable_for_cpu(h->dev, &h->sgt, h->dir);
	h->rounds = round;
}

static int fake_dma_engine(void *data)
{
	struct fake_dma_handle *h = data;

	while (!kthread_should_stop()) {
		fake_dma_round(h);
		if (!h->period) {
			cond_resched();
			continue;
		}
		/* kthread_stop() interrupts the sleep. */
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule_hrtimeout_range(&h->period, 0,
						 HRTIMER_MODE_REL);
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

static void fake_dma_stop_engine(struct fake_dma_handle *h)
{
	kthread_stop(h->engine);
	h->engine = NULL;
}

static int fake_dma_start(struct fake_dma_file *file, void __user *argp)
{
	struct fake_dma_start arg;
	struct task_struct *engine;
	struct fake_dma_handle *h;
	int ret = 0;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.offset >= PAGE_SIZE || arg.offset % sizeof(u64) ||
	    arg.period_us > FAKE_DMA_PERIOD_MAX_US)
		return -EINVAL;
	h = fake_dma_get(file, arg.handle, true);
	if (IS_ERR(h))
		return PTR_ERR(h);

	if (!fake_dma_may_write(h)) {
		ret = -EPERM;
		goto put;
	}
	if (h->engine) {
		ret = -EBUSY;
		goto put;
	}
	h->stamp = arg.offset;
	h->period = ns_to_ktime(arg.period_us * NSEC_PER_USEC);
	h->rounds = 0;
	engine = kthread_run(fake_dma_engine, h, "fake_dma/%u", arg.handle);
	if (IS_ERR(engine))
		ret = PTR_ERR(engine);
	else
		h->engine = engine;
put:
	fake_dma_put_write(h);
	return ret;
}

static int fake_dma_stop(struct fake_dma_file *file, void __user *argp)
{
	struct fake_dma_stop arg;
	struct fake_dma_handle *h;
	int ret = 0;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.reserved)
		return -EINVAL;
	h = fake_dma_get(file, arg.handle, true);
	if (IS_ERR(h))
		return PTR_ERR(h);

	if (h->engine) {
		fake_dma_stop_engine(h);
		arg.rounds = h->rounds;
	} else {
		ret = -EINVAL;
	}
	fake_dma_put_write(h);
	if (!ret && copy_to_user(argp, &arg, sizeof(arg)))
		ret = -EFAULT;
	return ret;
}

static void fake_dma_describe(struct page *page, struct fake_dma_page *desc)
{
	*desc = (struct fake_dma_page) {
		.pfn = page_to_pfn(page),
		.refcount = page_ref_count(compound_head(page)),
		.mapcount = page_mapcount(page),
		.pincount = page_pincount(page),
	};
	if (page_maybe_dma_pinned(page))
		desc->flags |= FAKE_DMA_PAGE_MAYBE_PINNED;
	if (PageAnon(page))
		desc->flags |= FAKE_DMA_PAGE_ANON;
	if (PageDirty(page))
		desc->flags |= FAKE_DMA_PAGE_DIRTY;
	if (PageCompound(page))
		desc->flags |= FAKE_DMA_PAGE_COMPOUND;
	if (PageHuge(page))
		desc->flags |= FAKE_DMA_PAGE_HUGETLB;
	if (PageKsm(page))
		desc->flags |= FAKE_DMA_PAGE_KSM;
	if (PageSwapCache(page))
		desc->flags |= FAKE_DMA_PAGE_SWAPCACHE;
	if (is_zero_pfn(page_to_pfn(page)))
		desc->flags |= FAKE_DMA_PAGE_ZERO;
}

static int fake_dma_query(struct fake_dma_file *file, void __user *argp)
{
	struct fake_dma_page __user *buf;
	struct fake_dma_query arg;
	struct fake_dma_handle *h;
	struct fake_dma_page desc;
	int ret = 0;
	u64 i;

	if (copy_from_user(&arg, argp, sizeof(arg)))
		return -EFAULT;
	if (arg.reserved || !arg.nr)
		return -EINVAL;
	h = fake_dma_get(file, arg.handle, false);
	if (IS_ERR(h))
		return PTR_ERR(h);

	buf = u64_to_user_ptr(arg.buf);
	if (arg.first > h->nr_pages || arg.nr > h->nr_pages - arg.first)
		ret = -EOVERFLOW;
	for (i = 0; !ret && i < arg.nr; i++) {
		fake_dma_describe(h->pages[arg.first + i], &desc);
		if (copy_to_user(buf + i, &desc, sizeof(desc)))
			ret = -EFAULT;
		else if (fatal_signal_pending(current))
			ret = -EINTR;
		cond_resched();
	}
	fake_dma_put_read(h);
	return ret;
}

static int fake_dma_caps(void __user *argp)
{
	struct fake_dma_caps arg = { .caps = FAKE_DMA_KERNEL_CAPS };

	return copy_to_user(argp, &arg, sizeof(arg)) ? -EFAULT : 0;
}

static long fake_dma_ioctl(struct file *filp, unsigned int cmd,
			   unsigned long arg)
{
	struct fake_dma_file *file = filp->private_data;
	void __user *argp = (void __user *)arg;

	switch (cmd) {
	case FAKE_DMA_CAPS:
		return fake_dma_caps(argp);
	case FAKE_DMA_PIN:
		return fake_dma_pin(file, argp);
	case FAKE_DMA_UNPIN:
		return fake_dma_unpin(file, argp);
	case FAKE_DMA_WRITE:
		return fake_dma_xfer(file, argp, true);
	case FAKE_DMA_READ:
		return fake_dma_xfer(file, argp, false);
	case FAKE_DMA_START:
		return fake_dma_start(file, argp);
	case FAKE_DMA_STOP:
		return fake_dma_stop(file, argp);
	case FAKE_DMA_QUERY:
		return fake_dma_query(file, argp);
	}
	return -ENOTTY;
}

static int fake_dma_open(struct inode *inode, struct file *filp)
{
	struct miscdevice *misc = filp->private_data;
	struct fake_dma_file *file;

	file = kmalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	if (!file)
		return -ENOMEM;
	file->dev = misc->parent;
	xa_init_flags(&file->handles, XA_FLAGS_ALLOC1);
	filp->private_data = file;
	return 0;
}

/* Needs no lock: no ioctl can be in flight in ->release(). */
static int fake_dma_release(struct inode *inode, struct file *filp)
{
	struct fake_dma_file *file = filp->private_data;
	struct fake_dma_handle *h;
	unsigned long id;

	xa_for_each(&file->handles, id, h) {
		if (h->engine)
			fake_dma_stop_engine(h);
		/* Assume that the device wrote if it could. */
		fake_dma_release_range(h, fake_dma_may_write(h) ?
					  FAKE_DMA_UNPIN_DIRTY : 0);
		kref_put(&h->ref, fake_dma_handle_free);
		cond_resched();
	}
	xa_destroy(&file->handles);
	kfree(file);
	return 0;
}

static const struct file_operations fake_dma_fops = {
	.owner = THIS_MODULE,
	.open = fake_dma_open,
	.release = fake_dma_release,
	.unlocked_ioctl = fake_dma_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice fake_dma_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "fake_dma",
	.fops = &fake_dma_fops,
	.mode = 0600,
};

/*
 * Fail if DMA is bounced (swiotlb=force, encrypted memory) or does not snoop the
 * caches. A real device would then see other bytes than the CPU.
 */
static int __init fake_dma_check_mapping(struct device *dev)
{
	struct page *page = alloc_page(GFP_KERNEL);
	dma_addr_t addr;
	int ret = 0;

	if (!page)
		return -ENOMEM;
	addr = dma_map_page(dev, page, 0, PAGE_SIZE, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(dev, addr)) {
		ret = -ENOMEM;
	} else {
		if (dma_need_sync(dev, addr)) {
			dev_err(dev, "the device needs coherent DMA without bounce buffers\n");
			ret = -ENODEV;
		}
		dma_unmap_page(dev, addr, PAGE_SIZE, DMA_BIDIRECTIONAL);
	}
	__free_page(page);
	return ret;
}

static int __init fake_dma_probe(struct platform_device *pdev)
{
	struct device *dev = &pdev->dev;
	int ret;

	ret = dma_set_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (ret)
		return ret;
	/* Let adjacent pages form one segment of any size. */
	ret = dma_set_max_seg_size(dev, UINT_MAX);
	if (!ret)
		ret = dma_set_seg_boundary(dev, ULONG_MAX);
	if (!ret)
		ret = fake_dma_check_mapping(dev);
	if (ret)
		return ret;

	fake_dma_misc.parent = dev;
	return misc_register(&fake_dma_misc);
}

static int fake_dma_remove(struct platform_device *pdev)
{
	misc_deregister(&fake_dma_misc);
	return 0;
}

static struct platform_driver fake_dma_driver = {
	.remove = fake_dma_remove,
	.driver.name = "fake_dma",
};

static struct platform_device *fake_dma_device;

/* Create the device. It cannot be unbound: it lives as long as the module. */
static int __init fake_dma_init(void)
{
	fake_dma_device = platform_create_bundle(&fake_dma_driver,
						 fake_dma_probe, NULL, 0, NULL,
						 0);
	return PTR_ERR_OR_ZERO(fake_dma_device);
}
module_init(fake_dma_init);

static void __exit fake_dma_exit(void)
{
	platform_device_unregister(fake_dma_device);
	platform_driver_unregister(&fake_dma_driver);
}
module_exit(fake_dma_exit);

MODULE_DESCRIPTION("Fake DMA engine, for tests of page pinning");
MODULE_LICENSE("GPL");
