// SPDX-License-Identifier: GPL-2.0-only
/*
 * Randomized stress of pins (C1, C2 and C3). Threads apply random operations to
 * buffers of every kind of memory. Meanwhile a device reads and writes the pinned
 * parts, children share the memory, and mm reclaims, migrates and merges it. An
 * oracle knows what every word must be.
 *
 * usage: pin_stress [-s SEED] [-n OPERATIONS] [-x OPERATION]...
 *
 * The seed decides the operations of each thread and their order, but not how the
 * threads interleave. -x skips an operation by name and leaves the others as they
 * are.
 *
 * Swap space (kernel argument brd.rd_size=65536), two nodes (numa=fake=2) and
 * memory that long-term pins must leave (movablecore=1G cma=64M) add events.
 */
#define _GNU_SOURCE
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "../kselftest_harness.h"

/* pin_memory.h includes the harness, but this program has no harness cases. */
static int test_harness_run(int argc, char **argv) __attribute__((unused));

#include "pin_memory.h"

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

#define NR_THREADS	4
#define NR_CHILDREN	2	/* of a thread, at a time */
#define NR_PINS		4	/* of a buffer, at a time */
#define NR_HUGETLB	56	/* for copies in all children, and stale pins */
#define NR_OFFLINE	8	/* pages to soft offline, at most */
#define NR_HISTORY	512	/* operations that a thread remembers */
#define NR_LAST		30	/* the last ones, reported whatever their buffer */

/* The oracle knows a buffer by lines: all words of a line have the same value. */
#define LINE		64UL
#define LINES		(PAGE / LINE)	/* of a page */
#define WORDS		(LINE / 8)	/* of a line */
#define MAX_PAGES	(HUGE_PAGE / PAGE)
#define WINDOW		32	/* pages of a buffer that most operations use */

/* Of more lines than this, compare one word each. */
#define SAMPLE		(16 * LINES)
#define NR_CMA		512	/* pages of one CMA allocation */

enum buffer_kind { BUF_BASE, BUF_KSM, BUF_THP, BUF_PTES, BUF_HUGETLB, BUF_SHM };

static const struct {
	const char *name;
	size_t nr;
} kinds[] = {
	[BUF_BASE] = { "base", WINDOW },
	[BUF_KSM] = { "ksm", WINDOW },
	[BUF_THP] = { "thp", MAX_PAGES },
	[BUF_PTES] = { "thp_ptes", MAX_PAGES },
	[BUF_HUGETLB] = { "hugetlb", MAX_PAGES },
	[BUF_SHM] = { "shm", WINDOW },
};

#define NR_BUFFERS	ARRAY_SIZE(kinds)

struct range {
	size_t first, nr;
};

/* A pin of lines of a buffer */
struct dma {
	uint32_t handle;	/* 0: not pinned */
	uint32_t call;
	size_t first, nr;
	bool write;
	bool wrote;		/* the unpin must dirty the pages */
	bool engine;
	bool gone[MAX_PAGES];	/* stale: the process unmapped the page */
};

struct buffer {
	enum buffer_kind kind;
	char *mem;
	size_t nr;		/* pages */
	struct dma dma[NR_PINS];
	/* The oracle: the value of each line */
	uint64_t line[MAX_PAGES * LINES];
	/* the first word of each page, which the engine writes */
	uint64_t stamp[MAX_PAGES];
	/* and pages that may be zero instead, after MADV_FREE */
	bool lazy[MAX_PAGES];
};

struct child {
	pid_t pid;		/* 0: not forked */
	long op;		/* operation that forked it */
	bool told;		/* it was told to end */
};

/* An operation on a buffer */
struct entry {
	enum buffer_kind kind;
	char text[124];
};

struct thread {
	int nr;
	pthread_t pthread;
	uint64_t random;
	long op;		/* number of the running operation, from 1 */
	long forked_at;		/* in a child: operation that forked it */
	int dev;
	int pipe[2];
	size_t piped;		/* bytes in the pipe */
	uintptr_t where;	/* start of unused addresses of this thread */
	char *bounce;
	struct child child[NR_CHILDREN];
	struct entry history[NR_HISTORY];
	struct buffer buffer[NR_BUFFERS];
};

/* Kinds of failure, as exit status */
enum fault { BYTES = 1, CALLS };

/* Writers of a word */
enum writer { BY_CPU = 1, BY_DEVICE, BY_VM_WRITEV, BY_CHILD = 8 };

/* State that all processes share */
struct shared {
	atomic_flag failed;	/* a process reports a failure */
	atomic_int fault;	/* the failure, when its report is complete */
	char why[100];		/* the call that failed */
	atomic_int go[NR_THREADS][NR_CHILDREN];	/* pid of the child told to end */
	atomic_int offlined;
	atomic_long merged;	/* most pages that KSM saved */
	atomic_long longterm;	/* long-term pins tried */
	atomic_long refused;	/* long-term pins refused */
	atomic_long op[64];	/* runs of each operation */
	atomic_long us[64];	/* their time in microseconds */
};

static struct thread threads[NR_THREADS];
static __thread struct thread *self;
static struct shared *shared;
static unsigned long seed;
static long nr_ops = 10000;
static atomic_long nr_done;
static time_t begin;
static pid_t our_pid;
static bool have_swap, have_nodes, have_group, have_pins, have_unlocked, left_out;
static int uffd = -1;
static pthread_mutex_t swap_lock = PTHREAD_MUTEX_INITIALIZER;

/*
 * Print to stdout without stdio, whose locks another thread may hold at fork or at
 * exit.
 */
static void say(const char *fmt, ...)
{
	char text[512];
	va_list args;
	int len;

	va_start(args, fmt);
	len = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (len >= (int)sizeof(text))
		len = sizeof(text) - 1;
	if (write(STDOUT_FILENO, text, len) != len)
		_exit(CALLS);
}

/* Append to the history line of the running operation. */
static void note(struct thread *t, const char *fmt, ...)
{
	struct entry *entry = &t->history[t->op % NR_HISTORY];
	size_t len = strlen(entry->text);
	va_list args;

	va_start(args, fmt);
	vsnprintf(entry->text + len, sizeof(entry->text) - len, fmt, args);
	va_end(args);
}

/* Begin the report of a failure. Only the first caller of all processes returns. */
static void fail_begin(struct thread *t)
{
	static __thread bool failing;

	if (failing) {
		shared->fault = BYTES;
		_exit(BYTES);
	}
	failing = true;
	if (atomic_flag_test_and_set(&shared->failed)) {
		while (!shared->fault)
			usleep(1000);
		_exit(shared->fault);
	}
	say("# FAILED in operation %ld of thread %d", t->op, t->nr);
	if (t->forked_at)
		say(", in the child that operation %ld forked", t->forked_at);
	say(":\n");
}

/* End the report with the last operations, more of them for buffer @b, and exit. */
static _Noreturn void fail_end(struct thread *t, enum fault which,
			       const struct buffer *b)
{
	long op = t->op - NR_HISTORY + 1;

	say("# the last %d operations of this thread%s:\n", NR_LAST,
	    b ? ", and earlier ones on this buffer" : "");
	for (op = op < 1 ? 1 : op; op <= t->op; op++) {
		struct entry *entry = &t->history[op % NR_HISTORY];

		if (op > t->op - NR_LAST || (b && entry->kind == b->kind))
			say("#   %s\n", entry->text);
	}
	shared->fault = which;
	_exit(which);
}

/* Report that call @what failed with errno @ret. */
static _Noreturn void unexpected(struct thread *t, const char *what, int ret)
{
	fail_begin(t);
	snprintf(shared->why, sizeof(shared->why), "%s: %s", what,
		 strerror(ret < 0 ? -ret : ret));
	say("# %s\n", shared->why);
	fail_end(t, CALLS, NULL);
}

/* Seed the random numbers of an operation by its number alone. */
static void random_begin(struct thread *t)
{
	t->random = seed * 0xd1342543de82ef95ULL + t->nr * 0xaf251af3b0f025b5ULL +
		    t->op * 0xda942042e4dd58b5ULL;
}

