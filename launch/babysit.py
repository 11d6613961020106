#!/usr/bin/env python3
"""Keeps a run on a TPU VM alive until it has ended: creates the VM, starts the run, and does both again when it is taken away.

    launch/babysit.py --name scaletot-1 --zone us-west4-a --type v5e-16 --spot \\
        --bucket gs://my-bucket/runs/first --config configs/complete_journey.py --workdir /mnt/filestore/scaletot-1 \\
        [-- --config.key=value ...]

It looks with ``tpu_vm.sh status``, decides, and acts with ``tpu_vm.sh check | create | setup | run | delete``. Between two looks it
remembers how often it failed and whether it has just started something, no more, so it may be killed and started again at
any time; the run itself continues from the bucket.

What ends it: the run has ended (its exit code becomes this one's; ends that somebody else brought about, such as a
preemption, are started again); ``check`` failed, or ``create`` refused its arguments (2, 5: it would again); ``--failures``
looks or actions in a row went wrong; ``--hours`` are over. A run that ended with an error is never started again: somebody
has to read its log. Nothing is deleted but a queued resource whose VM is already gone.

Exit codes: the run's own; the check's; 2 a wrong argument; 5 given up.

Needs Python 3.9 and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).resolve().with_name("tpu_vm.sh")
# Not the run's fault: the bucket did not take it; preempted, or another process of it was lost, of which JAX may abort (134);
# killed; ended by a signal.
RETRIED = (74, 75, 134, 137, 143)
HOPELESS = (2, 5)  # a create that ends so does it again: a wrong argument; a program that is missing
TIMED_OUT = 124
# https://cloud.google.com/tpu/docs/queued-resources: the states of a queued resource
COMING = ("CREATING", "ACCEPTED", "PROVISIONING", "WAITING_FOR_RESOURCES")
GONE = ("SUSPENDED", "FAILED")
GOING = ("SUSPENDING", "DELETING")
LONGEST_PAUSE_S = 1800.0
LONGEST_CHECK_S = 3600.0  # three programs, fifteen minutes each at most
NOT_STARTED = "not started yet"


class Seen(NamedTuple):
    """One look: ``state`` of the queued resource, ABSENT, or UNKNOWN; of each worker ``running``, ``idle`` or its exit code."""

    state: str
    workers: tuple = ()
    why: str = ""


class Step(NamedTuple):
    """What to do: ``wait``, ``create``, ``start``, ``delete``, ``end``. ``failed``: counts towards giving up."""

    action: str
    why: str
    code: int = 0
    failed: bool = False


def read_status(code: int, out: str, error: str, name: str) -> Seen:
    """What ``tpu_vm.sh status`` said."""
    found = re.search(rf"^{re.escape(name)}: ([A-Z_]+)$", out, re.MULTILINE)
    if found is None:
        if code and re.search(r"NOT_FOUND|not found", error):
            return Seen("ABSENT")
        return Seen("UNKNOWN", why=last_line(error) or "no state in what gcloud said")
    if found[1] != "ACTIVE":
        return Seen(found[1])
    if code:
        return Seen("UNKNOWN", why=f"the VM is there, its workers do not answer: {last_line(error)}")
    workers: list = []
    for line in out.splitlines():
        ended = re.fullmatch(r"ended with exit code (\d+)", line)
        if ended:
            workers.append(int(ended[1]))
        elif line.startswith("running, process "):
            workers.append("running")
        elif line in ("not running", "not set up"):
            workers.append("idle")
    return Seen("ACTIVE", tuple(workers)) if workers else Seen("UNKNOWN", why="no worker said how it is")


def decide(seen: Seen) -> Step:
    """The next step, from one look alone."""
    if seen.state == "ABSENT":
        return Step("create", "there is no queued resource of this name")
    if seen.state in COMING:
        return Step("wait", f"{seen.state.lower()}: waiting for the VM")
    if seen.state in GONE:
        return Step("delete", f"{seen.state.lower()}: the VM is gone, its queued resource is in the way", failed=True)
    if seen.state in GOING:
        return Step("wait", f"{seen.state.lower()}: waiting for its end")
    if seen.state != "ACTIVE":
        return Step("wait", f"cannot tell: {seen.why or seen.state}", failed=True)
    codes = [worker for worker in seen.workers if isinstance(worker, int)]
    if "running" in seen.workers:  # workers that ended, or never started, make the others end in time
        part = "idle" in seen.workers
        return Step("wait", "running on some workers only" if part else "running", failed=part)
    wrong = [code for code in codes if code and code not in RETRIED]
    if wrong:  # the others ended, or were lost, because of it or beside it: it would come to the same again
        return Step("end", f"the run ended with exit code {wrong[0]}; see tpu_vm.sh status", wrong[0])
    if "idle" in seen.workers:  # never started, or a worker was lost, of which the others may have died
        return Step("start", "a worker was lost" if codes else NOT_STARTED, failed=bool(codes))
    again = [code for code in codes if code]
    if not again:
        return Step("end", "the run has ended well")
    return Step("start", f"ended with exit code {again[0]}", failed=any(code != 75 for code in again))


def pause(poll: float, failures: int) -> float:
    """Seconds until the next look: twice as long after every failure, half an hour at most."""
    return min(poll * 2.0 ** min(failures, 30), max(LONGEST_PAUSE_S, poll))


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def call(command: list, seconds: float, quiet: bool) -> tuple:
    """Runs a command that may hang: after ``seconds`` it is ended with all its children. Returns code, stdout, stderr."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        out, error = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return TIMED_OUT, "", f"no answer within {seconds:.0f} s"
    except BaseException:  # Ctrl-C: the child is in a session of its own and would live on
        _end(process)
        raise
    if not quiet:
        sys.stdout.write(out)
        sys.stderr.write(error)
    return process.returncode, out, error


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


