// SPDX-License-Identifier: GPL-2.0-only
/*
 * Measure the cost to the parent of fork() of a process with 64 MB of memory,
 * with and without pinned pages, and the cost of write faults. Print a line for
 * each measurement, with fields separated by tabs: kind of memory or "write",
 * pinned pages or state of the written pages, instructions.
 *
 * This needs a guest with one CPU and -icount, where a nanosecond is an
 * instruction.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

#include "pin_util.h"

#define SIZE	(64UL << 20)
#define ROUNDS	3

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* Return the least cost of ROUNDS rounds, as the first ones fill caches. */
static long long fork_cost(char *mem)
{
	long long start, cost, least = 0;
	size_t i;
	pid_t pid;
	int n;

	for (n = 0; n < ROUNDS; n++) {
		for (i = 0; i < SIZE; i += PAGE)
			mem[i] = n;
		start = now_ns();
		pid = fork();
		if (!pid)
			_exit(0);
		cost = now_ns() - start;
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			die("fork");
		if (!n || cost < least)
			least = cost;
	}
	return least;
}

/* Measure fork() in a new process, which has never pinned. */
static void measure(bool thp, const char *name, size_t pinned, bool unpin)
{
	const struct sched_param fifo = { .sched_priority = 1 };
	int dev, status;
	uint32_t handle = 0;
	char *mem;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid) {
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			die(name);
		return;
	}
	/* Keep the child from running before fork() returns. */
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		die("sched_setscheduler");
	dev = pin_open();
	if (dev < 0)
		die(PIN_DEVICE);
	mem = thp ? pin_map_thp(dev, SIZE / HUGE_PAGE) :
		    pin_map_small(SIZE / PAGE);
	if (!mem)
		die("memory");
	memset(mem, 1, SIZE);
	if (pinned && pin_range(dev, mem, pinned * PAGE, FAKE_DMA_PIN_WRITE,
				FAKE_DMA_CALL_FAST, &handle))
		die("pin");
	if (unpin && pin_unpin(dev, handle, 0))
		die("unpin");
	printf("%s\t%s\t%lld\n", thp ? "THP" : "base", name, fork_cost(mem));
	fflush(stdout);
	_exit(0);
}

/* Measure a write to each page. */
static void write_all(char *mem, const char *name)
{
	long long start = now_ns();
	size_t i;

	for (i = 0; i < SIZE; i += PAGE)
		mem[i]++;
	printf("write\t%s\t%lld\n", name, now_ns() - start);
}

/* Measure writes in a process that has never pinned. */
static void measure_writes(void)
{
	char *mem = pin_map_small(SIZE / PAGE);
	int n, stop[2];
	pid_t pid;
	char c;

	if (!mem)
		die("memory");
	write_all(mem, "new");
	for (n = 0; n < 2; n++) {
		if (pipe(stop))
			die("pipe");
		fflush(stdout);
		pid = fork();
		if (!pid) {
			close(stop[1]);
			_exit(read(stop[0], &c, 1) != 0);
		}
		if (n)
			write_all(mem, "shared");
		close(stop[1]);
		if (pid < 0 || waitpid(pid, NULL, 0) != pid)
			die("fork");
		if (!n)
			write_all(mem, "shared before");
		close(stop[0]);
	}
	if (mprotect(mem, SIZE, PROT_READ) ||
	    mprotect(mem, SIZE, PROT_READ | PROT_WRITE))
		die("mprotect");
	write_all(mem, "protected");
	munmap(mem, SIZE);
}

int main(void)
{
	int thp;

	measure_writes();

	for (thp = 0; thp < 2; thp++) {
		measure(thp, "never", 0, false);
		measure(thp, "once, not now", 1, true);
		measure(thp, "1", 1, false);
		measure(thp, "100", 100, false);
		measure(thp, "all", SIZE / PAGE, false);
	}
	return 0;
}
