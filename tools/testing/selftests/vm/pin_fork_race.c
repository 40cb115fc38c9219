// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fork against pin_user_pages_fast(), which takes no lock, on two CPUs (R8): a
 * page that was pinned while the process forked is the process' own, like one
 * that was pinned before.
 *
 * usage: pin_fork_race [ROUNDS]
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "../kselftest_harness.h"
#include "pin_util.h"

#define MAX_PAGES	2048
#define MAX_PIECES	32

/* Every so many rounds the child stays, to see what it must not see. */
#define CHILD_LOOKS	8

/* Words of each page: what the CPU writes, and what the device does. */
#define BY_CPU		0
#define BY_DEVICE	8

static int rounds = 1000;

struct race {
	int dev;
	char *mem;
	size_t nr_pages;	/* of mem */
	size_t stride;		/* each of so many pages is the child's, too */
	int pagemap;
	pthread_t pinner;
	atomic_int *checked;	/* the last round that was; children see it */

	/* The forking thread sets the round, the pinning one says it is done. */
	atomic_int round, done, stop;
	atomic_int forking;	/* the round in which fork is under way, or 0 */
	atomic_long delay_ns;	/* until the first pin; negative: until fork */

	size_t nr_pieces;	/* that the memory is pinned in */
	size_t nr_pinned;	/* of these, the last ones of the memory */
	uint32_t handle[MAX_PIECES];
	int error;		/* of a pin */
};

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void pass_ns(long long ns)
{
	long long start = now_ns();

	while (now_ns() - start < ns)
		;
}

/* On a machine with one CPU, or a busy one, the other side must get its turn. */
static void wait_for(atomic_int *value, int wanted)
{
	int spins = 0;

	while (atomic_load(value) < wanted)
		if (++spins % 100 == 0)
			sched_yield();
}

static size_t piece_pages(struct race *r)
{
	return r->nr_pages / r->nr_pieces;
}

/* The first piece to be pinned is the last one in memory. */
static char *piece_mem(struct race *r, size_t piece)
{
	return r->mem + (r->nr_pieces - 1 - piece) * piece_pages(r) * PAGE;
}

/*
 * Pins piece by piece, from the last to the first: fork goes the other way, so
 * they meet. When fork is over there is nothing more to be seen.
 */
static void pin_pieces(struct race *r, int round)
{
	for (r->nr_pinned = 0; r->nr_pinned < r->nr_pieces; r->nr_pinned++) {
		if (r->forking != round)
			break;
		r->error = pin_range(r->dev, piece_mem(r, r->nr_pinned),
				     piece_pages(r) * PAGE, FAKE_DMA_PIN_WRITE,
				     FAKE_DMA_CALL_FAST,
				     &r->handle[r->nr_pinned]);
		if (r->error)
			break;
	}
}

static void *pinner(void *arg)
{
	struct race *r = arg;
	int round;

	for (round = 1; ; round++) {
		wait_for(&r->round, round);
		if (r->stop)
			return NULL;
		pass_ns(r->delay_ns);
		pin_pieces(r, round);
		r->done = round;
	}
}

/* A child must find nothing that was written after fork. */
static int child(struct race *r, int round)
{
	size_t i;

	if (round % CHILD_LOOKS)
		return 0;
	wait_for(r->checked, round);
	for (i = 0; i < r->nr_pages; i += r->stride)
		if (pin_get(r->mem + i * PAGE + BY_CPU) == round ||
		    pin_get(r->mem + i * PAGE + BY_DEVICE) == round)
			return 1;
	return 0;
}

/*
 * Writes to the pinned pages of a piece, as a process would that goes on, and
 * counts those that are not the pages behind the handle after that.
 */
static int pages_apart(struct race *r, int round, size_t piece)
{
	char *mem = piece_mem(r, piece);
	uint64_t entries[MAX_PAGES];
	size_t i, len = piece_pages(r) * sizeof(*entries);
	struct fake_dma_page page;
	int apart = 0;

	for (i = 0; i < piece_pages(r); i += r->stride)
		pin_set(mem + i * PAGE + BY_CPU, round);
	if (pread(r->pagemap, entries, len,
		  (uintptr_t)mem / PAGE * sizeof(*entries)) != len)
		return -1;
	for (i = 0; i < piece_pages(r); i += r->stride) {
		if (pin_query(r->dev, r->handle[piece], i, 1, &page))
			return -1;
		apart += page.pfn != (entries[i] & ((1ULL << 55) - 1));
	}
	return apart;
}