/* Return a random number below @n. */
static size_t some(struct thread *t, size_t n)
{
	uint64_t x = t->random += 0x9e3779b97f4a7c15ULL;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return (x ^ x >> 31) % n;
}

static bool one_in(struct thread *t, size_t n)
{
	return !some(t, n);
}

static struct range some_pages(struct thread *t, struct buffer *b)
{
	size_t from = b->nr > WINDOW ? FIRST : 0;
	struct range r = { .nr = b->nr };

	if (one_in(t, 12))
		return r;
	r.first = from + some(t, WINDOW);
	r.nr = 1 + some(t, 12);
	if (r.nr > b->nr - r.first)
		r.nr = b->nr - r.first;
	return r;
}

/* Choose some of the lines in @r, rarely many. */
static struct range some_of(struct thread *t, struct range r)
{
	size_t skip;

	if (one_in(t, 3) && (r.nr <= SAMPLE || one_in(t, 8)))
		return r;
	skip = some(t, r.nr);
	r.first += skip;
	r.nr -= skip;
	r.nr = 1 + some(t, r.nr > SAMPLE ? SAMPLE : r.nr);
	return r;
}

static struct range lines_of(struct range pages)
{
	return (struct range){ pages.first * LINES, pages.nr * LINES };
}

static struct range some_lines(struct thread *t, struct buffer *b)
{
	return some_of(t, lines_of(some_pages(t, b)));
}

static struct range dma_lines(const struct dma *d)
{
	return (struct range){ d->first, d->nr };
}

/* Return a value for @line that tells its writer, thread and operation. */
static uint64_t make_value(struct thread *t, enum writer by, size_t line)
{
	if (t->forked_at)
		by |= BY_CHILD;
	return (t->nr + 1ULL) << 60 | (uint64_t)by << 56 |
	       (t->op & 0xffffffff) << 24 | line;
}

static void say_value(const char *what, uint64_t value)
{
	static const char *const by[] = {
		"no writer", "the CPU", "the device",
		"process_vm_writev(), /proc/self/mem or UFFDIO_COPY",
	};
	uint64_t nr = value >> 60;

	say("# %s: %#llx", what, (unsigned long long)value);
	if (!value)
		say(", never written\n");
	else if (nr - 1 >= NR_THREADS)
		say(", a stamp, of op_fill(), or of no writer\n");
	else
		say(", of line %llu, by %s%s, operation %llu of thread %llu\n",
		    (unsigned long long)value & 0xffffff,
		    by[value >> 56 & 3], value >> 59 & 1 ? " in a child" : "",
		    (unsigned long long)value >> 24 & 0xffffffff,
		    (unsigned long long)nr - 1);
}

static bool dma_has(const struct dma *d, size_t page)
{
	return d->handle && !d->gone[page] && page >= d->first / LINES &&
	       page <= (d->first + d->nr - 1) / LINES;
}

static bool page_pinned(const struct buffer *b, size_t page)
{
	int i;

	for (i = 0; i < NR_PINS; i++)
		if (dma_has(&b->dma[i], page))
			return true;
	return false;
}

static bool any_pinned(const struct buffer *b, struct range r)
{
	size_t page;

	for (page = r.first; page < r.first + r.nr; page++)
		if (page_pinned(b, page))
			return true;
	return false;
}

/* Return true if the engine of pin @d, once started, writes to @page. */
static bool dma_stamps(const struct dma *d, size_t page)
{
	return dma_has(d, page) && page * LINES >= d->first;
}

/* Return true if a running engine changes the first word of @page. */
static bool page_stamped(const struct buffer *b, size_t page)
{
	int i;

	for (i = 0; i < NR_PINS; i++)
		if (b->dma[i].engine && dma_stamps(&b->dma[i], page))
			return true;
	return false;
}

static uint64_t *word_at(const struct buffer *b, size_t line)
{
	return (uint64_t *)(b->mem + line * LINE);
}

static void say_pin(struct thread *t, const struct dma *d, size_t page)
{
	struct fake_dma_page desc;

	if (!d->handle || page < d->first / LINES ||
	    page > (d->first + d->nr - 1) / LINES ||
	    pin_query(t->dev, d->handle, page - d->first / LINES, 1, &desc))
		return;
	say("# pinned: pfn %#llx, handle %u, for %s, call %u%s%s,\n",
	    (unsigned long long)desc.pfn, d->handle,
	    d->write ? "writing" : "reading", d->call,
	    d->gone[page] ? ", stale" : "",
	    d->engine ? ", with an engine" : "");
	say("#   refcount %d, mapcount %d, pincount %d, flags %#x\n",
	    desc.refcount, desc.mapcount, desc.pincount, desc.flags);
}

/* Report a wrong word, seen through pin @d, or by the process if @d is NULL. */
static _Noreturn void wrong(struct thread *t, struct buffer *b, size_t line,
			    size_t word, uint64_t expected, uint64_t found,
			    const struct dma *d)
{
	uint64_t *at = word_at(b, line) + word, now = pin_get(at);
	size_t page = line / LINES;
	int i;

	fail_begin(t);
	say("# address %p, word %zu of line %zu of page %zu of the buffer '%s'\n",
	    at, word, line % LINES, page, kinds[b->kind].name);
	say_value("expected", expected);
	if (d)
		say("# found by the device, with handle %u\n", d->handle);
	say_value("found", found);
	say_value("found by the process now", now);
	say("# mapped: pfn %#llx, pagemap %#llx\n",
	    (unsigned long long)pin_pfn(getpid(), at),
	    (unsigned long long)pin_pagemap(getpid(), at));
	for (i = 0; i < NR_PINS; i++)
		say_pin(t, &b->dma[i], page);
	/* op_mprotect() and op_uffd() use pins outside of b->dma. */
	if (d && (d < b->dma || d >= b->dma + NR_PINS))
		say_pin(t, d, page);
	fail_end(t, BYTES, b);
}

/* Expect zeros in pages that the process discarded or never touched. */
static void set_zero(struct buffer *b, struct range r)
{
	size_t page;
	int i;

	for (page = r.first; page < r.first + r.nr; page++) {
		memset(&b->line[page * LINES], 0, LINES * sizeof(*b->line));
		b->stamp[page] = 0;
		b->lazy[page] = false;
		for (i = 0; i < NR_PINS; i++)
			if (b->dma[i].handle)
				b->dma[i].gone[page] = true;
	}
}

/*
 * Return true if reclaim has discarded @page after MADV_FREE, and expect zeros
 * from now on.
 */
static bool was_freed(struct buffer *b, size_t page)
{
	uint64_t *word = word_at(b, page * LINES), first = pin_get(word);
	size_t i;

	if (!b->lazy[page] || page_pinned(b, page) ||
	    (first && first != b->stamp[page]))
		return false;
	for (i = 1; i < PAGE / sizeof(*word); i++)
		if (pin_get(word + i))
			return false;
	set_zero(b, (struct range){ page, 1 });
	/* settle() may have written the first word since. */
	b->stamp[page] = pin_get(word);
	return true;
}

/*
 * Compare lines with the oracle. @bytes is a copy that the device read through
 * pin @d, or the memory of the process if @d is NULL.
 */
static void compare(struct thread *t, struct buffer *b, struct range r,
		    const char *bytes, const struct dma *d)
{
	size_t i, w, line, page;
	uint64_t found;

	for (i = 0; i < r.nr; i++) {
		const uint64_t *word = (const uint64_t *)(bytes + i * LINE);

		line = r.first + i;
		page = line / LINES;
		if (d && d->gone[page])
			continue;
		if (line % LINES == 0 && !page_stamped(b, page)) {
			found = pin_get(word);
			if (found != b->stamp[page] &&
			    (d || !was_freed(b, page)))
				wrong(t, b, line, 0, b->stamp[page], found, d);
		}
		w = r.nr > SAMPLE ? 1 + (line + t->op) % (WORDS - 1) :
		    line % LINES == 0;
		for (; w < WORDS; w++) {
			found = pin_get(word + w);
			if (found != b->line[line] &&
			    (d || !was_freed(b, page)))
				wrong(t, b, line, w, b->line[line], found, d);
			if (r.nr > SAMPLE)
				break;
		}
	}
}

