# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# Write TAP: tap_start, tap_plan if the number of tests is known, one of tap_ok,
# tap_not_ok and tap_skip for each test, tap_end.

tap_start() {
	tap_count=0 tap_failed=0 tap_planned=
	echo "TAP version 13"
}

# tap_plan N: announce N tests.
tap_plan() {
	tap_planned=$1
	echo "1..$1"
}

tap_ok() {
	tap_count=$((tap_count + 1))
	echo "ok $tap_count - $1"
}

# tap_skip NAME REASON: report a test that could not run.
tap_skip() { tap_ok "$1 # SKIP $2"; }

# tap_not_ok NAME: report a failure; stdin says why. Do not end a pipe with it: the
# count would be lost.
tap_not_ok() {
	tap_count=$((tap_count + 1)) tap_failed=$((tap_failed + 1))
	echo "not ok $tap_count - $1"
	# The bar keeps a reader from counting TAP in there.
	sed 's/^/# | /'
}

# tap_end: finish the report; return false if a test failed.
tap_end() {
	[ -n "$tap_planned" ] || tap_plan "$tap_count"
	[ "$tap_failed" = 0 ]
}
