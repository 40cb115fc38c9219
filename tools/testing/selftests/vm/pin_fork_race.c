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

/* The entries of one page table, or nearly so: one run of fork's copy loop. */
#define NR_PAGES	256
#define NR_HANDLES	32	/* at most, for all of them */

/* Every so many rounds the child stays, to see what it must not see. */
#define CHILD_LOOKS	8

/* Words of each page: what the CPU writes, and what the device does. */
#define BY_CPU		0
#define BY_DEVICE	8

static int rounds = 1000;

struct race {
	int dev;
	char *mem;
	int pagemap;
	pthread_t pinner;
	atomic_int *checked;	/* the last round that was; children see it */

	/* The forking thread sets the round, the pinning one says it is done. */
	atomic_int round, done, stop;
	atomic_int forking;	/* the round in which fork is under way, or 0 */
	atomic_long delay_ns;	/* until the first pin */

	uint32_t handle[NR_HANDLES];
	size_t nr_handles;
	int error;		/* of a pin */
	bool met;		/* a pin began while fork was under way */
};

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* On a machine with one CPU, or a busy one, the other side must get its turn. */
static void wait_for(atomic_int *value, int wanted)
{
	int spins = 0;

	while (atomic_load(value) < wanted)
		if (++spins % 1000 == 0)
			sched_yield();
}

/*
 * Pins all pages, in pieces from the last to the first: fork goes the other
 * way, so they meet.
 */
static void pin_pieces(struct race *r, int round)
{
	const size_t nr = 1 << round % 6, len = NR_PAGES / nr * PAGE;
	size_t i;

	for (i = 0; i < nr; i++) {
		r->met |= r->forking == round;
		r->error = pin_range(r->dev, r->mem + (nr - 1 - i) * len, len,
				     FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
				     &r->handle[i]);
		if (r->error)
			break;
	}
	r->nr_handles = i;
}

static void *pinner(void *arg)
{
	struct race *r = arg;
	long long start;
	int round;

	for (round = 1; ; round++) {
		wait_for(&r->round, round);
		if (r->stop)
			return NULL;
		for (start = now_ns(); now_ns() - start < r->delay_ns;)
			;
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
	for (i = 0; i < NR_PAGES; i++)
		if (pin_get(r->mem + i * PAGE + BY_CPU) == round ||
		    pin_get(r->mem + i * PAGE + BY_DEVICE) == round)
			return 1;
	return 0;
}

/* How many pages behind the handles are not those the process has mapped. */
static int pages_apart(struct race *r)
{
	struct fake_dma_page pages[NR_PAGES];
	size_t i, nr = NR_PAGES / r->nr_handles;
	uint64_t entries[NR_PAGES];
	int apart = 0;

	for (i = 0; i < r->nr_handles; i++)
		if (pin_query(r->dev, r->handle[i], 0, nr,
			      pages + NR_PAGES - (i + 1) * nr))
			return -1;
	if (pread(r->pagemap, entries, sizeof(entries),
		  (uintptr_t)r->mem / PAGE * sizeof(*entries)) !=
	    sizeof(entries))
		return -1;
	for (i = 0; i < NR_PAGES; i++)
		apart += pages[i].pfn != (entries[i] & ((1ULL << 55) - 1));
	return apart;
}

/* Both ways, in one page of each handle, another one each time. */
static int words_lost(struct race *r, int round)
{
	size_t i, nr = NR_PAGES / r->nr_handles, page = round / 6 % nr;
	int lost = 0;

	for (i = 0; i < r->nr_handles; i++) {
		char *mem = r->mem + (NR_PAGES - (i + 1) * nr + page) * PAGE;
		uint64_t word = 0;

		if (pin_read(r->dev, r->handle[i], page * PAGE + BY_CPU, &word,
			     sizeof(word)))
			return -1;
		lost += word != round;
		word = round;
		if (pin_write(r->dev, r->handle[i], page * PAGE + BY_DEVICE,
			      &word, sizeof(word)))
			return -1;
		lost += pin_get(mem + BY_DEVICE) != round;
	}
	return lost;
}

FIXTURE(race) {
	struct race r;
};

FIXTURE_SETUP(race)
{
	struct race *r = &self->r;

	r->dev = pin_open();
	r->mem = pin_map_small(NR_PAGES);
	r->checked = pin_map(PAGE, MAP_SHARED);
	r->pagemap = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_LE(0, r->dev);
	ASSERT_NE(NULL, r->mem);
	ASSERT_NE(NULL, r->checked);
	ASSERT_LE(0, r->pagemap);
	ASSERT_EQ(0, pthread_create(&r->pinner, NULL, pinner, r));
}

FIXTURE_TEARDOWN(race)
{
	self->r.stop = 1;
	self->r.round = rounds + 1;
	pthread_join(self->r.pinner, NULL);
}

TEST_F_TIMEOUT(race, R8_page_pinned_during_fork_stays, 240)
{
	long long start, took = 200000;
	int round, status, met = 0;
	struct race *r = &self->r;
	size_t i;
	pid_t pid;

	for (round = 1; round <= rounds; round++) {
		/* Anywhere in the time that fork takes, which changes. */
		r->delay_ns = took * (random() % 1024) / 1024;
		r->met = false;
		r->forking = round;
		r->round = round;
		start = now_ns();
		pid = fork();
		if (!pid)
			_exit(child(r, round));
		r->forking = 0;
		took += (now_ns() - start - took) / 8;
		ASSERT_LT(0, pid);
		wait_for(&r->done, round);
		ASSERT_EQ(0, r->error);
		met += r->met;

		for (i = 0; i < NR_PAGES; i++)
			pin_set(r->mem + i * PAGE + BY_CPU, round);
		ASSERT_EQ(0, pages_apart(r)) {
			TH_LOG("round %d: so many pinned pages are not the process' any more",
			       round);
		}
		ASSERT_EQ(0, words_lost(r, round)) {
			TH_LOG("round %d: process and device do not see the same",
			       round);
		}
		*r->checked = round;
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_EQ(0, status) {
			TH_LOG("round %d: the child saw what came after fork",
			       round);
		}
		for (i = 0; i < r->nr_handles; i++)
			ASSERT_EQ(0, pin_unpin(r->dev, r->handle[i], 0));
	}
	TH_LOG("%d rounds, in %d of them a pin began during fork", rounds, met);
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