static void cpu_read(struct thread *t, struct buffer *b, struct range r)
{
	compare(t, b, r, b->mem + r.first * LINE, NULL);
}

/* Expect R2 of a random page of the pin: stale or not, it looks pinned. */
static void look_at_page(struct thread *t, struct dma *d, struct range r)
{
	size_t page = (r.first + some(t, r.nr)) / LINES;
	struct fake_dma_page desc;
	int ret;

	ret = pin_query(t->dev, d->handle, page - d->first / LINES, 1, &desc);
	if (ret)
		unexpected(t, "FAKE_DMA_QUERY", ret);
	if (desc.flags & FAKE_DMA_PAGE_MAYBE_PINNED)
		return;
	fail_begin(t);
	say("# handle %u: page %zu: page_maybe_dma_pinned() is false, expected true\n",
	    d->handle, page);
	say_pin(t, d, page);
	fail_end(t, BYTES, NULL);
}

static void dev_read(struct thread *t, struct buffer *b, struct dma *d,
		     struct range r)
{
	int ret = pin_read(t->dev, d->handle, (r.first - d->first) * LINE,
			   t->bounce, r.nr * LINE);

	if (ret)
		unexpected(t, "FAKE_DMA_READ", ret);
	compare(t, b, r, t->bounce, d);
	if (have_pins && one_in(t, 8))
		look_at_page(t, d, r);
}

/*
 * Find out which lazily freed pages are zero, before a pin or a write. From then
 * on, reclaim must not discard them.
 */
static void settle(struct thread *t, struct buffer *b, struct range pages,
		   bool write)
{
	size_t page;

	for (page = pages.first; page < pages.first + pages.nr; page++) {
		if (!b->lazy[page])
			continue;
		if (write && !page_stamped(b, page))
			pin_set(word_at(b, page * LINES), b->stamp[page]);
		cpu_read(t, b, lines_of((struct range){ page, 1 }));
		if (write)
			b->lazy[page] = false;
	}
}

static struct range pages_of(struct range lines)
{
	struct range r = { .first = lines.first / LINES };

	r.nr = (lines.first + lines.nr - 1) / LINES - r.first + 1;
	return r;
}

/* Set all words of a line, except the engine's. */
static void set_line(uint64_t *word, size_t line, uint64_t value)
{
	size_t w;

	for (w = line % LINES == 0; w < WORDS; w++)
		pin_set(word + w, value);
}

static void cpu_write(struct thread *t, struct buffer *b, struct range r)
{
	size_t line;

	settle(t, b, pages_of(r), true);
	for (line = r.first; line < r.first + r.nr; line++) {
		b->line[line] = make_value(t, BY_CPU, line);
		set_line(word_at(b, line), line, b->line[line]);
	}
}

/* Return how many lines a transfer may cover before the next engine's word. */
static size_t part_of(struct range r, size_t line)
{
	size_t nr = LINES - line % LINES;

	return nr < r.first + r.nr - line ? nr : r.first + r.nr - line;
}

static void dev_write(struct thread *t, struct buffer *b, struct dma *d,
		      struct range r)
{
	size_t line, nr, i, skip;
	uint64_t value;
	int ret;

	d->wrote = true;
	for (line = r.first; line < r.first + r.nr; line += nr) {
		bool gone = d->gone[line / LINES];

		nr = part_of(r, line);
		for (i = 0; i < nr; i++) {
			value = make_value(t, BY_DEVICE, line + i);
			set_line((uint64_t *)(t->bounce + i * LINE), line + i,
				 value);
			if (!gone)
				b->line[line + i] = value;
		}
		skip = line % LINES ? 0 : sizeof(uint64_t);
		ret = pin_write(t->dev, d->handle,
				(line - d->first) * LINE + skip,
				t->bounce + skip, nr * LINE - skip);
		if (ret)
			unexpected(t, "FAKE_DMA_WRITE", ret);
		if (!gone)
			b->lazy[line / LINES] = false;
	}
}

/* Return a random pin of the buffer, for writing if @write, or NULL. */
static struct dma *some_dma(struct thread *t, struct buffer *b, bool write)
{
	size_t i, from = some(t, NR_PINS);

	for (i = 0; i < NR_PINS; i++) {
		struct dma *d = &b->dma[(from + i) % NR_PINS];

		if (d->handle && d->write >= write)
			return d;
	}
	return NULL;
}

/* Compare random parts of the buffer, as the process and the device see it. */
static void look(struct thread *t, struct buffer *b)
{
	struct range r = { .nr = b->nr };
	int i;

	if (b->nr > WINDOW && !one_in(t, 4))
		r = (struct range){ FIRST, 2 * WINDOW };
	if (one_in(t, 2))
		cpu_read(t, b, lines_of(r));
	for (i = 0; i < NR_PINS; i++)
		if (b->dma[i].handle && one_in(t, 2))
			dev_read(t, b, &b->dma[i],
				 some_of(t, dma_lines(&b->dma[i])));
}

static void look_at_all(struct thread *t)
{
	struct range r = { 0 };
	size_t i;

	for (i = 0; i < NR_BUFFERS; i++) {
		struct buffer *b = &t->buffer[i];

		if (t->forked_at && b->kind == BUF_SHM)
			continue;
		r.nr = b->nr;
		cpu_read(t, b, lines_of(r));
	}
}

/* Return a random buffer. A child leaves out BUF_SHM, the last one. */
static struct buffer *some_buffer(struct thread *t)
{
	return &t->buffer[some(t, NR_BUFFERS - !!t->forked_at)];
}

static void do_stop(struct thread *t, struct buffer *b, struct dma *d)
{
	uint64_t rounds, found;
	size_t page;
	int ret;

	ret = pin_stop(t->dev, d->handle, &rounds);
	if (ret)
		unexpected(t, "FAKE_DMA_STOP", ret);
	note(t, " stop %u: %llu rounds", d->handle, (unsigned long long)rounds);
	d->engine = false;
	if (!rounds)
		return;
	for (page = 0; page < b->nr; page++) {
		if (!dma_stamps(d, page))
			continue;
		found = pin_get(word_at(b, page * LINES));
		b->stamp[page] = rounds;
		b->lazy[page] = false;
		if (found != rounds)
			wrong(t, b, page * LINES, 0, rounds, found, NULL);
	}
}

static void do_unpin(struct thread *t, struct buffer *b, struct dma *d)
{
	uint32_t flags = 0;
	int ret;

	if (d->engine)
		do_stop(t, b, d);
	if (d->wrote || one_in(t, 4))
		flags |= FAKE_DMA_UNPIN_DIRTY;
	if (one_in(t, 3))
		flags |= FAKE_DMA_UNPIN_RANGE;
	note(t, " unpin %u flags %#x", d->handle, flags);
	ret = pin_unpin(t->dev, d->handle, flags);
	if (ret)
		unexpected(t, "FAKE_DMA_UNPIN", ret);
	d->handle = 0;
}

static int pin_by(struct thread *t, uint32_t call, char *mem, size_t len,
		  uint32_t flags, uint32_t *handle)
{
	if (call == FAKE_DMA_CALL_REMOTE)
		return pin_range_pid(t->dev, getpid(), mem, len, flags, handle);
	return pin_range(t->dev, mem, len, flags, call, handle);
}

/*
 * Return true if a long-term pin may fail with @ret. Pages with other references
 * cannot leave CMA. If GUP-fast has pinned pages before such a page, it returns
 * those alone and no reason.
 */
static bool refused(int ret, uint32_t call)
{
	return ret == -ENOMEM || ret == -EBUSY ||
	       (ret == -EFAULT && call == FAKE_DMA_CALL_FAST);
}

static int pin_some_way(struct thread *t, struct buffer *b, struct range r,
			uint32_t flags, uint32_t *call, uint32_t *handle)
{
	char *mem = b->mem + r.first * LINE;
	int ret;

	*call = some(t, FAKE_DMA_CALL_REMOTE + 1);
	if (one_in(t, 4) && *call != FAKE_DMA_CALL_LOCKED &&
	    (*call != FAKE_DMA_CALL_UNLOCKED || have_unlocked)) {
		note(t, " long-term");
		shared->longterm++;
		ret = pin_by(t, *call, mem, r.nr * LINE,
			     flags | FAKE_DMA_PIN_LONGTERM, handle);
		if (!refused(ret, *call))
			return ret;
		note(t, " refused");
		shared->refused++;
	}
	return pin_by(t, *call, mem, r.nr * LINE, flags, handle);
}

