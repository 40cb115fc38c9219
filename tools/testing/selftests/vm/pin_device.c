// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test /dev/fake_dma itself: each call and its errors, its transfers, its
 * engine, and that the end of a handle, a file or a process unpins all pages.
 * The other pin tests rely on this.
 *
 * Without FAKE_DMA_CAP_PIN the device takes plain references. All tests apply
 * to them too, except those of counts.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "../kselftest_harness.h"
#include "pin_util.h"

#define NR_PAGES	8
#define NR_THREADS	4
#define NO_HANDLE	0x7fffffff

static unsigned char *map_pages(size_t nr, int prot, int flags)
{
	void *mem = mmap(NULL, nr * PAGE, prot, flags | MAP_ANONYMOUS, -1, 0);

	if (mem == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return mem;
}

/* Map memory and fill each page with a byte of its own. */
static unsigned char *map_filled(size_t nr, int flags)
{
	unsigned char *mem = map_pages(nr, PROT_READ | PROT_WRITE, flags);
	size_t i;

	for (i = 0; i < nr; i++)
		memset(mem + i * PAGE, 'a' + i % 26, PAGE);
	return mem;
}

static void pause_ms(long ms)
{
	struct timespec ts = { .tv_sec = ms / 1000,
			       .tv_nsec = ms % 1000 * 1000000 };

	nanosleep(&ts, NULL);
}

/* Wait for the engine to finish @round. Return false if it takes too long. */
static bool stamp_reaches(const unsigned char *at, uint64_t round)
{
	int ms;

	for (ms = 0; ms < 10000; ms++) {
		if (pin_get(at) >= round)
			return true;
		pause_ms(1);
	}
	return false;
}

FIXTURE(device) {
	int fd;
	uint32_t caps;
	long long held;
	unsigned char *mem;	/* NR_PAGES pages, all present */
};

FIXTURE_SETUP(device)
{
	self->fd = pin_open();
	ASSERT_LE(0, self->fd);
	self->caps = pin_caps(self->fd);
	self->held = pin_held();
	self->mem = map_filled(NR_PAGES, MAP_PRIVATE);
}

/* The close of the file drops all pins of the test. */
FIXTURE_TEARDOWN(device)
{
	close(self->fd);
	EXPECT_EQ(self->held, pin_held());
}

#define NEED_PINS() do {						\
	if (!(self->caps & FAKE_DMA_CAP_PIN))				\
		SKIP(_exit(255), "needs a kernel with pins");		\
} while (0)

TEST_F(device, node)
{
	struct stat st;

	ASSERT_EQ(0, stat(PIN_DEVICE, &st));
	EXPECT_TRUE(S_ISCHR(st.st_mode));
	EXPECT_EQ(0600, st.st_mode & 07777);
	EXPECT_EQ(0, st.st_uid);
}

TEST_F(device, caps)
{
	struct fake_dma_caps caps = { .caps = ~0, .reserved = ~0 };

	EXPECT_EQ(0, pin_ioctl(self->fd, FAKE_DMA_CAPS, &caps));
	EXPECT_EQ(0, caps.caps & ~(FAKE_DMA_CAP_PIN | FAKE_DMA_CAP_MISUSE |
				   FAKE_DMA_CAP_UNLOCKED));
	EXPECT_EQ(0, caps.reserved);
	/* A kernel with pins has their counters, and no other has. */
	EXPECT_EQ(!!(caps.caps & FAKE_DMA_CAP_PIN),
		  pin_vmstat("nr_foll_pin_acquired") >= 0);
	EXPECT_EQ(!!(caps.caps & FAKE_DMA_CAP_PIN),
		  pin_vmstat("nr_foll_pin_released") >= 0);
}

TEST_F(device, unknown_call)
{
	EXPECT_EQ(-ENOTTY, pin_ioctl(self->fd, _IO(FAKE_DMA_IOC_MAGIC, 99),
				     NULL));
	EXPECT_EQ(-ENOTTY, pin_ioctl(self->fd, _IO('x', 1), NULL));
}

/* Each call fails if the pointer to its argument is bad. */
TEST_F(device, bad_argument)
{
	static const unsigned long cmds[] = {
		FAKE_DMA_CAPS, FAKE_DMA_PIN, FAKE_DMA_UNPIN, FAKE_DMA_WRITE,
		FAKE_DMA_READ, FAKE_DMA_START, FAKE_DMA_STOP, FAKE_DMA_QUERY,
	};
	void *hole = map_pages(1, PROT_NONE, MAP_PRIVATE);
	size_t i;

	for (i = 0; i < sizeof(cmds) / sizeof(*cmds); i++) {
		EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, cmds[i], NULL));
		EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, cmds[i], hole));
		EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, cmds[i],
					     (void *)~0xfffUL));
	}
}

/* Each of these calls gives its error and pins nothing. */
TEST_F(device, pin_errors)
{
	uint64_t mem = (uintptr_t)self->mem;
	uint64_t ro = (uintptr_t)map_pages(1, PROT_READ, MAP_PRIVATE);
	uint64_t none = (uintptr_t)map_pages(1, PROT_NONE, MAP_PRIVATE);
	uint64_t gone = (uintptr_t)map_pages(1, PROT_READ, MAP_PRIVATE);
	uint64_t len = PAGE;
	const struct {
		const char *what;
		int error;
		struct fake_dma_pin pin;
	} cases[] = {
		{ "no length", EINVAL, { .addr = mem } },
		{ "unknown flag", EINVAL,
		  { .addr = mem, .len = len, .flags = 1U << 5 } },
		{ "highest flag", EINVAL,
		  { .addr = mem, .len = len, .flags = 1U << 31 } },
		{ "unknown call", EINVAL,
		  { .addr = mem, .len = len, .call = 6 } },
		{ "unknown call", EINVAL,
		  { .addr = mem, .len = len, .call = ~0U } },
		{ "pid without remote call", EINVAL,
		  { .addr = mem, .len = len, .pid = getpid() } },
		{ "remote without pid", EINVAL,
		  { .addr = mem, .len = len, .call = FAKE_DMA_CALL_REMOTE } },
		{ "remote, negative pid", EINVAL,
		  { .addr = mem, .len = len, .call = FAKE_DMA_CALL_REMOTE,
		    .pid = -1 } },
		{ "remote, no such process", ESRCH,
		  { .addr = mem, .len = len, .call = FAKE_DMA_CALL_REMOTE,
		    .pid = INT_MAX } },
		{ "remote, kernel thread", ESRCH,
		  { .addr = mem, .len = len, .call = FAKE_DMA_CALL_REMOTE,
		    .pid = 2 } },
		{ "long-term get", EINVAL,
		  { .addr = mem, .len = len,
		    .flags = FAKE_DMA_PIN_GET | FAKE_DMA_PIN_LONGTERM } },
		{ "long-term, locked", EINVAL,
		  { .addr = mem, .len = len, .flags = FAKE_DMA_PIN_LONGTERM,
		    .call = FAKE_DMA_CALL_LOCKED } },
		{ "end of range wraps", EOVERFLOW,
		  { .addr = mem, .len = ~0ULL } },
		{ "end of range wraps to 0", EOVERFLOW,
		  { .addr = ~0ULL, .len = 1 } },
		{ "more pages than an int holds", EOVERFLOW,
		  { .addr = 0, .len = ((1ULL << 31) - 1) * len + 1 } },
		{ "page array too large", ENOMEM,
		  { .addr = 0, .len = ((1ULL << 31) - 1) * len } },
		{ "address 0", EFAULT, { .addr = 0, .len = len } },
		{ "kernel address", EFAULT,
		  { .addr = 1ULL << 63, .len = len } },
		{ "unmapped", EFAULT, { .addr = gone, .len = len } },
		{ "no access", EFAULT, { .addr = none, .len = len } },
		{ "write to read-only memory", EFAULT,
		  { .addr = ro, .len = len, .flags = FAKE_DMA_PIN_WRITE } },
		{ "write to read-only memory, slow", EFAULT,
		  { .addr = ro, .len = len, .flags = FAKE_DMA_PIN_WRITE,
		    .call = FAKE_DMA_CALL_SLOW } },
	};
	size_t i;

	munmap((void *)(uintptr_t)gone, PAGE);
	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		struct fake_dma_pin pin = cases[i].pin;

		EXPECT_EQ(-cases[i].error,
			  pin_ioctl(self->fd, FAKE_DMA_PIN, &pin)) {
			TH_LOG("FAKE_DMA_PIN with %s must give errno %d",
			       cases[i].what, cases[i].error);
		}
		EXPECT_EQ(0, pin.handle);
		EXPECT_EQ(self->held, pin_held());
	}
}

