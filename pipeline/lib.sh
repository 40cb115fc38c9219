# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# Paths and functions that the scripts share, and how they call git and the kernel's make.
# shellcheck disable=SC2034 # its users use them

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BUILD=$ROOT/build
LINUX=$BUILD/linux
SRC=$BUILD/src

# The user's own git configuration must not change what we make.
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_ATTR_NOSYSTEM=1
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
export LC_ALL=C.UTF-8 TZ=UTC

say() { echo "$*" >&2; }

die() {
	say "${0##*/}: $*"
	exit 1
}

# kmake ARG...: run the kernel's make. Neither the user's environment nor what our own
# make was called with reaches it. ccache, if installed, keeps the objects.
kmake() {
	local cc=gcc keep
	! command -v ccache >/dev/null || cc="ccache gcc"
	mapfile -t keep < <(env | grep -E '^(PATH|HOME|TMPDIR|CCACHE_[A-Z_]+|DEB[A-Z]+)=')
	env -i "${keep[@]}" LC_ALL=C.UTF-8 TZ=UTC CCACHE_BASEDIR="$ROOT" \
		make LOCALVERSION= CC="$cc" HOSTCC="$cc" "$@" 9>&-
}

# built TREE CONFIG: set obj and image to the directory and the bzImage of a kernel
# that pipeline/kernel/build has made.
built() {
	obj=$BUILD/kernel/$1-$2 image=$BUILD/kernel/$1-$2/arch/x86/boot/bzImage
	[ -e "$obj.made" ] ||
		die "the kernel of $1, $2, is not built: make kernel TREE=$1 CONFIG=$2"
}

# lock NAME: wait until no other process makes NAME. A child that outlives this shell
# must be started with 9>&-, or it keeps the lock.
lock() {
	mkdir -p "$BUILD"
	exec 9>"$BUILD/.lock-${1//\//-}"
	flock -n 9 && return
	say "${0##*/}: waiting for another one that makes $1"
	flock 9
}

# kernel_input REV FILE...: print a checksum of the input of a kernel of commit REV
# built according to FILEs. Documents and test programs do not count.
kernel_input() {
	{
		git -C "$LINUX" ls-tree -r "$1" |
			grep -vP '\t(Documentation/.*\.(rst|txt|yaml)|tools/testing/.*)$'
		cat "${@:2}"
		gcc --version
	} | sha256sum
}

# progress WHAT LOG TOTAL: copy the output of a kernel build from stdin to LOG, and show
# how many lines like "  CC      mm/gup.o" have come. TOTAL says how many to expect.
progress() {
	local line n=0 start=$SECONDS last=$SECONDS step=30 end='\n'
	[ -t 2 ] && step=1 end='\r'
	while IFS= read -r line; do
		printf '%s\n' "$line"
		[[ $line == "  "[A-Z]* ]] && n=$((n + 1))
		if [ $((SECONDS - last)) -ge "$step" ]; then
			last=$SECONDS
			printf "%s: %d of %s, %d:%02d$end" "$1" "$n" "$3" \
				$(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) >&2
		fi
	done >"$2"
	[ ! -t 2 ] || printf '\033[K' >&2
}

# checkout TREE: check out branch TREE in the worktree build/src/TREE; only files that
# differ are written, so that make rebuilds only what they change.
checkout() (
	lock "src/$1"
	head=$(git -C "$LINUX" rev-parse "refs/heads/$1")
	if [ ! -e "$SRC/$1/.git" ]; then
		say "${0##*/}: checking out $1"
		git -C "$LINUX" worktree prune
		rm -rf "${SRC:?}/$1"
		git -C "$LINUX" worktree add -q -f --detach "$SRC/$1" "$head"
	fi
	git -C "$SRC/$1" checkout -q -f --detach "$head"
)