static void op_pin(struct thread *t, struct buffer *b)
{
	struct dma *d = &b->dma[some(t, NR_PINS)];
	struct range r = some_lines(t, b);
	struct dma new = {
		.first = r.first,
		.nr = r.nr,
		.write = one_in(t, 2),
	};
	int ret;

	if (d->handle) {
		do_unpin(t, b, d);
		return;
	}
	ret = pin_some_way(t, b, r, new.write ? FAKE_DMA_PIN_WRITE : 0,
			   &new.call, &new.handle);
	note(t, " lines %zu+%zu for %s call %u: %d handle %u", r.first, r.nr,
	     new.write ? "writing" : "reading", new.call, ret, new.handle);
	if (ret && new.call != FAKE_DMA_CALL_FAST_ONLY)
		unexpected(t, "FAKE_DMA_PIN", ret);
	if (ret)
		return;
	/* Lazily freed pages may be zero or not until here, and stay so. */
	settle(t, b, pages_of(r), false);
	*d = new;
	if (one_in(t, 2))
		dev_read(t, b, d, r);
}

static void op_unpin(struct thread *t, struct buffer *b)
{
	struct dma *d = some_dma(t, b, false);

	if (!d)
		return;
	do_unpin(t, b, d);
	if (one_in(t, 2))
		look(t, b);
}

static void op_cpu_write(struct thread *t, struct buffer *b)
{
	struct range r = some_lines(t, b);

	note(t, " lines %zu+%zu", r.first, r.nr);
	cpu_write(t, b, r);
	if (one_in(t, 2))
		look(t, b);
}

static void op_cpu_read(struct thread *t, struct buffer *b)
{
	struct range r = some_lines(t, b);

	note(t, " lines %zu+%zu", r.first, r.nr);
	cpu_read(t, b, r);
}

static void op_dev_write(struct thread *t, struct buffer *b)
{
	struct dma *d = some_dma(t, b, true);
	struct range r;

	if (!d)
		return;
	r = some_of(t, dma_lines(d));
	note(t, " handle %u lines %zu+%zu", d->handle, r.first, r.nr);
	dev_write(t, b, d, r);
	if (one_in(t, 2))
		cpu_read(t, b, r);
}

static void op_dev_read(struct thread *t, struct buffer *b)
{
	struct dma *d = some_dma(t, b, false);
	struct range r;

	if (!d)
		return;
	r = some_of(t, dma_lines(d));
	note(t, " handle %u lines %zu+%zu", d->handle, r.first, r.nr);
	dev_read(t, b, d, r);
}

/* Start or stop an engine. One per buffer, so that its stamps are known. */
static void op_engine(struct thread *t, struct buffer *b)
{
	struct dma *d = some_dma(t, b, true);
	int i, ret;

	if (!d)
		return;
	for (i = 0; i < NR_PINS; i++) {
		if (b->dma[i].handle && b->dma[i].engine) {
			do_stop(t, b, &b->dma[i]);
			return;
		}
	}
	note(t, " start %u", d->handle);
	ret = pin_start(t->dev, d->handle, 0, 50 + some(t, 1000));
	if (ret)
		unexpected(t, "FAKE_DMA_START", ret);
	d->wrote = true;
	d->engine = true;
}

/* Fill pages with one of few values, for KSM to merge. */
static void op_fill(struct thread *t, struct buffer *b)
{
	uint64_t value = 0xf000000000000000ULL | some(t, 4);
	struct range r = some_pages(t, b);
	size_t page, line;

	note(t, " pages %zu+%zu", r.first, r.nr);
	settle(t, b, r, true);
	for (page = r.first; page < r.first + r.nr; page++) {
		if (!page_stamped(b, page)) {
			pin_set(word_at(b, page * LINES), 0);
			b->stamp[page] = 0;
		}
		for (line = page * LINES; line < (page + 1) * LINES; line++) {
			b->line[line] = value;
			set_line(word_at(b, line), line, value);
		}
	}
}

/*
 * Return @b or, for an operation that keeps the bytes, the same buffer of any
 * thread. That thread may move it meanwhile. In a child, the memory of the other
 * threads is still there, and unused.
 */
static struct buffer *some_foreign(struct thread *t, struct buffer *b)
{
	if (one_in(t, 2))
		return b;
	return &threads[some(t, NR_THREADS)].buffer[b->kind];
}

static char *mem_of(struct buffer *b, struct range r)
{
	char *mem = __atomic_load_n(&b->mem, __ATOMIC_RELAXED);

	return mem + r.first * PAGE;
}

static void op_pageout(struct thread *t, struct buffer *b)
{
	struct buffer *other = some_foreign(t, b);
	struct range r = some_pages(t, b);

	note(t, " pages %zu+%zu of %p", r.first, r.nr, other->mem);
	madvise(mem_of(other, r), r.nr * PAGE,
		one_in(t, 6) ? MADV_COLD : MADV_PAGEOUT);
	if (one_in(t, 2))
		look(t, b);
}

static bool may_unmap_part(const struct buffer *b)
{
	return b->kind != BUF_HUGETLB && b->kind != BUF_SHM;
}

/* Discard pages, sometimes pinned ones. */
static void op_dontneed(struct thread *t, struct buffer *b)
{
	struct range r = some_pages(t, b);

	if (b->kind == BUF_HUGETLB || (any_pinned(b, r) && !one_in(t, 4)))
		return;
	note(t, " pages %zu+%zu", r.first, r.nr);
	if (madvise(mem_of(b, r), r.nr * PAGE,
		    b->kind == BUF_SHM ? MADV_REMOVE : MADV_DONTNEED))
		unexpected(t, "MADV_DONTNEED", errno);
	set_zero(b, r);
	if (one_in(t, 2))
		look(t, b);
}

static void op_free(struct thread *t, struct buffer *b)
{
	struct range r = some_pages(t, b);
	size_t page;

	if (!may_unmap_part(b) || any_pinned(b, r))
		return;
	note(t, " pages %zu+%zu", r.first, r.nr);
	if (madvise(mem_of(b, r), r.nr * PAGE, MADV_FREE))
		unexpected(t, "MADV_FREE", errno);
	for (page = r.first; page < r.first + r.nr; page++)
		b->lazy[page] = true;
	if (one_in(t, 2))
		madvise(mem_of(b, r), r.nr * PAGE, MADV_PAGEOUT);
	if (one_in(t, 2))
		look(t, b);
}

/* Advise about a mapping: this keeps its bytes, so any thread's may do. */
static void op_advise(struct thread *t, struct buffer *b)
{
	static const int advice[] = {
		MADV_HUGEPAGE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
		MADV_MERGEABLE, MADV_MERGEABLE, MADV_UNMERGEABLE,
	};
	int what = advice[some(t, ARRAY_SIZE(advice))];
	struct buffer *other = some_foreign(t, b);
	long merged;
	int ret;

	ret = madvise(mem_of(other, (struct range){ 0 }), b->nr * PAGE, what);
	note(t, " %p: %d: %d", other->mem, what, ret ? errno : 0);
	merged = pin_file_number(KSM "pages_sharing");
	if (merged > shared->merged)
		shared->merged = merged;
	look(t, b);
}