/* The driver refuses misuse if the kernel would not survive it. */
TEST_F(device, misuse_unsupported)
{
	uint32_t handle;

	if (self->caps & FAKE_DMA_CAP_MISUSE)
		SKIP(return, "needs a kernel that does not survive misuse");
	EXPECT_EQ(-EOPNOTSUPP,
		  pin_range(self->fd, self->mem, PAGE, FAKE_DMA_PIN_BADFLAGS,
			    FAKE_DMA_CALL_FAST, &handle));
	ASSERT_EQ(0, pin_range(self->fd, self->mem, PAGE, FAKE_DMA_PIN_GET,
			       FAKE_DMA_CALL_FAST, &handle));
	EXPECT_EQ(-EOPNOTSUPP,
		  pin_unpin(self->fd, handle, FAKE_DMA_UNPIN_MISUSE));
	EXPECT_EQ(0, pin_unpin(self->fd, handle, 0));
}

/* The driver refuses long-term unlocked pins if mm would warn of them. */
TEST_F(device, longterm_unlocked)
{
	uint32_t handle;
	int ret = pin_range(self->fd, self->mem, PAGE, FAKE_DMA_PIN_LONGTERM,
			    FAKE_DMA_CALL_UNLOCKED, &handle);

	if (!(self->caps & FAKE_DMA_CAP_UNLOCKED)) {
		EXPECT_EQ(-EINVAL, ret);
		return;
	}
	ASSERT_EQ(0, ret);
	EXPECT_EQ(0, pin_unpin(self->fd, handle, 0));
}

/* If the handle cannot be copied to the caller, it must not exist. */
TEST_F(device, pin_result_fault)
{
	struct fake_dma_pin *pin;
	uint32_t i;

	pin = (void *)map_pages(1, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	pin->addr = (uintptr_t)self->mem;
	pin->len = NR_PAGES * PAGE;
	ASSERT_EQ(0, mprotect(pin, PAGE, PROT_READ));
	EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, FAKE_DMA_PIN, pin));
	EXPECT_EQ(self->held, pin_held());
	for (i = 0; i < 8; i++)
		EXPECT_EQ(-ENOENT, pin_unpin(self->fd, i, 0));
}

TEST_F(device, remote_needs_ptrace)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];
	uint32_t handle;

	ASSERT_EQ(0, pin_range_pid(self->fd, getpid(), self->mem, PAGE, 0,
				   &handle));
	ASSERT_EQ(0, syscall(SYS_capget, &header, data));
	data[0].effective &= ~(1U << CAP_SYS_PTRACE);
	ASSERT_EQ(0, syscall(SYS_capset, &header, data));
	EXPECT_EQ(-EPERM, pin_range_pid(self->fd, getpid(), self->mem, PAGE,
					0, &handle));
	EXPECT_EQ(0, pin_range(self->fd, self->mem, PAGE, 0,
			       FAKE_DMA_CALL_FAST, &handle));
}

/* The device writes to memory of another process, which sees the bytes. */
TEST_F(device, remote)
{
	int to_child[2], to_us[2];
	uint32_t handle;
	pid_t child;
	int status;
	char c;

	ASSERT_EQ(0, pipe(to_child));
	ASSERT_EQ(0, pipe(to_us));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		memset(self->mem, 'c', PAGE);	/* make its page exclusive */
		if (write(to_us[1], "r", 1) != 1 ||
		    read(to_child[0], &c, 1) != 1)
			_exit(2);
		_exit(memcmp(self->mem, "cremotec", 8) ? 1 : 0);
	}
	ASSERT_EQ(1, read(to_us[0], &c, 1));
	ASSERT_EQ(0, pin_range_pid(self->fd, child, self->mem, PAGE,
				   FAKE_DMA_PIN_WRITE, &handle));
	EXPECT_EQ(0, pin_write(self->fd, handle, 1, "remote", 6));
	ASSERT_EQ(1, write(to_child[1], "g", 1));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	/* The parent has another page, and the pin outlives the child. */
	EXPECT_EQ('a', self->mem[1]);
	EXPECT_EQ(0, pin_unpin(self->fd, handle, FAKE_DMA_UNPIN_DIRTY));
}

/* Test every call that pins with every kind of unpin. */
FIXTURE(call) {
	int fd;
	uint32_t caps;
	long long held;
	unsigned char *mem;
};

FIXTURE_VARIANT(call) {
	uint32_t call;
	bool longterm;		/* may be combined with FAKE_DMA_PIN_LONGTERM */
};

FIXTURE_VARIANT_ADD(call, fast) {
	.call = FAKE_DMA_CALL_FAST, .longterm = true
};

FIXTURE_VARIANT_ADD(call, fast_only) {
	.call = FAKE_DMA_CALL_FAST_ONLY, .longterm = true
};

FIXTURE_VARIANT_ADD(call, slow) {
	.call = FAKE_DMA_CALL_SLOW, .longterm = true
};

FIXTURE_VARIANT_ADD(call, locked) {
	.call = FAKE_DMA_CALL_LOCKED, .longterm = false
};

FIXTURE_VARIANT_ADD(call, unlocked) {
	.call = FAKE_DMA_CALL_UNLOCKED, .longterm = false
};

FIXTURE_VARIANT_ADD(call, remote) {
	.call = FAKE_DMA_CALL_REMOTE, .longterm = true
};

FIXTURE_SETUP(call)
{
	self->fd = pin_open();
	ASSERT_LE(0, self->fd);
	self->caps = pin_caps(self->fd);
	self->held = pin_held();
	self->mem = map_filled(NR_PAGES, MAP_PRIVATE);
}

FIXTURE_TEARDOWN(call)
{
	close(self->fd);
	EXPECT_EQ(self->held, pin_held());
}

