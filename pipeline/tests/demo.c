// SPDX-License-Identifier: GPL-2.0-only
/*
 * Show the values that a process and its device read from a pinned buffer
 * before and after the process forks. Print one line a step, "step|value". Exit
 * with 0 if every value is right, 1 if not.
 */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_dma.h"

static volatile uint64_t *buf;
static struct fake_dma_xfer xfer;
static int dev, lost;

static void device_write(uint64_t value)
{
	xfer.buf = (uintptr_t)&value;
	if (ioctl(dev, FAKE_DMA_WRITE, &xfer))
		err(2, "FAKE_DMA_WRITE");
}

static uint64_t device_read(void)
{
	uint64_t value;

	xfer.buf = (uintptr_t)&value;
	if (ioctl(dev, FAKE_DMA_READ, &xfer))
		err(2, "FAKE_DMA_READ");
	return value;
}

static void step(const char *what, uint64_t got, uint64_t wanted)
{
	printf("%s|%llu%s\n", what, (unsigned long long)got,
	       got == wanted ? "" : "  WRONG");
	lost |= got != wanted;
}

int main(void)
{
	struct fake_dma_pin pin = { .flags = FAKE_DMA_PIN_WRITE };
	struct fake_dma_caps caps;
	uint64_t child_saw;
	int go[2], saw[2];
	char c = 0;

	dev = open("/dev/fake_dma", O_RDWR);
	if (dev < 0)
		err(2, "/dev/fake_dma");
	if (ioctl(dev, FAKE_DMA_CAPS, &caps))
		err(2, "FAKE_DMA_CAPS");
	if (pipe(go) || pipe(saw))
		err(2, "pipe");
	pin.len = sysconf(_SC_PAGESIZE);
	buf = mmap(NULL, pin.len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buf == MAP_FAILED)
		err(2, "mmap");
	pin.addr = (uintptr_t)buf;
	*buf = 0;
	if (ioctl(dev, FAKE_DMA_PIN, &pin))
		err(2, "FAKE_DMA_PIN");
	xfer.handle = pin.handle;
	xfer.len = sizeof(*buf);

	printf("the driver takes the buffer with|%s\n",
	       caps.caps & FAKE_DMA_CAP_PIN ? "pin_user_pages" : "get_user_pages");
	*buf = 1;
	step("process writes 1, device reads", device_read(), 1);
	device_write(2);
	step("device writes 2, process reads", *buf, 2);

	fflush(stdout);
	switch (fork()) {
	case -1:
		err(2, "fork");
	case 0:
		if (read(go[0], &c, 1) != 1)
			_exit(1);
		child_saw = *buf;
		_exit(write(saw[1], &child_saw, sizeof(child_saw)) !=
		      sizeof(child_saw));
	}
	printf("process forks|\n");
	*buf = 3;
	step("process writes 3, device reads", device_read(), 3);
	device_write(4);
	step("device writes 4, process reads", *buf, 4);
	if (write(go[1], &c, 1) != 1 ||
	    read(saw[0], &child_saw, sizeof(child_saw)) != sizeof(child_saw))
		err(2, "child");
	wait(NULL);
	step("child reads what was there at fork", child_saw, 2);
	printf("so the data|%s\n", lost ? "is LOST" : "arrives");
	return lost;
}