static void op_mprotect(struct thread *t, struct buffer *b)
{
	int prot = one_in(t, 3) ? PROT_NONE : PROT_READ, ret;
	struct range r = some_pages(t, b), lines;
	struct dma *d = some_dma(t, b, true);
	uint32_t call, handle;

	if (b->kind == BUF_HUGETLB)
		r = (struct range){ 0, b->nr };
	note(t, " pages %zu+%zu to %d", r.first, r.nr, prot);
	if (mprotect(mem_of(b, r), r.nr * PAGE, prot))
		unexpected(t, "mprotect", errno);
	if (d)
		dev_write(t, b, d, some_of(t, dma_lines(d)));
	lines = some_of(t, lines_of(r));
	if (prot == PROT_READ) {
		cpu_read(t, b, lines);
		ret = pin_some_way(t, b, lines, 0, &call, &handle);
		note(t, " lines %zu+%zu call %u: %d", lines.first, lines.nr,
		     call, ret);
		if (ret && call != FAKE_DMA_CALL_FAST_ONLY)
			unexpected(t, "FAKE_DMA_PIN for reading", ret);
	}
	if (mprotect(mem_of(b, r), r.nr * PAGE, PROT_READ | PROT_WRITE))
		unexpected(t, "mprotect", errno);
	if (prot == PROT_READ && !ret) {
		struct dma own = {
			.handle = handle,
			.call = call,
			.first = lines.first,
			.nr = lines.nr,
		};

		settle(t, b, pages_of(lines), true);
		if (one_in(t, 2))
			cpu_write(t, b, some_of(t, lines));
		dev_read(t, b, &own, lines);
		do_unpin(t, b, &own);
	}
	look(t, b);
}

/* Return an unused address, far below the addresses that mmap() chooses. */
static char *new_place(struct thread *t, bool aligned)
{
	uintptr_t place = t->where;

	t->where += 2 * HUGE_PAGE;
	return (char *)place + (aligned ? 0 : some(t, MAX_PAGES) * PAGE);
}

static void op_mremap(struct thread *t, struct buffer *b)
{
	char *to = new_place(t, one_in(t, 2)), *from = b->mem;
	size_t i, len = b->nr * PAGE;

	if (b->kind == BUF_HUGETLB)
		return;
	note(t, " from %p to %p", from, to);
	if (mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to) {
		__atomic_store_n(&b->mem, to, __ATOMIC_RELAXED);
		look(t, b);
		return;
	}
	/* EFAULT: the buffer has more than one mapping. */
	if (errno != EFAULT)
		unexpected(t, "mremap", errno);
	if (b->nr > WINDOW)
		return;
	for (i = 0; i < len; i += PAGE)
		if (mremap(from + i, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   to + i) == MAP_FAILED)
			unexpected(t, "mremap", errno);
	__atomic_store_n(&b->mem, to, __ATOMIC_RELAXED);
	look(t, b);
}

static char *map_at(struct thread *t, char *where, size_t len, int flags)
{
	char *mem = mmap(where, len, PROT_READ | PROT_WRITE,
			 MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | flags, -1, 0);

	if (mem != where)
		unexpected(t, "mmap", errno);
	return mem;
}

static void op_munmap(struct thread *t, struct buffer *b)
{
	struct range r = some_pages(t, b);

	if (!may_unmap_part(b) || (any_pinned(b, r) && !one_in(t, 4)))
		return;
	note(t, " pages %zu+%zu", r.first, r.nr);
	if (munmap(mem_of(b, r), r.nr * PAGE))
		unexpected(t, "munmap", errno);
	if (one_in(t, 2))
		usleep(some(t, 1000));
	map_at(t, mem_of(b, r), r.nr * PAGE, MAP_PRIVATE);
	set_zero(b, r);
	look(t, b);
}

static void map_buffer(struct thread *t, struct buffer *b)
{
	size_t len = b->nr * PAGE;
	int flags = MAP_PRIVATE;
	char *mem;

	if (b->kind == BUF_SHM)
		flags = MAP_SHARED;
	if (b->kind == BUF_HUGETLB)
		flags |= MAP_HUGETLB;
	mem = map_at(t, new_place(t, true), len, flags);
	if (b->kind == BUF_THP || b->kind == BUF_PTES)
		madvise(mem, len, MADV_HUGEPAGE);
	if (b->kind == BUF_KSM)
		madvise(mem, len, MADV_MERGEABLE);
	__atomic_store_n(&b->mem, mem, __ATOMIC_RELAXED);
	set_zero(b, (struct range){ 0, b->nr });
	cpu_write(t, b, lines_of((struct range){
		b->nr > WINDOW ? FIRST : 0, WINDOW
	}));
	if (b->kind == BUF_PTES &&
	    (mprotect(mem, PAGE, PROT_READ) ||
	     mprotect(mem, PAGE, PROT_READ | PROT_WRITE)))
		unexpected(t, "mprotect", errno);
}

/* Map new memory. Unpin the old one before, or leave its pins stale. */
static void op_renew(struct thread *t, struct buffer *b)
{
	bool first = one_in(t, 2);
	int i;

	for (i = 0; first && i < NR_PINS; i++)
		if (b->dma[i].handle)
			do_unpin(t, b, &b->dma[i]);
	if (munmap(b->mem, b->nr * PAGE))
		unexpected(t, "munmap", errno);
	map_buffer(t, b);
	note(t, " at %p", b->mem);
}

/* Remove the write protection of each page that faults. */
static void *uffd_handler(void *arg)
{
	struct pollfd poll_fd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	while (poll(&poll_fd, 1, -1) >= 0) {
		struct uffdio_writeprotect wp = { .range.len = PAGE };

		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		wp.range.start = msg.arg.pagefault.address & ~(PAGE - 1);
		while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) && errno == EAGAIN)
			sched_yield();
	}
	return NULL;
}

static bool uffd_init(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
	};
	pthread_t pthread;

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		return false;
	return !ioctl(uffd, UFFDIO_API, &api) &&
	       !pthread_create(&pthread, NULL, uffd_handler, NULL);
}

/*
 * Protect or unprotect a range. UFFDIO_WRITEPROTECT takes one mapping at a time, so
 * go page by page if the range has several.
 */
static void uffd_protect(struct thread *t, struct uffdio_range range, int mode)
{
	struct uffdio_writeprotect wp = { .range = range, .mode = mode };
	uint64_t end = range.start + range.len;

	if (!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		return;
	if (errno != ENOENT)
		unexpected(t, "UFFDIO_WRITEPROTECT", errno);
	wp.range.len = PAGE;
	for (; wp.range.start < end; wp.range.start += PAGE)
		if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
			unexpected(t, "UFFDIO_WRITEPROTECT", errno);
}

static void op_uffd(struct thread *t, struct buffer *b)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct range r = some_pages(t, b), lines;
	struct dma *d = some_dma(t, b, true);
	uint32_t call;
	struct dma own = { 0 };
	int ret;

	if (uffd < 0 || !may_unmap_part(b))
		return;
	note(t, " pages %zu+%zu", r.first, r.nr);
	reg.range.start = (uintptr_t)mem_of(b, r);
	reg.range.len = r.nr * PAGE;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		unexpected(t, "UFFDIO_REGISTER", errno);
	uffd_protect(t, reg.range, UFFDIO_WRITEPROTECT_MODE_WP);
	if (d)
		dev_write(t, b, d, some_of(t, dma_lines(d)));
	lines = some_of(t, lines_of(r));
	ret = pin_some_way(t, b, lines, 0, &call, &own.handle);
	note(t, " lines %zu+%zu call %u: %d", lines.first, lines.nr, call, ret);
	if (ret && call != FAKE_DMA_CALL_FAST_ONLY)
		unexpected(t, "FAKE_DMA_PIN for reading", ret);
	if (one_in(t, 2))
		cpu_write(t, b, some_of(t, lines));
	if (!ret) {
		own.call = call;
		own.first = lines.first;
		own.nr = lines.nr;
		settle(t, b, pages_of(lines), true);
		dev_read(t, b, &own, lines);
		do_unpin(t, b, &own);
	}
	if (one_in(t, 2))
		uffd_protect(t, reg.range, 0);
	if (ioctl(uffd, UFFDIO_UNREGISTER, &reg.range))
		unexpected(t, "UFFDIO_UNREGISTER", errno);
	look(t, b);
}

