// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test the pin_user_pages() family: the ranges that each member pins and
 * refuses (R5, R6), and the counts of pins for each kind of memory (R1 to R4,
 * C3).
 */
#define _GNU_SOURCE
#include <limits.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "../kselftest_harness.h"
#include "pin_util.h"

#define NR_PAGES	8
#define BIAS		1024	/* GUP_PIN_COUNTING_BIAS */

/* The LRU caches hold a few references for a while: ignore this many. */
#define NOISE		8

static const uint32_t unpins[] = {
	0,
	FAKE_DMA_UNPIN_DIRTY,
	FAKE_DMA_UNPIN_RANGE,
	FAKE_DMA_UNPIN_RANGE | FAKE_DMA_UNPIN_DIRTY,
};

/* Pin @nr pages of our own memory by any member of the family. */
static int pin_buffer(int dev, uint32_t call, const void *mem, size_t nr,
		      uint32_t flags, uint32_t *handle)
{
	if (call == FAKE_DMA_CALL_REMOTE)
		return pin_range_pid(dev, getpid(), mem, nr * PAGE, flags,
				     handle);
	return pin_range(dev, mem, nr * PAGE, flags, call, handle);
}

/* Pin up to @nr pages. Return their number or a negative errno. */
static long long pin_buffer_partial(int dev, uint32_t call, const void *mem,
				    size_t nr, uint32_t flags, uint32_t *handle)
{
	struct fake_dma_pin pin = {
		.addr = (uintptr_t)mem,
		.len = nr * PAGE,
		.flags = flags,
		.call = call,
		.pid = call == FAKE_DMA_CALL_REMOTE ? getpid() : 0,
	};
	long long ret = pin_partial(dev, &pin);

	*handle = pin.handle;
	return ret;
}

/* Expect process and device to access the same pages, in both directions. */
static void expect_identity(struct __test_metadata *_metadata, int dev,
			    uint32_t handle, void *mem, size_t nr)
{
	static uint32_t seed;
	char *bounce = pin_map(nr * PAGE, MAP_PRIVATE);

	ASSERT_NE(NULL, bounce);
	pin_fill(mem, nr, ++seed);
	ASSERT_EQ(0, pin_read(dev, handle, 0, bounce, nr * PAGE));
	EXPECT_EQ(-1, pin_differs(bounce, nr, seed));
	pin_fill(bounce, nr, ++seed);
	ASSERT_EQ(0, pin_write(dev, handle, 0, bounce, nr * PAGE));
	EXPECT_EQ(-1, pin_differs(mem, nr, seed));
	munmap(bounce, nr * PAGE);
}

/* Return the state of the first page of @mem, which may be pinned or not. */
static struct fake_dma_page look_at_page(int dev, const void *mem)
{
	struct fake_dma_page page = { 0 };
	uint32_t handle;

	if (!pin_range(dev, mem, PAGE, FAKE_DMA_PIN_GET, FAKE_DMA_CALL_FAST,
		       &handle)) {
		pin_query(dev, handle, 0, 1, &page);
		pin_unpin(dev, handle, 0);
	}
	return page;
}

/*
 * Test each member of the family.
 */
FIXTURE(api) {
	int dev;
	char *mem;		/* NR_PAGES, touched */
	uint32_t handle;
	long long held;		/* pins before the test */
};

FIXTURE_VARIANT(api) {
	uint32_t call;
};