class Commands(NamedTuple):
    """Command lines of ``tpu_vm.sh`` for one run, by what they do."""

    status: list
    check: list
    create: list
    setup: list
    run: list
    delete: list

    @classmethod
    def of(cls, options: argparse.Namespace, overrides: list) -> Commands:
        place = ["--name", options.name, "--zone", options.zone]
        place += ["--project", options.project] if options.project else []
        create = ["--type", options.type]
        create += ["--spot"] if options.spot else []
        for name in ("runtime", "valid_until"):
            value = getattr(options, name)
            create += [f"--{name.replace('_', '-')}", value] if value else []
        more = ["--", *overrides] if overrides else []
        check = ["--type", options.type, "--config", options.config]
        for name in ("local_table", "local_schema", "local_weights"):
            value = getattr(options, name)
            check += [f"--{name.replace('_', '-')}", value] if value else []
        check += ["--no-check"] if options.no_check else []
        setup = ["--share", options.share] if options.share else []
        run = ["--bucket", options.bucket, "--config", options.config]
        run += ["--workdir", options.workdir] if options.workdir else []
        run += more
        made = {
            "status": ["status", *place],
            "check": ["check", *place, *check, *more],
            "create": ["create", *place, *create, "--no-check"],  # it is checked once, not after every preemption
            "setup": ["setup", *place, *setup],
            "run": ["run", *place, *run],
            "delete": ["delete", *place, "--yes"],
        }
        return cls(**{name: ["bash", str(SCRIPT), *words] for name, words in made.items()})


