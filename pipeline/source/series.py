#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Convert the series between patches/, with our new files, and git commits.

  series inputs BASE             print a checksum of all that `build` reads
  series build REPO BASE         make the commits on BASE; print the last one's id
  series refresh REPO BASE TIP   write the commits BASE..TIP back; print the id of
                                 the same series as `build` then makes it
  series topics REPO BASE TIP    print each topic of the commits BASE..TIP and the
                                 id of its last commit

patches/series names the patches in order, TOPIC/NAME.patch on a line each. Under
each patch, indented by a tab, stand the new files that it brings. The patches of
a topic stand together. A topic is what one mail thread carries;
patches/TOPIC/cover-letter is the thread's first mail.

A patch file holds its mail text and a diff of its hooks, which are its changes to
files that exist before it. A new file stands once, whole, at its kernel path in
this repository, as the whole series leaves it. If a later patch changes the file,
that change is a diff in the later patch like any hook. `build` takes those diffs
off again to find the first content of the file.

NAME is the subject of the commit. By it `refresh` finds the topic of a commit, see
topics_of(). A new commit joins the topic of the commit before it. To put a patch
into another topic: move the commit there in build/linux and `make refresh`, or
move the patch file and its line in patches/series and `make tree`. To rename a
topic, rename its folder, and the topic in patches/series.
"""
import datetime
import difflib
import email.utils
import hashlib
import itertools
import os
import re
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Bad(Exception):
    """An error that the user can mend; its text says how."""


def git(repo, *args, data=None, env=None, check=True):
    """Run git in repo and return what it prints, as bytes."""
    done = subprocess.run(["git", "-C", repo, *args], input=data, env={**os.environ, **(env or {})},
                          stdin=None if data is not None else subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode and check:
        raise Bad(f"git {args[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout if check else done


def text(*args, **more):
    return git(*args, **more).decode("utf-8", "surrogateescape").strip()


# --- patches/ ---

def state(full):
    """Return (git's mode, content) of a file."""
    if os.path.islink(full):
        return "120000", os.fsencode(os.readlink(full))
    with open(full, "rb") as file:
        return "100755" if os.stat(full).st_mode & 0o100 else "100644", file.read()


def patch_files(root):
    """Return the names of all patch files, as patches/series has them."""
    patches = os.path.join(root, "patches")
    return {os.path.relpath(os.path.join(folder, name), patches)
            for folder, _, names in os.walk(patches) for name in names if name.endswith(".patch")}


def read_series(root):
    """Return [(patch name, [new file, ...]), ...] of patches/series."""
    patches, seen, topics = [], {}, []
    name = os.path.join(root, "patches/series")
    if not os.path.exists(name):
        raise Bad("patches/series is missing: it lists the patches in order")
    with open(name, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where, what = f"patches/series:{number}", line.strip()
            if not what or what.startswith("#"):
                continue
            if what in seen:
                raise Bad(f"{where}: {what} is in line {seen[what]} already")
            seen[what] = number
            if line.startswith("\t"):
                if not patches:
                    raise Bad(f"{where}: {what} must be under the patch that brings it")
                if not os.path.lexists(os.path.join(root, what)):
                    raise Bad(f"{where}: there is no {what}")
                patches[-1][1].append(what)
                continue
            topic = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]*)/[^/]+\.patch", what)
            if not topic:
                raise Bad(f"{where}: '{what}' must be TOPIC/NAME.patch, TOPIC of letters, digits, '-' and '_'")
            if not os.path.isfile(os.path.join(root, "patches", what)):
                raise Bad(f"{where}: there is no patches/{what}")
            if topic[1] not in topics:
                topics.append(topic[1])
            elif topic[1] != topics[-1]:
                raise Bad(f"{where}: move {what} to the other patches of topic {topic[1]}")
            patches.append((what, []))
    for other in sorted(patch_files(root) - seen.keys()):
        raise Bad(f"patches/{other} is not listed in patches/series: list it or remove it")
    return patches


def slug(subject):
    """Return the file name of the patch with that subject."""
    return re.sub(r"[^\w.]+", "-", subject, flags=re.ASCII)[:52].strip(".-")