FIXTURE_VARIANT_ADD(api, fast) {
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(api, fast_only) {
	.call = FAKE_DMA_CALL_FAST_ONLY,
};

FIXTURE_VARIANT_ADD(api, slow) {
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(api, locked) {
	.call = FAKE_DMA_CALL_LOCKED,
};

FIXTURE_VARIANT_ADD(api, unlocked) {
	.call = FAKE_DMA_CALL_UNLOCKED,
};

FIXTURE_VARIANT_ADD(api, remote) {
	.call = FAKE_DMA_CALL_REMOTE,
};

FIXTURE_SETUP(api)
{
	self->dev = pin_open();
	self->mem = pin_map_small(NR_PAGES);
	ASSERT_LE(0, self->dev);
	ASSERT_NE(NULL, self->mem);
	pin_fill(self->mem, NR_PAGES, 1);
	self->held = pin_held();
}

/* R4: each test has dropped all its pins. */
FIXTURE_TEARDOWN(api)
{
	EXPECT_EQ(self->held, pin_held());
}

TEST_F(api, R5_device_and_process_see_the_same)
{
	struct fake_dma_page pages[NR_PAGES];
	int i;

	ASSERT_EQ(0, pin_buffer(self->dev, variant->call, self->mem, NR_PAGES,
				FAKE_DMA_PIN_WRITE, &self->handle));
	expect_identity(_metadata, self->dev, self->handle, self->mem,
			NR_PAGES);
	ASSERT_EQ(0, pin_query(self->dev, self->handle, 0, NR_PAGES, pages));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_EQ(pin_pfn(getpid(), self->mem + i * PAGE),
			  pages[i].pfn);
	EXPECT_EQ(0, pin_unpin(self->dev, self->handle, 0));
}

TEST_F(api, R5_read_only)
{
	char byte = 0;

	ASSERT_EQ(0, mprotect(self->mem, NR_PAGES * PAGE, PROT_READ));
	ASSERT_EQ(0, pin_buffer(self->dev, variant->call, self->mem, NR_PAGES,
				0, &self->handle));
	EXPECT_EQ(0, pin_read(self->dev, self->handle, 0, &byte, 1));
	EXPECT_EQ(self->mem[0], byte);
	EXPECT_EQ(-EPERM, pin_write(self->dev, self->handle, 0, &byte, 1));
	EXPECT_EQ(0, pin_unpin(self->dev, self->handle, 0));
}

TEST_F(api, R5_write_needs_a_writable_mapping)
{
	ASSERT_EQ(0, mprotect(self->mem, NR_PAGES * PAGE, PROT_READ));
	EXPECT_EQ(-EFAULT, pin_buffer(self->dev, variant->call, self->mem,
				      NR_PAGES, FAKE_DMA_PIN_WRITE,
				      &self->handle));
}

TEST_F(api, R4_every_pin_and_every_unpin_is_counted)
{
	long long acquired = pin_vmstat("nr_foll_pin_acquired");
	long long released = pin_vmstat("nr_foll_pin_released");
	size_t i;

	ASSERT_LE(0, acquired);
	ASSERT_LE(0, released);
	for (i = 0; i < ARRAY_SIZE(unpins); i++) {
		ASSERT_EQ(0, pin_buffer(self->dev, variant->call, self->mem,
					NR_PAGES, FAKE_DMA_PIN_WRITE,
					&self->handle));
		acquired += NR_PAGES;
		EXPECT_EQ(acquired, pin_vmstat("nr_foll_pin_acquired"));
		EXPECT_EQ(released, pin_vmstat("nr_foll_pin_released"));
		ASSERT_EQ(0, pin_unpin(self->dev, self->handle, unpins[i]));
		released += NR_PAGES;
		EXPECT_EQ(acquired, pin_vmstat("nr_foll_pin_acquired"));
		EXPECT_EQ(released, pin_vmstat("nr_foll_pin_released"));
	}
}

/* R1, R2: pins and references are distinct, even on the same page. */
TEST_F(api, R1_R2_pins_are_told_from_references)
{
	struct fake_dma_page page, before = look_at_page(self->dev, self->mem);
	uint32_t pin[5], get[7];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(get); i++)
		ASSERT_EQ(0, pin_buffer(self->dev, variant->call, self->mem, 1,
					FAKE_DMA_PIN_GET | FAKE_DMA_PIN_WRITE,
					&get[i]));
	ASSERT_EQ(0, pin_query(self->dev, get[0], 0, 1, &page));
	EXPECT_EQ(0, page.pincount);
	EXPECT_EQ(0, page.flags & FAKE_DMA_PAGE_MAYBE_PINNED);

	for (i = 0; i < ARRAY_SIZE(pin); i++) {
		ASSERT_EQ(0, pin_buffer(self->dev, variant->call, self->mem, 1,
					FAKE_DMA_PIN_WRITE, &pin[i]));
		ASSERT_EQ(0, pin_query(self->dev, pin[0], 0, 1, &page));
		EXPECT_EQ(i + 1, page.pincount);
		EXPECT_NE(0, page.flags & FAKE_DMA_PAGE_MAYBE_PINNED);
		EXPECT_LE((i + 1) * BIAS, page.refcount);
		EXPECT_GE((i + 1) * BIAS + before.refcount +
			  ARRAY_SIZE(get) + NOISE, page.refcount);
	}
	for (i = 0; i < ARRAY_SIZE(get); i++)
		ASSERT_EQ(0, pin_unpin(self->dev, get[i], 0));
	ASSERT_EQ(0, pin_query(self->dev, pin[0], 0, 1, &page));
	EXPECT_EQ(ARRAY_SIZE(pin), page.pincount);

	for (i = 0; i < ARRAY_SIZE(pin); i++)
		ASSERT_EQ(0, pin_unpin(self->dev, pin[i], 0));
	page = look_at_page(self->dev, self->mem);
	EXPECT_EQ(0, page.pincount);
	EXPECT_EQ(0, page.flags & FAKE_DMA_PAGE_MAYBE_PINNED);
	EXPECT_GE(before.refcount + NOISE, page.refcount);
}

/* The page of a buffer that cannot be pinned; page 0 is the other choice. */
#define AT	5

/* Expect a pin to fail at page @at, and a partial pin to stop there. */
static void expect_stops_at(struct __test_metadata *_metadata, int dev,
			    uint32_t call, char *mem, size_t at)
{
	long long held = pin_held(), expected = at ? (long long)at : -EFAULT;
	struct fake_dma_page pages[NR_PAGES];
	uint32_t handle;
	size_t i;

	EXPECT_EQ(-EFAULT, pin_buffer(dev, call, mem, NR_PAGES,
				      FAKE_DMA_PIN_WRITE, &handle));
	EXPECT_EQ(held, pin_held());
	ASSERT_EQ(expected, pin_buffer_partial(dev, call, mem, NR_PAGES,
					       FAKE_DMA_PIN_WRITE, &handle));
	if (!at) {
		EXPECT_EQ(held, pin_held());
		return;
	}
	EXPECT_EQ(held + (long long)at, pin_held());
	ASSERT_EQ(0, pin_query(dev, handle, 0, at, pages));
	for (i = 0; i < at; i++) {
		EXPECT_EQ(pin_pfn(getpid(), mem + i * PAGE), pages[i].pfn);
		EXPECT_EQ(1, pages[i].pincount);
	}
	expect_identity(_metadata, dev, handle, mem, at);
	ASSERT_EQ(0, pin_unpin(dev, handle, 0));
}

TEST_F(api, R6_hole)
{
	ASSERT_EQ(0, munmap(self->mem + AT * PAGE, PAGE));
	expect_stops_at(_metadata, self->dev, variant->call, self->mem, AT);
	ASSERT_EQ(0, munmap(self->mem, PAGE));
	expect_stops_at(_metadata, self->dev, variant->call, self->mem, 0);
}

TEST_F(api, R6_no_access)
{
	ASSERT_EQ(0, mprotect(self->mem + AT * PAGE, PAGE, PROT_NONE));
	expect_stops_at(_metadata, self->dev, variant->call, self->mem, AT);
	ASSERT_EQ(0, mprotect(self->mem, PAGE, PROT_NONE));
	expect_stops_at(_metadata, self->dev, variant->call, self->mem, 0);
}

TEST_F(api, R6_not_writable)
{
	ASSERT_EQ(0, mprotect(self->mem + AT * PAGE, PAGE, PROT_READ));
	expect_stops_at(_metadata, self->dev, variant->call, self->mem, AT);
	ASSERT_EQ(0, pin_buffer(self->dev, variant->call, self->mem, NR_PAGES,
				0, &self->handle));
	ASSERT_EQ(0, pin_unpin(self->dev, self->handle, 0));
	ASSERT_EQ(0, mprotect(self->mem, PAGE, PROT_READ));
	expect_stops_at(_metadata, self->dev, variant->call, self->mem, 0);
}

/* A pin stops at the end of the file, where a fault would give SIGBUS. */
TEST_F(api, R6_end_of_file)
{
	int fd = memfd_create("pin_api", MFD_CLOEXEC);
	char *mem;

	ASSERT_EQ(0, ftruncate(fd, AT * PAGE));
	mem = mmap(NULL, NR_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
		   fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	pin_fill(mem, AT, 1);
	expect_stops_at(_metadata, self->dev, variant->call, mem, AT);
	ASSERT_EQ(0, ftruncate(fd, 0));
	expect_stops_at(_metadata, self->dev, variant->call, mem, 0);
}

/* All calls but fast_only() fault pages in; fast_only() must not sleep. */
TEST_F(api, R5_not_present)
{
	char *mem = pin_map_small(NR_PAGES);

	ASSERT_NE(NULL, mem);
	if (variant->call == FAKE_DMA_CALL_FAST_ONLY) {
		expect_stops_at(_metadata, self->dev, variant->call, mem, 0);
		pin_fill(mem, AT, 1);
		expect_stops_at(_metadata, self->dev, variant->call, mem, AT);
		EXPECT_EQ(0, pin_pfn(getpid(), mem + AT * PAGE));
	} else {
		ASSERT_EQ(0, pin_buffer(self->dev, variant->call, mem, NR_PAGES,
					FAKE_DMA_PIN_WRITE, &self->handle));
		expect_identity(_metadata, self->dev, self->handle, mem,
				NR_PAGES);
		ASSERT_EQ(0, pin_unpin(self->dev, self->handle, 0));
	}
}

/* A write pin of a shared page copies the page first. */
TEST_F(api, C1_write_pin_of_a_page_shared_with_a_child)
{
	uint64_t theirs;
	pid_t child = fork();
	int ret;

	if (!child)
		_exit(pause());
	theirs = pin_pfn(child, self->mem);
	ASSERT_EQ(pin_pfn(getpid(), self->mem), theirs);
	ret = pin_buffer(self->dev, variant->call, self->mem, NR_PAGES,
			 FAKE_DMA_PIN_WRITE, &self->handle);
	if (variant->call == FAKE_DMA_CALL_FAST_ONLY) {
		EXPECT_EQ(-EFAULT, ret);
	} else {
		ASSERT_EQ(0, ret);
		EXPECT_NE(theirs, pin_pfn(getpid(), self->mem));
		EXPECT_EQ(theirs, pin_pfn(child, self->mem));
		expect_identity(_metadata, self->dev, self->handle, self->mem,
				NR_PAGES);
		EXPECT_EQ(0, pin_unpin(self->dev, self->handle, 0));
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

/* The range is longer than a batch of any implementation. */
TEST_F(api, R5_many_pages)
{
	const size_t nr = 3000;
	char *mem = pin_map_small(nr);

	ASSERT_NE(NULL, mem);
	pin_fill(mem, nr, 1);
	ASSERT_EQ(0, pin_buffer(self->dev, variant->call, mem, nr,
				FAKE_DMA_PIN_WRITE, &self->handle));
	EXPECT_EQ(self->held + (long long)nr, pin_held());
	expect_identity(_metadata, self->dev, self->handle, mem, nr);
	ASSERT_EQ(0, pin_unpin(self->dev, self->handle,
			       FAKE_DMA_UNPIN_DIRTY));
}

/* R1, C3: the device keeps an unmapped page until the unpin. */
TEST_F(api, C3_unmapped_while_pinned)
{
	char *bounce = pin_map_small(NR_PAGES);

	ASSERT_NE(NULL, bounce);
	ASSERT_EQ(0, pin_buffer(self->dev, variant->call, self->mem, NR_PAGES,
				FAKE_DMA_PIN_WRITE, &self->handle));
	pin_fill(self->mem, NR_PAGES, 2);
	ASSERT_EQ(0, munmap(self->mem, NR_PAGES * PAGE));
	ASSERT_EQ(0, pin_read(self->dev, self->handle, 0, bounce,
			      NR_PAGES * PAGE));
	EXPECT_EQ(-1, pin_differs(bounce, NR_PAGES, 2));
	pin_fill(bounce, NR_PAGES, 3);
	ASSERT_EQ(0, pin_write(self->dev, self->handle, 0, bounce,
			       NR_PAGES * PAGE));
	memset(bounce, 0, NR_PAGES * PAGE);
	ASSERT_EQ(0, pin_read(self->dev, self->handle, 0, bounce,
			      NR_PAGES * PAGE));
	EXPECT_EQ(-1, pin_differs(bounce, NR_PAGES, 3));
	EXPECT_EQ(NR_PAGES + self->held, pin_held());
	EXPECT_EQ(0, pin_unpin(self->dev, self->handle,
			       FAKE_DMA_UNPIN_DIRTY));
}

/* Untouched memory reads as zeros, and pins of the zero page balance. */
TEST_F(api, R4_R5_read_pin_of_untouched_memory)
{
	char *mem = pin_map_small(NR_PAGES);
	char bytes[NR_PAGES * PAGE];
	int i, round, ret;

	ASSERT_NE(NULL, mem);
	for (i = 0; i < NR_PAGES; i++)
		ASSERT_EQ(0, pin_get(mem + i * PAGE));
	for (round = 0; round < 3; round++) {
		ret = pin_buffer(self->dev, variant->call, mem, NR_PAGES, 0,
				 &self->handle);
		/* GUP-fast may refuse the zero page. */
		if (variant->call == FAKE_DMA_CALL_FAST_ONLY && ret == -EFAULT)
			break;
		ASSERT_EQ(0, ret);
		memset(bytes, 0xff, sizeof(bytes));
		ASSERT_EQ(0, pin_read(self->dev, self->handle, 0, bytes,
				      sizeof(bytes)));
		for (i = 0; i < NR_PAGES; i++)
			EXPECT_EQ(0, memcmp(bytes + i * PAGE, mem + i * PAGE,
					    PAGE));
		EXPECT_EQ(NR_PAGES + self->held, pin_held());
		ASSERT_EQ(0, pin_unpin(self->dev, self->handle, 0));
		EXPECT_EQ(self->held, pin_held());
	}
}

/*
 * Test each kind of memory.
 */
enum memory { ANON, THP, HUGETLB, SHMEM, PRIVATE_FILE, PRIVATE_FILE_COPY };

FIXTURE(kind) {
	int dev;
	char *mem;
	size_t nr;		/* pages of mem */
	size_t compound;	/* pages of a compound page, 0 for base pages */
	int hugetlb;		/* huge page pool before the test, or -1 */
	long long held;
};

FIXTURE_VARIANT(kind) {
	enum memory memory;
	uint32_t flags;		/* flags that this memory can be pinned with */
};

FIXTURE_VARIANT_ADD(kind, anon) {
	.memory = ANON,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(kind, thp) {
	.memory = THP,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(kind, hugetlb) {
	.memory = HUGETLB,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(kind, shmem) {
	.memory = SHMEM,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(kind, private_file) {
	.memory = PRIVATE_FILE,
};

FIXTURE_VARIANT_ADD(kind, private_file_copy) {
	.memory = PRIVATE_FILE_COPY,
	.flags = FAKE_DMA_PIN_WRITE,
};

FIXTURE_VARIANT_ADD(kind, anon_longterm) {
	.memory = ANON,
	.flags = FAKE_DMA_PIN_WRITE | FAKE_DMA_PIN_LONGTERM,
};

FIXTURE_VARIANT_ADD(kind, thp_longterm) {
	.memory = THP,
	.flags = FAKE_DMA_PIN_WRITE | FAKE_DMA_PIN_LONGTERM,
};

static char *map_file(size_t nr, int flags)
{
	int fd = memfd_create("pin_api", MFD_CLOEXEC);
	char *mem = MAP_FAILED, *file;

	if (!ftruncate(fd, nr * PAGE)) {
		file = mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE,
			    MAP_SHARED, fd, 0);
		mem = mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE, flags, fd,
			   0);
		if (file != MAP_FAILED) {
			pin_fill(file, nr, 1);
			munmap(file, nr * PAGE);
		}
	}
	close(fd);
	return mem == MAP_FAILED ? NULL : mem;
}

static char *map_kind(int dev, enum memory memory, size_t *nr)
{
	char *mem, *touch;

	switch (memory) {
	case THP:
		*nr = 2 * HUGE_PAGE / PAGE;
		mem = pin_map_thp(dev, 2);
		break;
	case HUGETLB:
		*nr = 2 * HUGE_PAGE / PAGE;
		mem = pin_map(2 * HUGE_PAGE, MAP_PRIVATE | MAP_HUGETLB);
		break;
	case SHMEM:
		*nr = 64;
		mem = map_file(*nr, MAP_SHARED);
		break;
	case PRIVATE_FILE:
	case PRIVATE_FILE_COPY:
		*nr = 64;
		mem = map_file(*nr, MAP_PRIVATE);
		break;
	default:
		*nr = 64;
		mem = pin_map_small(*nr);
	}
	if (!mem)
		return NULL;
	for (touch = mem; touch < mem + *nr * PAGE; touch += PAGE) {
		if (memory == PRIVATE_FILE)
			pin_get(touch);
		else
			pin_set(touch, 1);
	}
	return mem;
}

FIXTURE_SETUP(kind)
{
	self->dev = pin_open();
	ASSERT_LE(0, self->dev);
	self->hugetlb = -1;
	if (variant->memory == HUGETLB) {
		/* Enough for two mappings: one test maps memory itself. */
		self->hugetlb = pin_file_number(PIN_POOL);
		pin_set_pool(self->hugetlb + 4);
	}
	self->mem = map_kind(self->dev, variant->memory, &self->nr);
	if (!self->mem)
		SKIP(_exit(255), "cannot map two huge pages");
	if (variant->memory == THP || variant->memory == HUGETLB)
		self->compound = HUGE_PAGE / PAGE;
	self->held = pin_held();
}

FIXTURE_TEARDOWN(kind)
{
	EXPECT_EQ(self->held, pin_held());
	munmap(self->mem, self->nr * PAGE);
	if (self->hugetlb >= 0)
		pin_set_pool(self->hugetlb);
}

/* Return true if a call takes @flags. A long-term pin cannot drop mmap_lock. */
static bool can_be_called(int dev, uint32_t call, uint32_t flags)
{
	if (!(flags & FAKE_DMA_PIN_LONGTERM))
		return true;
	if (call == FAKE_DMA_CALL_UNLOCKED)
		return pin_caps(dev) & FAKE_DMA_CAP_UNLOCKED;
	return call != FAKE_DMA_CALL_LOCKED;
}

TEST_F(kind, R4_each_call_balances_with_each_unpin)
{
	long long acquired = pin_vmstat("nr_foll_pin_acquired");
	uint32_t call, handle;
	size_t i;

	for (call = FAKE_DMA_CALL_FAST; call <= FAKE_DMA_CALL_REMOTE; call++) {
		if (!can_be_called(self->dev, call, variant->flags))
			continue;
		for (i = 0; i < ARRAY_SIZE(unpins); i++) {
			ASSERT_EQ(0, pin_buffer(self->dev, call, self->mem,
						self->nr, variant->flags,
						&handle));
			acquired += self->nr;
			EXPECT_EQ(acquired, pin_vmstat("nr_foll_pin_acquired"));
			ASSERT_EQ(0, pin_unpin(self->dev, handle, unpins[i]));
			EXPECT_EQ(self->held, pin_held());
		}
	}
	EXPECT_EQ(0, look_at_page(self->dev, self->mem).pincount);
}

/* Pin parts of the memory, also across the border of two huge pages. */
TEST_F(kind, R1_R5_parts_are_pinned_and_counted)
{
	const struct { size_t first, nr; } parts[] = {
		{ 0, 1 },
		{ 3, 17 },
		{ self->nr - 1, 1 },
		{ self->nr / 2 - 3, 7 },
		{ 1, self->nr - 2 },
		{ 0, self->nr },
	};
	const uint32_t calls[] = { FAKE_DMA_CALL_FAST, FAKE_DMA_CALL_SLOW,
				   FAKE_DMA_CALL_FAST_ONLY };
	struct fake_dma_page *pages, *page, last;
	size_t i, c, n, head, wrong, counted;
	uint32_t handle, twice;
	int32_t refs;

	pages = calloc(self->nr, sizeof(*pages));
	ASSERT_NE(NULL, pages);
	for (i = 0; i < ARRAY_SIZE(parts) * ARRAY_SIZE(calls); i++) {
		const size_t first = parts[i / ARRAY_SIZE(calls)].first;
		const size_t nr = parts[i / ARRAY_SIZE(calls)].nr;
		char *mem = self->mem + first * PAGE;

		c = i % ARRAY_SIZE(calls);
		refs = look_at_page(self->dev, mem).refcount;
		ASSERT_EQ(0, pin_buffer(self->dev, calls[c], mem, nr,
					variant->flags, &handle));
		ASSERT_EQ(0, pin_query(self->dev, handle, 0, nr, pages));
		for (n = 0, wrong = 0; n < nr; n++) {
			page = pages + n;
			/* The pins in the same compound page. */
			counted = 1;
			if (self->compound) {
				head = (first + n) / self->compound *
				       self->compound;
				counted = head + self->compound < first + nr ?
					  head + self->compound : first + nr;
				counted -= head > first ? head : first;
			}
			wrong += page->pincount != counted;
			wrong += !(page->flags & FAKE_DMA_PAGE_MAYBE_PINNED);
			if (!n || n == nr - 1)
				wrong += page->pfn !=
					 pin_pfn(getpid(), mem + n * PAGE);
			if (!n && self->compound) {
				/* Each pin holds one reference. */
				wrong += page->refcount < refs +
					 (int32_t)counted - NOISE;
				wrong += page->refcount > refs +
					 (int32_t)counted + NOISE;
			}
		}
		EXPECT_EQ(0, wrong) {
			TH_LOG("call %u, pages %zu to %zu: %zu wrong counts, flags or PFNs",
			       calls[c], first, first + nr - 1, wrong);
		}
		if (variant->flags & FAKE_DMA_PIN_WRITE)
			expect_identity(_metadata, self->dev, handle, mem, nr);

		/* A second pin doubles the count, and its unpin restores it. */
		last = pages[nr - 1];
		ASSERT_EQ(0, pin_buffer(self->dev, calls[c], mem, nr,
					variant->flags, &twice));
		ASSERT_EQ(0, pin_query(self->dev, twice, nr - 1, 1, pages));
		EXPECT_EQ(2 * last.pincount, pages[0].pincount);
		ASSERT_EQ(0, pin_unpin(self->dev, twice,
				       unpins[i % ARRAY_SIZE(unpins)]));
		ASSERT_EQ(0, pin_query(self->dev, handle, nr - 1, 1, pages));
		EXPECT_EQ(last.pincount, pages[0].pincount);

		ASSERT_EQ(0, pin_unpin(self->dev, handle,
				       unpins[i % ARRAY_SIZE(unpins)]));
		EXPECT_EQ(0, look_at_page(self->dev, mem).pincount);
	}
	free(pages);
}

/* R2: references are not taken for pins; a huge page has many of them. */
TEST_F(kind, R1_R2_references_are_not_pins)
{
	uint32_t get = FAKE_DMA_PIN_GET | (variant->flags & FAKE_DMA_PIN_WRITE);
	struct fake_dma_page page;
	uint32_t handle[4], pin;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(handle); i++)
		ASSERT_EQ(0, pin_buffer(self->dev, FAKE_DMA_CALL_FAST,
					self->mem, self->nr, get, &handle[i]));
	ASSERT_EQ(0, pin_query(self->dev, handle[0], 0, 1, &page));
	EXPECT_EQ(0, page.pincount);
	EXPECT_EQ(0, page.flags & FAKE_DMA_PAGE_MAYBE_PINNED);
	EXPECT_LT(self->compound ? BIAS : 0, page.refcount);

	ASSERT_EQ(0, pin_buffer(self->dev, FAKE_DMA_CALL_FAST, self->mem, 1,
				variant->flags, &pin));
	/* This may be another page: a pin copies a shared page. */
	ASSERT_EQ(0, pin_query(self->dev, pin, 0, 1, &page));
	EXPECT_EQ(1, page.pincount);
	EXPECT_NE(0, page.flags & FAKE_DMA_PAGE_MAYBE_PINNED);
	ASSERT_EQ(0, pin_unpin(self->dev, pin, 0));
	EXPECT_EQ(0, look_at_page(self->dev, self->mem).pincount);

	for (i = 0; i < ARRAY_SIZE(handle); i++)
		ASSERT_EQ(0, pin_unpin(self->dev, handle[i], 0));
}

/* Only an unpin with FAKE_DMA_UNPIN_DIRTY makes pages dirty. */
TEST_F(kind, R5_unpin_makes_dirty_if_told)
{
	uint32_t handle, before, after;
	size_t i, nr, clean = 0;
	char *mem;

	for (i = 0; i < ARRAY_SIZE(unpins); i++) {
		mem = map_kind(self->dev, variant->memory, &nr);
		if (!mem)
			SKIP(return, "cannot map two more huge pages");
		/* The first pin copies shared pages. */
		ASSERT_EQ(0, pin_buffer(self->dev, FAKE_DMA_CALL_FAST, mem, nr,
					variant->flags, &handle));
		ASSERT_EQ(0, pin_unpin(self->dev, handle, 0));
		before = look_at_page(self->dev, mem).flags & FAKE_DMA_PAGE_DIRTY;
		clean += !before;
		ASSERT_EQ(0, pin_buffer(self->dev, FAKE_DMA_CALL_FAST, mem, nr,
					variant->flags, &handle));
		ASSERT_EQ(0, pin_unpin(self->dev, handle, unpins[i]));
		after = look_at_page(self->dev, mem + (nr - 1) * PAGE).flags;
		after &= FAKE_DMA_PAGE_DIRTY;
		if (unpins[i] & FAKE_DMA_UNPIN_DIRTY)
			before = FAKE_DMA_PAGE_DIRTY;
		EXPECT_EQ(before, after) {
			TH_LOG("unpin flags %#x: the dirty flag must be %#x, not %#x",
			       unpins[i], before, after);
		}
		munmap(mem, nr * PAGE);
	}
	/* The test needs clean pages, and these kinds start clean. */
	if (variant->memory == ANON || variant->memory == THP)
		EXPECT_EQ(ARRAY_SIZE(unpins), clean);
}

/*
 * Test memory of another process.
 */
FIXTURE(remote) {
	int dev;
	uint32_t handle;
	long long held;
	int to[2], from[2];
};

FIXTURE_SETUP(remote)
{
	self->dev = pin_open();
	ASSERT_LE(0, self->dev);
	ASSERT_EQ(0, pipe(self->to));
	ASSERT_EQ(0, pipe(self->from));
	self->held = pin_held();
}

FIXTURE_TEARDOWN(remote)
{
	EXPECT_EQ(self->held, pin_held());
}

TEST_F(remote, R5_device_and_the_other_process_see_the_same)
{
	char *bounce = pin_map_small(NR_PAGES), *mem, c = 0;
	pid_t child = fork();
	int status;

	ASSERT_NE(NULL, bounce);
	if (!child) {
		/* Use an address that the parent does not map. */
		mem = pin_map_small(NR_PAGES);
		pin_fill(mem, NR_PAGES, 1);
		if (write(self->from[1], &mem, sizeof(mem)) != sizeof(mem) ||
		    read(self->to[0], &c, 1) != 1)
			_exit(1);
		_exit(pin_differs(mem, NR_PAGES, 2) >= 0);
	}
	ASSERT_EQ(sizeof(mem), read(self->from[0], &mem, sizeof(mem)));
	ASSERT_EQ(0, pin_range_pid(self->dev, child, mem, NR_PAGES * PAGE,
				   FAKE_DMA_PIN_WRITE, &self->handle));
	EXPECT_EQ(NR_PAGES + self->held, pin_held());
	ASSERT_EQ(0, pin_read(self->dev, self->handle, 0, bounce,
			      NR_PAGES * PAGE));
	EXPECT_EQ(-1, pin_differs(bounce, NR_PAGES, 1));
	pin_fill(bounce, NR_PAGES, 2);
	ASSERT_EQ(0, pin_write(self->dev, self->handle, 0, bounce,
			       NR_PAGES * PAGE));
	ASSERT_EQ(1, write(self->to[1], &c, 1));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);

	/* The pinned pages outlive their process. */
	memset(bounce, 0, NR_PAGES * PAGE);
	ASSERT_EQ(0, pin_read(self->dev, self->handle, 0, bounce,
			      NR_PAGES * PAGE));
	EXPECT_EQ(-1, pin_differs(bounce, NR_PAGES, 2));
	EXPECT_EQ(0, pin_unpin(self->dev, self->handle,
			       FAKE_DMA_UNPIN_DIRTY));
}

/*
 * R3: pin one page until the count is full. The page is mapped at many
 * addresses, so that one call takes many pins. These mappings alone do not make
 * it look pinned.
 */
#define NR_MAPPED	1000
/* The number of calls after which the refcount would have wrapped. */
#define NR_WRAPPED	(1UL + UINT_MAX / BIAS / NR_MAPPED)

FIXTURE(overflow) {
	int dev;
	char *mem;
	uint32_t handle[NR_WRAPPED];
	long long held;
};

FIXTURE_SETUP(overflow)
{
	int i, fd = memfd_create("pin_api", MFD_CLOEXEC);

	self->dev = pin_open();
	ASSERT_LE(0, self->dev);
	ASSERT_EQ(0, ftruncate(fd, PAGE));
	self->mem = pin_map_small(NR_MAPPED);
	ASSERT_NE(NULL, self->mem);
	for (i = 0; i < NR_MAPPED; i++)
		ASSERT_EQ(self->mem + i * PAGE,
			  mmap(self->mem + i * PAGE, PAGE,
			       PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0));
	self->held = pin_held();
}

FIXTURE_TEARDOWN(overflow)
{
	EXPECT_EQ(self->held, pin_held());
}

TEST_F(overflow, R3_pin_that_would_overflow_is_refused)
{
	struct fake_dma_page page, before = look_at_page(self->dev, self->mem);
	const uint32_t calls[] = {
		FAKE_DMA_CALL_SLOW, FAKE_DMA_CALL_LOCKED,
		FAKE_DMA_CALL_UNLOCKED, FAKE_DMA_CALL_REMOTE,
	};
	long long got = 0, pins = 0;
	size_t i, nr = 0;
	uint32_t handle;

	while (_metadata->passed && nr < NR_WRAPPED) {
		got = pin_buffer_partial(self->dev, FAKE_DMA_CALL_FAST,
					 self->mem, NR_MAPPED,
					 FAKE_DMA_PIN_WRITE, &self->handle[nr]);
		if (got < 0)
			break;
		pins += got;
		/* The refcount stays positive, and the pin count exact. */
		ASSERT_EQ(0, pin_query(self->dev, self->handle[nr++], 0, 1,
				       &page));
		EXPECT_LT(0, page.refcount);
		EXPECT_EQ(pins, page.pincount);
	}
	EXPECT_EQ(-ENOMEM, got);
	EXPECT_LE(1000000, pins);
	EXPECT_EQ(self->held + pins, pin_held());

	/* References have no such limit, and the count has room for them. */
	EXPECT_GE(INT_MAX / 4 * 3, page.refcount);
	EXPECT_EQ(0, pin_buffer(self->dev, FAKE_DMA_CALL_FAST, self->mem,
				NR_MAPPED,
				FAKE_DMA_PIN_GET | FAKE_DMA_PIN_WRITE,
				&handle));
	EXPECT_EQ(0, pin_unpin(self->dev, handle, 0));

	/* Each call refuses another pin. */
	for (i = 0; i < ARRAY_SIZE(calls); i++)
		EXPECT_EQ(-ENOMEM, pin_buffer(self->dev, calls[i], self->mem, 1,
					      FAKE_DMA_PIN_WRITE, &handle));
	EXPECT_EQ(-EFAULT, pin_buffer(self->dev, FAKE_DMA_CALL_FAST_ONLY,
				      self->mem, 1, FAKE_DMA_PIN_WRITE,
				      &handle));
	EXPECT_EQ(self->held + pins, pin_held());
	self->mem[0] = 'm';
	EXPECT_EQ('m', self->mem[PAGE]);

	while (nr--)
		ASSERT_EQ(0, pin_unpin(self->dev, self->handle[nr], 0));
	page = look_at_page(self->dev, self->mem);
	EXPECT_EQ(0, page.pincount);
	EXPECT_GE(before.refcount + NOISE, page.refcount);
	EXPECT_LT(0, page.refcount);

	/* The page can be pinned again. */
	EXPECT_EQ('m', self->mem[PAGE]);
	ASSERT_EQ(0, pin_buffer(self->dev, FAKE_DMA_CALL_FAST, self->mem, 1,
				FAKE_DMA_PIN_WRITE, &handle));
	expect_identity(_metadata, self->dev, handle, self->mem, 1);
	ASSERT_EQ(0, pin_unpin(self->dev, handle, 0));
}

int main(int argc, char **argv)
{
	pin_need_device();
	pin_keep(PIN_POOL);
	return test_harness_run(argc, argv);
}