TEST_F(call, pin_and_unpin)
{
	static const uint32_t pin_flags[] = {
		0, FAKE_DMA_PIN_WRITE, FAKE_DMA_PIN_PARTIAL,
		FAKE_DMA_PIN_LONGTERM, FAKE_DMA_PIN_LONGTERM | FAKE_DMA_PIN_WRITE,
		FAKE_DMA_PIN_GET, FAKE_DMA_PIN_GET | FAKE_DMA_PIN_WRITE,
	};
	static const uint32_t unpin_flags[] = {
		0, FAKE_DMA_UNPIN_DIRTY, FAKE_DMA_UNPIN_RANGE,
		FAKE_DMA_UNPIN_RANGE | FAKE_DMA_UNPIN_DIRTY,
	};
	struct fake_dma_page page[NR_PAGES];
	unsigned char seen[NR_PAGES];
	size_t i, j, k;

	for (i = 0; i < sizeof(pin_flags) / sizeof(*pin_flags); i++) {
		bool get = pin_flags[i] & FAKE_DMA_PIN_GET;
		bool counts = self->caps & FAKE_DMA_CAP_PIN && !get;

		if (pin_flags[i] & FAKE_DMA_PIN_LONGTERM && !variant->longterm)
			continue;
		for (j = 0; j < sizeof(unpin_flags) / sizeof(*unpin_flags); j++) {
			struct fake_dma_pin pin = {
				.addr = (uintptr_t)self->mem,
				.len = NR_PAGES * PAGE,
				.flags = pin_flags[i],
				.call = variant->call,
			};
			int expect = 0;

			if (variant->call == FAKE_DMA_CALL_REMOTE)
				pin.pid = getpid();
			ASSERT_EQ(0, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin)) {
				TH_LOG("call %u, flags %#x: all %d pages must get pinned",
				       variant->call, pin_flags[i], NR_PAGES);
			}
			EXPECT_NE(0, pin.handle);
			EXPECT_EQ(NR_PAGES, pin.nr_pages);
			EXPECT_EQ(self->held + (counts ? NR_PAGES : 0),
				  pin_held());

			ASSERT_EQ(0, pin_query(self->fd, pin.handle, 0,
					       NR_PAGES, page));
			for (k = 0; k < NR_PAGES; k++) {
				EXPECT_EQ(counts, page[k].pincount);
				EXPECT_EQ(counts, !!(page[k].flags &
					  FAKE_DMA_PAGE_MAYBE_PINNED));
				EXPECT_EQ(0, pin_read(self->fd, pin.handle,
						      k * PAGE + 5, seen + k,
						      1));
				EXPECT_EQ('a' + k, seen[k]);
			}

			if (get && unpin_flags[j] & FAKE_DMA_UNPIN_RANGE)
				expect = -EINVAL;
			EXPECT_EQ(expect, pin_unpin(self->fd, pin.handle,
						    unpin_flags[j]));
			if (expect)
				EXPECT_EQ(0, pin_unpin(self->fd, pin.handle,
						       0));
			EXPECT_EQ(-ENOENT, pin_unpin(self->fd, pin.handle, 0));
			EXPECT_EQ(self->held, pin_held());
		}
	}
}

/* All calls but fast_only fault in untouched memory. */
TEST_F(call, faults_in)
{
	unsigned char *fresh = map_pages(NR_PAGES, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE);
	struct fake_dma_pin pin = {
		.addr = (uintptr_t)fresh,
		.len = NR_PAGES * PAGE,
		.flags = FAKE_DMA_PIN_WRITE,
		.call = variant->call,
		.pid = variant->call == FAKE_DMA_CALL_REMOTE ? getpid() : 0,
	};

	if (variant->call == FAKE_DMA_CALL_FAST_ONLY) {
		EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin));
		pin.flags |= FAKE_DMA_PIN_PARTIAL;
		EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin));
		/* It pins the first pages if these are present. */
		memset(fresh, 1, 2 * PAGE);
		pin.flags &= ~FAKE_DMA_PIN_PARTIAL;
		EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin));
		EXPECT_EQ(self->held, pin_held());
		pin.flags |= FAKE_DMA_PIN_PARTIAL;
		ASSERT_EQ(0, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin));
		EXPECT_EQ(2, pin.nr_pages);
		return;
	}
	ASSERT_EQ(0, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin));
	EXPECT_EQ(NR_PAGES, pin.nr_pages);
	EXPECT_EQ(0, pin_write(self->fd, pin.handle, 3 * PAGE, "new", 3));
	EXPECT_EQ(0, memcmp(fresh + 3 * PAGE, "new", 3));
}

/* A range with a hole fails, or is pinned up to the hole. */
TEST_F(call, partial)
{
	struct fake_dma_pin pin = {
		.addr = (uintptr_t)self->mem + 100,
		.len = NR_PAGES * PAGE - 100,
		.flags = FAKE_DMA_PIN_WRITE,
		.call = variant->call,
		.pid = variant->call == FAKE_DMA_CALL_REMOTE ? getpid() : 0,
	};
	size_t len = 3 * PAGE - 100;
	char byte;

	ASSERT_EQ(0, munmap(self->mem + 3 * PAGE, PAGE));
	EXPECT_EQ(-EFAULT, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin));
	EXPECT_EQ(self->held, pin_held());

	pin.flags |= FAKE_DMA_PIN_PARTIAL;
	ASSERT_EQ(0, pin_ioctl(self->fd, FAKE_DMA_PIN, &pin));
	EXPECT_EQ(3, pin.nr_pages);
	if (self->caps & FAKE_DMA_CAP_PIN)
		EXPECT_EQ(self->held + 3, pin_held());
	EXPECT_EQ(0, pin_read(self->fd, pin.handle, len - 1, &byte, 1));
	EXPECT_EQ('c', byte);
	EXPECT_EQ(-EOVERFLOW, pin_read(self->fd, pin.handle, len, &byte, 1));
	EXPECT_EQ(0, pin_unpin(self->fd, pin.handle, 0));
}

/* The device transfers exactly the bytes of the range. */
TEST_F(device, unaligned)
{
	size_t starts[] = { 0, 1, 8, PAGE / 2 + 3, PAGE - 1 };
	size_t lens[] = { 1, 7, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE - 1,
			  3 * PAGE + 2 };
	size_t total = NR_PAGES * PAGE;
	unsigned char *want, *data, *seen;
	uint32_t handle;
	size_t i, j, k;

	want = malloc(total);
	data = malloc(total);
	seen = malloc(total);
	ASSERT_TRUE(want && data && seen);
	for (i = 0; i < sizeof(starts) / sizeof(*starts); i++) {
		for (j = 0; j < sizeof(lens) / sizeof(*lens); j++) {
			size_t start = PAGE + starts[i], len = lens[j];
			size_t pages = (starts[i] + len + PAGE - 1) / PAGE;
			struct fake_dma_page page;

			for (k = 0; k < total; k++) {
				want[k] = k * 7 + i;
				data[k] = ~(k * 13 + j);
			}
			memcpy(self->mem, want, total);
			ASSERT_EQ(0, pin_range(self->fd, self->mem + start, len,
					       FAKE_DMA_PIN_WRITE,
					       FAKE_DMA_CALL_FAST, &handle));

			EXPECT_EQ(0, pin_read(self->fd, handle, 0, seen, len));
			EXPECT_EQ(0, memcmp(seen, want + start, len));
			EXPECT_EQ(0, pin_write(self->fd, handle, 0, data, len));
			memcpy(want + start, data, len);
			EXPECT_EQ(0, memcmp(self->mem, want, total));

			/* The last byte can be written, the next cannot. */
			EXPECT_EQ(0, pin_write(self->fd, handle, len - 1, "!",
					       1));
			want[start + len - 1] = '!';
			EXPECT_EQ(0, memcmp(self->mem, want, total));
			EXPECT_EQ(-EOVERFLOW, pin_write(self->fd, handle, len,
							"!", 1));
			EXPECT_EQ(0, pin_query(self->fd, handle, pages - 1, 1,
					       &page));
			EXPECT_EQ(-EOVERFLOW, pin_query(self->fd, handle,
							pages, 1, &page));
			EXPECT_EQ(0, pin_unpin(self->fd, handle, 0));
		}
	}
}

