// SPDX-License-Identifier: GPL-2.0-only
/*
 * Migration and pinned memory (R12, C1). Every way to migrate pages leaves pinned
 * ones in place and tells its caller. The same call moves the unpinned pages
 * beside them. It also moves the pinned pages once they are unpinned. A long-term
 * pin first moves pages out of a CMA area, unless they have pins already (R22).
 *
 * The tests need two nodes, ZONE_MOVABLE and a CMA area. In a virtual machine,
 * these kernel arguments make them: numa=fake=2 movablecore=1G cma=64M.
 */
#define _GNU_SOURCE
#include <linux/mempolicy.h>
#include <sys/mount.h>
#include <sys/resource.h>

#include "pin_event.h"

#define ROUNDS		10
#define NODES		"/sys/devices/system/node/node"
#define BLOCKS		"/sys/devices/system/memory/"
#define RESERVED	32		/* PG_reserved, in /proc/kpageflags */

static bool two_nodes(void)
{
	return !access(NODES "1", F_OK);
}

/* Arguments of move_pages(), and the status of each page. */
struct request {
	void *addr[2 * NR_PAGES];
	int node[2 * NR_PAGES];
	int status[2 * NR_PAGES];
	unsigned long nr;
};

static void add_request(struct request *r, void *addr, int node)
{
	r->addr[r->nr] = addr;
	r->node[r->nr] = node;
	r->status[r->nr++] = -ENODATA;
}

static long move_pages(struct request *r)
{
	long ret = syscall(SYS_move_pages, 0, r->nr, r->addr, r->node,
			   r->status, MPOL_MF_MOVE);

	return ret < 0 ? -errno : ret;
}

/* Return the node of the page at @addr, or a negative errno. */
static int node_of(const void *addr)
{
	int status = -ENODATA;

	if (syscall(SYS_move_pages, 0, 1UL, &addr, NULL, &status, 0))
		return -errno;
	return status;
}

/*
 * Move @nr <= NR_PAGES unpinned pages. Return true if all are on @node then.
 * A page may have another reference for a moment, so try again.
 */
static bool move_to(char *mem, size_t nr, int node)
{
	size_t i, there = 0;
	int n;

	for (n = 0; there < nr && n < 100; n++) {
		struct request r = { .nr = 0 };

		for (i = 0; i < nr; i++)
			add_request(&r, mem + i * PAGE, node);
		move_pages(&r);
		for (i = 0, there = 0; i < nr; i++)
			there += node_of(mem + i * PAGE) == node;
	}
	return there == nr;
}

/* Move all memory of an unpinned buffer. The first page moves a whole huge page. */
static bool move_buffer(struct buffer *b, int node)
{
	bool huge = b->m.len == HUGE_PAGE;

	return move_to(b->m.map, huge ? 1 : NR_PAGES, node) &&
	       node_of(b->m.mem) == node &&
	       node_of(b->m.mem + (NR_PAGES - 1) * PAGE) == node;
}

/* The move that a test asks for, and unpinned pages that make it as well. */
static struct {
	int from, to;		/* nodes */
	char *beside;		/* unpinned pages */
	bool head;		/* move_pages() takes only the first page */
} way;

/* Choose to move the buffer to the other node. Put unpinned pages on its own. */
static void choose_way(struct buffer *b, enum kind what)
{
	struct __test_metadata *_metadata = b->p.test;

	way.from = node_of(b->m.mem);
	ASSERT_LE(0, way.from);
	way.to = !way.from;
	way.head = what == HUGETLB;
	way.beside = pin_map_small(NR_PAGES);
	ASSERT_NE(NULL, way.beside);
	pin_fill(way.beside, NR_PAGES, AT_FORK);
	ASSERT_EQ(true, move_to(way.beside, NR_PAGES, way.from));
}

/* Expect that the unpinned buffer has moved with its bytes. Pin it there. */
static void expect_moved_after(struct buffer *b, bool moved)
{
	struct __test_metadata *_metadata = b->p.test;
	uint32_t seed = b->p.seed;

	EXPECT_EQ(true, moved);
	EXPECT_EQ(way.to, node_of(b->m.mem));
	EXPECT_EQ(way.to, node_of(b->m.mem + (NR_PAGES - 1) * PAGE));
	EXPECT_EQ(-1, pin_differs(b->m.mem, NR_PAGES, seed));
	EXPECT_EQ(-1, pin_differs(way.beside, NR_PAGES, AT_FORK));
	take(b);
}