/* Discard pages and make new ones by UFFDIO_COPY. */
static void op_uffd_copy(struct thread *t, struct buffer *b)
{
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct range r = some_pages(t, b);
	size_t line, i;

	if (uffd < 0 || !may_unmap_part(b) || (any_pinned(b, r) && !one_in(t, 4)))
		return;
	if (r.nr > SAMPLE / LINES)
		r.nr = SAMPLE / LINES;
	note(t, " pages %zu+%zu", r.first, r.nr);
	reg.range.start = (uintptr_t)mem_of(b, r);
	reg.range.len = r.nr * PAGE;
	/* khugepaged skips registered mappings. */
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		unexpected(t, "UFFDIO_REGISTER", errno);
	if (madvise(mem_of(b, r), r.nr * PAGE, MADV_DONTNEED))
		unexpected(t, "MADV_DONTNEED", errno);
	set_zero(b, r);
	for (i = 0, line = r.first * LINES; i < r.nr * LINES; i++, line++) {
		b->line[line] = make_value(t, BY_VM_WRITEV, line);
		pin_set(t->bounce + i * LINE, 0);	/* the engine's word */
		set_line((uint64_t *)(t->bounce + i * LINE), line,
			 b->line[line]);
	}
	/* UFFDIO_COPY takes one mapping at a time, too. */
	for (i = 0; i < reg.range.len; i += PAGE) {
		struct uffdio_copy copy = {
			.dst = reg.range.start + i,
			.src = (uintptr_t)t->bounce + i,
			.len = PAGE,
		};

		if (ioctl(uffd, UFFDIO_COPY, &copy))
			unexpected(t, "UFFDIO_COPY", errno);
	}
	if (ioctl(uffd, UFFDIO_UNREGISTER, &reg.range))
		unexpected(t, "UFFDIO_UNREGISTER", errno);
	look(t, b);
}

static void op_mlock(struct thread *t, struct buffer *b)
{
	struct range r = some_pages(t, b);

	note(t, " pages %zu+%zu", r.first, r.nr);
	if (mlock(mem_of(b, r), r.nr * PAGE))
		unexpected(t, "mlock", errno);
	look(t, b);
	if (munlock(mem_of(b, r), r.nr * PAGE))
		unexpected(t, "munlock", errno);
}

/* Write through /proc/self/mem, which overrides the protection. */
static void write_proc_mem(struct thread *t, const struct iovec *from,
			   const struct iovec *to, size_t n)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	size_t i;

	if (fd < 0)
		unexpected(t, "/proc/self/mem", errno);
	for (i = 0; i < n; i++)
		if (pwrite(fd, from[i].iov_base, from[i].iov_len,
			   (uintptr_t)to[i].iov_base) != from[i].iov_len)
			unexpected(t, "write to /proc/self/mem", errno);
	close(fd);
}

static void op_vm_writev(struct thread *t, struct buffer *b)
{
	struct iovec from[SAMPLE / LINES + 2], to[ARRAY_SIZE(from)];
	struct range r = some_lines(t, b);
	size_t line, nr, i, skip, len = 0, n = 0;

	if (r.nr > SAMPLE)
		r.nr = SAMPLE;
	note(t, " lines %zu+%zu", r.first, r.nr);
	settle(t, b, pages_of(r), true);
	for (line = r.first; line < r.first + r.nr; line += nr) {
		nr = part_of(r, line);
		skip = line % LINES ? 0 : sizeof(uint64_t);
		from[n].iov_base = t->bounce + len;
		to[n].iov_base = (char *)word_at(b, line) + skip;
		from[n].iov_len = nr * LINE - skip;
		to[n].iov_len = from[n].iov_len;
		for (i = line; i < line + nr; i++)
			b->line[i] = make_value(t, BY_VM_WRITEV, i);
		for (i = 0; i < from[n].iov_len; i += 8)
			pin_set(t->bounce + len + i,
				b->line[line + (skip + i) / LINE]);
		len += from[n++].iov_len;
	}
	if (one_in(t, 2))
		write_proc_mem(t, from, to, n);
	else if (process_vm_writev(getpid(), from, n, to, n, 0) != len)
		unexpected(t, "process_vm_writev", errno);
	look(t, b);
}

/* Take references that are not pins: pages in a pipe. */
static void op_vmsplice(struct thread *t, struct buffer *b)
{
	struct range r = some_pages(t, b);
	struct iovec iov;
	size_t done;
	ssize_t n;

	if (!t->piped) {
		if (r.nr > 8)
			r.nr = 8;
		note(t, " pages %zu+%zu", r.first, r.nr);
		/* A lazily freed page may differ in the pipe: write to it first. */
		settle(t, b, r, true);
		iov.iov_base = mem_of(b, r);
		iov.iov_len = r.nr * PAGE;
		n = vmsplice(t->pipe[1], &iov, 1, 0);
		if (n != r.nr * PAGE)
			unexpected(t, "vmsplice", errno);
		t->piped = n;
		if (one_in(t, 2))
			return;
	} else {
		r.nr = 0;
	}
	for (done = 0; done < t->piped; done += n) {
		n = read(t->pipe[0], t->bounce + done, t->piped - done);
		if (n <= 0)
			unexpected(t, "read", errno);
	}
	t->piped = 0;
	if (r.nr)
		compare(t, b, lines_of(r), t->bounce, NULL);
}

static void op_move_pages(struct thread *t, struct buffer *b)
{
	struct buffer *other = some_foreign(t, b);
	struct range r = some_pages(t, b);
	int nodes[MAX_PAGES], status[MAX_PAGES], node = some(t, 2);
	unsigned long mask = 1UL << node;
	void *pages[MAX_PAGES];
	size_t i;
	long ret;

	if (!have_nodes)
		return;
	for (i = 0; i < r.nr; i++) {
		pages[i] = mem_of(other, r) + i * PAGE;
		nodes[i] = node;
	}
	if (one_in(t, 3))
		ret = syscall(SYS_mbind, mem_of(other, r), r.nr * PAGE,
			      MPOL_PREFERRED, &mask, 3, MPOL_MF_MOVE);
	else
		ret = syscall(SYS_move_pages, 0, r.nr, pages, nodes, status,
			      MPOL_MF_MOVE);
	note(t, " pages %zu+%zu of %p to %d: %ld", r.first, r.nr, other->mem,
	     node, ret);
	look(t, b);
}

static void op_migrate(struct thread *t, struct buffer *b)
{
	unsigned long from = 1 + some(t, 2), to = 3 - from;
	long ret;

	if (!have_nodes)
		return;
	ret = syscall(SYS_migrate_pages, 0, 3, &from, &to);
	note(t, ": %ld", ret);
	look(t, b);
}

static void op_offline(struct thread *t, struct buffer *b)
{
	struct range r = some_pages(t, b);
	int ret;

	if (b->kind == BUF_HUGETLB || shared->offlined++ >= NR_OFFLINE)
		return;
	ret = madvise(mem_of(b, r), PAGE, MADV_SOFT_OFFLINE);
	note(t, " page %zu, pinned %d: %d", r.first, page_pinned(b, r.first),
	     ret ? errno : 0);
	look(t, b);
}

static void op_soft_dirty(struct thread *t, struct buffer *b)
{
	note(t, ": %d", pin_write_file("/proc/self/clear_refs", "4"));
	look(t, b);
}

static void op_compact(struct thread *t, struct buffer *b)
{
	int ret;

	if (one_in(t, 2))
		ret = pin_write_file("/proc/sys/vm/compact_memory", "1");
	else
		ret = cma_make_room(NR_CMA);	/* fails without a CMA area */
	note(t, ": %d", ret);
	look(t, b);
}

static void op_split(struct thread *t, struct buffer *b)
{
	note(t, ": %d", pin_write_file("/sys/kernel/debug/split_huge_pages", "1"));
	look(t, b);
}

static void op_drop(struct thread *t, struct buffer *b)
{
	note(t, ": %d", pin_write_file("/proc/sys/vm/drop_caches", "3"));
	look(t, b);
}

#define GROUPS	"/sys/fs/cgroup/"
#define GROUP	GROUPS "pin_stress/"

static void op_reclaim(struct thread *t, struct buffer *b)
{
	long now = pin_file_number(GROUP "memory.current");

	if (!have_group)
		return;
	pin_write_number(GROUP "memory.high", now - (1 + some(t, 8)) * (HUGE_PAGE / 8));
	pin_write_file(GROUP "memory.high", "max");
	note(t, ": %ld to %ld", now, pin_file_number(GROUP "memory.current"));
	look(t, b);
}

