# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# The checks. Each prints the faults that it finds.

check_files() { "$ROOT/pipeline/check/text.py" files "$LINUX" "$range"; }
check_words() { "$ROOT/pipeline/check/text.py" words "$LINUX" "$range"; }

check_scripts() {
	need shellcheck:shellcheck
	"$ROOT/pipeline/check/text.py" list '(ba|da)?sh' | (cd "$ROOT" && xargs -d '\n' shellcheck -x -a -P SCRIPTDIR -f gcc) |
		grep -v '^/' | sort -u || true
	"$ROOT/pipeline/check/text.py" python "$LINUX" "$range"
}

check_series() {
	"$ROOT/pipeline/source/tree"
	local commit
	for commit in $(commits); do
		# git takes a heading of seven = in a document for a conflict.
		git -C "$LINUX" diff --check "$commit^" "$commit" | grep '^[^+]' |
			grep -v 'leftover conflict marker' | sed "s|^|$(title "$commit"): |" || true
	done
	"$ROOT/pipeline/check/text.py" commits "$LINUX" "$range"
	# A file at a kernel path that no patch brings would not be in the tree.
	git -C "$ROOT" ls-files -c -o --exclude-standard -- '*/*' ':!patches' ':!pipeline' ':!.ci' |
		{ grep -vxFf <(sed -n 's/^\t//p' "$ROOT/patches/series") || true; } |
		sed 's|$|: not in patches/series: list it under the patch that brings it|'
}

# Types of complaints to leave out:
# FILE_PATH_CHANGES  it asks for an entry in MAINTAINERS, which has one for each
#                    directory that our new files are in
# CAMELCASE          it does not know the kernel's own names, such as __SetPageHead
# UNKNOWN_COMMIT_ID  build/linux does not have the commit that Fixes: names
checkpatch_ignore=FILE_PATH_CHANGES,CAMELCASE,UNKNOWN_COMMIT_ID

check_checkpatch() {
	rm -rf "$CHECK/mails"
	git -C "$LINUX" format-patch -q --no-renames -o "$CHECK/mails" "$range"
	cd "$LINUX"
	local mail
	for mail in "$CHECK"/mails/*.patch; do
		scripts/checkpatch.pl --strict --terse --no-summary --show-types --showfile \
			--ignore "$checkpatch_ignore" "$mail" | sed "s|^$CHECK/mails/||; /^$/d; s|^|${mail##*/}: |" || true
	done
}

# extract: write the touched files, and scripts/, before and after the series, to $CHECK
extract() {
	local tree files
	for tree in baseline series; do
		rm -rf "${CHECK:?}/$tree"
		mkdir -p "$CHECK/$tree"
		mapfile -t files < <(git -C "$LINUX" ls-tree -r --name-only "${!tree}" | grep -xFf <(touched))
		git -C "$LINUX" archive "${!tree}" -- scripts/{coccinelle,headers_install.sh,kernel-doc,unifdef.c} \
			"${files[@]}" | tar -x -C "$CHECK/$tree"
	done
}

check_kernel-doc() {
	extract
	local tree file name
	for tree in baseline series; do
		(cd "$CHECK/$tree" && find . -name '*.[ch]' -printf '%P\n' | sort | xargs -r -n 1 scripts/kernel-doc -none) \
			>"$CHECK/kernel-doc.$tree" 2>&1 || true
	done
	mapfile -t files < <(touched '*.[ch]')
	news "$CHECK/kernel-doc.baseline" "$CHECK/kernel-doc.series" "${files[@]}"
	for file in "${files[@]}"; do
		for name in $(comm -13 <(exported "$CHECK/baseline/$file") <(exported "$CHECK/series/$file")); do
			grep -qE "^ \* $name\(\) - " "$CHECK/series/$file" ||
				echo "$file: $name() is exported and has no kernel-doc"
		done
	done
}

exported() { sed -nE 's/^EXPORT_SYMBOL(_GPL)?\((\w+)\);.*/\2/p' "$1" 2>/dev/null | sort; }