/* Call move_pages() for the buffer. Return the number of wrong answers. */
static int move_some(struct buffer *b)
{
	int n, wrong = 0;
	size_t i;

	for (n = 0; n < ROUNDS; n++) {
		struct request r = { .nr = 0 };

		if (!move_to(way.beside, NR_PAGES, way.from))
			wrong++;
		for (i = 0; i < NR_PAGES; i++) {
			add_request(&r, way.head ? b->m.map :
				    b->m.mem + i * PAGE, way.to);
			add_request(&r, way.beside + i * PAGE, way.to);
		}
		wrong += move_pages(&r) != 0;
		for (i = 0; i < NR_PAGES; i++) {
			wrong += r.status[2 * i] != -EBUSY;
			wrong += r.status[2 * i + 1] != way.to;
			wrong += node_of(way.beside + i * PAGE) != way.to;
		}
	}
	return wrong;
}

TEST_F(event, R12_C1_move_pages)
{
	struct buffer *b = &self->b;

	if (!two_nodes())
		SKIP(return, "one NUMA node, expected two");
	choose_way(b, variant->kind);
	EXPECT_EQ(0, expect_held_through(b, move_some, "move_pages()"));
	EXPECT_EQ(way.from, node_of(b->m.mem));
	give_back(b);
	expect_moved_after(b, move_buffer(b, way.to));
}

/* Bind memory to @node and move it there. Return 0 or a negative errno. */
static int bind_to(char *mem, size_t len, int node)
{
	unsigned long mask = 1UL << node;

	return syscall(SYS_mbind, mem, len, MPOL_BIND, &mask,
		       8 * sizeof(mask), MPOL_MF_MOVE | MPOL_MF_STRICT) ?
		-errno : 0;
}

/* Call mbind() for the buffer. Return the number of wrong answers. */
static int bind_buffer(struct buffer *b)
{
	int n, wrong = 0;

	for (n = 0; n < ROUNDS; n++)
		wrong += bind_to(b->m.map, b->m.len, way.to) != -EIO;
	return wrong;
}

TEST_F(event, R12_C1_mbind)
{
	struct buffer *b = &self->b;
	int n, ret;

	if (!two_nodes())
		SKIP(return, "one NUMA node, expected two");
	choose_way(b, variant->kind);
	EXPECT_EQ(0, expect_held_through(b, bind_buffer, "mbind()"));
	EXPECT_EQ(way.from, node_of(b->m.mem));
	give_back(b);
	ret = bind_to(b->m.map, b->m.len, way.to);
	for (n = 0; ret == -EIO && n < 100; n++)
		ret = bind_to(b->m.map, b->m.len, way.to);
	expect_moved_after(b, !ret);
}

/* Return the number of pages that do not move, or a negative errno. */
static long migrate_pages(void)
{
	unsigned long from = 1UL << way.from, to = 1UL << way.to;
	long ret = syscall(SYS_migrate_pages, 0, 8 * sizeof(from), &from, &to);

	return ret < 0 ? -errno : ret;
}

/* Call migrate_pages(). Return the number of wrong answers. */
static int migrate_process(struct buffer *b)
{
	int n, wrong = 0;
	size_t i;

	for (n = 0; n < ROUNDS; n++) {
		if (!move_to(way.beside, NR_PAGES, way.from))
			wrong++;
		wrong += migrate_pages() <
			 (b->m.len == HUGE_PAGE ? 1 : NR_PAGES);
		for (i = 0; i < NR_PAGES; i++)
			wrong += node_of(way.beside + i * PAGE) != way.to;
	}
	return wrong;
}

TEST_F(event, R12_C1_migrate_pages)
{
	struct buffer *b = &self->b;
	long left;
	int n;

	if (!two_nodes())
		SKIP(return, "one NUMA node, expected two");
	choose_way(b, variant->kind);
	EXPECT_EQ(0, expect_held_through(b, migrate_process,
					 "migrate_pages()"));
	EXPECT_EQ(way.from, node_of(b->m.mem));
	give_back(b);
	left = migrate_pages();
	for (n = 0; left > 0 && n < 100; n++)
		left = migrate_pages();
	expect_moved_after(b, !left);
}

/* Move the buffer to and fro until @stop_moving is set. */
static atomic_int stop_moving, moves;

static void *keep_moving(void *arg)
{
	struct buffer *b = arg;
	int node = way.to;
	size_t i, nr = b->m.len == HUGE_PAGE ? 1 : NR_PAGES;

	while (!stop_moving) {
		struct request r = { .nr = 0 };

		for (i = 0; i < nr; i++)
			add_request(&r, b->m.map + i * PAGE, node);
		if (!move_pages(&r) && r.status[nr - 1] == node)
			moves++;
		node = !node;
	}
	return NULL;
}

/* Expect that every pinned page is mapped. */
static void expect_mapped(struct buffer *b)
{
	struct __test_metadata *_metadata = b->p.test;
	struct fake_dma_page pages[NR_PAGES];
	size_t i, unmapped = 0;

	ASSERT_EQ(0, pin_query(b->p.dev, b->p.handle, 0, NR_PAGES, pages));
	for (i = 0; i < NR_PAGES; i++)
		unmapped += pages[i].mapcount < 1;
	EXPECT_EQ(0, unmapped) {
		TH_LOG("%zu of %d pinned pages are not mapped, expected 0", unmapped,
		       NR_PAGES);
	}
}

