// SPDX-License-Identifier: GPL-2.0-only
/*
 * Race fork against pin_user_pages_fast() on two CPUs (R8). A page that is
 * pinned during fork stays with the process, like one that was pinned before.
 *
 * usage: pin_fork_race [ROUNDS]
 */
#define _GNU_SOURCE
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "../kselftest_harness.h"
#include "pin_util.h"

#define NR_PAGES	256	/* pages that are checked */
#define LEAD_PAGES	4096	/* pages before them that fork skips */

/* In one of so many rounds, the child stays to check its pages. */
#define CHILD_LOOKS	7

/* Offsets in each page of the words that the CPU and the device write. */
#define BY_CPU		0
#define BY_DEVICE	8

static int rounds = 2000;

enum kind { BASE_PAGES, THP, HUGETLB };

struct race {
	enum kind kind;
	int dev, pagemap, kpageflags;
	char *mem;		/* pinned range: the lead and the pages */
	char *pages;
	size_t nr_lead;
	uint64_t pfn;		/* PFN of the first of @pages */
	pthread_t pinner;
	atomic_int *checked;	/* last round that was checked, shared */

	/* The forking thread sets @round, the pinning one then sets @done. */
	atomic_int round, done, stop;
	long long pin_at, pinned_at;	/* begin and end of the pin */

	bool reading;		/* R/O pin of an R/O mapping */
	uint32_t handle;
	int error;		/* error of the pin */
};

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* Spin until a time. */
static void wait_until(long long ns)
{
	while (now_ns() < ns)
		;
}

/* Spin until *@value reaches @wanted. Yield, as the CPU may be shared. */
static void wait_for(atomic_int *value, int wanted)
{
	int spins = 0;

	while (atomic_load(value) < wanted)
		if (++spins % 100 == 0)
			sched_yield();
}

static void pin(struct race *r)
{
	r->error = pin_range(r->dev, r->mem, (r->nr_lead + NR_PAGES) * PAGE,
			     r->reading ? 0 : FAKE_DMA_PIN_WRITE,
			     FAKE_DMA_CALL_FAST, &r->handle);
	r->pinned_at = now_ns();
}

static void *pinner(void *arg)
{
	struct race *r = arg;
	int round;

	for (round = 1; ; round++) {
		wait_for(&r->round, round);
		if (r->stop)
			return NULL;
		wait_until(r->pin_at);
		pin(r);
		r->done = round;
	}
}

/*
 * Map and touch the pages at their fixed address. This makes the entries
 * writable, as GUP-fast requires for a write pin, and huge if r->kind is.
 */
static bool map_pages(struct race *r)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	void *mem = r->pages;
	uint64_t flags64;
	size_t i;

	if (r->kind == HUGETLB)
		flags |= MAP_HUGETLB;
	if (r->kind != BASE_PAGES &&
	    mmap(mem, HUGE_PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) != mem)
		return false;
	if (r->kind == THP && madvise(mem, HUGE_PAGE, MADV_HUGEPAGE))
		return false;
	for (i = 0; i < NR_PAGES; i++)
		pin_set(r->pages + i * PAGE + BY_CPU, 0);

	r->pfn = pin_pfn(getpid(), r->pages);
	if (pread(r->kpageflags, &flags64, sizeof(flags64),
		  r->pfn * sizeof(flags64)) != sizeof(flags64))
		return false;
	return r->kind != THP || flags64 >> KPF_THP & 1;
}

/* Return true if the first pinned page is the one mapped before fork. */
static bool same_page(struct race *r)
{
	struct fake_dma_page page;

	return !pin_query(r->dev, r->handle, r->nr_lead, 1, &page) &&
	       page.pfn == r->pfn;
}

/* Map the memory and start the pinning thread. Return false on failure. */
static bool race_begin(struct race *r, size_t nr_lead)
{
	size_t i;

	r->nr_lead = nr_lead;
	r->mem = pin_map_small(nr_lead + 2 * HUGE_PAGE / PAGE);
	r->pagemap = open("/proc/self/pagemap", O_RDONLY);
	r->kpageflags = open("/proc/kpageflags", O_RDONLY);
	if (!r->mem || r->pagemap < 0 || r->kpageflags < 0)
		return false;
	r->pages = r->mem + nr_lead * PAGE;
	r->pages += -(uintptr_t)r->pages % HUGE_PAGE;
	r->mem = r->pages - nr_lead * PAGE;
	if (nr_lead && madvise(r->mem, nr_lead * PAGE, MADV_DONTFORK))
		return false;
	for (i = 0; i < nr_lead; i++)
		r->mem[i * PAGE] = 1;
	r->round = 0;
	r->done = 0;
	return map_pages(r) &&
	       !pthread_create(&r->pinner, NULL, pinner, r);
}

static void race_end(struct race *r)
{
	r->stop = 1;
	r->round = INT_MAX;
	pthread_join(r->pinner, NULL);
}

