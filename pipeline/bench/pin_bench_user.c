// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drive pin_bench.ko. Print a line for each measurement, with fields separated
 * by tabs: pages a call (and "dirty" if they are dirtied), kind of memory, path,
 * operation (get, put and, if the kernel has them, pin, unpin), and instructions
 * a page.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pin_bench.h"

#define PAGE		4096UL
#define HUGE		(2UL << 20)
#define SIZE		(16UL << 20)
#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

static const char *const kinds[] = {
	[PIN_BENCH_BASE] = "base",
	[PIN_BENCH_THP] = "THP",
	[PIN_BENCH_HUGETLB] = "hugetlb",
};

/* The measurements of each kind of memory, with ops 0 to max_op. */
static const struct way {
	const char *name;
	unsigned int pages;
	unsigned int batch;
	unsigned int op;
	unsigned int max_op;
} ways[] = {
	{ "512", SIZE / PAGE, 512, 0, PIN_BENCH_SLOW | PIN_BENCH_PIN },
	/* Only the fast path: dirtying does not depend on the path. */
	{ "512 dirty", SIZE / PAGE, 512, PIN_BENCH_DIRTY, PIN_BENCH_PIN },
	{ "1", 64, 1, 0, PIN_BENCH_SLOW | PIN_BENCH_PIN },
};

static void die(const char *what)
{
	fprintf(stderr, "pin_bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd))
		die(path);
}

/* Map memory aligned to a huge page and touch every page. */
static char *memory(enum pin_bench_kind kind)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS;
	char *p;

	if (kind == PIN_BENCH_HUGETLB)
		flags |= MAP_HUGETLB;
	p = mmap(NULL, SIZE + HUGE, PROT_READ | PROT_WRITE,
		 flags | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		die("mmap");
	p += -(unsigned long)p % HUGE;
	if (kind != PIN_BENCH_HUGETLB &&
	    madvise(p, SIZE, kind == PIN_BENCH_THP ? MADV_HUGEPAGE :
						     MADV_NOHUGEPAGE))
		die("madvise");
	memset(p, 1, SIZE);
	return p;
}

/* Measure and print two lines, or none if the kernel lacks pins. */
static void measure(int fd, char *p, enum pin_bench_kind kind,
		    const struct way *way, unsigned int op)
{
	struct pin_bench b = {
		.addr = (unsigned long)p,
		.pages = way->pages,
		.batch = way->batch,
		.kind = kind,
		.op = op | way->op,
	};
	int pin = !!(op & PIN_BENCH_PIN), slow = !!(op & PIN_BENCH_SLOW);

	if (ioctl(fd, PIN_BENCH_RUN, &b)) {
		if (errno == EOPNOTSUPP && pin)
			return;
		if (errno == EUCLEAN)
			fprintf(stderr, "pin_bench: %u pages at %p must be present as %s\n",
				way->pages, p, kinds[kind]);
		die("PIN_BENCH_RUN");
	}
	printf("%s\t%s\t%s\t%s\t%.4f\n", way->name, kinds[kind],
	       slow ? "slow" : "fast", pin ? "pin" : "get",
	       (double)b.take / b.pages);
	printf("%s\t%s\t%s\t%s\t%.4f\n", way->name, kinds[kind],
	       slow ? "slow" : "fast", pin ? "unpin" : "put",
	       (double)b.give / b.pages);
}

int main(void)
{
	char *p[ARRAY_SIZE(kinds)];
	unsigned int w, kind, op;
	int fd = open("/dev/pin_bench", O_RDWR);

	if (fd < 0)
		die("/dev/pin_bench");
	/* memory() needs one page more for alignment. */
	write_file("/proc/sys/vm/nr_hugepages", "9");
	for (kind = 0; kind < ARRAY_SIZE(kinds); kind++)
		p[kind] = memory(kind);

	for (w = 0; w < ARRAY_SIZE(ways); w++)
		for (kind = 0; kind < ARRAY_SIZE(kinds); kind++)
			for (op = 0; op <= ways[w].max_op; op++)
				measure(fd, p[kind], kind, &ways[w], op);
	return 0;
}