/*
 * Pin pages while a thread migrates them. Migration clears the entry of a pinned
 * page and restores it. /proc/PID/pagemap reads hugetlb entries without the
 * page-table lock and may see the cleared one: do not read it before the end.
 */
TEST_F(event, R12_C1_pinned_while_it_moves)
{
	struct buffer *b = &self->b;
	void (*look)(struct pinned *p, const char *when);
	pthread_t thread;
	int n, last = -1;

	if (!two_nodes())
		SKIP(return, "one NUMA node, expected two");
	choose_way(b, variant->kind);
	give_back(b);
	look = b->flags & FAKE_DMA_PIN_WRITE ? expect_identity : expect_seen;
	stop_moving = 0;
	moves = 0;
	b->p.no_pagemap = variant->kind == HUGETLB;
	ASSERT_EQ(0, pthread_create(&thread, NULL, keep_moving, b));
	for (n = 0; n < 200000 && (n < 200 || last < 50); n++) {
		pin(&b->p, b->m.mem, NR_PAGES, b->flags, b->call);
		expect_mapped(b);
		/* Keep most pins short, so that many meet a migration. */
		if (n % 8 == 0 || moves != last)
			look(&b->p, "while it moves");
		expect_mapped(b);
		ASSERT_EQ(0, pin_unpin(b->p.dev, b->p.handle, 0));
		last = moves;
		if (!_metadata->passed)
			break;
	}
	pin(&b->p, b->m.mem, NR_PAGES, b->flags, b->call);
	stop_moving = 1;
	pthread_join(thread, NULL);
	b->p.no_pagemap = false;
	look(&b->p, "after the moves");
	ASSERT_EQ(0, pin_unpin(b->p.dev, b->p.handle, 0));
	b->p.handle = 0;
	EXPECT_LE(50, moves);
	EXPECT_EQ(0, pin_held());
}

/*
 * NUMA balancing makes entries PROT_NONE from time to time. The page then moves
 * to the node of the CPU that faults. A pinned page cannot move, so its entries
 * stay accessible.
 */
#define BALANCING	"/proc/sys/kernel/numa_balancing"

static const struct {
	const char *name;
	long value;		/* a scan of all memory every 20 ms */
} balancing[] = {
	{ BALANCING "_scan_period_min_ms", 20 },
	{ BALANCING "_scan_period_max_ms", 20 },
	{ BALANCING "_scan_delay_ms", 20 },
	{ BALANCING "_scan_size_mb", 1024 },
	{ BALANCING, 0 },	/* off, except in expect_not_hinted() */
};

/* Return the number of minor faults of this thread so far. */
static long minor_faults(void)
{
	struct rusage usage;

	return getrusage(RUSAGE_THREAD, &usage) ? -1 : usage.ru_minflt;
}

/* Bind this thread to the first CPU. Return its node, or -1. */
static int stay_on_cpu(void)
{
	unsigned int cpu, node;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	if (sched_setaffinity(0, sizeof(set), &set) ||
	    syscall(SYS_getcpu, &cpu, &node, NULL) || cpu)
		return -1;
	return node;
}

/*
 * Move an unpinned base page and an unpinned huge page to the other node. Touch
 * them until NUMA balancing has moved both to node @here. Return false if it
 * does not.
 */
static bool wait_balanced(char *small, char *huge, int here)
{
	int n, i;

	if (!move_to(small, 1, !here) || !move_to(huge, 1, !here))
		return false;
	for (n = 0; n < 100000; n++) {
		for (i = 0; i < 10000; i++) {
			pin_get(small);
			pin_get(huge);
		}
		if (node_of(small) == here && node_of(huge) == here)
			return true;
	}
	return false;
}

/*
 * Expect that the pinned pages get no hinting faults. In every round, NUMA
 * balancing moves two unpinned pages, so it has scanned all pages by then.
 */
