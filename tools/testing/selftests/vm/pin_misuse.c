// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test misuse of pins by a driver: the kernel reports it with its caller and
 * changes nothing (R3, R5, C3). These tests are a program of their own because
 * they trigger kernel warnings.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>

#include "../kselftest_harness.h"
#include "pin_util.h"

#define NR_PAGES	8
#define NOISE		8	/* references that the LRU caches may hold */

/* Open the kernel log at its end. */
static int open_log(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

/* Read on in the log. Return true if a record contains @text. */
static bool log_says(int fd, const char *text)
{
	char line[8192];
	bool found = false;
	ssize_t len;

	/* EPIPE: records were overwritten before we read them; go on. */
	while (!found && ((len = read(fd, line, sizeof(line) - 1)) > 0 ||
			  (len < 0 && errno == EPIPE))) {
		line[len > 0 ? len : 0] = '\0';
		found = strstr(line, text);
	}
	return found;
}

FIXTURE(misuse) {
	int dev;
	char *mem;
	size_t nr;
	uint32_t got;		/* handle of all of mem, plain references */
	long long acquired, released;
};

FIXTURE_VARIANT(misuse) {
	char *(*map)(int dev, size_t *nr);
};

static char *map_small(int dev, size_t *nr)
{
	*nr = NR_PAGES;
	return pin_map_small(*nr);
}

static char *map_thp(int dev, size_t *nr)
{
	*nr = HUGE_PAGE / PAGE;
	return pin_map_thp(dev, 1);
}

FIXTURE_VARIANT_ADD(misuse, small) {
	.map = map_small,
};

FIXTURE_VARIANT_ADD(misuse, thp) {
	.map = map_thp,
};

FIXTURE_SETUP(misuse)
{
	self->dev = pin_open();
	ASSERT_LE(0, self->dev);
	if (!(pin_caps(self->dev) & FAKE_DMA_CAP_MISUSE))
		SKIP(_exit(255), "needs a kernel that reports misuse and survives it");
	self->mem = variant->map(self->dev, &self->nr);
	if (!self->mem)
		SKIP(_exit(255), "cannot map a transparent huge page");
	pin_fill(self->mem, self->nr, 1);
	ASSERT_EQ(0, pin_range(self->dev, self->mem, self->nr * PAGE,
			       FAKE_DMA_PIN_GET | FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &self->got));
	self->acquired = pin_vmstat("nr_foll_pin_acquired");
	self->released = pin_vmstat("nr_foll_pin_released");
}

/* After any misuse, the pages are unchanged and can still be pinned. */
FIXTURE_TEARDOWN(misuse)
{
	struct fake_dma_page page;
	uint32_t handle, word = 0;

	ASSERT_EQ(0, pin_range(self->dev, self->mem, self->nr * PAGE,
			       FAKE_DMA_PIN_WRITE, FAKE_DMA_CALL_FAST,
			       &handle));
	ASSERT_EQ(0, pin_query(self->dev, handle, 0, 1, &page));
	EXPECT_NE(0, page.flags & FAKE_DMA_PAGE_MAYBE_PINNED);
	ASSERT_EQ(0, pin_unpin(self->dev, handle, FAKE_DMA_UNPIN_DIRTY));
	ASSERT_EQ(0, pin_unpin(self->dev, self->got, 0));
	EXPECT_EQ(self->acquired + (long long)self->nr,
		  pin_vmstat("nr_foll_pin_acquired"));
	EXPECT_EQ(self->released + (long long)self->nr,
		  pin_vmstat("nr_foll_pin_released"));
	EXPECT_EQ(-1, pin_differs(self->mem, self->nr, 1));
	self->mem[0] = 7;
	EXPECT_EQ(-ENOENT, pin_read(self->dev, self->got, 0, &word, 1));
}

static const uint32_t unpins[] = {
	FAKE_DMA_UNPIN_MISUSE,
	FAKE_DMA_UNPIN_MISUSE | FAKE_DMA_UNPIN_DIRTY,
	FAKE_DMA_UNPIN_MISUSE | FAKE_DMA_UNPIN_RANGE,
	FAKE_DMA_UNPIN_MISUSE | FAKE_DMA_UNPIN_RANGE | FAKE_DMA_UNPIN_DIRTY,
};

TEST_F(misuse, R3_C3_unpin_of_what_is_not_pinned_changes_nothing)
{
	struct fake_dma_page before, after;
	size_t i, n;

	for (i = 0; i < ARRAY_SIZE(unpins); i++) {
		ASSERT_EQ(0, pin_query(self->dev, self->got, 0, 1, &before));
		ASSERT_EQ(0, pin_unpin(self->dev, self->got, unpins[i]));
		ASSERT_EQ(0, pin_query(self->dev, self->got, 0, 1, &after));
		EXPECT_LE(before.refcount - NOISE, after.refcount);
		EXPECT_GE(before.refcount + NOISE, after.refcount);
		EXPECT_EQ(0, after.pincount);
		EXPECT_EQ(before.mapcount, after.mapcount);
	}
	for (n = 0; n < self->nr; n++) {
		ASSERT_EQ(0, pin_query(self->dev, self->got, n, 1, &after));
		EXPECT_LT(0, after.refcount);
		EXPECT_EQ(pin_pfn(getpid(), self->mem + n * PAGE), after.pfn);
	}
	EXPECT_EQ(self->acquired, pin_vmstat("nr_foll_pin_acquired"));
	EXPECT_EQ(self->released, pin_vmstat("nr_foll_pin_released"));
	EXPECT_EQ(-1, pin_differs(self->mem, self->nr, 1));
}

TEST_F(misuse, R3_C3_unpin_of_what_is_not_pinned_is_reported)
{
	bool reported = false;
	int log = open_log(), n;

	ASSERT_LE(0, log);
	/* The kernel limits reports to ten in five seconds: retry. */
	for (n = 0; !reported && n < 100; n++) {
		if (n)
			usleep(100000);
		ASSERT_EQ(0, pin_unpin(self->dev, self->got,
				       FAKE_DMA_UNPIN_MISUSE));
		reported = log_says(log, "pin: unpin of a page that is not pinned");
	}
	EXPECT_TRUE(reported);
	/* The backtrace of the report shows the caller. */
	EXPECT_TRUE(log_says(log, " fake_dma_"));
	close(log);
}

/* A wrong unpin does not change the pins of other memory. */
TEST_F(misuse, R3_C3_other_pins_stay)
{
	struct fake_dma_page page;
	uint64_t word = 0;
	uint32_t other;
	size_t i, nr;
	char *mem;

	mem = variant->map(self->dev, &nr);
	ASSERT_NE(NULL, mem);
	ASSERT_EQ(0, pin_range(self->dev, mem, nr * PAGE, FAKE_DMA_PIN_WRITE,
			       FAKE_DMA_CALL_FAST, &other));
	for (i = 0; i < ARRAY_SIZE(unpins); i++)
		ASSERT_EQ(0, pin_unpin(self->dev, self->got, unpins[i]));
	ASSERT_EQ(0, pin_query(self->dev, other, 0, 1, &page));
	EXPECT_EQ(nr == NR_PAGES ? 1 : nr, page.pincount);
	pin_set(mem, 0xabcd);
	ASSERT_EQ(0, pin_read(self->dev, other, 0, &word, sizeof(word)));
	EXPECT_EQ(0xabcd, word);
	ASSERT_EQ(0, pin_unpin(self->dev, other, 0));
	self->acquired += nr;
	self->released += nr;
}

/* Callers must not set FOLL_PIN, nor mix it with FOLL_GET. */
TEST_F(misuse, R5_R6_mixed_flags_are_refused)
{
	const uint32_t flags[] = { 0, FAKE_DMA_PIN_GET };
	struct fake_dma_page before, after;
	uint32_t call, handle;
	int log = open_log(), expected, ret;
	size_t i;

	ASSERT_LE(0, log);
	/* The warnings below are printed once; allow them again. */
	pin_write_file("/sys/kernel/debug/clear_warn_once", "1");
	ASSERT_EQ(0, pin_query(self->dev, self->got, 0, 1, &before));
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		for (call = 0; call <= FAKE_DMA_CALL_REMOTE; call++) {
			struct fake_dma_pin pin = {
				.addr = (uintptr_t)self->mem,
				.len = self->nr * PAGE,
				.flags = flags[i] | FAKE_DMA_PIN_WRITE |
					 FAKE_DMA_PIN_BADFLAGS,
				.call = call,
				.pid = call == FAKE_DMA_CALL_REMOTE ?
				       getpid() : 0,
			};

			/* This call returns 0 pages, and the device -EFAULT. */
			expected = call == FAKE_DMA_CALL_FAST_ONLY ? -EFAULT :
				   -EINVAL;
			ret = pin_ioctl(self->dev, FAKE_DMA_PIN, &pin);
			EXPECT_EQ(expected, ret) {
				TH_LOG("call %u, %s: must give %d", call,
				       flags[i] ? "get with FOLL_PIN" :
						  "pin with FOLL_GET",
				       expected);
			}
			handle = pin.handle;
			if (!ret)
				pin_unpin(self->dev, handle, 0);
		}
		/* get_user_pages() or pin_user_pages() has warned. */
		EXPECT_TRUE(log_says(log, flags[i] ? "mm/gup.c:" : "mm/pin.c:"));
	}
	close(log);
	ASSERT_EQ(0, pin_query(self->dev, self->got, 0, 1, &after));
	EXPECT_LE(before.refcount - NOISE, after.refcount);
	EXPECT_GE(before.refcount + NOISE, after.refcount);
	EXPECT_EQ(0, after.pincount);
	EXPECT_EQ(self->acquired, pin_vmstat("nr_foll_pin_acquired"));
}

int main(int argc, char **argv)
{
	pin_need_device();
	return test_harness_run(argc, argv);
}