def topics_of(root, subjects):
    """Return the topic of each of the commits, which have these subjects.

    A commit is in the topic of the patch that has its subject. If no patch has it,
    the commit is in the topic of the patch that it stands in place of, or else in
    that of the commit before it, or after it, or else in topic `new`. If the commits
    of a topic do not stand together, the longest run of them keeps the topic, and the
    others join the topic before them.
    """
    known = {slug(Patch(root, name).subject): name.split("/")[0] for name, _ in read_series(root)}
    names = [slug(subject) for subject in subjects]
    found = [known.get(name) for name in names]
    old = list(known)
    for change, i, j, k, l in difflib.SequenceMatcher(None, old, names, autojunk=False).get_opcodes():
        if change == "replace":
            for gone, new in zip(range(i, j), range(k, l)):
                found[new] = found[new] or known[old[gone]]
    last = next(filter(None, found), "new")
    for index, topic in enumerate(found):
        last = found[index] = topic or last

    runs = [(topic, len(list(run))) for topic, run in itertools.groupby(found)]
    longest = {topic: max(range(len(runs)), key=lambda n: (runs[n][0] == topic, runs[n][1]))
               for topic, _ in runs}
    topics, last = [], next((topic for n, (topic, _) in enumerate(runs) if longest[topic] == n), None)
    for index, (topic, length) in enumerate(runs):
        if longest[topic] == index:
            last = topic
        topics += [last] * length
    return topics