static void expect_not_hinted(struct pinned *p, int here)
{
	struct __test_metadata *_metadata = p->test;
	long long migrated = pin_vmstat("numa_pages_migrated");
	long long hints = pin_vmstat("numa_hint_faults");
	char *small = pin_map_small(1);
	char *huge = pin_map_thp(p->dev, 1);
	long before, faults = 0;
	int n, done = 0;
	size_t i;

	ASSERT_NE(NULL, small);
	ASSERT_NE(NULL, huge);
	pin_set(small, 1);
	ASSERT_EQ(0, pin_write_file(BALANCING, "1"));
	for (n = 0; n < ROUNDS; n++) {
		done += wait_balanced(small, huge, here);
		if (done != n + 1)
			break;
		before = minor_faults();
		for (i = 0; i < p->nr; i++)
			pin_get(p->mem + i * PAGE);
		faults += minor_faults() - before;
	}
	EXPECT_EQ(0, pin_write_file(BALANCING, "0"));
	EXPECT_EQ(ROUNDS, done) {
		TH_LOG("unpinned pages moved in %d rounds, expected %d", done, ROUNDS);
	}
	EXPECT_LE(2 * ROUNDS, pin_vmstat("numa_hint_faults") - hints);
	EXPECT_LE(2 * ROUNDS, pin_vmstat("numa_pages_migrated") - migrated);
	/* Allow a few faults of other pages, such as the stack. */
	EXPECT_GT(ROUNDS / 2, faults) {
		TH_LOG("%ld minor faults on pinned pages in %d rounds, expected < %d",
		       faults, ROUNDS, ROUNDS / 2);
	}
	EXPECT_EQ(!here, node_of(p->mem));
}

TEST_F(event, R12_C1_numa_balancing)
{
	struct buffer *b = &self->b;
	int here;

	if (!two_nodes())
		SKIP(return, "one NUMA node, expected two");
	if (access(BALANCING, W_OK))
		SKIP(return, "no NUMA balancing");
	here = stay_on_cpu();
	ASSERT_LE(0, here);
	give_back(b);
	ASSERT_EQ(true, move_buffer(b, !here));
	take(b);
	expect_not_hinted(&b->p, here);
	expect_held(b, "after NUMA balancing");
}

/* Map @nr clean pages of a file shared. Its ramfs ends with the mapping. */
static char *map_ramfs(size_t nr)
{
	char dir[] = "/tmp/pin_migrate.XXXXXX", name[64];
	char *mem = MAP_FAILED;
	size_t i;
	int fd;

	if (!mkdtemp(dir))
		return NULL;
	if (!mount("none", dir, "ramfs", 0, NULL)) {
		snprintf(name, sizeof(name), "%s/file", dir);
		fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd >= 0 && !ftruncate(fd, nr * PAGE))
			mem = mmap(NULL, nr * PAGE, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0);
		close(fd);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	if (mem == MAP_FAILED)
		return NULL;
	for (i = 0; i < nr; i++)
		pin_get(mem + i * PAGE);
	return mem;
}

/*
 * Balance file pages too: NUMA balancing skips anonymous pages with extra
 * references anyway, but not these.
 */
TEST(R12_C1_numa_balancing_file)
{
	struct pinned p = { 0 };
	struct fake_dma_page pages[NR_PAGES];
	char *mem;
	int i, here;

	if (!two_nodes())
		SKIP(return, "one NUMA node, expected two");
	if (access(BALANCING, W_OK))
		SKIP(return, "no NUMA balancing");
	open_device(_metadata, &p);
	here = stay_on_cpu();
	ASSERT_LE(0, here);
	mem = map_ramfs(NR_PAGES);
	ASSERT_NE(NULL, mem);
	ASSERT_EQ(true, move_to(mem, NR_PAGES, !here));
	pin(&p, mem, NR_PAGES, 0, FAKE_DMA_CALL_FAST);
	expect_not_hinted(&p, here);
	ASSERT_EQ(0, pin_query(p.dev, p.handle, 0, NR_PAGES, pages));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_EQ(pages[i].pfn, pin_pfn(getpid(), mem + i * PAGE));
	EXPECT_EQ(0, pin_unpin(p.dev, p.handle, 0));
	EXPECT_EQ(0, pin_held());
}

/*
 * Compaction moves pages from the low end of a zone to free ones at its high end.
 * So pin the lowest of many pages and free every other page.
 */
#define NR_FILL		(64UL << 20 >> 12)
#define PAGEBLOCK	512

static uint64_t pfns[NR_FILL];

static int compact(struct buffer *b)
{
	int n, ret = 0;

	for (n = 0; n < 3 && !ret; n++)
		ret = pin_write_file("/proc/sys/vm/compact_memory", "1");
	return ret;
}

static uint64_t block_of(size_t i)
{
	return pfns[i] / PAGEBLOCK;
}

/*
 * Find 2 * NR_PAGES adjacent pages in one pageblock, the lowest there is. Return
 * the index of the first, or @nr.
 */
static size_t lowest_of(size_t nr)
{
	size_t i, j, lowest = nr;

	for (i = 0; i + 2 * NR_PAGES <= nr; i += NR_PAGES) {
		for (j = 0; j < 2 * NR_PAGES; j++)
			if (!pfns[i + j] || block_of(i + j) != block_of(i))
				break;
		if (j == 2 * NR_PAGES &&
		    (lowest == nr || block_of(i) < block_of(lowest)))
			lowest = i;
	}
	return lowest;
}

/* Count the pages from @first on that are not where they were. */
static int how_many_moved(const char *fill, size_t first)
{
	size_t i;
	int ret = 0;

	for (i = first; i < first + NR_PAGES; i++)
		ret += pin_pfn(getpid(), fill + i * PAGE) != pfns[i];
	return ret;
}