TEST_F(device, transfer_errors)
{
	size_t len = 2 * PAGE;
	unsigned char *hole = map_filled(2, MAP_PRIVATE);
	char *buf = calloc(1, NR_PAGES * PAGE);
	struct fake_dma_xfer xfer;
	uint32_t ro, rw;

	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, munmap(hole + PAGE, PAGE));
	ASSERT_EQ(0, pin_range(self->fd, self->mem, len, 0, FAKE_DMA_CALL_FAST,
			       &ro));
	ASSERT_EQ(0, pin_range(self->fd, self->mem, len, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &rw));

	EXPECT_EQ(-EPERM, pin_write(self->fd, ro, 0, buf, 1));
	EXPECT_EQ(0, pin_read(self->fd, ro, 0, buf, 1));

	EXPECT_EQ(-EINVAL, pin_write(self->fd, rw, 0, buf, 0));
	EXPECT_EQ(-EINVAL, pin_read(self->fd, rw, 0, buf, 0));
	xfer = (struct fake_dma_xfer) { .handle = rw, .reserved = 1, .len = 1,
					.buf = (uintptr_t)buf };
	EXPECT_EQ(-EINVAL, pin_ioctl(self->fd, FAKE_DMA_WRITE, &xfer));
	EXPECT_EQ(-EINVAL, pin_ioctl(self->fd, FAKE_DMA_READ, &xfer));

	EXPECT_EQ(-ENOENT, pin_write(self->fd, 0, 0, buf, 1));
	EXPECT_EQ(-ENOENT, pin_read(self->fd, NO_HANDLE, 0, buf, 1));

	EXPECT_EQ(-EOVERFLOW, pin_read(self->fd, rw, len, buf, 1));
	EXPECT_EQ(-EOVERFLOW, pin_read(self->fd, rw, len + 1, buf, 1));
	EXPECT_EQ(-EOVERFLOW, pin_read(self->fd, rw, 0, buf, len + 1));
	EXPECT_EQ(-EOVERFLOW, pin_read(self->fd, rw, 1, buf, len));
	EXPECT_EQ(-EOVERFLOW, pin_read(self->fd, rw, 1, buf, ~0ULL));
	EXPECT_EQ(-EOVERFLOW, pin_write(self->fd, rw, ~0ULL, buf, 1));
	EXPECT_EQ(-EOVERFLOW, pin_write(self->fd, rw, ~0ULL, buf, ~0ULL));

	EXPECT_EQ(-EFAULT, pin_write(self->fd, rw, 0, NULL, 1));
	EXPECT_EQ(-EFAULT, pin_read(self->fd, rw, 0, NULL, 1));
	EXPECT_EQ(-EFAULT, pin_read(self->fd, rw, 0, (void *)(1ULL << 63), 1));
	EXPECT_EQ('a', self->mem[0]);
	EXPECT_EQ('b', self->mem[PAGE]);

	/* A fault half way: the bytes before it arrive, and no more. */
	memset(hole, 'h', PAGE);
	EXPECT_EQ(-EFAULT, pin_write(self->fd, rw, 0, hole, 2 * PAGE));
	EXPECT_EQ('h', self->mem[0]);
	EXPECT_EQ('h', self->mem[PAGE - 1]);
	EXPECT_EQ('b', self->mem[PAGE]);

	/* Both handles still work after the errors. */
	EXPECT_EQ(0, pin_write(self->fd, rw, 0, "fine", 4));
	EXPECT_EQ(0, pin_read(self->fd, ro, 0, buf, 4));
	EXPECT_EQ(0, memcmp(buf, "fine", 4));
	EXPECT_EQ(0, pin_unpin(self->fd, ro, 0));
	EXPECT_EQ(-ENOENT, pin_read(self->fd, ro, 0, buf, 1));
	EXPECT_EQ(0, pin_read(self->fd, rw, 0, buf, len));
}

/* The user's buffer may be untouched, and it may be pinned itself. */
TEST_F(device, transfer_buffers)
{
	unsigned char *fresh = map_pages(NR_PAGES, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE);
	size_t len = NR_PAGES * PAGE;
	uint32_t handle;

	ASSERT_EQ(0, pin_range(self->fd, self->mem, len, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &handle));
	EXPECT_EQ(0, pin_read(self->fd, handle, 0, fresh, len));
	EXPECT_EQ(0, memcmp(self->mem, fresh, len));
	EXPECT_EQ(0, pin_write(self->fd, handle, 0, self->mem + PAGE,
			       len - PAGE));
	EXPECT_EQ(0, memcmp(self->mem, fresh + PAGE, len - PAGE));
	EXPECT_EQ(0, pin_read(self->fd, handle, 0, self->mem + PAGE, PAGE));
	EXPECT_EQ('b', self->mem[PAGE]);
}

TEST_F(device, unpin_errors)
{
	uint32_t got, pinned;
	char byte;

	ASSERT_EQ(0, pin_range(self->fd, self->mem, PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &pinned));
	ASSERT_EQ(0, pin_range(self->fd, self->mem, PAGE, FAKE_DMA_PIN_GET,
			       FAKE_DMA_CALL_FAST, &got));
	EXPECT_NE(pinned, got);

	EXPECT_EQ(-EINVAL, pin_unpin(self->fd, pinned, 1U << 3));
	EXPECT_EQ(-EINVAL, pin_unpin(self->fd, pinned, 1U << 31));
	EXPECT_EQ(-ENOENT, pin_unpin(self->fd, 0, 0));
	EXPECT_EQ(-ENOENT, pin_unpin(self->fd, NO_HANDLE, 0));
	EXPECT_EQ(-EINVAL, pin_unpin(self->fd, pinned, FAKE_DMA_UNPIN_MISUSE));
	EXPECT_EQ(-EINVAL, pin_unpin(self->fd, got, FAKE_DMA_UNPIN_RANGE));

	ASSERT_EQ(0, pin_start(self->fd, pinned, 0, 1000));
	EXPECT_EQ(-EBUSY, pin_unpin(self->fd, pinned, 0));
	EXPECT_EQ(0, pin_stop(self->fd, pinned, NULL));

	EXPECT_EQ(0, pin_read(self->fd, got, 0, &byte, 1));
	EXPECT_EQ(0, pin_unpin(self->fd, got, 0));
	EXPECT_EQ(0, pin_read(self->fd, pinned, 0, &byte, 1));
	EXPECT_EQ(0, pin_unpin(self->fd, pinned, 0));
	EXPECT_EQ(-ENOENT, pin_unpin(self->fd, pinned, 0));
}

/* A handle is valid only in its own file. */
TEST_F(device, two_files)
{
	int other = pin_open();
	uint32_t handle;
	char byte;

	ASSERT_LE(0, other);
	ASSERT_EQ(0, pin_range(self->fd, self->mem, PAGE, 0,
			       FAKE_DMA_CALL_FAST, &handle));
	EXPECT_EQ(-ENOENT, pin_unpin(other, handle, 0));
	EXPECT_EQ(-ENOENT, pin_read(other, handle, 0, &byte, 1));
	close(other);
	EXPECT_EQ(0, pin_unpin(self->fd, handle, 0));
}

/* Only an unpin with FAKE_DMA_UNPIN_DIRTY makes a page dirty. */
TEST_F(device, dirty)
{
	static const struct {
		uint32_t pin, unpin;
	} cases[] = {
		{ 0, 0 },
		{ 0, FAKE_DMA_UNPIN_DIRTY },
		{ 0, FAKE_DMA_UNPIN_RANGE },
		{ 0, FAKE_DMA_UNPIN_RANGE | FAKE_DMA_UNPIN_DIRTY },
		{ FAKE_DMA_PIN_GET, 0 },
		{ FAKE_DMA_PIN_GET, FAKE_DMA_UNPIN_DIRTY },
	};
	struct fake_dma_page page[NR_PAGES];
	uint32_t watch, handle;
	size_t i, k;

	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		unsigned char *mem = map_filled(NR_PAGES, MAP_PRIVATE);
		bool dirty = cases[i].unpin & FAKE_DMA_UNPIN_DIRTY;

		ASSERT_EQ(0, pin_range(self->fd, mem, NR_PAGES * PAGE, 0,
				       FAKE_DMA_CALL_FAST, &watch));
		ASSERT_EQ(0, pin_range(self->fd, mem, NR_PAGES * PAGE,
				       FAKE_DMA_PIN_WRITE | cases[i].pin,
				       FAKE_DMA_CALL_FAST, &handle));
		ASSERT_EQ(0, pin_query(self->fd, watch, 0, NR_PAGES, page));
		for (k = 0; k < NR_PAGES; k++)
			EXPECT_EQ(0, page[k].flags & FAKE_DMA_PAGE_DIRTY);
		EXPECT_EQ(0, pin_unpin(self->fd, handle, cases[i].unpin));
		ASSERT_EQ(0, pin_query(self->fd, watch, 0, NR_PAGES, page));
		for (k = 0; k < NR_PAGES; k++)
			EXPECT_EQ(dirty, !!(page[k].flags &
					    FAKE_DMA_PAGE_DIRTY)) {
				TH_LOG("page %zu, unpin flags %#x: dirty must be %d",
				       k, cases[i].unpin, dirty);
			}
		EXPECT_EQ(0, pin_unpin(self->fd, watch, 0));
		munmap(mem, NR_PAGES * PAGE);
	}
}

