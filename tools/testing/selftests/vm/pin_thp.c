// SPDX-License-Identifier: GPL-2.0-only
/*
 * Collapse and split of transparent huge pages around pins (R12, C1): pinned pages
 * are neither collapsed nor split, and unpinned ones are again.
 */
#define _GNU_SOURCE
#include "pin_event.h"

#define SUBPAGES	(HUGE_PAGE / PAGE)
#define AFTER		(FIRST + NR_PAGES)	/* index of the first page after the pinned */
#define REST		0x7e57			/* seed of the bytes in unpinned pages */
#define TRIES		3000

#define SPLIT_ALL	"/sys/kernel/debug/split_huge_pages"

/* An unpinned huge page, or a range for one, that each event applies to as well. */
static char *neighbour;
static uint64_t neighbour_pfn;	/* its first page before the collapse */

/* Return true if a transparent huge page is mapped at @mem, by PTEs or a PMD. */
static bool is_huge(const char *mem)
{
	uint64_t pfn = pin_pfn(getpid(), mem);

	return pfn && pin_page_has(pfn, KPF_THP);
}

/* Return true if the pinned pages are of a huge page, and @mem still maps it. */
static bool is_thp(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;
	struct fake_dma_page pages[NR_PAGES];
	int i, nr = 0;

	ASSERT_EQ(0, pin_query(b->p.dev, b->p.handle, 0, NR_PAGES, pages));
	for (i = 0; i < NR_PAGES; i++)
		nr += !!(pages[i].flags & FAKE_DMA_PAGE_COMPOUND);
	return nr == NR_PAGES && is_huge(b->p.mem);
}

static void fill_rest(char *map)
{
	pin_fill(map, FIRST, REST);
	pin_fill(map + AFTER * PAGE, SUBPAGES - AFTER, REST);
}

static void expect_rest(struct buffer *b, const char *when)
{
	struct __test_metadata *_metadata = b->p.test;
	char *after = b->m.map + AFTER * PAGE;

	EXPECT_EQ(-1, pin_differs(b->m.map, FIRST, REST)) {
		TH_LOG("%s: page %ld, before the pinned ones, has lost its bytes", when,
		       pin_differs(b->m.map, FIRST, REST));
	}
	EXPECT_EQ(-1, pin_differs(after, SUBPAGES - AFTER, REST)) {
		TH_LOG("%s: page %ld after the pinned ones has lost its bytes", when,
		       pin_differs(after, SUBPAGES - AFTER, REST));
	}
}

/* Expect the last bytes in the pages that were pinned. */
static void expect_kept(struct buffer *b, const char *when)
{
	struct __test_metadata *_metadata = b->p.test;

	EXPECT_EQ(-1, pin_differs(b->p.mem, NR_PAGES, b->p.seed)) {
		TH_LOG("%s: page %ld, pinned before, has lost its bytes", when,
		       pin_differs(b->p.mem, NR_PAGES, b->p.seed));
	}
}

/* Exclude a mapping from khugepaged, which also runs without being asked. */
static void keep_khugepaged_off(struct buffer *b, char *map)
{
	struct __test_metadata *_metadata = b->p.test;

	ASSERT_EQ(0, madvise(map, HUGE_PAGE, MADV_NOHUGEPAGE));
}

/* Map a huge page that khugepaged leaves alone. */
static char *map_huge(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;
	char *mem = pin_map_thp(b->p.dev, 1);

	if (!mem)
		SKIP(_exit(255), "no transparent huge page was allocated");
	keep_khugepaged_off(b, mem);
	return mem;
}

/* Map an aligned range of base pages that khugepaged may collapse later. */
static char *map_range(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;
	char *mem = map_huge(b);

	ASSERT_EQ(0, madvise(mem, HUGE_PAGE, MADV_DONTNEED));
	pin_fill(mem, SUBPAGES, REST);
	return mem;
}

/*
 * Run khugepaged until it has collapsed the neighbour, and for two more scans of
 * all memory.
 */
