/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Helpers of the tests of the pin contract: a process with pinned memory, its
 * children, and checks of the bytes that process, child and device see.
 */
#ifndef PIN_PROCESS_H
#define PIN_PROCESS_H

#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../kselftest_harness.h"
#include "pin_util.h"

#define NR_MAX		512	/* pages pinned by any test */

/* The seed of pin_fill() at the time of fork: a child must see these bytes. */
#define AT_FORK		0xf0f0

/* Pinned memory and the state that parent and children share. */
struct pinned {
	struct __test_metadata *test;
	int dev;
	uint32_t handle;
	uint32_t seed;		/* the last one used */
	char *mem;
	size_t nr;
	char *bounce;		/* buffer for transfers of the device */
	atomic_int *stage;	/* the children may go on up to this stage */
	atomic_int *arrived;	/* number of children that have arrived */
	bool no_pagemap;	/* reading pagemap would clear PUD entries */
};

static pid_t parent;

/* Wait for the parent to allow @stage. Exit if the parent dies. */
static inline void wait_stage(struct pinned *p, int stage)
{
	while (*p->stage < stage) {
		if (getppid() != parent)
			_exit(1);
		usleep(500);
	}
}

/* Wait for @nr children to arrive, or for one of them to die. */
static inline void wait_arrived(struct pinned *p, int nr)
{
	siginfo_t dead = { .si_pid = 0 };

	while (*p->arrived < nr && !dead.si_pid) {
		waitid(P_ALL, 0, &dead, WEXITED | WNOHANG | WNOWAIT);
		usleep(500);
	}
}

enum way { WAY_FORK, WAY_CLONE, WAY_CLONE3, WAY_THREAD };

struct forking {
	enum way way;
	int (*child)(struct pinned *p);
	struct pinned *p;
	pid_t parent, pid;
};

static inline void *fork_here(void *arg)
{
	struct clone_args args = { .exit_signal = SIGCHLD };
	struct forking *f = arg;

	switch (f->way) {
	case WAY_CLONE:
		f->pid = syscall(SYS_clone, SIGCHLD, 0, NULL, NULL, 0);
		break;
	case WAY_CLONE3:
		f->pid = syscall(SYS_clone3, &args, sizeof(args));
		break;
	default:
		f->pid = fork();
	}
	if (!f->pid) {
		parent = f->parent;
		_exit(f->child(f->p));
	}
	return NULL;
}

/* Create a child that exits with the return value of child(). */
static inline pid_t make_child(enum way way, int (*child)(struct pinned *p),
			       struct pinned *p)
{
	struct forking f = {
		.way = way,
		.child = child,
		.p = p,
		.parent = getpid(),
		.pid = -1,
	};
	pthread_t thread;

	if (way != WAY_THREAD)
		fork_here(&f);
	else if (!pthread_create(&thread, NULL, fork_here, &f))
		pthread_join(thread, NULL);
	return f.pid;
}

/* Wait for a child. Return its exit status, or -1 if it did not exit. */
static inline int reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

static inline void open_device(struct __test_metadata *_metadata, struct pinned *p)
{
	atomic_int *shared = pin_map(PAGE, MAP_SHARED);

	p->test = _metadata;
	p->dev = pin_open();
	p->bounce = pin_map_small(NR_MAX);
	ASSERT_LE(0, p->dev);
	ASSERT_NE(NULL, p->bounce);
	ASSERT_NE(NULL, shared);
	p->stage = shared;
	p->arrived = shared + 1;
}

static inline void pin(struct pinned *p, void *mem, size_t nr, uint32_t flags,
		       uint32_t call)
{
	struct __test_metadata *_metadata = p->test;

	ASSERT_GE(NR_MAX, nr);
	p->mem = mem;
	p->nr = nr;
	ASSERT_EQ(0, pin_range(p->dev, mem, nr * PAGE, flags, call,
			       &p->handle));
}

/* C1 for an R/O pin: expect the device to read the bytes of the process. */
static inline void expect_seen(struct pinned *p, const char *when)
{
	struct __test_metadata *_metadata = p->test;
	struct fake_dma_page pages[NR_MAX];
	size_t i, apart = 0;
	long differs;

	pin_fill(p->mem, p->nr, ++p->seed);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	differs = pin_differs(p->bounce, p->nr, p->seed);
	EXPECT_EQ(-1, differs) {
		TH_LOG("%s: page %ld: the device does not read the bytes that the process wrote",
		       when, differs);
	}
	if (p->no_pagemap)
		return;
	ASSERT_EQ(0, pin_query(p->dev, p->handle, 0, p->nr, pages));
	for (i = 0; i < p->nr; i++)
		apart += pages[i].pfn != pin_pfn(getpid(), p->mem + i * PAGE);
	EXPECT_EQ(0, apart) {
		TH_LOG("%s: %zu of %zu mapped pages are not the pinned ones",
		       when, apart, p->nr);
	}
}

/* C1: expect process and device to access the same pages, in both directions. */
static inline void expect_identity(struct pinned *p, const char *when)
{
	struct __test_metadata *_metadata = p->test;
	long differs;

	expect_seen(p, when);
	pin_fill(p->bounce, p->nr, ++p->seed);
	ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	differs = pin_differs(p->mem, p->nr, p->seed);
	EXPECT_EQ(-1, differs) {
		TH_LOG("%s: page %ld: the process does not read the bytes that the device wrote",
		       when, differs);
	}
}

/* C2: check that a child sees the bytes of the time of fork. Return 0 if so. */
static inline int child_looks(struct pinned *p)
{
	long page = pin_differs(p->mem, p->nr, AT_FORK);

	if (page < 0)
		return 0;
	fprintf(stderr, "# child: page %ld of %zu has changed since fork\n", page,
		p->nr);
	return 1;
}

static inline int child_exits(struct pinned *p)
{
	return 0;
}

static inline int child_waits(struct pinned *p)
{
	++*p->arrived;
	wait_stage(p, 1);
	return 0;
}

static inline int child_looks_late(struct pinned *p)
{
	++*p->arrived;
	wait_stage(p, 1);
	return child_looks(p);
}

#endif /* PIN_PROCESS_H */