TEST_F(device, query_errors)
{
	struct fake_dma_page page[NR_PAGES + 1];
	struct fake_dma_query query;
	uint32_t handle;

	ASSERT_EQ(0, pin_range(self->fd, self->mem, NR_PAGES * PAGE, 0,
			       FAKE_DMA_CALL_FAST, &handle));
	EXPECT_EQ(-ENOENT, pin_query(self->fd, 0, 0, 1, page));
	EXPECT_EQ(-ENOENT, pin_query(self->fd, NO_HANDLE, 0, 1, page));
	EXPECT_EQ(-EINVAL, pin_query(self->fd, handle, 0, 0, page));
	query = (struct fake_dma_query) { .handle = handle, .reserved = 1,
					  .nr = 1, .buf = (uintptr_t)page };
	EXPECT_EQ(-EINVAL, pin_ioctl(self->fd, FAKE_DMA_QUERY, &query));
	EXPECT_EQ(-EOVERFLOW, pin_query(self->fd, handle, 0, NR_PAGES + 1,
					page));
	EXPECT_EQ(-EOVERFLOW, pin_query(self->fd, handle, NR_PAGES, 1, page));
	EXPECT_EQ(-EOVERFLOW, pin_query(self->fd, handle, 1, ~0ULL, page));
	EXPECT_EQ(-EOVERFLOW, pin_query(self->fd, handle, ~0ULL, 1, page));
	EXPECT_EQ(-EFAULT, pin_query(self->fd, handle, 0, 1, NULL));
	EXPECT_EQ(-EFAULT, pin_query(self->fd, handle, 0, 1,
				     (void *)(1ULL << 63)));
	EXPECT_EQ(0, pin_query(self->fd, handle, 0, NR_PAGES, page));
}

TEST_F(device, query)
{
	struct fake_dma_page page[NR_PAGES], more;
	unsigned char *ro = map_pages(1, PROT_READ, MAP_PRIVATE);
	bool pins = self->caps & FAKE_DMA_CAP_PIN;
	uint32_t handle, got, again;
	size_t k;

	ASSERT_EQ(0, pin_range(self->fd, self->mem, NR_PAGES * PAGE,
			       FAKE_DMA_PIN_GET, FAKE_DMA_CALL_FAST, &got));
	ASSERT_EQ(0, pin_query(self->fd, got, 0, NR_PAGES, page));
	for (k = 0; k < NR_PAGES; k++) {
		EXPECT_EQ(pin_pfn(getpid(), self->mem + k * PAGE), page[k].pfn);
		EXPECT_EQ(1, page[k].mapcount);
		EXPECT_EQ(0, page[k].pincount);
		EXPECT_EQ(FAKE_DMA_PAGE_ANON, page[k].flags);
		/* The page table and the handle hold one each. */
		EXPECT_LE(2, page[k].refcount);
	}

	ASSERT_EQ(0, pin_range(self->fd, self->mem, NR_PAGES * PAGE, 0,
			       FAKE_DMA_CALL_FAST, &handle));
	ASSERT_EQ(0, pin_range(self->fd, self->mem + PAGE, 1, 0,
			       FAKE_DMA_CALL_FAST, &again));
	/* The index counts from the first page of the handle. */
	ASSERT_EQ(0, pin_query(self->fd, handle, 1, 1, &more));
	EXPECT_EQ(page[1].pfn, more.pfn);
	EXPECT_EQ(pins ? 2 : 0, more.pincount);
	EXPECT_EQ(FAKE_DMA_PAGE_ANON |
		  (pins ? FAKE_DMA_PAGE_MAYBE_PINNED : 0), more.flags);
	if (pins)
		EXPECT_LE(2 * 1024, more.refcount);

	EXPECT_EQ(0, pin_unpin(self->fd, again, 0));
	EXPECT_EQ(0, pin_unpin(self->fd, handle, 0));
	ASSERT_EQ(0, pin_query(self->fd, got, 1, 1, &more));
	EXPECT_GT(1024, more.refcount);
	EXPECT_EQ(0, more.pincount);
	EXPECT_EQ(FAKE_DMA_PAGE_ANON, more.flags);

	/* A get of untouched memory finds the zero page. */
	ASSERT_EQ(0, pin_range(self->fd, ro, PAGE, FAKE_DMA_PIN_GET,
			       FAKE_DMA_CALL_SLOW, &handle));
	ASSERT_EQ(0, pin_query(self->fd, handle, 0, 1, &more));
	EXPECT_EQ(FAKE_DMA_PAGE_ZERO, more.flags & FAKE_DMA_PAGE_ZERO);
}

TEST_F(device, counters)
{
	long long acquired = pin_vmstat("nr_foll_pin_acquired");
	long long released = pin_vmstat("nr_foll_pin_released");
	uint32_t handle, got;

	NEED_PINS();
	ASSERT_EQ(0, pin_range(self->fd, self->mem, NR_PAGES * PAGE,
			       FAKE_DMA_PIN_GET, FAKE_DMA_CALL_FAST, &got));
	EXPECT_EQ(acquired, pin_vmstat("nr_foll_pin_acquired"));
	ASSERT_EQ(0, pin_range(self->fd, self->mem, NR_PAGES * PAGE, 0,
			       FAKE_DMA_CALL_FAST, &handle));
	EXPECT_EQ(acquired + NR_PAGES, pin_vmstat("nr_foll_pin_acquired"));
	EXPECT_EQ(released, pin_vmstat("nr_foll_pin_released"));
	EXPECT_EQ(0, pin_unpin(self->fd, got, 0));
	EXPECT_EQ(released, pin_vmstat("nr_foll_pin_released"));
	EXPECT_EQ(0, pin_unpin(self->fd, handle, 0));
	EXPECT_EQ(acquired + NR_PAGES, pin_vmstat("nr_foll_pin_acquired"));
	EXPECT_EQ(released + NR_PAGES, pin_vmstat("nr_foll_pin_released"));
}

TEST_F(device, engine_errors)
{
	struct fake_dma_stop stop;
	uint32_t ro, rw;

	ASSERT_EQ(0, pin_range(self->fd, self->mem, PAGE, 0,
			       FAKE_DMA_CALL_FAST, &ro));
	ASSERT_EQ(0, pin_range(self->fd, self->mem, PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &rw));
	EXPECT_EQ(-ENOENT, pin_start(self->fd, 0, 0, 0));
	EXPECT_EQ(-ENOENT, pin_start(self->fd, NO_HANDLE, 0, 0));
	EXPECT_EQ(-EPERM, pin_start(self->fd, ro, 0, 0));
	EXPECT_EQ(-EINVAL, pin_start(self->fd, rw, 4, 0));
	EXPECT_EQ(-EINVAL, pin_start(self->fd, rw, PAGE, 0));
	EXPECT_EQ(-EINVAL, pin_start(self->fd, rw, ~7U, 0));
	EXPECT_EQ(-EINVAL, pin_start(self->fd, rw, 0, ~0ULL));

	EXPECT_EQ(-ENOENT, pin_stop(self->fd, 0, NULL));
	EXPECT_EQ(-ENOENT, pin_stop(self->fd, NO_HANDLE, NULL));
	EXPECT_EQ(-EINVAL, pin_stop(self->fd, rw, NULL));
	stop = (struct fake_dma_stop) { .handle = rw, .reserved = 1 };
	EXPECT_EQ(-EINVAL, pin_ioctl(self->fd, FAKE_DMA_STOP, &stop));

	ASSERT_EQ(0, pin_start(self->fd, rw, 0, 1000));
	EXPECT_EQ(-EBUSY, pin_start(self->fd, rw, 8, 1000));
	EXPECT_EQ(-EINVAL, pin_ioctl(self->fd, FAKE_DMA_STOP, &stop));
	EXPECT_TRUE(stamp_reaches(self->mem, 3));
	EXPECT_EQ(0, pin_stop(self->fd, rw, NULL));
	EXPECT_EQ(-EINVAL, pin_stop(self->fd, rw, NULL));
	EXPECT_EQ(0, pin_unpin(self->fd, rw, 0));
	EXPECT_EQ(-ENOENT, pin_start(self->fd, rw, 0, 0));
}