/* Take write pins by GUP-fast and R/O pins by the slow path. */
static uint32_t call_of(uint32_t flags)
{
	return flags & FAKE_DMA_PIN_WRITE ? FAKE_DMA_CALL_FAST :
					    FAKE_DMA_CALL_SLOW;
}

static void compaction(struct __test_metadata *_metadata, uint32_t flags)
{
	long long scanned = pin_vmstat("compact_migrate_scanned");
	long long migrated = pin_vmstat("pgmigrate_success");
	struct buffer b = { .flags = flags, .call = call_of(flags) };
	size_t i, lowest;
	char *fill;

	if (access("/proc/sys/vm/compact_memory", W_OK))
		SKIP(return, "no CONFIG_COMPACTION");
	open_device(_metadata, &b.p);
	fill = pin_map_small(NR_FILL);
	ASSERT_NE(NULL, fill);
	for (i = 0; i < NR_FILL; i++)
		pin_set(fill + i * PAGE, 1);
	ASSERT_EQ(true, pin_pfns(fill, NR_FILL, pfns));
	lowest = lowest_of(NR_FILL);
	ASSERT_NE(NR_FILL, lowest);
	b.m.mem = fill + lowest * PAGE;
	take(&b);
	for (i = 0; i < NR_FILL; i += 2)
		if (i < lowest || i >= lowest + 2 * NR_PAGES)
			ASSERT_EQ(0, madvise(fill + i * PAGE, PAGE,
					     MADV_DONTNEED));

	EXPECT_EQ(0, expect_held_through(&b, compact, "compaction"));
	EXPECT_LT(0, how_many_moved(fill, lowest + NR_PAGES)) {
		TH_LOG("0 of %d unpinned pages beside the pinned ones moved", NR_PAGES);
	}
	EXPECT_EQ(0, how_many_moved(fill, lowest));
	EXPECT_LT(scanned, pin_vmstat("compact_migrate_scanned"));
	EXPECT_LT(migrated, pin_vmstat("pgmigrate_success"));
	give_back(&b);
	/* Compaction may skip any page, so move these explicitly. */
	if (two_nodes()) {
		EXPECT_EQ(true, move_to(b.m.mem, NR_PAGES,
					!node_of(b.m.mem)));
		EXPECT_EQ(NR_PAGES, how_many_moved(fill, lowest));
		EXPECT_EQ(-1, pin_differs(b.m.mem, NR_PAGES, b.p.seed));
	}
}

TEST(R12_C1_compaction_read)
{
	compaction(_metadata, 0);
}

TEST(R12_C1_compaction_write)
{
	compaction(_metadata, FAKE_DMA_PIN_WRITE);
}

/*
 * A buffer in one of several ranges of page frames (CMA area, memory blocks), and
 * unpinned memory in the same range.
 */
#define NR_RANGES	64
#define NR_CHUNKS	128
#define CHUNK		(8 * HUGE_PAGE)

struct range {
	uint64_t start, nr;
};

static struct range ranges[NR_RANGES];
static size_t nr_ranges;
static int ranges_node;		/* node of all ranges */

static struct range *range;	/* range of the buffer */
static char *beside;		/* unpinned memory in the same range */

static struct range *range_of(uint64_t pfn)
{
	size_t i;

	for (i = 0; i < nr_ranges; i++)
		if (pfn - ranges[i].start < ranges[i].nr)
			return ranges + i;
	return NULL;
}

/* Allocate new pages on @node, or anywhere if it is negative. */
static void allocate_on(int node)
{
	unsigned long mask = 1UL << node;

	syscall(SYS_set_mempolicy, node < 0 ? MPOL_DEFAULT : MPOL_BIND,
		node < 0 ? NULL : &mask, node < 0 ? 0 : 8 * sizeof(mask));
}

static void set_node_pool(int node, long nr)
{
	char name[128];

	snprintf(name, sizeof(name),
		 NODES "%d/hugepages/hugepages-2048kB/nr_hugepages", node);
	pin_write_number(name, nr);
}

/*
 * A write to a huge page that was shared at fork checks its references first.
 * Migration takes a reference to each page of its list before it moves the first.
 * If the pool has no page for a copy, the write waits for migration.
 */
#define NR_HUGE		128

static int migrate_all(struct buffer *b)
{
	return migrate_pages();
}

