#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Read TAP 13 or KTAP: run a command that reports its tests so, and count them.

usage: pipeline/tests/ktap.py [--label TEXT] [--one NAME] [--teeth FILE PROGRAM] [--count FILE]
                              -- COMMAND [ARG]...
       pipeline/tests/ktap.py --total FILE
       pipeline/tests/ktap.py --compare DIR...

Passes COMMAND's output on line by line, prefixed with [TEXT], and exits with 0
when nothing failed, else with 1 (with 2 for wrong usage).

  --label TEXT    what runs where: pin_fork and the kernel's name, for example
  --one NAME      COMMAND reports nothing: it is the test NAME, and passes if it exits
                  with 0
  --teeth FILE PROGRAM
                  the tests that FILE lists for PROGRAM must fail here: such a failure
                  counts as passed, and anything else as failed. A line of FILE is a
                  program, a glob over test names, and "# why".
  --count FILE    add the counts to FILE, one line a run, and a line for each failure
  --total FILE    print the ten runs that took longest, the failures again, and the
                  sum: "N passed, N failed, N skipped"
  --compare DIR   DIRs hold the output of programs, a file each: print each test that
                  does not go the same way in all, and the sums

These are failures too: a test of the plan that never reported, a command that
reports nothing or ends badly though its tests passed, a skip without a reason,
and a glob that matches no test.
"""

import argparse
import fnmatch
import os
import re
import signal
import subprocess
import sys
import time

# Subtests are indented, with spaces (KTAP) or with "# " (kselftest's runner).
LINE = re.compile(
    r"(?P<indent>(?:# | )*)"
    r"(?:(?P<version>K?TAP version \d+)\s*"
    r"|1\.\.(?P<plan>\d+)(?P<plan_skip>\s+#\s*SKIP\b\s*(?P<plan_reason>.*))?\s*"
    r"|(?P<result>ok(?= \d)|not ok\b)(?P<number> \d+\b)?(?: -)?\s*"
    r"(?P<name>.*?)\s*(?P<skip>#\s*(?i:SKIP)\b\s*(?P<reason>.*))?"
    r"|(?P<bail>Bail out!.*))$")
# kselftest_harness.h names a test before it runs, but not when it skips.
RUN = re.compile(r"#\s+RUN\s+(\S+)")


class Level:
    """The results of one indentation."""

    def __init__(self):
        self.plan = None
        self.seen = 0
        self.bad = 0  # results that said "not ok", or never came


class Ktap:
    """What has been counted so far."""

    def __init__(self, label="", teeth=(), quiet=False):
        self.prefix = f"[{label}] " if label else ""
        self.quiet = quiet
        self.teeth = teeth
        self.bitten = set()
        self.results = {}  # by name: "ok", "FAIL" or "skip"
        self.passed = self.failed = self.skipped = 0
        self.failures = []  # their lines, for the end
        self.missing = 0
        self.bad = 0
        self.levels = {}  # indentation -> Level
        self.running = ""
        self.last = ""

    def say(self, text):
        """Pass one line on, at once."""
        if not self.quiet:
            sys.stdout.write(f"{self.prefix}{text}\n")
            sys.stdout.flush()

    def fail(self, why):
        """Count a failure that no line of the command told."""
        self.failed += 1
        self.say(f"not ok - {why}")
        self.failures.append(why)

    def line(self, text):
        """Count one line of the command and pass it on."""
        self.last = text
        run = RUN.match(text)
        if run:
            self.running = run.group(1)
        match = LINE.match(text)
        if not match:
            self.say(text)
            return
        indent = len(match["indent"])
        if match["version"]:
            self.close(indent)  # another program, the last one is over
            self.say(text)
        elif match["plan"]:
            level = self.levels.get(indent)
            if level and level.plan is not None:
                self.close(indent)
            self.levels.setdefault(indent, Level()).plan = int(match["plan"])
            if match["plan_skip"]:
                self.skip(text, match["plan_reason"], "the whole program")
            else:
                self.say(text)
        elif match["bail"]:
            self.say(text)
            self.bad += 1
            self.fail("the program gave up")
        else:
            self.result(text, match, indent)

    def result(self, text, match, indent):
        """Count one "ok" or "not ok"."""
        nested = self.close(indent + 1)
        level = self.levels.setdefault(indent, Level())
        level.seen += 1
        okay = match["result"] == "ok"
        name = match["name"] or self.running
        self.running = ""
        if not okay:
            level.bad += 1
            self.bad += 1
        if nested:
            # It sums up its subtests, which are counted already.
            self.say(text)
            if not okay and not nested.bad:
                self.fail(f"{name} failed, though its subtests passed")
            return
        self.results[name] = "skip" if match["skip"] else "ok" if okay else "FAIL"
        matching = [glob for glob in self.teeth if fnmatch.fnmatchcase(name, glob)]
        if matching:
            self.bitten.update(matching)
            if not okay and not match["skip"]:
                self.passed += 1
                self.say(f"{match['indent']}ok{match['number'] or ''} - teeth: "
                         f"{name} fails here as it must")
            else:
                self.failed += 1
                self.failures.append(f"{name}, which has to fail here")
                what = "is skipped" if match["skip"] else "passes"
                self.say(f"{match['indent']}not ok{match['number'] or ''} - teeth: "
                         f"{name} {what}, but must fail here")
        elif match["skip"]:
            self.skip(text, match["reason"], name)
        else:
            self.passed += okay
            self.say(text)
            if not okay:
                self.failed += 1
                self.failures.append(name or text)

    def skip(self, text, reason, name):
        """Count a skip; "unknown" is the harness' word for no reason."""
        self.say(text)
        if reason.strip() in ("", "unknown"):
            self.fail(f"{name or 'a test'} was skipped without a reason")
        else:
            self.skipped += 1

    def close(self, indent):
        """End the levels from this indentation on, return the first."""
        closed = None
        for deep in sorted(d for d in self.levels if d >= indent):
            level = self.levels.pop(deep)
            closed = closed or level
            if level.plan is None or level.plan == level.seen:
                continue
            level.bad += 1
            if level.seen > level.plan:
                self.fail(f"{level.seen} tests reported, {level.plan} planned")
            for number in range(level.seen + 1, level.plan + 1):
                self.missing += 1
                self.fail(f"test {number} of {level.plan} never reported")
        return closed

    def end(self, command, status):
        """Count what only the end shows; the last line may say why it is a bad one."""
        self.close(0)
        ended = f"{command} ended with {status}"
        # kselftest: 1 when a test failed, 4 when all were skipped.
        explained = (status == 0 or status == 1 and self.bad or
                     status == 4 and self.skipped and not self.bad)
        if not self.passed + self.failed + self.skipped:
            self.fail(f"no test reported anything, {ended}: {self.last or 'no output'}")
        elif not explained and not self.missing:
            self.fail(f"{ended}, which no test explains: {self.last}")
        elif not explained:
            self.say(f"# {ended}")
        for glob in self.teeth:
            if glob not in self.bitten:
                self.fail(f"no test matches {glob}, which must fail here")
        self.say(f"# {totals(self.passed, self.failed, self.skipped)}")