static void op_swapoff(struct thread *t, struct buffer *b)
{
	if (!have_swap || pthread_mutex_trylock(&swap_lock))
		return;
	if (swapoff(SWAP_DEVICE))
		unexpected(t, "swapoff", errno);
	look(t, b);
	/* swap_on() opens the device O_EXCL, and a child may inherit that: avoid it. */
	if (swapon(SWAP_DEVICE, 0))
		unexpected(t, "swapon", errno);
	pthread_mutex_unlock(&swap_lock);
}

static void op_fork(struct thread *t, struct buffer *b);

static struct op {
	const char *name;
	void (*run)(struct thread *t, struct buffer *b);
	unsigned int weight;
	bool in_child;		/* children run it, too */
	bool off;		/* -x */
} ops[] = {
	{ "pin", op_pin, 1600, true },
	{ "unpin", op_unpin, 700, true },
	{ "cpu_write", op_cpu_write, 1200, true },
	{ "cpu_read", op_cpu_read, 900, true },
	{ "dev_write", op_dev_write, 1300, true },
	{ "dev_read", op_dev_read, 1000, true },
	{ "engine", op_engine, 500, true },
	{ "fill", op_fill, 250, true },
	{ "fork", op_fork, 450, false },
	{ "pageout", op_pageout, 500, true },
	{ "dontneed", op_dontneed, 200, true },
	{ "free", op_free, 150, true },
	{ "advise", op_advise, 150, false },
	{ "mprotect", op_mprotect, 200, true },
	{ "mremap", op_mremap, 100, true },
	{ "munmap", op_munmap, 80, true },
	{ "renew", op_renew, 150, false },
	{ "uffd", op_uffd, 120, false },
	{ "uffd_copy", op_uffd_copy, 60, false },
	{ "mlock", op_mlock, 60, true },
	{ "vm_writev", op_vm_writev, 100, true },
	{ "vmsplice", op_vmsplice, 100, false },
	{ "move_pages", op_move_pages, 120, true },
	{ "migrate", op_migrate, 15, false },
	{ "offline", op_offline, 10, false },
	{ "soft_dirty", op_soft_dirty, 20, false },
	{ "compact", op_compact, 5, false },
	{ "split", op_split, 10, false },
	{ "drop", op_drop, 10, false },
	{ "reclaim", op_reclaim, 10, false },
	{ "swapoff", op_swapoff, 5, false },
};

static long now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

static void do_op(struct thread *t)
{
	size_t i, pick, sum = 0;
	struct buffer *b;
	long us;

	t->op++;
	random_begin(t);
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		sum += ops[i].weight;
	pick = some(t, sum);
	for (i = 0; pick >= ops[i].weight; i++)
		pick -= ops[i].weight;

	b = some_buffer(t);
	t->history[t->op % NR_HISTORY] = (struct entry){ .kind = b->kind };
	note(t, "%ld: %s %s", t->op, ops[i].name, kinds[b->kind].name);
	if (ops[i].off || (t->forked_at && !ops[i].in_child)) {
		note(t, " (not done)");
		return;
	}
	us = now_us();
	ops[i].run(t, b);
	shared->op[i]++;
	shared->us[i] += now_us() - us;
}

/* Wait until the forking thread calls tell_child(). */
static void wait_go(struct thread *t, int nr)
{
	while (shared->go[t->nr][nr] != getpid()) {
		if (getppid() != our_pid)
			_exit(0);
		usleep(1000);
	}
}

/* Run the child. Its oracle is a copy of the moment of fork, as all its memory. */
static _Noreturn void be_child(struct thread *t, int nr)
{
	struct buffer *b;
	size_t page;
	int i;

	t->forked_at = t->op;
	t->dev = pin_open();
	if (t->dev < 0)
		unexpected(t, "open " PIN_DEVICE, t->dev);
	for (b = t->buffer; b < t->buffer + NR_BUFFERS; b++) {
		/* Take the stamps as they are: from now on, they must stay. */
		for (page = 0; page < b->nr; page++)
			if (page_stamped(b, page))
				b->stamp[page] = pin_get(word_at(b, page * LINES));
		for (i = 0; i < NR_PINS; i++)
			b->dma[i] = (struct dma){ 0 };
	}
	look_at_all(t);
	if (one_in(t, 2))
		wait_go(t, nr);
	look_at_all(t);
	for (i = some(t, 24); i > 0; i--)
		do_op(t);
	wait_go(t, nr);
	look_at_all(t);
	_exit(0);
}

static void reap_child(struct thread *t, struct child *c)
{
	int status;

	if (waitpid(c->pid, &status, 0) != c->pid)
		unexpected(t, "waitpid", errno);
	if (status) {	/* it has not reported itself */
		fail_begin(t);
		say("# the child of operation %ld ended with status %#x\n",
		    c->op, status);
		fail_end(t, BYTES, NULL);
	}
	c->pid = 0;
}

static void tell_child(struct thread *t, struct child *c)
{
	shared->go[t->nr][c - t->child] = c->pid;
	c->told = true;
}

/* Fork a child, or tell it to compare once more and end, or reap it. */
static void op_fork(struct thread *t, struct buffer *b)
{
	struct child *c = &t->child[some(t, NR_CHILDREN)];

	if (!c->pid) {
		c->op = t->op;
		c->told = false;
		c->pid = fork();
		if (!c->pid)
			be_child(t, c - t->child);
		if (c->pid < 0)
			unexpected(t, "fork", errno);
		note(t, " process %d", c->pid);
		look(t, b);
	} else if (!c->told) {
		note(t, " tell %d", c->pid);
		tell_child(t, c);
	} else {
		note(t, " reap %d", c->pid);
		reap_child(t, c);
	}
}

static void *run_thread(void *arg)
{
	struct thread *t = arg;
	struct buffer *b;
	long n;
	int i;

	self = t;
	t->where = (0x10UL + t->nr) << 40;
	t->dev = pin_open();
	if (t->dev < 0)
		unexpected(t, "open " PIN_DEVICE, t->dev);
	t->bounce = pin_map_small(MAX_PAGES);
	if (!t->bounce || pipe2(t->pipe, O_CLOEXEC))
		unexpected(t, "pipe", errno);
	random_begin(t);
	for (b = t->buffer; b < t->buffer + NR_BUFFERS; b++) {
		b->kind = b - t->buffer;
		b->nr = kinds[b->kind].nr;
		map_buffer(t, b);
	}

	while (t->op < (nr_ops + t->nr) / NR_THREADS) {
		if (shared->fault)	/* a child's report */
			_exit(shared->fault);
		do_op(t);
		n = ++nr_done;
		if (n * 10 / nr_ops != (n - 1) * 10 / nr_ops)
			say("# %ld %%, %ld s\n", n * 10 / nr_ops * 10,
			    (long)(time(NULL) - begin));
	}

	t->op++;
	t->history[t->op % NR_HISTORY].text[0] = '\0';
	note(t, "%ld: end", t->op);
	for (b = t->buffer; b < t->buffer + NR_BUFFERS; b++)
		for (i = 0; i < NR_PINS; i++)
			if (b->dma[i].handle)
				dev_read(t, b, &b->dma[i], dma_lines(&b->dma[i]));
	look_at_all(t);
	for (b = t->buffer; b < t->buffer + NR_BUFFERS; b++)
		for (i = 0; i < NR_PINS; i++)
			if (b->dma[i].handle)
				do_unpin(t, b, &b->dma[i]);
	look_at_all(t);
	for (i = 0; i < NR_CHILDREN; i++) {
		if (!t->child[i].pid)
			continue;
		tell_child(t, &t->child[i]);
		reap_child(t, &t->child[i]);
	}
	return NULL;
}

/* Report a signal for memory that cannot be accessed. */
static void on_signal(int nr, siginfo_t *info, void *context)
{
	if (!self)
		_exit(BYTES);
	fail_begin(self);
	say("# signal %d, address %p\n", nr, info->si_addr);
	fail_end(self, BYTES, NULL);
}