TEST(R14_hugetlb_write_waits_for_migration)
{
	size_t len = NR_HUGE * HUGE_PAGE, i;
	struct ongoing o = { .event = migrate_all };
	pthread_t thread;
	uint64_t pfn;
	pid_t child;
	char *mem;
	int n;

	if (!two_nodes())
		SKIP(return, "one NUMA node, expected two");
	set_node_pool(0, NR_HUGE);
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	if (mem == MAP_FAILED) {
		set_node_pool(0, 0);
		SKIP(return, "fewer than %d hugetlb pages were allocated", NR_HUGE);
	}
	for (i = 0; i < len; i += HUGE_PAGE)
		pin_set(mem + i, i + 1);
	child = fork();
	if (!child)
		_exit(0);
	ASSERT_EQ(child, waitpid(child, NULL, 0));

	pfn = pin_pfn(getpid(), mem);
	way.from = 0;
	way.to = 1;
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_ongoing, &o));
	for (n = 0; n < 10000 && pin_pfn(getpid(), mem) == pfn; n++)
		usleep(1000);
	/* Start with the last. A write that does not wait gets SIGBUS. */
	for (i = len; i > 0; i -= HUGE_PAGE)
		pin_set(mem + i - HUGE_PAGE, i);
	pthread_join(thread, NULL);
	EXPECT_LE(0, o.ret);
	EXPECT_NE(pfn, pin_pfn(getpid(), mem));
	for (i = HUGE_PAGE; i <= len && pin_get(mem + i - HUGE_PAGE) == i; )
		i += HUGE_PAGE;
	EXPECT_LT(len, i);
	munmap(mem, len);
	set_node_pool(0, 0);
	set_node_pool(1, 0);
}

/*
 * Map a chunk with a mapping for each page, to unmap some of them later. In Linux
 * 5.10, splitting a hugetlb mapping makes lockdep report.
 */
static char *map_hugetlb_chunk(void)
{
	char *mem = pin_map(CHUNK + HUGE_PAGE, MAP_PRIVATE);
	size_t i;

	if (!mem)
		return NULL;
	mem = (char *)(((uintptr_t)mem + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));
	for (i = 0; i < CHUNK; i += HUGE_PAGE)
		if (mmap(mem + i, HUGE_PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED,
			 -1, 0) == MAP_FAILED)
			return NULL;
	return mem;
}

/* Allocate CHUNK bytes of kind @what as number @nr. Return NULL on failure. */
static char *make_chunk(int dev, enum kind what, int nr)
{
	char *mem;
	size_t i;

	if (what == THP || what == THP_SPLIT)
		return pin_map_thp(dev, CHUNK / HUGE_PAGE);
	if (what == HUGETLB) {
		set_node_pool(ranges_node, nr * CHUNK / HUGE_PAGE);
		mem = map_hugetlb_chunk();
	} else {
		mem = pin_map_small(CHUNK / PAGE);
	}
	for (i = 0; mem && i < CHUNK; i += PAGE)
		pin_set(mem + i, 1);
	return mem;
}

/* Find two units of a chunk in the same range. Return false without any. */
static bool find_units(const char *chunk, size_t unit, size_t *found)
{
	size_t i, j, nr = unit / PAGE, seen[NR_RANGES] = { 0 };
	struct range *r;

	if (!pin_pfns(chunk, CHUNK / PAGE, pfns))
		return false;
	for (i = 0; i < CHUNK / PAGE; i += nr) {
		r = range_of(pfns[i]);
		for (j = 1; r && j < nr; j++)
			if (range_of(pfns[i + j]) != r)
				r = NULL;
		if (!r)
			continue;
		if (seen[r - ranges]) {
			range = r;
			found[0] = seen[r - ranges] - 1;
			found[1] = i / nr;
			return true;
		}
		seen[r - ranges] = i / nr + 1;
	}
	return false;
}

/*
 * Allocate chunks until one has two units in a range: the buffer and @beside.
 * Free the rest. Return false if no chunk has.
 */
static bool make_in_range(struct buffer *b, enum kind what)
{
	size_t unit = what == BASE ? NR_PAGES * PAGE : HUGE_PAGE;
	char *chunk[NR_CHUNKS], *mem;
	size_t two[2];
	bool found = false;
	int n, i;

	allocate_on(ranges_node);
	for (n = 0; !found && n < NR_CHUNKS; n++) {
		chunk[n] = make_chunk(b->p.dev, what, n + 1);
		if (!chunk[n])
			break;
		found = find_units(chunk[n], unit, two);
	}
	allocate_on(-1);
	for (i = 0; i < n - 1; i++)
		munmap(chunk[i], CHUNK);
	if (!found)
		return false;
	mem = chunk[n - 1];
	b->m.map = mem + two[0] * unit;
	b->m.len = unit;
	b->m.mem = b->m.map + (what == BASE ? 0 : FIRST * PAGE);
	beside = mem + two[1] * unit;
	munmap(mem, b->m.map - mem);
	munmap(b->m.map + unit, beside - b->m.map - unit);
	munmap(beside + unit, mem + CHUNK - beside - unit);
	if (what == HUGETLB)
		set_node_pool(ranges_node, 2);
	return what != THP_SPLIT || !mprotect(b->m.map, PAGE, PROT_READ);
}

