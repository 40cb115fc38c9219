# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# Read the list of test programs.
# shellcheck disable=SC2034 # its users use them

# By program: memory, CPUs, command line, reports; by program and where (release, debug,
# baseline, compare): arguments. programs has the names in the list's order.
declare -A memory cpus cmdline reports arguments
programs=()
while IFS='|' read -r name mem busy release debug baseline compare append expect; do
	programs+=("$name")
	memory[$name]=$mem cpus[$name]=$busy cmdline[$name]=$append reports[$name]=$expect
	arguments[$name,release]=$release arguments[$name,debug]=$debug
	arguments[$name,baseline]=$baseline arguments[$name,compare]=$compare
done < <(sed '/^#/d; /^$/d; s/ *| */|/g; s/ *$//' "$ROOT/pipeline/tests/programs")

# runs PROGRAM WHERE: return true if the list has PROGRAM run there
runs() { [ "${arguments[$1,$2]-no}" != no ]; }