/* Return 0 if the child sees no word that was written after fork. */
static int child(struct race *r, int round)
{
	size_t i;

	if (round % CHILD_LOOKS)
		return 0;
	wait_for(r->checked, round);
	for (i = 0; i < NR_PAGES; i++)
		if (pin_get(r->pages + i * PAGE + BY_CPU) == round ||
		    pin_get(r->pages + i * PAGE + BY_DEVICE) == round)
			return 1;
	return 0;
}

/*
 * Write to each page, as the process may after fork. Return the number of
 * mapped pages that are not the pinned ones, or -1 on failure.
 */
static int pages_apart(struct race *r, int round)
{
	struct fake_dma_page pinned[NR_PAGES];
	uint64_t mapped[NR_PAGES];
	int i, apart = 0;

	for (i = 0; i < NR_PAGES; i++)
		pin_set(r->pages + i * PAGE + BY_CPU, round);
	if (pread(r->pagemap, mapped, sizeof(mapped),
		  (uintptr_t)r->pages / PAGE * sizeof(*mapped)) !=
	    sizeof(mapped))
		return -1;
	if (pin_query(r->dev, r->handle, r->nr_lead, NR_PAGES, pinned))
		return -1;
	for (i = 0; i < NR_PAGES; i++)
		apart += pinned[i].pfn != (mapped[i] & ((1ULL << 55) - 1));
	return apart;
}

/*
 * Transfer a word through one page, another one in each round. The device also
 * writes if the pin allows it. Return the number of words lost, or -1.
 */
static int words_lost(struct race *r, int round)
{
	size_t page = round % NR_PAGES * PAGE;
	size_t offset = r->nr_lead * PAGE + page;
	uint64_t word = 0;
	int lost;

	if (pin_read(r->dev, r->handle, offset + BY_CPU, &word, sizeof(word)))
		return -1;
	lost = word != round;
	if (r->reading)
		return lost;
	word = round;
	if (pin_write(r->dev, r->handle, offset + BY_DEVICE, &word,
		      sizeof(word)))
		return -1;
	return lost + (pin_get(r->pages + page + BY_DEVICE) != round);
}

/* Return a description of the first error after fork, or NULL. */
static const char *find_wrong(struct race *r, int round, pid_t pid)
{
	static char text[80];
	int nr, status;

	if (pid < 0)
		return "fork failed";
	if (r->error) {
		snprintf(text, sizeof(text), "the pin failed: %s",
			 strerror(-r->error));
		return text;
	}
	nr = pages_apart(r, round);
	if (nr < 0)
		return "cannot read pagemap or query the handle";
	if (nr) {
		snprintf(text, sizeof(text),
			 "%d of %d mapped pages are not the pinned ones",
			 nr, NR_PAGES);
		return text;
	}
	nr = words_lost(r, round);
	if (nr < 0)
		return "a transfer of the device failed";
	if (nr) {
		snprintf(text, sizeof(text),
			 "%d of %d words were lost between process and device",
			 nr, r->reading ? 1 : 2);
		return text;
	}
	*r->checked = round;
	if (waitpid(pid, &status, 0) != pid || status)
		return "the child saw a word that was written after fork";
	return NULL;
}

/*
 * The delay after which the pinning thread begins, so that its page table walk
 * and that of fork meet. They meet for a few instructions only, so the delay is
 * adapted in each round. A pin that ends before fork was too early. A pin that
 * waits for mmap_lock or takes other pages was too late.
 */
struct aim {
	long delay_ns;		/* since the begin of fork */
	long step_ns;
	bool was_early;
	int early, late;	/* number of pins of each kind */
};

/* Adapt the delay and its step to the last pin. */
static void aim_learn(struct aim *aim, bool early)
{
	long step = aim->step_ns;

	step = early == aim->was_early ? step * 2 : step / 2;
	step = step < 500 ? 500 : step > 1000000 ? 1000000 : step;
	aim->step_ns = step;
	aim->was_early = early;
	aim->delay_ns += early ? step : -step;
	aim->early += early;
	aim->late += !early;
}

/* Protect the pages, if the pin is R/O. Return true on success. */
static bool protect(struct race *r, int prot)
{
	size_t len = r->kind == BASE_PAGES ? NR_PAGES * PAGE : HUGE_PAGE;

	return !r->reading || !mprotect(r->pages, len, prot);
}

