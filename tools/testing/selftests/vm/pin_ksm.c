// SPDX-License-Identifier: GPL-2.0-only
/*
 * KSM and pinned memory (R12, C1): KSM does not merge pinned pages, and a pin
 * unshares merged pages first.
 */
#define _GNU_SOURCE
#define NO_HUGETLB
#include "pin_event.h"

#define FILL	'k'

/* Two unpinned pages with the same bytes as the buffer's pages. */
static char *twin[2];

/* Fill the buffer and the twins with the same bytes and let KSM merge them. */
static void make_equal(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;
	int i;

	for (i = 0; i < NR_PAGES; i++)
		memset(b->m.mem + i * PAGE, FILL, PAGE);
	for (i = 0; i < 2; i++) {
		if (!twin[i])
			twin[i] = pin_map_small(1);
		ASSERT_NE(NULL, twin[i]);
		memset(twin[i], FILL, PAGE);
		ASSERT_EQ(0, madvise(twin[i], PAGE, MADV_MERGEABLE));
	}
	ASSERT_EQ(0, madvise(b->m.map, b->m.len, MADV_MERGEABLE));
}

static bool same_page(const char *one, const char *other)
{
	return pin_pfn(getpid(), one) == pin_pfn(getpid(), other);
}

/*
 * Expect that KSM merges the twins and no page of the buffer. The engine stops
 * meanwhile, as its words would make the pages differ.
 */
static void expect_not_merged(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;
	bool engine = b->flags & FAKE_DMA_PIN_WRITE;
	int i, merged = 0;

	if (engine)
		ASSERT_EQ(0, pin_stop(b->p.dev, b->p.handle, NULL));
	make_equal(b);
	ASSERT_EQ(true, ksm_merges(twin[0], twin[1]));
	for (i = 0; i < NR_PAGES; i++)
		merged += same_page(twin[0], b->m.mem + i * PAGE);
	EXPECT_EQ(0, merged) {
		TH_LOG("KSM merged %d of %d pinned pages, expected 0", merged, NR_PAGES);
	}
	if (engine)
		ASSERT_EQ(0, pin_start(b->p.dev, b->p.handle, STAMP, 50));
	expect_held(b, "after the twins were merged");
}

TEST_F(event, R12_C1_pinned_pages_are_not_merged)
{
	expect_not_merged(&self->b);
}

/* Merge pages that an R/O pin has unshared: these are clean and mapped read-only. */
TEST_F(event, R10_R12_C1_unshared_pages_are_not_merged)
{
	struct buffer *b = &self->b;
	pid_t child;

	give_back(b);
	make_equal(b);
	child = make_child(WAY_FORK, child_waits, &b->p);
	ASSERT_LT(0, child);
	pin(&b->p, b->m.mem, NR_PAGES, b->flags, b->call);
	*b->p.stage = 1;
	EXPECT_EQ(0, reap(child));
	if (b->flags & FAKE_DMA_PIN_WRITE)
		ASSERT_EQ(0, pin_start(b->p.dev, b->p.handle, STAMP, 50));
	expect_not_merged(b);
}

TEST_F(event, R10_R12_C1_merged_pages_are_unshared)
{
	struct buffer *b = &self->b;
	int i, merged = 0;

	give_back(b);
	make_equal(b);
	ASSERT_EQ(true, ksm_merges(twin[0], b->m.mem));
	for (i = 0; i < NR_PAGES; i++)
		merged += same_page(twin[0], b->m.mem + i * PAGE);
	EXPECT_EQ(NR_PAGES, merged);
	take(b);
	EXPECT_EQ(false, same_page(twin[0], b->m.mem));
	EXPECT_EQ(FILL, *twin[0]);
	expect_not_merged(b);
}

/* Call MADV_UNMERGEABLE: it causes a write fault on every page. */
TEST_F(event, R11_R12_C1_unmerge)
{
	struct buffer *b = &self->b;

	expect_not_merged(b);
	ASSERT_EQ(0, madvise(b->m.map, b->m.len, MADV_UNMERGEABLE));
	expect_held(b, "after MADV_UNMERGEABLE");
}

int main(int argc, char **argv)
{
	pin_need_device();
	keep_settings();
	return test_harness_run(argc, argv);
}
