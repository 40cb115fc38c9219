# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# Functions that the checks share, on top of pipeline/lib.sh.

CHECK=$BUILD/check # all that the checks make
TREE=$CHECK/src    # a worktree of build/linux that walks through the series
# The commits to check: pipeline/selftest/check sets others.
baseline=${CHECK_FROM:-refs/heads/baseline}
series=${CHECK_TO:-refs/heads/series}
range=$baseline..$series

# need COMMAND:PACKAGE...: die unless all commands are installed
need() {
	local what
	for what; do
		command -v "${what%:*}" >/dev/null || die "${what%:*} is missing: apt-get install ${what#*:}"
	done
}

# step WHAT: report the progress of a long check
step() { say "check: $*" 2>&3; }

# commits: print the commits of the series in order
commits() { git -C "$LINUX" rev-list --reverse "$range"; }

# title COMMIT: print the id and the subject of a commit
title() { git -C "$LINUX" log -1 --format='%h (%s)' --abbrev=12 "$1"; }

# touched [PATHSPEC]...: print the files that the series changes or brings, and leaves
touched() { git -C "$LINUX" diff --name-only --no-renames --diff-filter=d "$baseline" "$series" -- "$@"; }

# brought PATHSPEC...: print the files that the series brings
brought() { git -C "$LINUX" diff --name-only --no-renames --diff-filter=A "$baseline" "$series" -- "$@"; }

# at REV: check out REV in the worktree; only files that differ are written
at() {
	if [ ! -e "$TREE/.git" ]; then
		git -C "$LINUX" worktree prune
		rm -rf "$TREE"
		git -C "$LINUX" worktree add -q -f --detach "$TREE" "$1"
	fi
	# A killed git leaves its lock. Our own lock keeps other processes out.
	rm -f "$(git -C "$TREE" rev-parse --absolute-git-dir)/index.lock"
	git -C "$TREE" checkout -q -f --detach "$1"
}

# kmake_variant VARIANT ARG...: run make in the worktree, with separate objects for VARIANT
kmake_variant() {
	local variant=$1 arch=x86_64
	shift
	[ "$variant" != least ] || arch=i386
	need ccache:ccache gcc:build-essential flex:flex bison:bison bc:bc
	mkdir -p "$CHECK/obj/$variant"
	kmake -s -C "$TREE" O="$CHECK/obj/$variant" ARCH="$arch" -j"$(nproc)" "$@"
}

# configure VARIANT: make its .config for the commit in the worktree
configure() {
	local variant=$1
	kmake_variant "$variant" tinyconfig &&
		fragments "$variant" >>"$CHECK/obj/$variant/.config" &&
		kmake_variant "$variant" olddefconfig
}

# fragments VARIANT: print its configuration on top of tinyconfig. least is tinyconfig
# for 32 bits; no-thp and no-hugetlb lack one of the two, and more. no-thp has the
# filesystem that the series touches.
fragments() {
	local config
	case $1 in
	least) return ;;
	debug) config=debug ;;
	*) config=release ;;
	esac
	(cd "$ROOT/pipeline/kernel/config" && cat common.config "$config.config" series.config)
	case $1 in
	no-thp) printf '%s=n\n' CONFIG_{TRANSPARENT_HUGEPAGE,VM_EVENT_COUNTERS,NUMA,KSM,SWAP}
		echo CONFIG_EXT4_FS=y ;;
	no-hugetlb) printf '%s=n\n' CONFIG_{HUGETLBFS,ZONE_DEVICE,CMA,MEMCG,MIGRATION,COMPACTION} ;;
	esac
}

# messages LOG...: print the messages "path:line:[column:] ...", with paths as in the tree
messages() { sed -nE "s,^([^ :]*/check/src/|(\.\./)+src/),,; /^[^ :]+:[0-9]+:([0-9]+(-[0-9]+)?:)? /p" "$@"; }

# failures LOG: print why make failed
failures() {
	messages "$1" | grep -E ': (fatal )?error: ' | sort -u | head -n 20 | grep . ||
		grep -v 'No rule to make' "$1" | grep -F '***' | sort -u | head -n 5 | grep . ||
		tail -n 5 "$1"
}

# news BEFORE AFTER FILE...: print the messages about FILEs that the log AFTER has more
# often than BEFORE, whatever their line numbers. A message about a header counts once,
# however many files include it.
news() {
	awk '
	FNR == 1 { log_nr++ }
	log_nr == 1 { ours[$0]; next }
	seen[log_nr, $0]++ { next }
	{
		path = text = $0
		sub(/:.*/, "", path)
		sub(/:[0-9]+:([0-9]+(-[0-9]+)?:)?/, ":", text)
		gsub(/ line [0-9]+/, " line", text)
	}
	!(path in ours) { next }
	log_nr == 2 { before[text]++; next }
	{ after[text]++; lines[text] = lines[text] $0 "\n" }
	END { for (text in after) if (after[text] > before[text]) printf "%s", lines[text] }
	' <(shift 2 && printf '%s\n' "$@") <(echo; messages "$1") <(echo; messages "$2") | sort -t: -k1,1 -k2,2n -k3,3n
}
