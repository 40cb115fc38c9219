#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Check our files and the series' commits by reading them.

usage: pipeline/check/text.py files|python|words|commits REPO RANGE
       pipeline/check/text.py list REGEX

Print a line for each fault. REPO and RANGE are the series as git
commits. `list` prints those of our scripts whose interpreter matches REGEX.
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WIDTH = 75


def git(repo, *args):
    """Run git in repo, return what it prints."""
    return subprocess.run(["git", "-C", repo, *args], stdout=subprocess.PIPE, check=True,
                          encoding="utf-8", errors="replace").stdout


def our_files():
    """Yield (name, text, executable) of all that git does not ignore, added to it or not."""
    for name in sorted(set(git(ROOT, "ls-files", "-z", "-c", "-o", "--exclude-standard").split("\0"))):
        full = os.path.join(ROOT, name)
        if name and os.path.isfile(full) and not os.path.islink(full):
            with open(full, encoding="utf-8", errors="replace", newline="") as file:
                yield name, file.read(), os.access(full, os.X_OK)


def interpreter(text):
    """Return what a #! line runs."""
    match = re.match(r"#!\s*(?:/usr/bin/env\s+)?(?:\S*/)?(\S+)", text)
    return match[1] if match else ""


def commits(repo, wanted):
    """Yield (id, author, subject, body) in order."""
    out = git(repo, "log", "--reverse", "--format=%h%x01%an <%ae>%x01%s%x01%b%x02", "--abbrev=12", wanted)
    for commit in out.split("\2")[:-1]:
        yield commit.strip("\n").split("\1")


SPDX = re.compile(r"SPDX-License-Identifier: GPL-2\.0(-only)?( WITH Linux-syscall-note)?( |\n|$)")
# Diffs, mails, licence texts and the settings of tools have no place for one.
NO_SPDX = re.compile(r"patches/|.*\.(patch|md)$|COPYING$|LICENSES/|(.*/)?\.[^/]*$")


def check_files(*_):
    """Demand an SPDX line, clean white space, and the mode that fits the first line."""
    for name, text, executable in our_files():
        lines = text.split("\n")
        if not NO_SPDX.match(name) and not SPDX.search("\n".join(lines[:3])):
            yield f"{name}:1: no SPDX-License-Identifier: GPL-2.0-only in the first lines"
        if text.startswith("#!") != executable:
            yield f"{name}:1: " + ("executable, but has no #! line" if executable else
                                   "has a #! line, but is not executable")
        if text and not text.endswith("\n"):
            yield f"{name}:{len(lines)}: the last line does not end"
        if text.endswith("\n\n"):
            yield f"{name}:{len(lines) - 1}: a blank line at the end"
        for number, line in enumerate(lines, 1):
            if line.endswith("\r"):
                yield f"{name}:{number}: ends with a carriage return"
            # The first column of a diff is the diff's.
            elif name.endswith((".patch", ".cocci")):
                if line[1:] != line[1:].rstrip() and not name.endswith(".patch"):
                    yield f"{name}:{number}: white space at the end"
            elif line != line.rstrip():
                yield f"{name}:{number}: white space at the end"
            elif re.match(r"\t* +\t", line):
                yield f"{name}:{number}: a space before a tab"


def check_python(*_):
    """Demand that our Python compiles."""
    for name, text, _ in our_files():
        if interpreter(text).startswith("python"):
            try:
                compile(text, name, "exec")
            except (SyntaxError, ValueError) as error:
                yield f"{name}:{getattr(error, 'lineno', 1)}: {error}"


# A bracket in a pattern keeps it from matching itself.
WORDS = (
    (r"[.]debian[.](org|net)\b|https?://\S*([m]irror|[p]roxy|[r]egistry)", "a host of a package mirror"),
    (r"(?<![\w.$}/-])/(wor[k]|hom[e]|User[s])/|" + re.escape(ROOT + "/"), "a path of one machine"),
    (r"\b(TOD[O]|FIXM[E]|XX[X]|HAC[K])\b", "something undone"),
)


def check_words(repo, wanted):
    """Refuse names of mirrors, paths of one machine, and marks of unfinished work."""
    texts = [(name, text) for name, text, _ in our_files()]
    for where, those in ((ROOT, "HEAD"), (repo, wanted)):
        if subprocess.run(["git", "-C", where, "rev-parse", "-q", "--verify", "HEAD"], check=False,
                          stdout=subprocess.DEVNULL).returncode == 0:
            texts += [(f"commit {ident}", f"{author}\n{subject}\n{body}")
                      for ident, author, subject, body in commits(where, those)]
    for name, text in texts:
        for number, line in enumerate(text.split("\n"), 1):
            # Context and removed lines of a patch are the kernel's.
            if name.endswith(".patch") and line[:1] in (" ", "-"):
                continue
            for pattern, what in WORDS:
                if re.search(pattern, line):
                    yield f"{name}:{number}: {what}: {line.strip()}"


def check_commits(repo, wanted):
    """Demand mails as linux-mm takes them, with no tags of other people."""
    count = 0
    for ident, author, subject, body in commits(repo, wanted):
        count += 1
        name = f"{ident} ({subject})"
        lines = body.strip("\n").split("\n")
        trailers = [line for line in lines if re.match(r"[A-Z][A-Za-z]*(-[A-Za-z]+)*: ", line)]
        if not re.match(r"[\w./+*,{}-]+( [\w./+-]+)?: \S", subject):
            yield f"{name}: the subject is not of the form 'subsystem: what it does'"
        if len(subject) > WIDTH:
            yield f"{name}: the subject has {len(subject)} columns, more than {WIDTH}"
        if subject.endswith("."):
            yield f"{name}: the subject ends with a full stop"
        if not [line for line in lines if line.strip() and line not in trailers]:
            yield f"{name}: the body is empty"
        if f"Signed-off-by: {author}" not in lines:
            yield f"{name}: no 'Signed-off-by: {author}', who is its author"
        # Quoted output is indented, and a word cannot be wrapped.
        long = [line for line in lines if len(line) > WIDTH and " " in line and line[0] not in " \t"
                and line not in trailers]
        if long:
            yield f"{name}: {len(long)} lines have more than {WIDTH} columns, the first is: {long[0]}"
        for line in trailers:
            key, value = line.split(": ", 1)
            if key.endswith("-by") and key != "Signed-off-by" or key in ("Link", "Closes", "Change-Id", "Message-Id"):
                yield f"{name}: '{line}' is not ours to say"
            # The commit is upstream's: this tree does not have it.
            if key == "Fixes" and not re.fullmatch(r'[0-9a-f]{12,40} \("\S.*"\)', value):
                yield f"{name}: '{line}' is not of the form 'Fixes: 12-40 hex digits (\"subject\")'"
    if not count:
        yield f"no commit in {wanted}"


def main():
    """Parse the command line."""
    what, *args = sys.argv[1:] or [""]
    if what == "list" and len(args) == 1:
        for name, text, _ in our_files():
            if re.fullmatch(args[0], interpreter(text)):
                print(name)
        return
    check = globals().get("check_" + what)
    if not check or len(args) != 2:
        sys.exit("text: " + __doc__.split("\n\n")[1])
    for line in check(*args):
        print(line)


if __name__ == "__main__":
    main()