def rehearse(commands: Commands, show: bool) -> int:
    """Lets ``tpu_vm.sh`` check the arguments of every step, and prints what the steps would do."""
    titles = {
        "status": "every look",
        "check": "before the first VM is asked for",
        "create": "where there is no VM",
        "setup": "where the run is not running",
        "run": "and then",
        "delete": "where the VM was taken away",
    }
    for name, title in titles.items():
        command = getattr(commands, name)
        code, out, error = call([*command[:3], "--dry-run", *command[3:]], 60.0, quiet=True)
        if code:
            sys.stderr.write(error)
            return code
        if show:
            print(f"# {title}\n{out}", end="")
    return 0


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def watch(commands: Commands, options: argparse.Namespace) -> int:
    """Looks, decides and acts until the run has ended or it gives up."""
    begun, failures, last, started, checked = time.monotonic(), 0, "", False, False
    while True:
        code, out, error = call(commands.status, options.call_timeout, quiet=True)
        seen = read_status(code, out, error, options.name)
        step = decide(seen)
        if started and step.why == NOT_STARTED:
            step = step._replace(why="was started, and is not running", failed=True)
        started = started and seen.state == "UNKNOWN"  # it is seen running, with an exit code, or without its VM
        if step.why != last:
            say(step.why)
            last = step.why
        if step.action == "end":
            return step.code
        failed, why = step.failed, step.why
        creating = ("create",) if checked else ("check", "create")
        for name in {"create": creating, "delete": ("delete",), "start": ("setup", "run")}.get(step.action, ()):
            say(f"tpu_vm.sh {name}")
            seconds = max(options.call_timeout, LONGEST_CHECK_S) if name == "check" else options.call_timeout
            code, _, error = call(getattr(commands, name), seconds, quiet=False)
            checked = checked or (name == "check" and code == 0)
            if code:
                failed, why = True, f"tpu_vm.sh {name} ended with {code}: {last_line(error)}"
                say(why)
                if (name == "check" and code != TIMED_OUT) or (name == "create" and code in HOPELESS):
                    return code
                break
            started = name == "run"
        if failed:
            failures += 1
        elif step.why == "running":
            failures = 0  # nothing else shows that the VM, the code and the way to them are all in order
        if failures >= options.failures:
            say(f"given up after {failures} failures without a running run in between; the last: {why}")
            return 5
        wait = pause(options.poll, failures if failed else 0)
        if time.monotonic() - begun + wait > options.hours * 3600:
            say(f"given up after {options.hours:g} hours; the run, where it runs, goes on")
            return 5
        time.sleep(wait)


def main(arguments: list | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    words, overrides = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(
        prog="babysit.py",
        description=__doc__.split("\n\n")[0],
        epilog="-- --config.key=value ...  overrides for the recipe",
    )
    for name, text in (
        ("name", "of the TPU VM and its queued resource"),
        ("zone", "e.g. us-west4-a"),
        ("type", "e.g. v5e-16"),
        ("bucket", "gs://bucket/folder that keeps the run's workdir"),
        ("config", "a recipe inside the repository"),
    ):
        parser.add_argument(f"--{name}", required=True, help=text)
    for name, text in (
        ("project", "default: the project gcloud is set to"),
        ("workdir", "on a disk that all workers mount; slices of several hosts need it"),
        ("runtime", "TPU software version"),
        ("valid-until", "give up waiting for a VM after this long, e.g. 6h"),
        ("share", "HOST:/PATH of an NFS share, mounted on every new VM at /mnt/filestore"),
        ("local-table", "for the check: what data.path is on this machine"),
        ("local-schema", "for the check: what data.schema is on this machine"),
        ("local-weights", "for the check: what lm.weights is on this machine"),
    ):
        parser.add_argument(f"--{name}", default="", help=text)
    parser.add_argument("--spot", action="store_true", help="cheaper, may be taken away at any time")
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="do not ask the TPU compiler, before the first VM, whether the recipe fits",
    )
    parser.add_argument("--poll", type=float, default=60.0, help="seconds between two looks (60)")
    parser.add_argument("--call-timeout", type=float, default=1800.0, help="seconds after which a command hangs (1800)")
    parser.add_argument(
        "--failures", type=int, default=8, help="give up after so many without a running run between (8)"
    )
    parser.add_argument("--hours", type=float, default=168.0, help="give up after so long (168)")
    parser.add_argument("--dry-run", action="store_true", help="print the exact commands and run nothing")
    options = parser.parse_args(words)
    if options.poll <= 0 or options.call_timeout <= 0 or options.failures < 1 or options.hours <= 0:
        parser.error("--poll, --call-timeout, --failures and --hours must be above 0")
    commands = Commands.of(options, overrides)
    code = rehearse(commands, show=options.dry_run)
    return code if code or options.dry_run else watch(commands, options)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        say("interrupted; the run, where it runs, goes on")
        sys.exit(130)