class Patch:
    """One file of patches/: its mail text, and its diffs by path."""

    def __init__(self, root, name):
        self.name = "patches/" + name
        with open(os.path.join(root, self.name), "rb") as file:
            content = file.read()
        mail, found, diffs = content.partition(b"\n---\n")
        if not found:
            raise Bad(f"{self.name}: a line '---' must be between its text and its diffs")
        head, _, self.body = mail.decode("utf-8", "surrogateescape").partition("\n\n")
        head = dict(line.partition(": ")[::2] for line in head.split("\n"))
        for field in ("From", "Date", "Subject"):
            if field not in head:
                raise Bad(f"{self.name}: its head must have a line {field}:")
        self.subject = re.sub(r"^\[PATCH\] ", "", head["Subject"])
        who = re.fullmatch(r"(.*) <(.*)>", head["From"])
        when = email.utils.parsedate_tz(head["Date"])
        if not who or not when:
            raise Bad(f"{self.name}: its From: or Date: line cannot be read")
        self.who, zone = who.groups(), (when[9] or 0) // 60
        self.when = "%d %s%02d%02d" % (email.utils.mktime_tz(when), "-" if zone < 0 else "+",
                                       *divmod(abs(zone), 60))
        self.diffs = {}
        for diff in re.split(rb"^(?=diff --git )", diffs, flags=re.M)[1:]:
            path = diff[len("diff --git "):diff.index(b"\n")]
            path = path[len("a/"):(len(path) - 1) // 2].decode("utf-8", "surrogateescape")
            if not diff.startswith(f"diff --git a/{path} b/{path}\n".encode("utf-8", "surrogateescape")):
                raise Bad(f"{self.name}: '{diff[:diff.index(10)].decode(errors='replace')}': a diff must not rename a file, nor quote its name")
            # A file that becomes a symbolic link has two diffs: one deletes it, one creates it.
            self.diffs[path] = self.diffs.get(path, b"") + diff

    def apply(self, repo, env, paths, reverse=False):
        """Apply the diffs of paths to the index, or take them off it."""
        diffs = b"".join(self.diffs[path] for path in paths)
        if not diffs:
            return
        done = git(repo, "apply", "--cached", "--whitespace=nowarn", *(["-R"] if reverse else []),
                   data=diffs, env=env, check=False)
        if done.returncode:
            raise Bad(self.explain(done.stderr.decode(errors="replace"), reverse))

    def explain(self, errors, reverse):
        """Return the hunks that failed, of which git gives only file and line."""
        verb = "cannot be taken off" if reverse else "does not apply"
        found = []
        for path, line in re.findall(r"^error: patch failed: (.*):(\d+)$", errors, flags=re.M):
            hunk = rb"^@@ -%s[ ,].*" if not reverse else rb"^@@ -\S+ \+%s[ ,].*"
            hunk = re.search(hunk % line.encode(), self.diffs.get(path, b""), flags=re.M)
            hunk = hunk.group().decode(errors="replace") if hunk else "its hunk"
            found.append(f"{self.name}: {verb}: {path}:{line}: {hunk}")
        if reverse:
            found.append("(what a later patch changes of a new file, edit in build/linux and 'make refresh')")
        return "\n".join(found) or f"{self.name}: {verb}: {errors.strip()}"


# --- patches/ to commits ---

def entries(repo, env):
    """Return {path: (mode, blob)} of an index."""
    listed = git(repo, "ls-files", "-s", "-z", env=env).decode("utf-8", "surrogateescape")
    return {line.split("\t", 1)[1]: tuple(line.split(" ")[:2]) for line in listed.split("\0")[:-1]}


def to_index(repo, env, files):
    data = "".join(f"{mode} {blob}\t{path}\0" for path, (mode, blob) in files.items())
    git(repo, "update-index", "-z", "--index-info", data=data.encode("utf-8", "surrogateescape"), env=env)


def store(repo, root, paths):
    """Put our new files into repo; return {path: (mode, blob)}."""
    files = {}
    for path in paths:
        if os.path.isdir(os.path.join(root, path)):
            raise Bad(f"patches/series lists {path}, which is a directory")
        mode, content = state(os.path.join(root, path))
        files[path] = (mode, text(repo, "hash-object", "-w", "--stdin", data=content))
    return files


def first_contents(repo, root, patches, env):
    """Return {path: (mode, blob)} of each new file as its own patch brings it."""
    files = store(repo, root, [path for _, paths in patches for path in paths])
    to_index(repo, env, files)
    for index in range(len(patches) - 1, -1, -1):
        patch, brings = patches[index]
        earlier = {path for _, paths in patches[:index] for path in paths}
        later = [path for path in patch.diffs if path in earlier]
        if later:
            patch.apply(repo, env, later, reverse=True)
            now = entries(repo, env)
            files.update((path, now[path]) for path in later if path in now)
        for path in brings:
            if path in patch.diffs:
                raise Bad(f"{patch.name}: it has a diff of {path}, which patches/series says it brings whole")
    return files


def build(repo, root, base):
    """Make the commits; return their ids in order."""
    patches = [(Patch(root, name), paths) for name, paths in read_series(root)]
    commits = [base]
    with tempfile.TemporaryDirectory() as scratch:
        firsts = first_contents(repo, root, patches, {"GIT_INDEX_FILE": scratch + "/new-files"})
        env = {"GIT_INDEX_FILE": scratch + "/index"}
        git(repo, "read-tree", base, env=env)
        for patch, brings in patches:
            patch.apply(repo, env, patch.diffs)
            if brings:
                to_index(repo, env, {path: firsts[path] for path in brings})
            tree = text(repo, "write-tree", env=env)
            who = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in
                   (("NAME", patch.who[0]), ("EMAIL", patch.who[1]), ("DATE", patch.when))}
            message = f"{patch.subject}\n\n{patch.body}\n" if patch.body else patch.subject + "\n"
            commits.append(text(repo, "commit-tree", tree, "-p", commits[-1], env=who,
                                data=message.encode("utf-8", "surrogateescape")))
    return commits[1:]


def inputs(root, base):
    """Return a checksum of all that build() reads."""
    total = hashlib.sha256(base.encode())
    patches = read_series(root)
    names = ["patches/series"] + ["patches/" + name for name, _ in patches]
    names += [path for _, paths in patches for path in paths]
    for name in [os.path.join(root, name) for name in names] + [os.path.abspath(__file__)]:
        mode, content = state(name)
        total.update(f"{mode} {len(content)}\n".encode() + content)
    return total.hexdigest()


# --- commits to patches/ ---