TEST_F(device, engine)
{
	static const uint64_t periods[] = { 0, 1, 100, 1000 };
	size_t len = NR_PAGES * PAGE;
	unsigned char *before = malloc(len);
	uint32_t handle;
	uint64_t rounds;
	size_t i, k;

	ASSERT_NE(NULL, before);
	ASSERT_EQ(0, pin_range(self->fd, self->mem, len, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &handle));
	for (i = 0; i < sizeof(periods) / sizeof(*periods); i++) {
		size_t at = i * 256;

		for (k = 0; k < NR_PAGES; k++)
			memset(self->mem + k * PAGE + at, 0, 8);
		memcpy(before, self->mem, len);
		ASSERT_EQ(0, pin_start(self->fd, handle, at, periods[i]));
		for (k = 0; k < NR_PAGES; k++)
			EXPECT_TRUE(stamp_reaches(self->mem + k * PAGE + at,
						  10));
		/* Transfers work while the engine runs. */
		EXPECT_EQ(0, pin_write(self->fd, handle, 2048, "beside", 6));
		EXPECT_EQ(0, pin_stop(self->fd, handle, &rounds));
		EXPECT_LE(10, rounds);
		for (k = 0; k < NR_PAGES; k++)
			EXPECT_EQ(rounds, pin_get(self->mem + k * PAGE + at));
		/* A stopped engine writes no more, and it wrote only stamps. */
		pause_ms(20);
		for (k = 0; k < NR_PAGES; k++) {
			EXPECT_EQ(rounds, pin_get(self->mem + k * PAGE + at));
			memset(self->mem + k * PAGE + at, 0, 8);
		}
		memcpy(before + 2048, "beside", 6);
		EXPECT_EQ(0, memcmp(before, self->mem, len));
	}
}

/* The stop interrupts a long pause between rounds. */
TEST_F(device, engine_stops_at_once)
{
	uint64_t rounds, day = 24 * 3600 * 1000000ULL;
	uint32_t handle;

	ASSERT_EQ(0, pin_range(self->fd, self->mem, PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &handle));
	memset(self->mem, 0, PAGE);
	ASSERT_EQ(0, pin_start(self->fd, handle, 0, day));
	EXPECT_TRUE(stamp_reaches(self->mem, 1));
	EXPECT_EQ(0, pin_stop(self->fd, handle, &rounds));
	EXPECT_EQ(1, rounds);
	EXPECT_EQ(1, pin_get(self->mem));

	/* The close interrupts the longest pause. */
	ASSERT_EQ(0, pin_start(self->fd, handle, 0, INT64_MAX / 1000));
}

/* The engine stays in its range, which starts and ends within pages. */
TEST_F(device, engine_unaligned)
{
	size_t last = NR_PAGES - 1;
	uint32_t handle, small;
	uint64_t rounds;
	size_t k;

	memset(self->mem, 0, NR_PAGES * PAGE);
	/* Byte 16 of the first page to byte 23 of the last: offset 16 fits. */
	ASSERT_EQ(0, pin_range(self->fd, self->mem + 16, last * PAGE + 8,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &handle));
	ASSERT_EQ(0, pin_start(self->fd, handle, 16, 0));
	EXPECT_TRUE(stamp_reaches(self->mem + last * PAGE + 16, 2));
	EXPECT_EQ(0, pin_stop(self->fd, handle, &rounds));
	for (k = 0; k < NR_PAGES; k++) {
		EXPECT_EQ(rounds, pin_get(self->mem + k * PAGE + 16));
		EXPECT_EQ(0, pin_get(self->mem + k * PAGE + 8));
		EXPECT_EQ(0, pin_get(self->mem + k * PAGE + 24));
	}

	/* Offset 8 is before the range, offset 24 after it. */
	memset(self->mem, 0, NR_PAGES * PAGE);
	ASSERT_EQ(0, pin_start(self->fd, handle, 8, 0));
	EXPECT_TRUE(stamp_reaches(self->mem + last * PAGE + 8, 2));
	EXPECT_EQ(0, pin_stop(self->fd, handle, &rounds));
	EXPECT_EQ(0, pin_get(self->mem + 8));
	EXPECT_EQ(rounds, pin_get(self->mem + PAGE + 8));
	ASSERT_EQ(0, pin_start(self->fd, handle, 24, 0));
	EXPECT_TRUE(stamp_reaches(self->mem + 24, 2));
	EXPECT_EQ(0, pin_stop(self->fd, handle, &rounds));
	EXPECT_EQ(rounds, pin_get(self->mem + 24));
	EXPECT_EQ(0, pin_get(self->mem + last * PAGE + 24));

	/* If no page has room, the engine counts rounds and writes nothing. */
	memset(self->mem, 0, PAGE);
	ASSERT_EQ(0, pin_range(self->fd, self->mem + 1, 13, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &small));
	ASSERT_EQ(0, pin_start(self->fd, small, 8, 0));
	pause_ms(20);
	EXPECT_EQ(0, pin_stop(self->fd, small, &rounds));
	EXPECT_LT(0, rounds);
	for (k = 0; k < PAGE; k++)
		ASSERT_EQ(0, self->mem[k]);
}

/* Half of these references are more than the noise of the LRU caches. */
#define NR_HANDLES	24

/* Return the refcount of the page at @addr, or -1. */
static int refs_of(int fd, const void *addr)
{
	struct fake_dma_page page = { .refcount = -1 };
	uint32_t handle;

	if (pin_range(fd, addr, 1, FAKE_DMA_PIN_GET, FAKE_DMA_CALL_FAST,
		      &handle))
		return -1;
	if (pin_query(fd, handle, 0, 1, &page) || pin_unpin(fd, handle, 0))
		return -1;
	return page.refcount;
}

/* Take NR_HANDLES different handles, and run an engine on every other one. */
static int pin_many(int fd, unsigned char *mem)
{
	uint32_t handle;
	int i, ret;

	for (i = 0; i < NR_HANDLES; i++) {
		ret = pin_range(fd, mem, NR_PAGES * PAGE,
				i % 3 == 1 ? FAKE_DMA_PIN_WRITE | FAKE_DMA_PIN_GET :
					     FAKE_DMA_PIN_WRITE,
				i % 2 ? FAKE_DMA_CALL_FAST : FAKE_DMA_CALL_SLOW,
				&handle);
		if (!ret && i % 2)
			ret = pin_start(fd, handle, 8 * i, i % 8 == 1 ? 0 : 500);
		if (ret)
			return ret;
	}
	return 0;
}

TEST_F(device, close)
{
	unsigned char *mem = map_filled(NR_PAGES, MAP_SHARED);
	unsigned char *copy = malloc(NR_PAGES * PAGE);
	int other = pin_open();
	int before, k;

	ASSERT_NE(NULL, copy);
	ASSERT_LE(0, other);
	before = refs_of(self->fd, mem);
	ASSERT_LT(0, before);
	memset(mem, 0, NR_PAGES * PAGE);
	ASSERT_EQ(0, pin_many(other, mem));
	for (k = 1; k < NR_HANDLES; k += 2)
		EXPECT_TRUE(stamp_reaches(mem + 8 * k, 2));
	EXPECT_LE(before + NR_HANDLES / 2, refs_of(self->fd, mem));
	EXPECT_EQ(0, close(other));

	/* No reference and no engine is left. */
	memcpy(copy, mem, NR_PAGES * PAGE);
	for (k = 0; k < NR_PAGES; k++)
		EXPECT_GT(before + NR_HANDLES / 2,
			  refs_of(self->fd, mem + k * PAGE));
	EXPECT_EQ(self->held, pin_held());
	pause_ms(20);
	EXPECT_EQ(0, memcmp(copy, mem, NR_PAGES * PAGE));
}