def totals(passed, failed, skipped):
    """Return the closing line."""
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def must_fail(path, program):
    """Return the globs that a file lists for a program."""
    globs = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            words = line.partition("#")[0].split(None, 1)
            if words and words[0] == program:
                globs.append(words[1].strip())
    if not globs:
        raise ValueError(f"{path} lists no test of {program}")
    return globs


def run(args):
    """Run the command; return true when nothing failed."""
    start = time.monotonic()
    ktap = Ktap(args.label, must_fail(*args.teeth) if args.teeth else ())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command = subprocess.Popen(args.command, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
    except OSError as error:
        ktap.fail(f"{args.command[0]}: {error.strerror}")
    else:
        take = ktap.say if args.one else ktap.line
        try:
            for line in command.stdout:
                take(line.decode(errors="replace").rstrip("\r\n"))
        except BaseException:
            command.terminate()
            command.wait()
            raise
        status = command.wait()
        if args.one:
            ktap.line(f"{'not ok' if status else 'ok'} 1 - {args.one}")
            status = min(abs(status), 1)
        ktap.end(" ".join(args.command), status if status >= 0 else 128 - status)
    if args.count:
        took = round(time.monotonic() - start)
        lines = [f"{ktap.passed} {ktap.failed} {ktap.skipped} {took} {args.label or ''}\n"]
        lines += [f"# failed: {ktap.prefix}{name}\n" for name in ktap.failures]
        with open(args.count, "a", encoding="utf-8") as counts:
            counts.write("".join(lines))
    return not ktap.failed


def total(path):
    """Print times, failures and sum of the counts; return true when tests ran and none failed."""
    runs, failures = [], []
    with open(path, encoding="utf-8") as counts:
        for line in counts:
            if line.startswith("#"):
                failures.append(line)
            else:
                *numbers, label = line.rstrip("\n").split(" ", 4)
                runs.append(([int(number) for number in numbers], label))
    for (*_, took), label in sorted(runs, key=lambda run: -run[0][3])[:10]:
        print(f"# {took:5} s  {label}")
    sys.stdout.writelines(failures)
    passed, failed, skipped = ([sum(run[0][i] for run in runs) for i in range(3)])
    print(totals(passed, failed, skipped))
    return passed and not failed


def compare(dirs):
    """Print a table of the tests that differ between directories; return true."""
    found = []  # for each directory: {test: result}
    for directory in dirs:
        results = {}
        for program in sorted(os.listdir(directory)):
            ktap = Ktap(quiet=True)
            with open(os.path.join(directory, program), encoding="utf-8", errors="replace") as file:
                for line in file:
                    ktap.line(line.rstrip("\r\n"))
            results.update((f"{program}: {name}", result) for name, result in ktap.results.items())
        found.append(results)

    def row(head, cells):
        print(f"{head:72}" + "".join(f" {cell:9}" for cell in cells))

    row("", [os.path.basename(os.path.normpath(directory)) for directory in dirs])
    for test in dict.fromkeys(test for results in found for test in results):
        cells = [results.get(test, "-") for results in found]
        if len(set(cells)) > 1:
            row(test, cells)
    for kind in ("ok", "FAIL", "skip"):
        row(f"total: {kind}", [list(results.values()).count(kind) for results in found])
    return True


def main():
    """Parse the command line."""
    argv = sys.argv[1:]
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1], add_help=False)
    parser.add_argument("--help", action="store_true")
    parser.add_argument("--label")
    parser.add_argument("--one")
    parser.add_argument("--teeth", nargs=2)
    parser.add_argument("--count")
    parser.add_argument("--total")
    parser.add_argument("--compare", nargs="+")
    args = parser.parse_args(argv[:split])
    args.command = argv[split + 1:]
    if args.help:
        print(__doc__, end="")
        return 0
    if bool(args.total) + bool(args.compare) + bool(args.command) != 1:
        print("ktap: give -- COMMAND, --total FILE or --compare DIR, see --help", file=sys.stderr)
        return 2
    try:
        if args.total:
            return 0 if total(args.total) else 1
        return 0 if (compare(args.compare) if args.compare else run(args)) else 1
    except OSError as error:
        print(f"ktap: {error.filename}: {error.strerror}", file=sys.stderr)
    except ValueError as error:
        print(f"ktap: {f'{args.total}: not a file of counts' if args.total else error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
