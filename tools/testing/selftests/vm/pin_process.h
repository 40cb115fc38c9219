/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the tests of the pin contract share: a process that has memory pinned,
 * its children, and what the process, a child and the device have to see of it.
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

/* What a buffer holds when the process forks: what a child must see. */
#define AT_FORK		0xf0f0

/* Pinned memory, and what parent and children need to know of it. */
struct pinned {
	struct __test_metadata *test;
	int dev;
	uint32_t handle;
	uint32_t seed;		/* last one used */
	char *mem;
	size_t nr;
	char *bounce;		/* where the device's bytes come and go */
	atomic_int *stage;	/* how far the children may go */
	atomic_int *arrived;
	bool no_pagemap;	/* reading it takes PUD entries away */
};

/* A child that waits for the parent must not outlive it. */
static pid_t parent;

static inline void wait_stage(struct pinned *p, int stage)
{
	while (*p->stage < stage) {
		if (getppid() != parent)
			_exit(1);
		usleep(500);
	}
}

/* A child that dies does not arrive: then there is no point in waiting. */
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

/* Makes a child, whose exit status is what child() returns. */
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

/* The child's exit status, or -1 if it came to another end. */
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

/* C1, of a device that only reads: it sees what the process writes. */
static inline void expect_seen(struct pinned *p, const char *when)
{
	struct __test_metadata *_metadata = p->test;
	struct fake_dma_page pages[NR_MAX];
	size_t i, apart = 0;

	pin_fill(p->mem, p->nr, ++p->seed);
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	EXPECT_EQ(-1, pin_differs(p->bounce, p->nr, p->seed)) {
		TH_LOG("%s: the device reads other bytes than the process wrote",
		       when);
	}
	if (p->no_pagemap)
		return;
	ASSERT_EQ(0, pin_query(p->dev, p->handle, 0, p->nr, pages));
	for (i = 0; i < p->nr; i++)
		apart += pages[i].pfn != pin_pfn(getpid(), p->mem + i * PAGE);
	EXPECT_EQ(0, apart) {
		TH_LOG("%s: so many pages are not the pinned ones any more",
		       when);
	}
}

/* C1: the process and its device are looking at the same pages. */
static inline void expect_identity(struct pinned *p, const char *when)
{
	struct __test_metadata *_metadata = p->test;

	expect_seen(p, when);
	pin_fill(p->bounce, p->nr, ++p->seed);
	ASSERT_EQ(0, pin_write(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	EXPECT_EQ(-1, pin_differs(p->mem, p->nr, p->seed)) {
		TH_LOG("%s: what the device wrote does not arrive", when);
	}
}

/* C2: a child sees the bytes as they were at fork. Its exit status. */
static inline int child_looks(struct pinned *p)
{
	long page = pin_differs(p->mem, p->nr, AT_FORK);

	if (page < 0)
		return 0;
	fprintf(stderr, "# child: page %ld is not as it was at fork\n", page);
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