/* The death of a process drops its pins and stops its engines. */
TEST_F(device, death)
{
	unsigned char *mem = map_filled(NR_PAGES, MAP_SHARED);
	unsigned char *copy = malloc(NR_PAGES * PAGE);
	int before, status, fd, k;
	pid_t child;

	ASSERT_NE(NULL, copy);
	before = refs_of(self->fd, mem);
	ASSERT_LT(0, before);
	memset(mem, 0, NR_PAGES * PAGE);
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		fd = pin_open();
		if (fd < 0 || pin_many(fd, mem))
			_exit(1);
		for (;;)
			pause();
	}
	for (k = 1; k < NR_HANDLES; k += 2)
		EXPECT_TRUE(stamp_reaches(mem + 8 * k, 2));
	EXPECT_LE(before + NR_HANDLES / 2, refs_of(self->fd, mem));
	if (self->caps & FAKE_DMA_CAP_PIN)
		EXPECT_LT(self->held, pin_held());
	ASSERT_EQ(0, kill(child, SIGKILL));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));

	memcpy(copy, mem, NR_PAGES * PAGE);
	for (k = 0; k < NR_PAGES; k++)
		EXPECT_GT(before + NR_HANDLES / 2,
			  refs_of(self->fd, mem + k * PAGE));
	EXPECT_EQ(self->held, pin_held());
	pause_ms(20);
	EXPECT_EQ(0, memcmp(copy, mem, NR_PAGES * PAGE));
}

/* The handles stay while a child has the file open. */
TEST_F(device, inherited_file)
{
	unsigned char *mem = map_filled(NR_PAGES, MAP_SHARED);
	int fd = pin_open();
	uint32_t handle = 0;
	int i, status, up[2];
	int before;
	pid_t child;
	char c;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, pipe(up));
	before = refs_of(self->fd, mem);
	ASSERT_LT(0, before);
	for (i = 0; i < NR_HANDLES; i++)
		ASSERT_EQ(0, pin_range(fd, mem, NR_PAGES * PAGE,
				       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
				       &handle));
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		close(up[1]);
		if (read(up[0], &c, 1) != 0)	/* until the parent closed */
			_exit(2);
		_exit(pin_write(fd, handle, 0, "child", 5) ? 1 : 0);
	}
	close(fd);
	EXPECT_LE(before + NR_HANDLES / 2, refs_of(self->fd, mem));
	close(up[1]);
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_EQ(0, memcmp(mem, "child", 5));
	EXPECT_GT(before + NR_HANDLES / 2, refs_of(self->fd, mem));
	EXPECT_EQ(self->held, pin_held());
}

#define FAULTS	"/sys/kernel/debug/"

/* Include allocations that may sleep in fault injection, or exclude them. */
static int set_faults(bool on)
{
	int ret;

	pin_write_file(FAULTS "failslab/verbose", on ? "0" : "2");
	pin_write_file(FAULTS "fail_page_alloc/verbose", on ? "0" : "2");
	pin_write_file(FAULTS "fail_page_alloc/min-order", on ? "0" : "1");
	ret = pin_write_file(FAULTS "failslab/ignore-gfp-wait", on ? "N" : "Y");
	if (ret)
		return ret;
	return pin_write_file(FAULTS "fail_page_alloc/ignore-gfp-wait",
			      on ? "N" : "Y");
}

static int no_memory_open(int fd, void *mem, uint32_t handle)
{
	int other = pin_open();

	return other < 0 ? other : close(other);
}

static int no_memory_pin(int fd, void *mem, uint32_t handle)
{
	int ret = pin_range(fd, mem, NR_PAGES * PAGE, FAKE_DMA_PIN_WRITE,
			    FAKE_DMA_CALL_FAST, &handle);

	return ret ?: pin_unpin(fd, handle, 0);
}

static int no_memory_write(int fd, void *mem, uint32_t handle)
{
	return pin_write(fd, handle, 0, "written", 7);
}

static int no_memory_start(int fd, void *mem, uint32_t handle)
{
	int ret = pin_start(fd, handle, 0, 1000);

	return ret ?: pin_stop(fd, handle, NULL);
}

/* If any one allocation of a call fails, the call gives ENOMEM or succeeds. */
TEST_F(device, no_memory)
{
	static const struct {
		const char *what;
		int (*call)(int fd, void *mem, uint32_t handle);
		int least;	/* allocations that must fail the call */
	} cases[] = {
		{ "open", no_memory_open, 1 },
		/* The handle, its page array, and the scatterlist. */
		{ "pin", no_memory_pin, 3 },
		{ "write", no_memory_write, 1 },
		{ "start", no_memory_start, 1 },
	};
	char text[16], byte;
	uint32_t handle;
	int fd, nth, tries, failed, ret;
	size_t i;

	if (set_faults(true)) {
		set_faults(false);
		SKIP(return, "CONFIG_FAILSLAB or CONFIG_FAIL_PAGE_ALLOC is not set");
	}
	fd = open("/proc/thread-self/fail-nth", O_RDWR);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, pin_range(self->fd, self->mem, NR_PAGES * PAGE,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &handle));
	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		long long held = pin_held();

		failed = 0;
		tries = 0;
		for (nth = 1; nth < 1000;) {
			snprintf(text, sizeof(text), "%d", nth);
			ASSERT_LT(0, pwrite(fd, text, strlen(text), 0));
			ret = cases[i].call(self->fd, self->mem, handle);
			memset(text, 0, sizeof(text));
			ASSERT_LT(0, pread(fd, text, sizeof(text) - 1, 0));
			ASSERT_EQ(1, pwrite(fd, "0", 1, 0));
			if (atoi(text))	/* the call has fewer allocations */
				break;
			ASSERT_TRUE(!ret || ret == -ENOMEM) {
				TH_LOG("%s with allocation %d failing gives %d, not 0 or -ENOMEM",
				       cases[i].what, nth, ret);
			}
			ASSERT_EQ(held, pin_held());
			/* Try again: a slab may have grown by other means. */
			if (!ret && ++tries < 4)
				continue;
			failed += !!ret;
			tries = 0;
			nth++;
		}
		EXPECT_EQ(0, ret);
		EXPECT_LE(cases[i].least, failed) {
			TH_LOG("%s failed for %d allocations, not for %d or more",
			       cases[i].what, failed, cases[i].least);
		}
		/* The handle still works. The engine stamped offset 0. */
		EXPECT_EQ(0, pin_read(self->fd, handle, PAGE + 64, &byte, 1));
		EXPECT_EQ('b', byte);
	}
	close(fd);
	set_faults(false);
}

struct racer {
	pthread_t thread;
	pthread_barrier_t *barrier;
	int fd;
	uint32_t handle;
	int result;
};

static void *race_unpin(void *data)
{
	struct racer *r = data;

	pthread_barrier_wait(r->barrier);
	r->result = pin_unpin(r->fd, r->handle, 0);
	return NULL;
}