def changes(repo, parent, commit):
    """Yield (path, status) of what a commit changes."""
    raw = git(repo, "diff-tree", "-r", "--no-renames", "--raw", "-z", parent, commit)
    raw = raw.decode("utf-8", "surrogateescape").split("\0")[:-1]
    for info, path in zip(raw[::2], raw[1::2]):
        modes, status = info[1:].split(" ")[:2], info[-1]
        if "160000" in modes:
            raise Bad(f"{path}: a submodule cannot be part of the series")
        if re.search(r'[\\"\x00-\x1f\x7f]', path):
            raise Bad(f"{path!r}: such a file name cannot be part of the series")
        yield path, status


def diff_of(repo, parent, commit, paths):
    """Return the diffs of paths, in a form that depends on their text alone."""
    if not paths:
        return b""
    diff = git(repo, "-c", "core.quotePath=false", "--literal-pathspecs", "diff-tree", "-p", "-r",
               "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative",
               "--src-prefix=a/", "--dst-prefix=b/", "-U3", "--inter-hunk-context=0",
               "--diff-algorithm=myers", "--indent-heuristic", parent, commit, "--", *paths)
    if re.search(rb"^Binary files .* differ$", diff, flags=re.M):
        raise Bad(f"{commit[:12]}: the commit changes a binary file: the series can only add one")
    # The ids of blobs change with every base, and the diffs apply without them.
    return re.sub(rb"^index [0-9a-f]+\.\.[0-9a-f]+( \d+)?\n", b"", diff, flags=re.M)


def mail_text(repo, commit):
    """Return the mail text of a commit."""
    shown = text(repo, "log", "-1", "--no-show-signature", "--encoding=UTF-8", "--date=raw",
                 "--format=%an <%ae>%n%ad%n%s%n%b", commit)
    who, when, subject, body = (shown + "\n").split("\n", 3)
    body = body.strip("\n")
    if re.search(r"^(---$|diff -|Index: )", body, flags=re.M):
        raise Bad(f"{commit[:12]} {subject}: a line of its message would end it in a mail (---, diff -, Index:): change the line")
    seconds, zone = when.split()
    offset = int(zone[0] + "1") * (int(zone[1:3]) * 60 + int(zone[3:5]))
    zone = datetime.timezone(datetime.timedelta(minutes=offset))
    when = email.utils.format_datetime(datetime.datetime.fromtimestamp(int(seconds), zone))
    return f"From: {who}\nDate: {when}\nSubject: [PATCH] {subject}\n\n" + (body + "\n" if body else "")


def write(root, name, mode, content):
    full = os.path.join(root, name)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    if os.path.lexists(full):
        os.unlink(full)
    if mode == "120000":
        os.symlink(content, os.fsencode(full))
        return
    with open(full, "wb") as file:
        file.write(content)
    os.chmod(full, 0o755 if mode == "100755" else 0o644)


def line_of_commits(repo, base, tip):
    """Return the ids and the subjects of base..tip, in order."""
    name = os.path.relpath(repo, ROOT)
    if git(repo, "merge-base", "--is-ancestor", base, tip, check=False).returncode:
        raise Bad(f"{name}: branch series is not based on branch baseline: "
                  f"git -C {name} rebase --onto baseline OLD-BASELINE series")
    merges = text(repo, "rev-list", "--merges", f"{base}..{tip}").split()
    if merges:
        raise Bad(f"{name}: {merges[0][:12]} is a merge; the series is one line of commits")
    lines = text(repo, "log", "--no-show-signature", "--encoding=UTF-8", "--reverse", "--topo-order",
                 "--format=%H %s", f"{base}..{tip}").splitlines()
    return [line[:40] for line in lines], [line[41:] for line in lines]