/* Run all threads in one process. Return an enum fault or 0. */
static int run_process(void)
{
	struct sigaction action = {
		.sa_sigaction = on_signal,
		.sa_flags = SA_SIGINFO | SA_RESETHAND,
	};
	int i;

	our_pid = getpid();
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	if (!uffd_init()) {
		say("# no userfaultfd with write protection\n");
		uffd = -1;
	}
	for (i = 0; i < NR_THREADS; i++) {
		threads[i].nr = i;
		if (pthread_create(&threads[i].pthread, NULL, run_thread,
				   &threads[i]))
			return CALLS;
	}
	for (i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i].pthread, NULL);
	return 0;
}

#define SCHED		"/proc/sys/kernel/"

/* Settings that keep mm busy. pin_put_back() restores them in reverse order. */
static const struct setting {
	const char *name;
	long value;
} settings[] = {
	{ KHUGEPAGED "scan_sleep_millisecs", 0 },
	{ KHUGEPAGED "alloc_sleep_millisecs", 0 },
	{ KHUGEPAGED "pages_to_scan", 4096 },
	{ SCHED "numa_balancing_scan_delay_ms", 10 },
	{ SCHED "numa_balancing_scan_period_min_ms", 10 },
	{ SCHED "numa_balancing", 1 },
	{ KSM "pages_to_scan", 500 },
	{ KSM "sleep_millisecs", 2 },
	{ KSM "run", 1 },
};

static void settings_set(void)
{
	const struct setting *s;

	for (s = settings; s < settings + ARRAY_SIZE(settings); s++) {
		pin_keep(s->name);
		if (pin_write_number(s->name, s->value))
			say("# %s cannot be set to %ld\n", s->name, s->value);
	}
}

/* Make a memory cgroup, whose limit op_reclaim() lowers. Return false on failure. */
static bool group_make(void)
{
	pin_write_file(GROUPS "cgroup.subtree_control", "+memory");
	mkdir(GROUP, 0755);
	return pin_file_number(GROUP "memory.current") >= 0;
}

/* Counters that must grow, if the kernel has them and @if_set is unset or true */
static struct event {
	const char *name;
	const bool *if_set;
	long long before;
} events[] = {
	{ "pswpout", &have_swap },
	{ "pswpin", &have_swap },
	{ "pgmigrate_success" },
	{ "thp_fault_alloc" },
	{ "thp_collapse_alloc" },
	{ "thp_split_page" },
	{ "thp_split_pmd" },
	{ "pglazyfreed" },
	{ "numa_hint_faults", &have_nodes },
};

static void events_begin(void)
{
	struct event *e;

	for (e = events; e < events + ARRAY_SIZE(events); e++)
		e->before = pin_vmstat(e->name);
}

/* Return true if every event came. Report all counts. */
static bool events_came(void)
{
	bool all = true;
	struct event *e;
	long long nr;

	for (e = events; e < events + ARRAY_SIZE(events); e++) {
		if (e->before < 0 || (e->if_set && !*e->if_set))
			continue;
		nr = pin_vmstat(e->name) - e->before;
		say("# %s: %lld\n", e->name, nr);
		all &= nr > 0;
	}
	say("# most pages KSM saved: %ld\n", shared->merged);
	say("# long-term pins: %ld, refused: %ld\n", shared->longterm,
	    shared->refused);
	return all && (!shared->longterm || shared->refused < shared->longterm) &&
	       (shared->merged || access(KSM "run", F_OK));
}

static void count_ops(void)
{
	size_t i;

	say("# operation: runs, total ms\n");
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		say("# %s: %ld, %ld\n", ops[i].name, shared->op[i],
		    shared->us[i] / 1000);
}

static bool ended_without(int status, enum fault which)
{
	return WIFEXITED(status) && WEXITSTATUS(status) != which;
}

/* Reap @pid and all orphans. Return the status of @pid. */
static int wait_all(pid_t pid)
{
	int status = 0, of_child;
	pid_t child;

	while ((child = wait(&of_child)) > 0)
		if (child == pid)
			status = of_child;
	return status;
}

static long long free_huge_pages(void)
{
	return pin_number("/proc/meminfo", "HugePages_Free:");
}

static void explain(const char *name)
{
	size_t i;

	printf("usage: %s [-s SEED] [-n OPERATIONS] [-x OPERATION]...\n", name);
	printf("operations:");
	for (i = 0; i < ARRAY_SIZE(ops); i++)
		printf(" %s", ops[i].name);
	printf("\n");
	exit(KSFT_FAIL);
}

static void leave_out(const char *program, const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(ops) && strcmp(ops[i].name, name); i++)
		;
	if (i == ARRAY_SIZE(ops))
		explain(program);
	ops[i].off = true;
	left_out = true;
}

int main(int argc, char **argv)
{
	struct timespec now;
	int opt, n, status, fd;
	long long free;
	long pool;
	pid_t pid;
	bool came;

	setbuf(stdout, NULL);
	clock_gettime(CLOCK_REALTIME, &now);
	seed = (now.tv_sec * 1000000000UL + now.tv_nsec) % 1000000007;
	while ((opt = getopt(argc, argv, "s:n:x:")) != -1) {
		if (opt == 's')
			seed = strtoul(optarg, NULL, 0);
		else if (opt == 'n')
			nr_ops = atol(optarg);
		else if (opt == 'x')
			leave_out(argv[0], optarg);
		else
			explain(argv[0]);
	}
	if (optind < argc || nr_ops <= 0 || nr_ops > INT_MAX)
		explain(argv[0]);
	pin_need_device();
	ksft_print_header();
	ksft_set_plan(6);
	say("# pin_stress: seed %lu, %ld operations: pin_stress -s %lu -n %ld",
	    seed, nr_ops, seed, nr_ops);
	for (n = 0; n < ARRAY_SIZE(ops); n++)
		if (ops[n].off)
			say(" -x %s", ops[n].name);
	say("\n");

	shared = pin_map(sizeof(*shared), MAP_SHARED);
	if (!shared)
		ksft_exit_fail_msg("mmap() of %zu shared bytes failed\n",
				   sizeof(*shared));
	pool = pin_set_pool(NR_HUGETLB);
	free = free_huge_pages();
	have_swap = !swap_on();
	if (!have_swap)
		say("# no swap space on " SWAP_DEVICE "\n");
	fd = pin_open();
	have_pins = pin_caps(fd) & FAKE_DMA_CAP_PIN;
	have_unlocked = pin_caps(fd) & FAKE_DMA_CAP_UNLOCKED;
	close(fd);
	have_nodes = !access("/sys/devices/system/node/node1", F_OK);
	have_group = group_make();
	if (!have_group)
		say("# no memory controller at " GROUPS "\n");
	settings_set();
	events_begin();
	begin = time(NULL);

	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid = fork();
	if (!pid) {
		pin_write_number(GROUP "cgroup.procs", getpid());
		_exit(run_process());
	}
	status = wait_all(pid);
	came = events_came();
	count_ops();

	pin_put_back();
	if (have_group)
		rmdir(GROUP);
	ksft_test_result(pid > 0 && ended_without(status, BYTES),
			 "R7_R8_R10_R11_R12_R14_C1_C2_bytes\n");
	ksft_test_result(pid > 0 && ended_without(status, CALLS),
			 "R5_calls %s\n", shared->why);
	/* The kernel may still be dropping pins of children that ended. */
	for (n = 0; n < 1000 && pin_held(); n++)
		usleep(1000);
	ksft_test_result(!pin_held(), "R4_C3_pins_balance\n");
	for (n = 0; n < 1000 && free_huge_pages() != free; n++)
		usleep(1000);
	ksft_test_result(free_huge_pages() == free,
			 "C3_huge_pages_come_back: %lld of %lld\n",
			 free_huge_pages(), free);
	if (have_swap)
		ksft_test_result(!swapoff(SWAP_DEVICE), "C3_swapoff\n");
	else
		ksft_test_result_skip("C3_swapoff: no swap space\n");
	/* A short, restricted or failed run may miss some events. */
	if (status || left_out || nr_ops < 10000)
		ksft_test_result_skip("R12_events: a failed, short or restricted run\n");
	else
		ksft_test_result(came, "R12_events\n");
	pin_set_pool(pool);
	ksft_exit(!ksft_get_fail_cnt());
}