/* If several threads unpin one handle, exactly one succeeds. */
TEST_F(device, concurrent_unpin)
{
	struct racer racers[NR_THREADS];
	pthread_barrier_t barrier;
	int round, i, done;
	uint32_t handle;

	ASSERT_EQ(0, pthread_barrier_init(&barrier, NULL, NR_THREADS));
	for (round = 0; round < 100; round++) {
		ASSERT_EQ(0, pin_range(self->fd, self->mem, NR_PAGES * PAGE,
				       0, FAKE_DMA_CALL_FAST, &handle));
		for (i = 0; i < NR_THREADS; i++) {
			racers[i] = (struct racer) {
				.barrier = &barrier,
				.fd = self->fd,
				.handle = handle,
			};
			ASSERT_EQ(0, pthread_create(&racers[i].thread, NULL,
						    race_unpin, &racers[i]));
		}
		for (i = 0, done = 0; i < NR_THREADS; i++) {
			pthread_join(racers[i].thread, NULL);
			if (racers[i].result)
				EXPECT_EQ(-ENOENT, racers[i].result);
			done += !racers[i].result;
		}
		ASSERT_EQ(1, done);
	}
	EXPECT_EQ(self->held, pin_held());
}

#define NR_SLOTS	6
#define NR_CALLS	2000

struct hammer {
	pthread_t thread;
	int fd;
	unsigned int seed;
	unsigned char *mem;
	uint32_t *slots;	/* handles, 0 for none, shared by all threads */
	const char *failed;	/* a call with an unexpected error */
	int error;
	unsigned long moved;	/* successful transfers */
	unsigned long started;	/* engines started */
};

/* Unpin a handle that was taken out of its slot. No other thread unpins it. */
static int hammer_unpin(struct hammer *h, uint32_t handle)
{
	int ret;

	for (;;) {
		ret = pin_unpin(h->fd, handle, rand_r(&h->seed) % 2 ?
					       FAKE_DMA_UNPIN_DIRTY : 0);
		if (ret != -EBUSY)
			return ret;
		/* Stop the engine, unless another thread did so just now. */
		ret = pin_stop(h->fd, handle, NULL);
		if (ret && ret != -EINVAL)
			return ret;
	}
}

static int hammer_pin(struct hammer *h, uint32_t *slot)
{
	static const uint32_t calls[] = {
		FAKE_DMA_CALL_FAST, FAKE_DMA_CALL_SLOW,
		FAKE_DMA_CALL_LOCKED, FAKE_DMA_CALL_UNLOCKED,
	};
	size_t start = rand_r(&h->seed) % (2 * PAGE);
	size_t len = 1 + rand_r(&h->seed) % (2 * PAGE);
	uint32_t flags = rand_r(&h->seed) % 4 ? FAKE_DMA_PIN_WRITE : 0;
	uint32_t handle, old;
	int ret;

	if (rand_r(&h->seed) % 4 == 0)
		flags |= FAKE_DMA_PIN_GET;
	ret = pin_range(h->fd, h->mem + start, len, flags,
			calls[rand_r(&h->seed) % 4], &handle);
	if (ret)
		return ret;
	old = __atomic_exchange_n(slot, handle, __ATOMIC_SEQ_CST);
	return old ? hammer_unpin(h, old) : 0;
}

/* Return true if other threads' concurrent calls can cause this result. */
static bool hammer_allows(int ret, int error1, int error2, int error3)
{
	return !ret || ret == -ENOENT || ret == -error1 || ret == -error2 ||
	       ret == -error3;
}

static void *hammer(void *data)
{
	struct hammer *h = data;
	struct fake_dma_page page;
	unsigned char buf[300];
	const char *what;
	bool fine;
	int i, ret;

	memset(buf, 'x', sizeof(buf));
	for (i = 0; i < NR_CALLS; i++) {
		uint32_t *slot = &h->slots[rand_r(&h->seed) % NR_SLOTS];
		uint32_t handle = __atomic_load_n(slot, __ATOMIC_SEQ_CST);
		uint64_t offset = rand_r(&h->seed) % PAGE;
		size_t len = 1 + rand_r(&h->seed) % sizeof(buf);

		switch (rand_r(&h->seed) % 7) {
		case 0:
			what = "pin";
			ret = hammer_pin(h, slot);
			fine = !ret;
			break;
		case 1:
			what = "unpin";
			handle = __atomic_exchange_n(slot, 0, __ATOMIC_SEQ_CST);
			ret = handle ? hammer_unpin(h, handle) : 0;
			fine = !ret;
			break;
		case 2:
			what = "write";
			ret = pin_write(h->fd, handle, offset, buf, len);
			h->moved += !ret;
			fine = hammer_allows(ret, EPERM, EOVERFLOW, 0);
			break;
		case 3:
			what = "read";
			ret = pin_read(h->fd, handle, offset, buf, len);
			h->moved += !ret;
			fine = hammer_allows(ret, EOVERFLOW, 0, 0);
			break;
		case 4:
			what = "start";
			ret = pin_start(h->fd, handle, 8, offset % 8 * 50);
			h->started += !ret;
			fine = hammer_allows(ret, EPERM, EBUSY, 0);
			break;
		case 5:
			what = "stop";
			ret = pin_stop(h->fd, handle, NULL);
			fine = hammer_allows(ret, EINVAL, 0, 0);
			break;
		default:
			what = "query";
			ret = pin_query(h->fd, handle, 0, 1, &page);
			fine = hammer_allows(ret, 0, 0, 0);
			break;
		}
		if (!fine) {
			h->failed = what;
			h->error = ret;
			break;
		}
	}
	return NULL;
}

/* Several threads make random calls on one file. */
TEST_F(device, concurrent_calls)
{
	uint32_t slots[NR_SLOTS] = { 0 };
	struct hammer h[NR_THREADS];
	unsigned long moved = 0, started = 0;
	int i;

	for (i = 0; i < NR_THREADS; i++) {
		h[i] = (struct hammer) {
			.fd = self->fd,
			.seed = 1 + i,
			.mem = self->mem,
			.slots = slots,
		};
		ASSERT_EQ(0, pthread_create(&h[i].thread, NULL, hammer, &h[i]));
	}
	for (i = 0; i < NR_THREADS; i++) {
		pthread_join(h[i].thread, NULL);
		EXPECT_EQ(NULL, h[i].failed) {
			TH_LOG("thread %d: %s gives %d, which no concurrent call explains",
			       i, h[i].failed, h[i].error);
		}
		moved += h[i].moved;
		started += h[i].started;
	}
	/* Enough of the calls succeeded. */
	EXPECT_LT(NR_CALLS / 10, moved);
	EXPECT_LT(NR_CALLS / 100, started);

	/* Pins and unpins balance before the close. */
	for (i = 0; i < NR_SLOTS; i++)
		if (slots[i])
			EXPECT_EQ(0, hammer_unpin(&h[0], slots[i]));
	EXPECT_EQ(self->held, pin_held());
}

static void *call_until_closed(void *data)
{
	struct racer *r = data;
	uint32_t handle;
	int ret;

	do {
		ret = pin_range(r->fd, r, 1, FAKE_DMA_PIN_WRITE,
				FAKE_DMA_CALL_FAST, &handle);
		if (!ret)
			__atomic_add_fetch(&r->handle, 1, __ATOMIC_SEQ_CST);
	} while (!ret);
	r->result = ret;
	return NULL;
}

/* One thread closes the file while others are in its calls. */
TEST_F(device, concurrent_close)
{
	struct racer racers[NR_THREADS];
	int round, i;

	for (round = 0; round < 20; round++) {
		int fd = pin_open();

		ASSERT_LE(0, fd);
		for (i = 0; i < NR_THREADS; i++) {
			racers[i] = (struct racer) { .fd = fd };
			ASSERT_EQ(0, pthread_create(&racers[i].thread, NULL,
						    call_until_closed,
						    &racers[i]));
		}
		for (i = 0; i < NR_THREADS; i++)
			while (!__atomic_load_n(&racers[i].handle,
						__ATOMIC_SEQ_CST))
				sched_yield();
		EXPECT_EQ(0, close(fd));
		for (i = 0; i < NR_THREADS; i++) {
			pthread_join(racers[i].thread, NULL);
			EXPECT_EQ(-EBADF, racers[i].result);
		}
		ASSERT_EQ(self->held, pin_held());
	}
}

int main(int argc, char **argv)
{
	pin_need_device();
	return test_harness_run(argc, argv);
}
