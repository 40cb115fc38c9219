// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes the kernel report something, so that pipeline/selftest/vm can see pipeline/vm/boot
 * notice it: insmod test_report.ko what=warn|oops|panic|hang
 */
#include <linux/bug.h>
#include <linux/irqflags.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/string.h>

static char *what = "";
module_param(what, charp, 0);
MODULE_PARM_DESC(what, "warn, oops, panic, hang, or nothing");

static int __init test_report_init(void)
{
	if (!strcmp(what, "warn")) {
		WARN(1, "test_report: this is a warning\n");
	} else if (!strcmp(what, "oops")) {
		WRITE_ONCE(*(int *)NULL, 0);
	} else if (!strcmp(what, "panic")) {
		panic("test_report: this is a panic");
	} else if (!strcmp(what, "hang")) {
		local_irq_disable();
		for (;;)
			cpu_relax();
	} else if (*what) {
		return -EINVAL;
	}
	return 0;
}

static void __exit test_report_exit(void)
{
}

module_init(test_report_init);
module_exit(test_report_exit);
MODULE_DESCRIPTION("Reports on request");
MODULE_LICENSE("GPL");