/* Both ways, in one page of the piece, another one each time. */
static int words_lost(struct race *r, int round, size_t piece)
{
	size_t page = round % (piece_pages(r) / r->stride) * r->stride;
	char *mem = piece_mem(r, piece) + page * PAGE;
	uint64_t word = 0;
	int lost;

	if (pin_read(r->dev, r->handle[piece], page * PAGE + BY_CPU, &word,
		     sizeof(word)))
		return -1;
	lost = word != round;
	word = round;
	if (pin_write(r->dev, r->handle[piece], page * PAGE + BY_DEVICE, &word,
		      sizeof(word)))
		return -1;
	return lost + (pin_get(mem + BY_DEVICE) != round);
}

FIXTURE(race) {
	struct race r;
};

FIXTURE_VARIANT(race) {
	size_t nr_pages, stride, max_pieces;
};

/* Pins that begin while fork copies the page table. */
FIXTURE_VARIANT_ADD(race, small_pins) {
	.nr_pages = 256,
	.stride = 1,
	.max_pieces = MAX_PIECES,
};

/*
 * A pin that began before fork. That one walks in the same direction, and must
 * not be faster: fork has but few of its pages to do.
 */
FIXTURE_VARIANT_ADD(race, large_pin) {
	.nr_pages = MAX_PAGES,
	.stride = 64,
	.max_pieces = 1,
};

FIXTURE_SETUP(race)
{
	struct race *r = &self->r;
	size_t i;

	r->dev = pin_open();
	r->nr_pages = variant->nr_pages;
	r->stride = variant->stride;
	r->mem = pin_map_small(r->nr_pages);
	r->checked = pin_map(PAGE, MAP_SHARED);
	r->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_LE(0, r->dev);
	ASSERT_NE(NULL, r->mem);
	ASSERT_NE(NULL, r->checked);
	ASSERT_LE(0, r->pagemap);
	for (i = 0; r->stride > 1 && i < r->nr_pages; i += r->stride)
		ASSERT_EQ(0, madvise(r->mem + (i + 1) * PAGE,
				     (r->stride - 1) * PAGE, MADV_DONTFORK));
	for (i = 0; i < r->nr_pages; i++)
		pin_set(r->mem + i * PAGE, 0);
	ASSERT_EQ(0, pthread_create(&r->pinner, NULL, pinner, r));
}

FIXTURE_TEARDOWN(race)
{
	self->r.stop = 1;
	self->r.round = rounds + 1;
	pthread_join(self->r.pinner, NULL);
}

TEST_F_TIMEOUT(race, R8_page_pinned_during_fork_stays, 300)
{
	long long start, took = 200000;
	int round, status, met = 0;
	struct race *r = &self->r;
	size_t i;
	pid_t pid;

	for (round = 1; round <= rounds; round++) {
		r->nr_pieces = 1;
		while (r->nr_pieces < variant->max_pieces && random() % 6)
			r->nr_pieces *= 2;
		/* Either goes first, by no more than fork takes. */
		r->delay_ns = took * (random() % 1024 - 256) / 1024;

		r->forking = round;
		r->round = round;
		pass_ns(-r->delay_ns);
		start = now_ns();
		pid = fork();
		if (!pid)
			_exit(child(r, round));
		r->forking = 0;
		took += (now_ns() - start - took) / 8;
		ASSERT_LT(0, pid);
		wait_for(&r->done, round);
		ASSERT_EQ(0, r->error);
		met += r->nr_pinned > 0;

		for (i = 0; i < r->nr_pinned; i++) {
			ASSERT_EQ(0, pages_apart(r, round, i)) {
				TH_LOG("round %d: so many pinned pages got lost",
				       round);
			}
			ASSERT_EQ(0, words_lost(r, round, i)) {
				TH_LOG("round %d: process and device do not see the same",
				       round);
			}
		}
		*r->checked = round;
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_EQ(0, status) {
			TH_LOG("round %d: the child saw what came after fork",
			       round);
		}
		for (i = 0; i < r->nr_pinned; i++)
			ASSERT_EQ(0, pin_unpin(r->dev, r->handle[i], 0));
		/* The fast path wants writable entries, next time. */
		for (i = 0; i < r->nr_pages; i += r->stride)
			pin_set(r->mem + i * PAGE + BY_CPU, round);
	}
	TH_LOG("%d rounds, with pins around fork in %d", rounds, met);
	EXPECT_LT(0, met);
}

int main(int argc, char **argv)
{
	if (argc == 2 && atoi(argv[1]) > 0)
		rounds = atoi(argv[1]);
	else if (argc > 1)
		ksft_exit_fail_msg("usage: %s [ROUNDS]\n", argv[0]);
	pin_need_device();
	return test_harness_run(argc, argv);
}