static int khugepaged_runs(struct buffer *b)
{
	long scans = -1;
	int n;

	khugepaged_hurry();
	for (n = 0; n < TRIES; n++) {
		if (scans < 0 && is_huge(neighbour) &&
		    pin_pfn(getpid(), neighbour) != neighbour_pfn)
			scans = pin_file_number(KHUGEPAGED "full_scans");
		if (scans >= 0 &&
		    pin_file_number(KHUGEPAGED "full_scans") > scans + 2)
			break;
		usleep(10000);
	}
	khugepaged_rest();
	return n < TRIES ? 0 : -ETIMEDOUT;
}

TEST_F(event, R12_C1_collapse)
{
	bool range = variant->kind == BASE || variant->kind == SWAPPED;
	struct buffer *b = &self->b;

	if (range) {
		give_back(b);
		munmap(b->m.map, b->m.len);
		b->m.map = map_range(b);
		b->m.len = HUGE_PAGE;
		b->m.mem = b->m.map + FIRST * PAGE;
		fill_rest(b->m.map);
		if (variant->kind == SWAPPED)
			ASSERT_EQ(true, swap_out(b->m.map, SUBPAGES));
		take(b);
		expect_rest(b, "after swap-in");
		ASSERT_EQ(0, madvise(b->m.map, HUGE_PAGE, MADV_HUGEPAGE));
	} else if (variant->kind == THP_SPLIT) {
		/* khugepaged skips a range of more than one mapping. */
		ASSERT_EQ(0, mprotect(b->m.map, HUGE_PAGE,
				      PROT_READ | PROT_WRITE));
		fill_rest(b->m.map);
		range = true;
	}
	neighbour = map_range(b);
	neighbour_pfn = pin_pfn(getpid(), neighbour);
	ASSERT_EQ(0, madvise(neighbour, HUGE_PAGE, MADV_HUGEPAGE));
	ASSERT_EQ(0, expect_held_through(b, khugepaged_runs,
					 "while khugepaged runs"));
	EXPECT_EQ(-1, pin_differs(neighbour, SUBPAGES, REST));
	if (!range)
		return;

	expect_rest(b, "not collapsed");
	neighbour = b->m.map;
	neighbour_pfn = pin_pfn(getpid(), neighbour);
	give_back(b);
	EXPECT_EQ(0, khugepaged_runs(b)) {
		TH_LOG("khugepaged did not collapse the unpinned range in %d looks",
		       TRIES);
	}
	expect_rest(b, "collapsed");
	expect_kept(b, "collapsed");
	take(b);
	EXPECT_EQ(true, is_thp(b));
}

/* Split all huge pages, until the neighbour is split. */
static int split_all(struct buffer *b)
{
	int n, ret = 0;

	for (n = 0; !ret && n < 10 && (!n || is_huge(neighbour)); n++)
		ret = pin_write_file(SPLIT_ALL, "1");
	return ret;
}

TEST_F(event, R12_C1_split_all)
{
	bool thp = variant->kind == THP || variant->kind == THP_SPLIT;
	struct buffer *b = &self->b;

	neighbour = map_huge(b);
	if (access(SPLIT_ALL, F_OK)) {
		give_back(b);
		SKIP(return, "no " SPLIT_ALL);
	}
	if (thp)
		keep_khugepaged_off(b, b->m.map);
	ASSERT_EQ(0, expect_held_through(b, split_all,
					 "while huge pages are split"));
	EXPECT_EQ(false, is_huge(neighbour));
	EXPECT_EQ(thp, is_thp(b));
	if (!thp)
		return;

	give_back(b);
	neighbour = b->m.map;
	EXPECT_EQ(0, split_all(b));
	EXPECT_EQ(false, is_huge(b->m.map)) {
		TH_LOG("the unpinned huge page at %p is not split", b->m.map);
	}
	expect_kept(b, "split");
	take(b);
}

/*
 * Events that apply to transparent huge pages only.
 */
FIXTURE(huge) {
	struct buffer b;
};

FIXTURE_VARIANT(huge) {
	enum kind kind;
	uint32_t flags;
	uint32_t call;
};

