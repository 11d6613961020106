"""Stage teach with a served teacher, killed, torn and starved of disk: the same bytes, and nothing asked twice that was kept."""

import json
import os
import shutil
import signal
import subprocess
import time

import line
import pytest
from small_disk import needs_root, run_on_small_disk
from teacher.served.test_teach import ARTIFACTS, api, prepared, recipe, taught  # noqa: F401  (fixtures)
from teaching import digests

pytestmark = pytest.mark.pipeline
CONCURRENCY = 3


def command(recipe, workdir, server):  # noqa: F811
    settings = {
        "backend": "served", "num_profiles": 6, "pilot_profiles": 4, "served.base_url": server.url,
        "served.concurrency": CONCURRENCY,
    }  # fmt: skip
    overrides = [f"--config.teacher.{key}={value}" for key, value in settings.items()]
    return line.command(recipe, workdir, *overrides, verb="teach")


def asked(server, count):
    """Waits until the server was asked so often; False where it never was."""
    deadline = time.monotonic() + 120
    while len(server.bodies) < count and time.monotonic() < deadline:
        time.sleep(0.002)
    return len(server.bodies) >= count


def test_kill_9_at_any_moment(recipe, prepared, taught, api, tmp_path):  # noqa: F811
    """Four kills: in the pilot, at once after a restart, with a torn ledger and an emptied reserve, and in the searches."""
    workdir = tmp_path / "run"
    shutil.copytree(prepared, workdir)
    environ = line.environment(tmp_path / "cache")
    api.bodies.clear()
    api.delay = 0.01
    try:
        for more in (9, 1, 40, 80):
            process = subprocess.Popen(command(recipe, workdir, api), env=environ, stderr=subprocess.PIPE, text=True)
            assert asked(api, len(api.bodies) + more), process.communicate()[1]
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.communicate()
            with (workdir / "teach" / "requests.jsonl").open("ab") as handle:
                handle.write(b'{"id": 99, "event": "se')
            for spare in (workdir / "teach").glob(".spare*"):
                os.truncate(spare, 0)
        done = subprocess.run(command(recipe, workdir, api), env=environ, capture_output=True, text=True)
    finally:
        api.delay = 0.0
    assert done.returncode == 0, done.stderr
    assert digests(workdir, ARTIFACTS) == digests(taught, ARTIFACTS)
    # Besides what was under way at each kill, every start asks once what the server can do.
    probes = json.loads(api.bodies[0])
    again = sum(json.loads(body) == probes for body in api.bodies) - 1
    assert api.repeated() - again <= 4 * CONCURRENCY and again <= 4


SCRIPT = """
import hashlib, json, os, shutil, subprocess, sys
from pathlib import Path
folder = Path(sys.argv[1])
command, prepared, artifacts = json.loads(os.environ["COMMAND"]), os.environ["PREPARED"], json.loads(os.environ["ARTIFACTS"])
workdir = folder / "run"
shutil.copytree(prepared, workdir)
command[command.index("WORKDIR")] = str(workdir)
room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
ballast = folder / "ballast"
ballast.write_bytes(bytes(room - int(os.environ["LEFT"])))
first = subprocess.run(command, capture_output=True, text=True)
ballast.unlink()
second = subprocess.run(command, capture_output=True, text=True)
found = {name: hashlib.sha256((workdir / "teach" / name).read_bytes()).hexdigest() for name in artifacts} if second.returncode == 0 else {}
print(json.dumps({"first": [first.returncode, first.stderr], "second": [second.returncode, second.stderr], "found": found}))
"""


@needs_root
@pytest.mark.parametrize("left", (60_000, 400_000))
def test_a_full_disk(recipe, prepared, taught, api, tmp_path, monkeypatch, left):  # noqa: F811
    """The disk fills up while answers come in; with room again, the same command ends in the same bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    for name, value in {
        **line.environment(tmp_path / "cache"),
        "COMMAND": json.dumps(command(recipe, "WORKDIR", api)),
        "PREPARED": str(prepared),
        "ARTIFACTS": json.dumps(ARTIFACTS),
        "LEFT": str(left),
    }.items():
        monkeypatch.setenv(name, value)
    api.bodies.clear()
    done = run_on_small_disk(SCRIPT, place, "64m")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    code, problem = told["first"]
    assert code not in (0, -signal.SIGKILL) and "Traceback" not in problem and "space" in problem.lower(), problem
    assert told["second"][0] == 0, told["second"][1]
    assert told["found"] == digests(taught, ARTIFACTS)
    assert api.repeated() <= CONCURRENCY + 1  # what was under way when the disk was full, and the probe