/*
 * Expect that @event, which empties the range, fails with @error while pages in it
 * are pinned, moves the unpinned ones, and succeeds once nothing is pinned.
 */
static void expect_in_the_way(struct __test_metadata *_metadata,
			      enum kind what, uint32_t flags,
			      int (*event)(struct buffer *b), int error,
			      const char *when)
{
	struct buffer b = { .flags = flags, .call = call_of(flags) };
	int n, ret;

	open_device(_metadata, &b.p);
	ASSERT_EQ(true, make_in_range(&b, what)) {
		TH_LOG("%s: %d chunks have no two buffers in one of %zu ranges", when,
		       NR_CHUNKS, nr_ranges);
	}
	pin_set(beside, 2);
	take(&b);
	EXPECT_EQ(error, expect_held_through(&b, event, when));
	EXPECT_NE(range, range_of(pin_pfn(getpid(), beside))) {
		TH_LOG("%s: unpinned memory is still in the range from pfn %#llx on",
		       when, (unsigned long long)range->start);
	}
	give_back(&b);

	ret = event(&b);
	for (n = 0; (ret == -EBUSY || ret == error) && n < 10; n++)
		ret = event(&b);
	EXPECT_EQ(0, ret);
	EXPECT_NE(range, range_of(pin_pfn(getpid(), b.m.mem)));
	EXPECT_EQ(-1, pin_differs(b.m.mem, NR_PAGES, b.p.seed));
	EXPECT_EQ(2, pin_get(beside));
	munmap(b.m.map, b.m.len);
	munmap(beside, b.m.len);
	if (what == HUGETLB)
		set_node_pool(ranges_node, 0);
}

/*
 * The CMA area of the machine.
 */
static bool have_cma(struct range *r)
{
	long start = pin_file_number(CMA "base_pfn");

	r->start = start;
	r->nr = pin_file_number(CMA "count");
	return start >= 0;
}

/* Return the size of a memory block in pages, or 0. */
static uint64_t block_pages(void)
{
	FILE *file = fopen(BLOCKS "block_size_bytes", "r");
	unsigned long size = 0;

	if (file) {
		if (fscanf(file, "%lx", &size) != 1)
			size = 0;
		fclose(file);
	}
	return size / PAGE;
}

/* Return the node of a memory block, or -1. */
static int node_of_block(uint64_t block)
{
	char name[128];
	int node;

	for (node = 0; node < 2; node++) {
		snprintf(name, sizeof(name), NODES "%d/memory%llu", node,
			 (unsigned long long)block);
		if (!access(name, F_OK))
			return node;
	}
	return -1;
}

static int allocate_cma(struct buffer *b)
{
	return cma_make_room(range->nr);
}

static int pin_longterm_at(struct buffer *b, char *mem)
{
	uint32_t handle;
	int ret;

	ret = pin_range(b->p.dev, mem, NR_PAGES * PAGE,
			b->flags | FAKE_DMA_PIN_LONGTERM, FAKE_DMA_CALL_SLOW,
			&handle);
	return ret ? ret : pin_unpin(b->p.dev, handle, 0);
}

/*
 * Pin long-term: first @beside, which leaves the CMA area for it, then the buffer,
 * which cannot leave while it has other pins.
 */
static int pin_longterm(struct buffer *b)
{
	int ret = pin_longterm_at(b, beside);

	return ret ? ret : pin_longterm_at(b, b->m.mem);
}

static void cma(struct __test_metadata *_metadata, enum kind what,
		uint32_t flags, int (*event)(struct buffer *b))
{
	if (!have_cma(ranges) || !block_pages())
		SKIP(return, "no CMA area at " CMA);
	nr_ranges = 1;
	ranges_node = node_of_block(ranges->start / block_pages());
	ASSERT_LE(0, ranges_node);
	ASSERT_EQ(0, pin_file_number(CMA "used"));
	expect_in_the_way(_metadata, what, flags, event, -ENOMEM,
			  event == pin_longterm ? "a long-term pin" :
						  "allocation of the CMA area");
	EXPECT_EQ(0, pin_file_number(CMA "used"));
}

TEST(R12_C1_cma_base_read)
{
	cma(_metadata, BASE, 0, allocate_cma);
}

TEST(R12_C1_cma_base_write)
{
	cma(_metadata, BASE, FAKE_DMA_PIN_WRITE, allocate_cma);
}

TEST(R12_C1_cma_thp_read)
{
	cma(_metadata, THP, 0, allocate_cma);
}

TEST(R12_C1_cma_thp_write)
{
	cma(_metadata, THP, FAKE_DMA_PIN_WRITE, allocate_cma);
}

TEST(R22_C1_longterm_base_read)
{
	cma(_metadata, BASE, 0, pin_longterm);
}