/* Fork while the other thread pins. Return an error text, or NULL. */
static const char *race_round(struct race *r, int round, struct aim *aim)
{
	long delay_ns = aim->delay_ns + random() % 4000 - 2000;
	long long fork_at, end;
	const char *wrong;
	pid_t pid;

	if (!protect(r, PROT_READ))
		return "cannot mprotect() the pages to PROT_READ";
	/* Leave the other thread time to see the new round. */
	fork_at = now_ns() + 100000 + (delay_ns < 0 ? -delay_ns : 0);
	r->pin_at = fork_at + delay_ns;
	r->round = round;
	wait_until(fork_at);
	pid = fork();
	if (!pid)
		_exit(child(r, round));
	end = now_ns();
	wait_for(&r->done, round);
	aim_learn(aim, r->pinned_at < end && same_page(r));
	wrong = protect(r, PROT_READ | PROT_WRITE) ?
		find_wrong(r, round, pid) : "cannot make the pages writable";
	if (!r->error && pin_unpin(r->dev, r->handle, 0))
		wrong = wrong ?: "the unpin failed";
	if (!map_pages(r))
		wrong = wrong ?: "cannot map the pages again";
	return wrong;
}

FIXTURE(race) {
	struct race r;
	long pool_size;
};

FIXTURE_VARIANT(race) {
	enum kind kind;
};

FIXTURE_VARIANT_ADD(race, base_pages) {
	.kind = BASE_PAGES,
};

FIXTURE_VARIANT_ADD(race, thp) {
	.kind = THP,
};

FIXTURE_VARIANT_ADD(race, hugetlb) {
	.kind = HUGETLB,
};

FIXTURE_SETUP(race)
{
	struct race *r = &self->r;

	r->kind = variant->kind;
	r->dev = pin_open();
	r->checked = pin_map(PAGE, MAP_SHARED);
	ASSERT_LE(0, r->dev);
	ASSERT_NE(NULL, r->checked);
	/* Enough for parent, child, and earlier children that still exit. */
	self->pool_size = pin_set_pool(8);
	ASSERT_LE(0, self->pool_size);
}

FIXTURE_TEARDOWN(race)
{
	pin_set_pool(self->pool_size);
}

static void many_rounds(struct __test_metadata *_metadata, struct race *r,
			size_t nr_lead)
{
	struct aim aim[2] = { 0 };
	const char *wrong;
	int round, i;

	ASSERT_EQ(true, race_begin(r, nr_lead));
	for (round = 1; round <= rounds; round++) {
		r->reading = round % 2;
		wrong = race_round(r, round, &aim[r->reading]);
		ASSERT_EQ(NULL, wrong) {
			TH_LOG("round %d of %d: %s", round, rounds, wrong);
		}
	}
	race_end(r);
	for (i = 0; i < 2; i++) {
		TH_LOG("%d rounds: %d %s pins ended before fork, %d after it",
		       rounds / 2, aim[i].early, i ? "R/O" : "write",
		       aim[i].late);
		EXPECT_LT(rounds / 40, aim[i].early);
		EXPECT_LT(rounds / 40, aim[i].late);
	}
}

/* GUP-fast begins its walk when fork comes to the pages. */
TEST_F_TIMEOUT(race, R8_pin_that_begins_during_fork, 900)
{
	many_rounds(_metadata, &self->r, 0);
}

/*
 * GUP-fast begins its walk long before fork comes to the pages. Both come to
 * them at the same time, as GUP-fast first pins memory that fork skips.
 */
TEST_F_TIMEOUT(race, R8_pin_that_began_before_fork, 900)
{
	many_rounds(_metadata, &self->r, LEAD_PAGES);
}

/* Fork must see the first pin of a process in time. */
TEST_F_TIMEOUT(race, R8_first_pin_of_a_process, 900)
{
	struct aim *aim = pin_map(sizeof(*aim), MAP_SHARED);
	struct race *r = &self->r;
	int round, status;
	const char *wrong;
	pid_t pid;

	ASSERT_NE(NULL, aim);
	for (round = 1; round <= rounds / 4; round++) {
		srandom(round);	/* the child's random state is lost */
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			wrong = "cannot map memory or start a thread";
			r->reading = round / 2 % 2;
			if (race_begin(r, 0))
				wrong = race_round(r, 1, aim);
			if (wrong)
				TH_LOG("round %d of %d: %s", round, rounds / 4,
				       wrong);
			_exit(!!wrong);
		}
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		ASSERT_EQ(0, status);
	}
	TH_LOG("%d rounds: %d pins ended before fork, %d after it",
	       rounds / 4, aim->early, aim->late);
	EXPECT_LT(rounds / 80, aim->early);
	EXPECT_LT(rounds / 80, aim->late);
}

int main(int argc, char **argv)
{
	if (argc == 2 && atoi(argv[1]) > 0)
		rounds = atoi(argv[1]);
	else if (argc > 1)
		ksft_exit_fail_msg("usage: %s [ROUNDS]\n", argv[0]);
	pin_need_device();
	if (sysconf(_SC_NPROCESSORS_ONLN) < 2) {
		ksft_print_header();
		ksft_exit_skip("needs two CPUs online, found %ld\n",
			       sysconf(_SC_NPROCESSORS_ONLN));
	}
	pin_keep(PIN_POOL);
	return test_harness_run(1, argv);
}