def split(repo, base, commits, names):
    """Return {path: (mode, content)}, all that this repository holds of the commits.

    names are the names of their patches.
    """
    pairs = list(zip([base] + commits, commits))
    changed = [dict(changes(repo, *pair)) for pair in pairs]
    born = {}  # new file: which commit brings it
    for index, paths in enumerate(changed):
        for path, status in paths.items():
            if status == "A":
                born[path] = index
            elif status == "D":
                born.pop(path, None)
    files, listed = {}, []
    for index, (parent, commit) in enumerate(pairs):
        if not changed[index]:
            raise Bad(f"{commit[:12]}: the commit changes nothing: drop it")
        brings = [path for path in changed[index] if born.get(path) == index]
        diff = diff_of(repo, parent, commit, [path for path in changed[index] if path not in brings])
        mail = mail_text(repo, commit).encode("utf-8", "surrogateescape")
        files["patches/" + names[index]] = ("100644", mail + b"---\n" + diff)
        listed += [names[index] + "\n"] + [f"\t{path}\n" for path in brings]
    files["patches/series"] = ("100644", "".join(listed).encode("utf-8", "surrogateescape"))
    if born:
        tree = git(repo, "--literal-pathspecs", "ls-tree", "-r", "-z", commits[-1], "--", *born)
        for line in tree.decode("utf-8", "surrogateescape").split("\0")[:-1]:
            (mode, _, blob), path = line.split("\t")[0].split(" "), line.split("\t")[1]
            files[path] = (mode, git(repo, "cat-file", "blob", blob))
    return files


def refresh(repo, root, base, tip):
    """Write the commits base..tip to patches/ and the new files."""
    commits, subjects = line_of_commits(repo, base, tip)
    slugs = [slug(subject) for subject in subjects]
    for one, other in itertools.combinations(range(len(slugs)), 2):
        if slugs[one] == slugs[other]:
            raise Bad(f"{commits[one][:12]} and {commits[other][:12]} would both be {slugs[one]}.patch: change a subject")
    topics = topics_of(root, subjects)
    names = [f"{topic}/{name}.patch" for topic, name in zip(topics, slugs)]
    files = split(repo, base, commits, names)

    # Check that the files give the same trees again, before they are written.
    with tempfile.TemporaryDirectory() as scratch:
        for name, (mode, content) in files.items():
            write(scratch, name, mode, content)
        made = build(repo, scratch, base)
    for was, now in zip(commits, made):
        if text(repo, "rev-parse", was + "^{tree}") != text(repo, "rev-parse", now + "^{tree}"):
            raise Bad(f"{was[:12]}: its patch would not give the same tree again")

    old = {"patches/" + name for name in patch_files(root)}
    old |= {path for _, paths in read_series(root) for path in paths}
    for name in sorted(old - files.keys()):
        if os.path.lexists(os.path.join(root, name)):
            os.unlink(os.path.join(root, name))
            print("refresh: removed", name, file=sys.stderr)
            try:
                os.removedirs(os.path.dirname(os.path.join(root, name)))
            except OSError:
                pass  # it holds other files
    for name, (mode, content) in files.items():
        full = os.path.join(root, name)
        if not os.path.lexists(full):
            print("refresh: new", name, file=sys.stderr)
        elif mode == state(full)[0] and content == state(full)[1]:
            continue
        else:
            print("refresh: changed", name, file=sys.stderr)
        write(root, name, mode, content)
    for topic in sorted(os.listdir(os.path.join(root, "patches"))):
        if topic not in topics and os.path.exists(os.path.join(root, "patches", topic, "cover-letter")):
            print(f"refresh: topic {topic} has no patch any more: move or remove patches/{topic}/cover-letter",
                  file=sys.stderr)
    return made


def main():
    what, *args = sys.argv[1:] or [None]
    if what == "inputs":
        print(inputs(ROOT, *args))
    elif what == "build":
        print(([args[1]] + build(args[0], ROOT, args[1]))[-1])
    elif what == "refresh":
        print(([args[1]] + refresh(args[0], ROOT, *args[1:]))[-1])
    elif what == "topics":
        commits, subjects = line_of_commits(*args)
        for topic, last in dict(zip(topics_of(ROOT, subjects), commits)).items():
            print(topic, last)
    else:
        sys.exit("usage: pipeline/source/series.py inputs|build|refresh|topics ...: tree, refresh and mbox call it")


try:
    main()
except (Bad, OSError, UnicodeError) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
