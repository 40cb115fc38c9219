#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs a command that reports its tests as TAP 13 or KTAP, and counts them.

usage: pipeline/tests/ktap.py [--label TEXT] [--teeth REGEX] [--count FILE] -- COMMAND [ARG]...
       pipeline/tests/ktap.py --total FILE

Passes COMMAND's output on line by line, prefixed with [TEXT], and exits with 0
when nothing failed, else with 1 (with 2 for wrong usage).

  --label TEXT   where the tests run, the kernel's name for example
  --teeth REGEX  a test whose name matches must fail here: its failure counts as
                 passed, and anything else as failed
  --count FILE   add the counts to FILE, one line a run, and a line for each failure
  --total FILE   print the failures again, and the sum: "N passed, N failed, N skipped"

These are failures too: a test of the plan that never reported, a command that
reports nothing or ends badly though its tests passed, a skip without a reason,
and a REGEX that no test matches.
"""

import argparse
import re
import signal
import subprocess
import sys

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

    def __init__(self, label, teeth):
        self.prefix = f"[{label}] " if label else ""
        self.label = label or "this kernel"
        self.teeth = teeth
        self.bitten = False
        self.passed = self.failed = self.skipped = 0
        self.failures = []  # their lines, for the end
        self.missing = 0
        self.bad = 0
        self.levels = {}  # indentation -> Level
        self.running = ""
        self.last = ""

    def say(self, text):
        """Passes one line on, at once."""
        sys.stdout.write(f"{self.prefix}{text}\n")
        sys.stdout.flush()

    def fail(self, why):
        """Counts a failure that no line of the command's told."""
        self.failed += 1
        self.say(f"not ok - {why}")
        self.failures.append(why)

    def line(self, text):
        """Counts one line of the command's and passes it on."""
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
        """Counts one "ok" or "not ok"."""
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
        elif self.teeth and self.teeth.search(name):
            self.bitten = True
            if not okay and not match["skip"]:
                self.passed += 1
                self.say(f"{match['indent']}ok{match['number'] or ''} - teeth: "
                         f"{name} fails on {self.label} as it must")
            else:
                self.failed += 1
                self.failures.append(f"{name}, which has to fail here")
                what = "is skipped" if match["skip"] else "passes"
                self.say(f"{match['indent']}not ok{match['number'] or ''} - teeth: "
                         f"{name} {what} on {self.label}, but must fail there")
        elif match["skip"]:
            self.skip(text, match["reason"], name)
        else:
            self.passed += okay
            self.say(text)
            if not okay:
                self.failed += 1
                self.failures.append(name or text)

    def skip(self, text, reason, name):
        """Counts a skip; "unknown" is the harness' word for no reason."""
        self.say(text)
        if reason.strip() in ("", "unknown"):
            self.fail(f"{name or 'a test'} was skipped without a reason")
        else:
            self.skipped += 1

    def close(self, indent):
        """Ends the levels from this indentation on, returns the first."""
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
        """Counts what only the end shows; the last line may say why it is a bad one."""
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
        if self.teeth and not self.bitten:
            self.fail(f"no test matches --teeth {self.teeth.pattern}")
        self.say(f"# {totals(self.passed, self.failed, self.skipped)}")


def totals(passed, failed, skipped):
    """The closing line."""
    return f"{passed} passed, {failed} failed, {skipped} skipped"


def run(args):
    """Runs the command; True when nothing failed."""
    ktap = Ktap(args.label, args.teeth)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        command = subprocess.Popen(args.command, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
    except OSError as error:
        ktap.fail(f"{args.command[0]}: {error.strerror}")
    else:
        try:
            for line in command.stdout:
                ktap.line(line.decode(errors="replace").rstrip("\r\n"))
        except BaseException:
            command.terminate()
            command.wait()
            raise
        status = command.wait()
        ktap.end(" ".join(args.command), status if status >= 0 else 128 - status)
    if args.count:
        with open(args.count, "a", encoding="utf-8") as counts:
            counts.write(f"{ktap.passed} {ktap.failed} {ktap.skipped}\n")
            counts.writelines(f"# failed: {ktap.prefix}{name}\n" for name in ktap.failures)
    return not ktap.failed


def total(path):
    """Prints failures and sum of the counts; True when tests ran and none failed."""
    lines = []
    with open(path, encoding="utf-8") as counts:
        for line in counts:
            if line.startswith("#"):
                print(line, end="")
            else:
                lines.append([int(number) for number in line.split()])
    passed, failed, skipped = (sum(column) for column in zip(*lines)) if lines else (0, 0, 0)
    print(totals(passed, failed, skipped))
    return passed and not failed


def main():
    """Parses the command line."""
    argv = sys.argv[1:]
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1], add_help=False)
    parser.add_argument("--help", action="store_true")
    parser.add_argument("--label")
    parser.add_argument("--teeth")
    parser.add_argument("--count")
    parser.add_argument("--total")
    args = parser.parse_args(argv[:split])
    args.command = argv[split + 1:]
    if args.help:
        print(__doc__, end="")
        return 0
    if bool(args.total) == bool(args.command):
        print("ktap: give -- COMMAND or --total FILE, see --help", file=sys.stderr)
        return 2
    try:
        args.teeth = args.teeth and re.compile(args.teeth)
        return 0 if (total(args.total) if args.total else run(args)) else 1
    except re.error as error:
        print(f"ktap: {error.pattern}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"ktap: {error.filename}: {error.strerror}", file=sys.stderr)
    except ValueError:
        print(f"ktap: {args.total}: not a file of counts", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