check_uapi() {
	need g++:build-essential
	extract
	local file out=$CHECK/uapi
	rm -rf "$out"
	mkdir -p "$out/scripts"
	gcc -o "$out/scripts/unifdef" "$CHECK/series/scripts/unifdef.c"
	for file in $(touched 'include/uapi/*.h'); do
		mkdir -p "$out/${file%/*}"
		(cd "$out" && sh "$CHECK/series/scripts/headers_install.sh" "$CHECK/series/$file" "$file" &&
			gcc -std=c90 -Wall -Wextra -Werror -pedantic -include "$file" -fsyntax-only -x c - <<<'extern int unit;' &&
			gcc -std=c90 -Wall -Wextra -Werror -include "$file" -include "$file" -fsyntax-only -x c /dev/null &&
			g++ -std=c++98 -Wall -Wextra -Werror -include "$file" -fsyntax-only -x c++ /dev/null) 2>&1 || true
	done
}

check_docs() {
	need sphinx-build:python3-sphinx
	local dirs
	dirs=$(touched 'Documentation/*/*.rst' | cut -d/ -f2 | sort -u | paste -sd' ')
	[ -n "$dirs" ] || return 0
	at "$series"
	# Sphinx warns only about pages that it makes anew.
	rm -rf "$CHECK/obj/docs"
	kmake_variant docs SPHINXDIRS="$dirs" htmldocs >"$CHECK/docs.log" 2>&1
	grep -E 'WARNING|ERROR|CRITICAL|[Ww]arning:|[Ee]rror:' "$CHECK/docs.log" |
		grep -F "$(brought . | sed -n 's|^Documentation/\(.*\)\.rst$|\1|p')" || true
}

