# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# Make the commits of a kernel source and its baseline, for pipeline/source/tree and pipeline/source/port.
# $source is the directory or tarball that pipeline/source/fetch printed.
# shellcheck disable=SC2154 # its users set it

# Nobody is the author of stock and baseline. Their date is that of 5.10.
export GIT_AUTHOR_NAME=base GIT_AUTHOR_EMAIL=base@localhost GIT_AUTHOR_DATE='1607899290 +0000'
export GIT_COMMITTER_NAME=base GIT_COMMITTER_EMAIL=base@localhost GIT_COMMITTER_DATE='1607899290 +0000'

# commit DIR BRANCH MESSAGE [PARENT]: commit the index of DIR to BRANCH
commit() {
	local tree id
	tree=$(git -C "$1" write-tree)
	id=$(git -C "$1" commit-tree "$tree" -m "$3" ${4:+-p "$4"})
	git -C "$1" update-ref "refs/heads/$2" "$id"
}

# version DIR: print the version of a kernel tree
version() { sed -n 's/^\(VERSION\|PATCHLEVEL\|SUBLEVEL\) = *//p' "$1/Makefile" 2>/dev/null | paste -sd.; }

# check_source DIR: stop unless DIR, the source or a copy of it, is a tree of 5.10.y without
# the series
check_source() {
	local v
	v=$(version "$1")
	case $v in
	5.10.*) ;;
	'') die "the Makefile of $source has no version: KSRC= takes a directory or tarball of a 5.10.y tree" ;;
	*) die "$source is Linux $v, and the series is for 5.10.y: give KSRC= such a tree, or no KSRC= to fetch one" ;;
	esac
	[ ! -e "$1/mm/pin.c" ] || die "$source has the series already: KSRC= takes the tree as it was before"
}

# source_id: print what changes whenever the source does
source_id() {
	if [[ $source = "$BUILD/fetch/"* ]]; then
		cat "$source.sha256" # pipeline/source/fetch has just compared the file with it
	elif [ -f "$source" ]; then
		stat -c '%n %s %Y' "$source"
	elif [ -e "$source/.git" ]; then
		git -C "$source" rev-parse HEAD
		git -C "$source" diff HEAD | sha256sum
	else
		find "$source" -printf '%P %s %T@ %m\n' | sort | sha256sum
	fi
}

# unpack DIR: put the source into DIR, without what was built in it
unpack() {
	say "${0##*/}: unpacking $source"
	mkdir -p "$1"
	if [ -f "$source" ]; then
		tar -xf "$source" -C "$1" --strip-components=1 --no-same-owner ||
			die "cannot unpack $source: KSRC= takes a directory or tarball of a 5.10.y tree"
		check_source "$1"
		return
	fi
	check_source "$source"
	if [ -e "$source/.git" ]; then
		(cd "$source" && git ls-files -z | while IFS= read -rd '' f; do
			[ ! -e "$f" ] && [ ! -L "$f" ] || printf '%s\0' "$f"
		done | tar -c --no-recursion --null -T -) | tar -x -C "$1" --no-same-owner
	else
		# This is kbuild's own test.
		if [ -e "$source/.config" ] || [ -d "$source/include/config" ]; then
			die "$source has been built in: run 'make mrproper' there first"
		fi
		tar -c -C "$source" --exclude=./.git . | tar -x -C "$1" --no-same-owner
	fi
}

# baseline_id SOURCE_ID: print a checksum of the inputs of baseline()
baseline_id() {
	(shopt -s nullglob && cd "$ROOT/pipeline/source" && echo "$1" | cat - baseline* check-baseline* ./*.cocci | sha256sum | cut -d' ' -f1)
}

# baseline DIR: turn DIR and its index from stock into the baseline, and commit it
baseline() {
	say "${0##*/}: making the baseline"
	"$ROOT/pipeline/source/baseline" "$1" || die "$source gives no baseline, see above. ${1#"$ROOT/"} is a copy of it: change $source"
	git -C "$1" add -A -f
	commit "$1" baseline "Take out page pinning

Callers of pin_user_pages*() get and put the pages instead." stock
}

# show_new_files DIR: let git see new files in DIR. The .gitignore of Debian's source has
# all of them ignored, for its packaging. Its commits keep that line.
show_new_files() {
	grep -qx '/\*' "$1/.gitignore" 2>/dev/null || return 0
	sed -i '/^\/\*$/d' "$1/.gitignore"
	git -C "$1" update-index --skip-worktree .gitignore
}
