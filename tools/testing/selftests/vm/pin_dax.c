// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test pins of device-dax memory that is PUD-mapped. Device-dax can only be
 * mapped shared. So fork() shares pinned memory too, and process, device and
 * child see the same bytes (R7, R21, C1).
 *
 * The test needs 3 GB or more of memory set aside as persistent, for example
 * with memmap=3G!5G on the kernel command line.
 */
#define _GNU_SOURCE
#include <sys/resource.h>

#include "pin_process.h"

#define GIGABYTE	(512 * HUGE_PAGE)
#define NVDIMM		"/sys/bus/nd/devices/"
#define DRIVERS		"/sys/bus/nd/drivers/"
#define DAX_DEVICE	"/dev/dax0.0"
#define UUID		"5aa5b99d-a7bb-4aae-9d2f-2a0a9dd1ba4c"

#define NR_PINNED	16
#define FIRST		200000	/* index in the gigabyte of the first one */

/* Return true if @text is the first line of the file. */
static bool reads(const char *name, const char *text)
{
	FILE *file = fopen(name, "r");
	char line[64] = "";

	if (!file)
		return false;
	if (!fgets(line, sizeof(line), file))
		line[0] = 0;
	fclose(file);
	line[strcspn(line, "\n")] = 0;
	return !strcmp(line, text);
}

/* Return true if the disk is not in use and its first megabyte is zero. */
static bool is_blank(const char *disk)
{
	int fd = open(disk, O_RDONLY | O_EXCL | O_CLOEXEC);
	static char buf[1 << 20];
	size_t i, used = 0;

	if (fd < 0)
		return false;
	if (read(fd, buf, sizeof(buf)) != sizeof(buf))
		used = 1;
	close(fd);
	for (i = 0; i < sizeof(buf); i++)
		used += !!buf[i];
	return !used;
}

/* Turn the first region into a device-dax device with pages of 1 GB. */
static int make_device(void)
{
	int ret;

	if (!reads(NVDIMM "ndbus0/provider", "e820"))
		return -ENOENT;
	if (!access(DAX_DEVICE, F_OK))
		return reads(NVDIMM "dax0.0/uuid", UUID) ? 0 : -EBUSY;
	/* Do not overwrite data. */
	if (!is_blank("/dev/pmem0"))
		return -EBUSY;
	pin_write_file(DRIVERS "nd_pmem/unbind", "namespace0.0");
	ret = pin_write_file(NVDIMM "dax0.0/align", "1073741824") ?:
	      pin_write_file(NVDIMM "dax0.0/mode", "ram") ?:
	      pin_write_file(NVDIMM "dax0.0/uuid", UUID) ?:
	      pin_write_file(NVDIMM "dax0.0/namespace", "namespace0.0") ?:
	      pin_write_file(DRIVERS "dax_pmem/bind", "dax0.0");
	return ret ?: access(DAX_DEVICE, F_OK) ? -ENODEV : 0;
}

FIXTURE(pud) {
	struct pinned p;
	char *map;
};

FIXTURE_VARIANT(pud) {
	uint32_t call;
	uint32_t flags;
};

FIXTURE_VARIANT_ADD(pud, fast) {
	.call = FAKE_DMA_CALL_FAST,
};

FIXTURE_VARIANT_ADD(pud, slow) {
	.call = FAKE_DMA_CALL_SLOW,
};

FIXTURE_VARIANT_ADD(pud, longterm) {
	.call = FAKE_DMA_CALL_FAST,
	.flags = FAKE_DMA_PIN_LONGTERM,
};

/* Return the number of page faults so far. */
static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

FIXTURE_SETUP(pud)
{
	int fd, ret = make_device();
	long before;
	size_t i;

	if (ret)
		SKIP(_exit(255), "no device-dax with 1 GB pages: %s; boot with memmap=3G!5G",
		     strerror(-ret));
	open_device(_metadata, &self->p);
	self->p.no_pagemap = true;
	fd = open(DAX_DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	self->map = mmap(NULL, GIGABYTE, PROT_READ | PROT_WRITE, MAP_SHARED,
			 fd, 0);
	ASSERT_NE(MAP_FAILED, self->map) {
		TH_LOG("cannot map 1 GB of %s: %s", DAX_DEVICE, strerror(errno));
	}
	close(fd);
	/* Few faults for 1 GB: it is PUD-mapped. */
	before = faults();
	for (i = 0; i < GIGABYTE; i += HUGE_PAGE)
		pin_set(self->map + i, i);
	EXPECT_GT(64, faults() - before);
}

FIXTURE_TEARDOWN(pud)
{
	EXPECT_EQ(0, pin_unpin(self->p.dev, self->p.handle,
			       FAKE_DMA_UNPIN_DIRTY));
	munmap(self->map, GIGABYTE);
	EXPECT_EQ(0, pin_held());
}

/* Check that the child sees writes after fork, then write. */
static int child_looks_at_shared(struct pinned *p)
{
	++*p->arrived;
	wait_stage(p, 1);
	if (pin_differs(p->mem, p->nr, p->seed + 2) >= 0)
		return 1;
	pin_fill(p->mem, p->nr, 0xcdcd);
	return 0;
}

TEST_F(pud, R5_R7_R21_C1_stays_shared)
{
	struct pinned *p = &self->p;
	struct fake_dma_page page;
	pid_t child;

	pin(p, self->map + FIRST * PAGE, NR_PINNED,
	    FAKE_DMA_PIN_WRITE | variant->flags, variant->call);
	ASSERT_EQ(0, pin_query(p->dev, p->handle, 0, 1, &page));
	EXPECT_EQ(1, page.pincount);
	EXPECT_EQ(0, page.flags & FAKE_DMA_PAGE_ANON);
	expect_identity(p, "before fork");
	child = make_child(WAY_FORK, child_looks_at_shared, p);
	ASSERT_LT(0, child);
	wait_arrived(p, 1);
	expect_identity(p, "beside the child");
	*p->stage = 1;
	EXPECT_EQ(0, reap(child));
	EXPECT_EQ(-1, pin_differs(p->mem, p->nr, 0xcdcd));
	ASSERT_EQ(0, pin_read(p->dev, p->handle, 0, p->bounce, p->nr * PAGE));
	EXPECT_EQ(-1, pin_differs(p->bounce, p->nr, 0xcdcd));
	expect_identity(p, "after the child's exit");
}

TEST_F(pud, R10_R21_C1_pinned_for_reading)
{
	struct pinned *p = &self->p;
	struct fake_dma_page page;
	char *reading;
	int fd;

	pin(p, self->map + FIRST * PAGE, NR_PINNED, variant->flags,
	    variant->call);
	expect_seen(p, "mapped for writing");
	ASSERT_EQ(0, pin_unpin(p->dev, p->handle, 0));
	/* Map it again R/O, as mprotect() does not support PUD entries. */
	fd = open(DAX_DEVICE, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	reading = mmap(NULL, GIGABYTE, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, reading);
	close(fd);
	pin(p, reading + FIRST * PAGE, NR_PINNED, variant->flags,
	    variant->call);
	ASSERT_EQ(0, pin_query(p->dev, p->handle, 0, 1, &page));
	EXPECT_EQ(1, page.pincount);
	p->mem = self->map + FIRST * PAGE;
	expect_seen(p, "mapped for reading");
	munmap(reading, GIGABYTE);
}

int main(int argc, char **argv)
{
	pin_need_device();
	return test_harness_run(argc, argv);
}