FIXTURE_VARIANT_ADD(huge, thp_read_fast) {
	.kind = THP,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(huge, thp_read_slow) {
	.kind = THP,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(huge, thp_write_fast) {
	.kind = THP,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(huge, thp_write_slow) {
	.kind = THP,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(huge, thp_split_read_fast) {
	.kind = THP_SPLIT,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(huge, thp_split_read_slow) {
	.kind = THP_SPLIT,
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(huge, thp_split_write_fast) {
	.kind = THP_SPLIT,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(huge, thp_split_write_slow) {
	.kind = THP_SPLIT,
	.flags = FAKE_DMA_PIN_WRITE,
	.call = FAKE_DMA_CALL_SLOW,
};

/* Make a neighbour that is mapped like the buffer. */
static void make_neighbour(struct buffer *b, enum kind what)
{
	struct __test_metadata *_metadata = b->p.test;

	neighbour = map_huge(b);
	pin_fill(neighbour, SUBPAGES, REST);
	if (what == THP_SPLIT)
		ASSERT_EQ(0, mprotect(neighbour, PAGE, PROT_READ));
}

FIXTURE_SETUP(huge)
{
	struct buffer *b = &self->b;

	open_device(_metadata, &b->p);
	make_memory(_metadata, &b->p, &b->m, variant->kind);
	b->flags = variant->flags;
	b->call = variant->call;
	take(b);
	ASSERT_EQ(true, is_thp(b));
	keep_khugepaged_off(b, b->m.map);
	make_neighbour(b, variant->kind);
}

FIXTURE_TEARDOWN(huge)
{
	struct buffer *b = &self->b;

	if (b->p.handle)
		give_back(b);
	drop_memory(&b->m);
}

/* Advice about a part of a huge page, which splits the page. */
static int advice;
static size_t advised;		/* index of the first page of two */

static int advise(struct buffer *b)
{
	if (madvise(neighbour + advised * PAGE, 2 * PAGE, advice) ||
	    madvise(b->m.map + advised * PAGE, 2 * PAGE, advice))
		return -errno;
	return 0;
}

TEST_F(huge, R12_C1_split_by_advice)
{
	static const int advices[] = { MADV_COLD, MADV_PAGEOUT, MADV_FREE };
	static const size_t pages[] = { FIRST - 2, FIRST, AFTER };
	struct buffer *b = &self->b;
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		for (j = 0; j < ARRAY_SIZE(pages); j++) {
			advice = advices[i];
			advised = pages[j];
			munmap(neighbour, HUGE_PAGE);
			make_neighbour(b, variant->kind);
			ASSERT_EQ(0, expect_held_through(b, advise,
							 "with advice about a part"));
			EXPECT_EQ(false, is_huge(neighbour));
			EXPECT_EQ(true, is_thp(b)) {
				TH_LOG("advice %d on pages %zu and %zu split the pinned huge page",
				       advice, advised, advised + 1);
			}
		}
	}
	give_back(b);
	advice = MADV_COLD;
	ASSERT_EQ(0, advise(b));
	EXPECT_EQ(false, is_huge(b->m.map));
	expect_kept(b, "split");
	take(b);
}

/* Run the shrinkers, which split huge pages with unmapped parts. */
static int shrink(struct buffer *b)
{
	int n, ret = 0;

	for (n = 0; !ret && n < 10 && (!n || is_huge(neighbour)); n++)
		ret = pin_write_file("/proc/sys/vm/drop_caches", "2");
	return ret;
}

static int page_out(struct buffer *b)
{
	return madvise(b->p.mem, NR_PAGES * PAGE, MADV_PAGEOUT) ? -errno : 0;
}

/* Unmap or discard pages @from to @to of a huge page. Return 0 or a negative errno. */
static int lose(char *map, size_t from, size_t to, bool unmap)
{
	char *mem = map + from * PAGE;
	size_t len = (to - from) * PAGE;

	return (unmap ? munmap(mem, len) : madvise(mem, len, MADV_DONTNEED)) ?
	       -errno : 0;
}

/* Expect that the pages are unmapped, or zero after MADV_DONTNEED. */
static void expect_lost(struct buffer *b, size_t from, size_t to, bool unmap)
{
	struct __test_metadata *_metadata = b->p.test;
	size_t i, left = 0, other = 0;

	for (i = from; i < to; i++)
		left += !!pin_pfn(getpid(), b->m.map + i * PAGE);
	EXPECT_EQ(0, left) {
		TH_LOG("%zu of %zu pages are still mapped, expected 0", left, to - from);
	}
	if (unmap)
		return;
	for (i = from; i < to; i++)
		other += !!pin_get(b->m.map + i * PAGE);
	EXPECT_EQ(0, other) {
		TH_LOG("%zu of %zu discarded pages are not zero, expected 0", other,
		       to - from);
	}
	if (from)	/* the first page of a PTE-mapped one is read-only */
		pin_fill(b->m.map + from * PAGE, to - from, REST);
}

/*
 * Lose the pages before and after the pinned ones, then run shrinkers and reclaim:
 * they split the neighbour and not the pinned huge page.
 */
static void lose_parts(struct buffer *b, bool before, bool after, bool unmap)
{
	struct __test_metadata *_metadata = b->p.test;
	long long deferred = pin_vmstat("thp_deferred_split_page");
	long long split = pin_vmstat("thp_split_page");
	uint64_t pfn = pin_pfn(getpid(), b->m.map + (before ? 1 : AFTER) * PAGE);
	int n;

	ASSERT_NE(0, pfn);
	if (before) {
		ASSERT_EQ(0, lose(b->m.map, 0, FIRST, unmap));
		ASSERT_EQ(0, lose(neighbour, 0, FIRST, unmap));
		expect_lost(b, 0, FIRST, unmap);
	}
	if (after) {
		ASSERT_EQ(0, lose(b->m.map, AFTER, SUBPAGES, unmap));
		ASSERT_EQ(0, lose(neighbour, AFTER, SUBPAGES, unmap));
		expect_lost(b, AFTER, SUBPAGES, unmap);
	}
	expect_held(b, "without the other pages");
	EXPECT_LE(deferred + 2, pin_vmstat("thp_deferred_split_page"));

	neighbour += FIRST * PAGE;
	EXPECT_EQ(true, is_huge(neighbour));
	ASSERT_EQ(0, expect_held_through(b, shrink, "while caches shrink"));
	EXPECT_EQ(false, is_huge(neighbour));
	EXPECT_LT(split, pin_vmstat("thp_split_page"));
	EXPECT_EQ(true, is_thp(b)) {
		TH_LOG("the shrinker split the pinned huge page at %p", b->p.mem);
	}
	ASSERT_EQ(0, expect_held_through(b, page_out, "while it is paged out"));
	EXPECT_EQ(true, is_thp(b));

	give_back(b);
	neighbour = b->p.mem;
	ASSERT_EQ(0, shrink(b));
	EXPECT_EQ(false, is_huge(b->p.mem)) {
		TH_LOG("the shrinker did not split the unpinned huge page at %p",
		       b->p.mem);
	}
	expect_kept(b, "split");
	for (n = 0; pin_page_lost(pfn) && n < TRIES; n++)
		usleep(10000);
	EXPECT_EQ(false, pin_page_lost(pfn));
	take(b);
}

TEST_F(huge, R12_C1_munmap_before)
{
	lose_parts(&self->b, true, false, true);
}

TEST_F(huge, R12_C1_munmap_after)
{
	lose_parts(&self->b, false, true, true);
}

TEST_F(huge, R12_C1_munmap_around)
{
	lose_parts(&self->b, true, true, true);
}

TEST_F(huge, R12_C1_dontneed_before)
{
	lose_parts(&self->b, true, false, false);
}

TEST_F(huge, R12_C1_dontneed_after)
{
	lose_parts(&self->b, false, true, false);
}

TEST_F(huge, R12_C1_dontneed_around)
{
	lose_parts(&self->b, true, true, false);
}

/* Move @len bytes of the mapping; the pinned pages are at @pinned then. */
static void move(struct buffer *b, char *from, char *to, size_t len,
		 char *pinned, const char *what)
{
	struct __test_metadata *_metadata = b->p.test;

	ASSERT_EQ(to, mremap(from, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to));
	EXPECT_EQ(0, pin_pfn(getpid(), b->p.mem));
	b->p.mem = pinned;
	expect_held(b, what);
	EXPECT_EQ(true, is_thp(b));
}

TEST_F(huge, R12_C1_mremap)
{
	struct buffer *b = &self->b;
	char *place, *map = b->m.map;

	place = mmap(NULL, 8 * HUGE_PAGE, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, place);
	place = (char *)(((uintptr_t)place + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));

	/* mremap() moves one mapping at a time: make it one. */
	ASSERT_EQ(0, mprotect(map, HUGE_PAGE, PROT_READ | PROT_WRITE));
	fill_rest(map);
	move(b, map, place, HUGE_PAGE, place + FIRST * PAGE, "moved");
	b->m.map = place;
	expect_rest(b, "moved");
	map = place + 2 * HUGE_PAGE + 3 * PAGE;
	move(b, place, map, HUGE_PAGE, map + FIRST * PAGE, "moved unaligned");
	b->m.map = map;
	expect_rest(b, "moved unaligned");
	place += 4 * HUGE_PAGE + 5 * PAGE;
	move(b, map + FIRST * PAGE, place, NR_PAGES * PAGE, place,
	     "moved in part");
	expect_rest(b, "moved in part");
	move(b, place, map + FIRST * PAGE, NR_PAGES * PAGE, map + FIRST * PAGE,
	     "moved back");
	move(b, map + (FIRST - 1) * PAGE, place, (NR_PAGES + 2) * PAGE,
	     place + PAGE, "moved with some of the others");

	give_back(b);
	neighbour = b->p.mem;
	if (access(SPLIT_ALL, F_OK))
		return;
	ASSERT_EQ(0, split_all(b));
	EXPECT_EQ(false, is_huge(b->p.mem));
	expect_kept(b, "split");
}

/*
 * Pin pages while khugepaged collapses their huge page and advice splits it.
 * Every pin that succeeds must hold.
 */
static atomic_int stop;

static void *keep_splitting(void *arg)
{
	struct buffer *b = arg;

	while (!stop) {
		madvise(b->m.map, PAGE, MADV_COLD);
		pin_get(b->m.map);
	}
	return NULL;
}

TEST_F(huge, R12_C1_pins_beside_collapse_and_split)
{
	long long split = pin_vmstat("thp_split_page");
	long long made = pin_vmstat("thp_collapse_alloc");
	struct buffer *b = &self->b;
	pthread_t thread;
	int round;

	ASSERT_EQ(0, mprotect(b->m.map, HUGE_PAGE, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, madvise(b->m.map, HUGE_PAGE, MADV_HUGEPAGE));
	fill_rest(b->m.map);
	give_back(b);
	khugepaged_hurry();
	ASSERT_EQ(0, pthread_create(&thread, NULL, keep_splitting, b));
	for (round = 0; round < 10 * TRIES && _metadata->passed; round++) {
		take(b);
		if (round % 4 == 0)
			usleep(1000);
		expect_held(b, "beside collapse and split");
		give_back(b);
		expect_kept(b, "beside collapse and split");
		if (round >= 50 && pin_vmstat("thp_split_page") > split + 10 &&
		    pin_vmstat("thp_collapse_alloc") > made + 10)
			break;
		usleep(round % 16 * 100);
	}
	stop = 1;
	pthread_join(thread, NULL);
	khugepaged_rest();
	EXPECT_LT(round, 10 * TRIES) {
		TH_LOG("%lld splits and %lld collapses in %d rounds, expected > 10 each",
		       pin_vmstat("thp_split_page") - split,
		       pin_vmstat("thp_collapse_alloc") - made, round);
	}
	expect_rest(b, "beside collapse and split");
}

int main(int argc, char **argv)
{
	pin_need_device();
	keep_settings();
	return test_harness_run(argc, argv);
}
