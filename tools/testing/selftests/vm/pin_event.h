/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fixture "event": a buffer of each kind of memory with an R/O or a write pin,
 * taken by GUP-fast or the slow path. Each test applies one event to it, of mm or
 * of the process. A buffer with a write pin has the device's engine running.
 * Programs that do not apply to hugetlb define NO_HUGETLB.
 */
#ifndef PIN_EVENT_H
#define PIN_EVENT_H

#include "pin_memory.h"

#define STAMP		8	/* offset in a page of the engine's word */

struct buffer {
	struct pinned p;
	struct memory m;
	uint32_t flags;		/* FAKE_DMA_PIN_* of the pin */
	uint32_t call;
};

FIXTURE(event) {
	struct buffer b;
};

FIXTURE_VARIANT(event) {
	enum kind kind;
	uint32_t flags;
	uint32_t call;
};

FIXTURE_VARIANT_ADD(event, base_read_fast) {
	.kind = BASE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, base_read_slow) {
	.kind = BASE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(event, base_write_fast) {
	.kind = BASE,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, base_write_slow) {
	.kind = BASE,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(event, thp_read_fast) {
	.kind = THP,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, thp_read_slow) {
	.kind = THP,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(event, thp_write_fast) {
	.kind = THP,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, thp_write_slow) {
	.kind = THP,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(event, thp_split_read_fast) {
	.kind = THP_SPLIT,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, thp_split_read_slow) {
	.kind = THP_SPLIT,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(event, thp_split_write_fast) {
	.kind = THP_SPLIT,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, thp_split_write_slow) {
	.kind = THP_SPLIT,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};

#ifndef NO_HUGETLB
FIXTURE_VARIANT_ADD(event, hugetlb_read_fast) {
	.kind = HUGETLB,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, hugetlb_read_slow) {
	.kind = HUGETLB,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(event, hugetlb_write_fast) {
	.kind = HUGETLB,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, hugetlb_write_slow) {
	.kind = HUGETLB,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};
#endif

FIXTURE_VARIANT_ADD(event, swapped_read_fast) {
	.kind = SWAPPED,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, swapped_read_slow) {
	.kind = SWAPPED,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(event, swapped_write_fast) {
	.kind = SWAPPED,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(event, swapped_write_slow) {
	.kind = SWAPPED,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};

/* Expect that the engine writes to every page from now on. */
static inline void expect_stamped(struct pinned *p, const char *when)
{
	struct __test_metadata *_metadata = p->test;
	uint64_t before[NR_PAGES];
	size_t i, still = p->nr;
	int n;

	for (i = 0; i < p->nr; i++)
		before[i] = pin_get(p->mem + i * PAGE + STAMP);
	for (n = 0; still && n < 10000; n++) {
		for (i = 0, still = 0; i < p->nr; i++)
			still += pin_get(p->mem + i * PAGE + STAMP) == before[i];
		if (still)
			usleep(100);
	}
	EXPECT_EQ(0, still) {
		TH_LOG("%s: %zu of %zu pages have no new stamp of the engine, expected 0",
		       when, still, p->nr);
	}
}

/* Expect C1, for the directions that the pin allows. */
static inline void expect_held(struct buffer *b, const char *when)
{
	if (!(b->flags & FAKE_DMA_PIN_WRITE)) {
		expect_seen(&b->p, when);
		return;
	}
	expect_identity(&b->p, when);
	expect_stamped(&b->p, when);
}

/* Pin the buffer; start the engine if it is a write pin. */
static inline void take(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;

	pin(&b->p, b->m.mem, NR_PAGES, b->flags, b->call);
	if (b->flags & FAKE_DMA_PIN_WRITE)
		ASSERT_EQ(0, pin_start(b->p.dev, b->p.handle, STAMP, 50));
	expect_held(b, "just pinned");
}

/* Unpin the buffer and expect that no pin is left in the machine. */
static inline void give_back(struct buffer *b)
{
	bool engine = b->flags & FAKE_DMA_PIN_WRITE;
	struct __test_metadata *_metadata = b->p.test;

	if (engine)
		EXPECT_EQ(0, pin_stop(b->p.dev, b->p.handle, NULL));
	EXPECT_EQ(0, pin_unpin(b->p.dev, b->p.handle,
			       engine ? FAKE_DMA_UNPIN_DIRTY : 0));
	EXPECT_EQ(0, pin_held());
	b->p.handle = 0;
}

FIXTURE_SETUP(event)
{
	struct buffer *b = &self->b;

	open_device(_metadata, &b->p);
	make_memory(_metadata, &b->p, &b->m, variant->kind);
	b->flags = variant->flags;
	b->call = variant->call;
	take(b);
}

FIXTURE_TEARDOWN(event)
{
	struct buffer *b = &self->b;

	if (b->p.handle)
		give_back(b);
	drop_memory(&b->m);
}

struct ongoing {
	struct buffer *b;
	int (*event)(struct buffer *b);
	int ret;
	atomic_int done;
};

static inline void *run_ongoing(void *arg)
{
	struct ongoing *o = arg;

	o->ret = o->event(o->b);
	o->done = 1;
	return NULL;
}

/*
 * Run @event in a thread and expect C1 during and after it. @event must keep the
 * memory readable and writable. Return the result of @event.
 */
static inline int expect_held_through(struct buffer *b,
				      int (*event)(struct buffer *b),
				      const char *what)
{
	struct __test_metadata *_metadata = b->p.test;
	struct ongoing o = { .b = b, .event = event };
	pthread_t thread;

	ASSERT_EQ(0, pthread_create(&thread, NULL, run_ongoing, &o));
	while (!o.done)
		expect_held(b, what);
	pthread_join(thread, NULL);
	expect_held(b, what);
	return o.ret;
}

#endif /* PIN_EVENT_H */