TEST(R22_C1_longterm_base_write)
{
	cma(_metadata, BASE, FAKE_DMA_PIN_WRITE, pin_longterm);
}

TEST(R22_C1_longterm_thp_read)
{
	cma(_metadata, THP, 0, pin_longterm);
}

TEST(R22_C1_longterm_thp_write)
{
	cma(_metadata, THP, FAKE_DMA_PIN_WRITE, pin_longterm);
}

/*
 * Memory blocks that can be taken offline.
 */
#define PATIENCE	60	/* seconds until SIGALRM ends a hanging offline */

static int write_state(const char *state)
{
	char name[128];

	snprintf(name, sizeof(name), BLOCKS "memory%llu/state",
		 (unsigned long long)(range->start / range->nr));
	return pin_write_file(name, state);
}

static void on_alarm(int sig)
{
}

/* Take the block offline and online. Return 0 or a negative errno, -EINTR for a hang. */
static int offline_block(struct buffer *b)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	sigset_t set;
	int ret;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigaction(SIGALRM, &sa, NULL);
	alarm(PATIENCE);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	ret = write_state("offline");
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	alarm(0);
	if (!ret && write_state("online_movable"))
		ret = -EIO;
	return ret;
}

/* Return true if a page of the block is reserved since boot. */
static bool reserved(uint64_t start, uint64_t nr)
{
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	uint64_t i, flags[512];
	bool ret = fd < 0;

	for (i = 0; !ret && i < nr; i++) {
		if (i % 512 == 0 &&
		    pread(fd, flags, sizeof(flags),
			  (start + i) * sizeof(*flags)) != sizeof(flags))
			ret = true;
		ret |= flags[i % 512] >> RESERVED & 1;
	}
	close(fd);
	return ret;
}

/*
 * Find blocks of one node that can be taken offline when nothing in them is
 * pinned: blocks of ZONE_MOVABLE without a part of a CMA area.
 */
static void find_blocks(void)
{
	uint64_t block, nr = block_pages();
	char name[128], zone[32];
	struct range cma;
	FILE *file;

	if (!have_cma(&cma))
		cma.nr = 0;
	nr_ranges = 0;
	for (block = 0; nr && nr_ranges < NR_RANGES && block < 1024; block++) {
		snprintf(name, sizeof(name), BLOCKS "memory%llu/valid_zones",
			 (unsigned long long)block);
		file = fopen(name, "r");
		if (!file)
			continue;
		if (fscanf(file, "%31s", zone) != 1)
			zone[0] = 0;
		fclose(file);
		if (strcmp(zone, "Movable") ||
		    (block * nr < cma.start + cma.nr &&
		     cma.start < (block + 1) * nr) ||
		    reserved(block * nr, nr))
			continue;
		if (!nr_ranges)
			ranges_node = node_of_block(block);
		if (node_of_block(block) != ranges_node)
			break;
		ranges[nr_ranges].start = block * nr;
		ranges[nr_ranges++].nr = nr;
	}
}

static void hot_unplug(struct __test_metadata *_metadata, enum kind what,
		       uint32_t flags)
{
	sigset_t set;

	find_blocks();
	if (!nr_ranges)
		SKIP(return, "no memory block in ZONE_MOVABLE");
	/* Leave SIGALRM to the thread in offline_block(). */
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	expect_in_the_way(_metadata, what, flags, offline_block, -EBUSY,
			  "hot-unplug");
}

TEST(R12_C1_hot_unplug_base_read)
{
	hot_unplug(_metadata, BASE, 0);
}

TEST(R12_C1_hot_unplug_base_write)
{
	hot_unplug(_metadata, BASE, FAKE_DMA_PIN_WRITE);
}

TEST(R12_C1_hot_unplug_thp_read)
{
	hot_unplug(_metadata, THP, 0);
}

TEST(R12_C1_hot_unplug_thp_write)
{
	hot_unplug(_metadata, THP, FAKE_DMA_PIN_WRITE);
}

TEST(R12_C1_hot_unplug_thp_split_read)
{
	hot_unplug(_metadata, THP_SPLIT, 0);
}

TEST(R12_C1_hot_unplug_thp_split_write)
{
	hot_unplug(_metadata, THP_SPLIT, FAKE_DMA_PIN_WRITE);
}

TEST(R12_C1_hot_unplug_hugetlb_read)
{
	hot_unplug(_metadata, HUGETLB, 0);
}

TEST(R12_C1_hot_unplug_hugetlb_write)
{
	hot_unplug(_metadata, HUGETLB, FAKE_DMA_PIN_WRITE);
}

int main(int argc, char **argv)
{
	size_t i;

	pin_need_device();
	keep_settings();
	for (i = 0; i < ARRAY_SIZE(balancing); i++) {
		pin_keep(balancing[i].name);
		pin_write_number(balancing[i].name, balancing[i].value);
	}
	return test_harness_run(argc, argv);
}