# objects: print the x86 objects of the series' files that the worktree has by now
objects() {
	local file
	touched '*.c' '*.S' ':!tools' ':!samples' ':!Documentation' | while IFS= read -r file; do
		case $file in
		arch/x86/*) ;;
		arch/*) continue ;;
		esac
		[ ! -e "$TREE/$file" ] || echo "${file%.*}.o"
	done
}

# compile VARIANT LOG [VAR=VALUE...]: compile the objects, and for release $wide.
# kbuild has no rule for an object that the configuration leaves out.
wide=()
compile() {
	local variant=$1 log=$2 objects known
	shift 2
	mapfile -t objects < <({
		objects
		[ "$variant" != release ] || printf '%s\n' "${wide[@]}"
	} | sed '/^$/d' | sort -u)
	[ ${#objects[@]} != 0 ] || return 0
	if kmake_variant "$variant" -k "$@" "${objects[@]}" >"$log" 2>&1; then return; fi
	mapfile -t known < <(printf '%s\n' "${objects[@]}" |
		grep -vxFf <(sed -nE "s/.*No rule to make target '([^']*)'.*/\1/p" "$log"))
	[ ${#known[@]} != 0 ] || return 0
	kmake_variant "$variant" "$@" "${known[@]}" >>"$log" 2>&1
}

# The configurations in which every patch is built, and more for the whole series.
# In release, W=1 must find no new warning; the others must print no warning at all.
patch_variants=${CHECK_PATCH-release debug least}
series_variants=${CHECK_SERIES-no-thp no-hugetlb}

check_build() {
	local commit variant variants name log before w wide=()
	local code=('*.[chS]' '*Kconfig*' '*Makefile*' ':!tools' ':!Documentation')
	mapfile -t files < <(touched)
	rm -rf "$CHECK/build"
	mkdir -p "$CHECK/build"
	at "$baseline"
	step "build: the baseline"
	: >"$CHECK/build/release.configured"
	{ configure release >"$CHECK/build/baseline" 2>&1 && compile release "$CHECK/build/baseline" W=1; } || {
		echo "the baseline does not build:"
		failures "$CHECK/build/baseline"
		return
	}
	local last
	last=$(git -C "$LINUX" rev-parse "$series")
	for commit in $(commits); do
		! git -C "$LINUX" diff --quiet "$commit^" "$commit" -- "${code[@]}" || [ "$commit" = "$last" ] || continue
		at "$commit"
		name=$(title "$commit")
		step "build: $name"
		variants=$patch_variants
		if [ "$commit" = "$last" ]; then
			variants+=" $series_variants"
			# Headers are used by more than the series' own files.
			[ -z "$(touched 'include/*.h' ':!include/uapi')" ] || wide=(mm/ fs/proc/ kernel/fork.o)
		fi
		for variant in $variants; do
			log=$CHECK/build/$variant.$commit
			if [ ! -e "$CHECK/build/$variant.configured" ] ||
				! git -C "$LINUX" diff --quiet "$commit^" "$commit" -- '*Kconfig*'; then
				configure "$variant" >"$log" 2>&1 || {
					failures "$log" | sed "s|^|$name: cannot be configured ($variant): |"
					continue
				}
				: >"$CHECK/build/$variant.configured"
			fi
			before=/dev/null w=
			[ "$variant" != release ] || before=$CHECK/build/baseline w=1
			compile "$variant" "$log" W="$w" ||
				failures "$log" | sed "s|^|$name: does not build ($variant): |"
			news "$before" "$log" "${files[@]}" | grep warning: | sed "s|^|$name: a new warning ($variant): |" || true
		done
	done
	for name in $(objects); do
		ls "$CHECK"/obj/*/"$name" >/dev/null 2>&1 || echo "$name: no configuration builds it"
	done
}

check_sparse() {
	need sparse:sparse
	local tree
	mapfile -t files < <(touched)
	for tree in baseline series; do
		at "${!tree}"
		step "sparse: $tree"
		configure release >"$CHECK/sparse.$tree" 2>&1
		compile release "$CHECK/sparse.$tree" W=1 C=2 || {
			echo "the $tree does not build:"
			failures "$CHECK/sparse.$tree"
			return
		}
	done
	news "$CHECK/sparse.baseline" "$CHECK/sparse.series" "${files[@]}"
}

# Semantic patches that are left out:
# null/badzero, api/check_bq27xxx_data  need an OCaml compiler
# tests/unsigned_lesser_than_zero       takes minutes a file; W=1 compares types too
cocci_ignore='null/badzero|api/check_bq27xxx_data|tests/unsigned_lesser_than_zero'

check_coccicheck() {
	need spatch:coccinelle
	extract
	mapfile -t files < <(touched '*.c' ':!tools')
	# Only a file with messages can have new ones.
	coccicheck series "${files[@]}"
	mapfile -t files < <(messages "$CHECK/coccicheck.series" | cut -d: -f1 | sort -u)
	coccicheck baseline "${files[@]}"
	news "$CHECK/coccicheck.baseline" "$CHECK/coccicheck.series" "${files[@]}"
}

# coccicheck TREE FILE...: run scripts/coccicheck's semantic patches, with the
# options that each asks for, on FILEs of TREE
coccicheck() {
	local tree=$1
	shift
	(
		cd "$CHECK/$tree"
		mapfile -t files < <(for file; do [ ! -e "$file" ] || echo "$file"; done)
		[ ${#files[@]} != 0 ] || exit 0
		# shellcheck disable=SC2016 # the inner shell expands it
		find scripts/coccinelle -name '*.cocci' | grep -vE "/($cocci_ignore)\.cocci$" | sort |
			xargs -P "$(nproc)" -I '{}' bash -c '
				options=$(sed -n "s,^// *Options:,,p" "$0")
				run() { spatch -D report --very-quiet --no-show-diff --cocci-file "$0" $options "$@" 2>/dev/null; }
				# Its stack may be too small for all files at once.
				run "$@" || for file; do run "$file" || echo "$file:1: spatch fails with $0"; done
			' '{}' "${files[@]}"
	) >"$CHECK/coccicheck.$tree"
}

# Parts that the model can leave out; spin must find an error without each
model_faults='NO_ODD NO_RETRY NO_MB_A NO_MB_C NO_LATCH'

check_model() {
	need spin:spin
	local fault out=$CHECK/model
	for fault in '' $model_faults; do
		rm -rf "$out"
		mkdir -p "$out"
		(
			cd "$out"
			spin -a ${fault:+-D$fault} "$ROOT/pipeline/check/fork.pml"
			gcc -O2 -w -DSAFETY -o pan pan.c
			./pan -m100000
		) >"$out/log" 2>&1 || { tail -n 5 "$out/log"; continue; }
		if [ -n "$fault" ]; then
			grep -q 'assertion violated' "$out/log" || echo "pipeline/check/fork.pml: spin does not find $fault"
		elif ! grep -q 'errors: 0$' "$out/log" || grep -q 'max search depth too small' "$out/log"; then
			echo "pipeline/check/fork.pml:"
			grep -E 'errors: |violated|invalid end|too small' "$out/log"
		fi
	done
}
