# SPDX-License-Identifier: GPL-2.0-only
# Every target is a thin call into the folder that does the work: see `make help`.

TREE ?= series
CONFIG ?= release
BASE ?= baseline
export BASE

comma := ,
trees := $(subst $(comma), ,$(TREE))
configs := $(subst $(comma), ,$(CONFIG))
ifneq ($(filter-out stock baseline series,$(trees)),)
$(error TREE=$(TREE): give stock, baseline or series, with commas between them)
endif
ifneq ($(filter-out release debug,$(configs)),)
$(error CONFIG=$(CONFIG): give release or debug, with a comma between them)
endif

.PHONY: help install tree refresh kernel image run test check bisect bench compare mbox port deb clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 12

install: ## install the Debian packages that are missing
	@pipeline/host/install

tree: install ## make build/linux, a git tree: stock, baseline, one commit a patch (KSRC=, SUITE=)
	@pipeline/source/tree

refresh: ## take the commits of build/linux back into patches/ and the new files
	@pipeline/source/refresh

kernel: tree ## build kernels: TREE=stock,baseline,series (series) CONFIG=release,debug (release)
	@for t in $(trees); do for c in $(configs); do pipeline/kernel/build "$$t" "$$c" || exit 1; done; done

image: tree ## build a kernel and print the path of its image: TREE= CONFIG=
	@for t in $(trees); do for c in $(configs); do pipeline/kernel/build "$$t" "$$c" --image || exit 1; done; done

run: tree ## the demonstration: a pinned buffer, its process forks, on baseline and series
	@pipeline/tests/run

test: tree ## everything a change must pass, or only T=PROGRAM (ARGS=: its arguments)
	@pipeline/tests/test $(subst $(comma), ,$(T))

check: tree ## the static checks: checkpatch, sparse, coccicheck, each patch by itself, ...
	@pipeline/check/check

bisect: tree ## build and boot the kernel of every single patch
	@pipeline/check/bisect

bench: tree ## instructions of pinning (stock, series), of fork and writes (baseline, too)
	@pipeline/bench/bench

compare: tree ## the same tests on stock, baseline and series; checks xfail.stock
	@pipeline/tests/compare stock baseline series

mbox: tree ## the series as mails in build/mbox, a thread a topic (BASE=stock: for an untouched 5.10)
	@pipeline/source/mbox

port: install ## carry the series to another 5.10.y tree, in build/port (KSRC= or SUITE=; ABORT=1)
	@pipeline/source/port

deb: tree ## Debian packages of the series kernel (CONFIG_FILE=: your configuration)
	@pipeline/kernel/deb

clean: ## remove all that was built
	rm -rf build
