"""launch/babysit.py: the decision from one look, and whole stories told by a fake gcloud that fails, hangs and preempts."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import ROOT, fake, make_checkout

SCRIPT = ROOT / "launch" / "babysit.py"
spec = importlib.util.spec_from_file_location("babysit", SCRIPT)
babysit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(babysit)
Seen, decide = babysit.Seen, babysit.decide

ARGUMENTS = ["--name", "scaletot-1", "--zone", "us-west4-a", "--type", "v5e-16", "--spot"]
ARGUMENTS += ["--bucket", "gs://my-bucket/runs/first", "--config", "launch/fake_recipe.py"]
POD = ["--share", "10.0.0.2:/vol1", "--workdir", "/mnt/filestore/scaletot-1", "--local-table", "users.parquet"]


@pytest.mark.parametrize(
    ("seen", "action", "code", "failed"),
    [
        (Seen("ABSENT"), "create", 0, False),
        (Seen("WAITING_FOR_RESOURCES"), "wait", 0, False),
        (Seen("PROVISIONING"), "wait", 0, False),
        (Seen("SUSPENDED"), "delete", 0, True),
        (Seen("FAILED"), "delete", 0, True),
        (Seen("SUSPENDING"), "wait", 0, False),
        (Seen("DELETING"), "wait", 0, False),
        (Seen("UNKNOWN", why="quota"), "wait", 0, True),
        (Seen("NEW_STATE_OF_NEXT_YEAR"), "wait", 0, True),
        (Seen("ACTIVE", ("idle",)), "start", 0, False),
        (Seen("ACTIVE", ("running", "running")), "wait", 0, False),
        (Seen("ACTIVE", ("running", "idle")), "wait", 0, True),
        (Seen("ACTIVE", ("running", 5)), "wait", 0, False),
        (Seen("ACTIVE", (0, 0)), "end", 0, False),
        (Seen("ACTIVE", (75, 75)), "start", 0, False),
        (Seen("ACTIVE", (0, 75)), "start", 0, False),
        (Seen("ACTIVE", (137,)), "start", 0, True),
        (Seen("ACTIVE", (4, 4)), "end", 4, False),
        (Seen("ACTIVE", (75, 3)), "end", 3, False),
        (Seen("ACTIVE", (75, "idle")), "start", 0, True),  # a lost host, and the others that missed it
        (Seen("ACTIVE", (5, "idle")), "end", 5, False),
        (Seen("ACTIVE", (137, 75)), "start", 0, True),  # killed, and the other that missed it
        (Seen("ACTIVE", (75, 137)), "start", 0, True),
        (Seen("ACTIVE", (143, 75, 75, 75)), "start", 0, True),
        (Seen("ACTIVE", (137, 134)), "start", 0, True),  # JAX aborts a process that lost another
        (Seen("ACTIVE", (74, 0)), "start", 0, True),
        (Seen("ACTIVE", (134, 3)), "end", 3, False),
        (Seen("ACTIVE", (3, 75)), "end", 3, False),
    ],
)
def test_the_decision(seen, action, code, failed):
    step = decide(seen)
    assert (step.action, step.code, step.failed) == (action, code, failed)
    assert step.why


STATES = ["ABSENT", "UNKNOWN", "ACTIVE", "OTHER", *babysit.COMING, *babysit.GONE, *babysit.GOING]


@given(
    st.sampled_from(STATES),
    st.lists(st.sampled_from(["running", "idle", 0, 1, 2, 3, 4, 5, *babysit.RETRIED]), min_size=1),
)
def test_what_no_decision_may_do(state, workers):
    step = decide(Seen(state, tuple(workers) if state == "ACTIVE" else ()))
    if state == "ACTIVE":
        assert step.action not in ("delete", "create")  # a VM that is there is never taken away
        assert not ("running" in workers and step.action in ("start", "end"))  # nor its code, from under a run
        if step.action == "end" and step.code == 0:
            assert set(workers) == {0}
        wrong = {worker for worker in workers if isinstance(worker, int)} - {0, *babysit.RETRIED}
        assert "running" in workers or bool(wrong) == (step.action == "end" and step.code in wrong)
    else:
        assert step.action not in ("start", "end")
    assert (step.action == "delete") == (state in babysit.GONE)


@pytest.mark.parametrize(
    ("code", "out", "error", "seen"),
    [
        (0, "scaletot-1: WAITING_FOR_RESOURCES\n", "", Seen("WAITING_FOR_RESOURCES")),
        (0, "scaletot-1: ACTIVE\nrunning, process 71\nlog line\n", "", Seen("ACTIVE", ("running",))),
        (0, "scaletot-1: ACTIVE\nended with exit code 75\nx\nnot running\n", "", Seen("ACTIVE", (75, "idle"))),
        (0, "scaletot-1: ACTIVE\nnot set up\n", "", Seen("ACTIVE", ("idle",))),
        (1, "", "ERROR: (gcloud) NOT_FOUND: Resource was not found", Seen("ABSENT")),
        (1, "", "ERROR: PERMISSION_DENIED", Seen("UNKNOWN", why="ERROR: PERMISSION_DENIED")),
        (124, "", "no answer within 3 s", Seen("UNKNOWN", why="no answer within 3 s")),
    ],
)
def test_reading_the_status(code, out, error, seen):
    assert babysit.read_status(code, out, error, "scaletot-1") == seen


def test_a_silent_worker_is_not_a_running_one():
    assert babysit.read_status(255, "scaletot-1: ACTIVE\n", "ssh: timed out", "scaletot-1").state == "UNKNOWN"
    assert babysit.read_status(0, "scaletot-1: ACTIVE\n", "", "scaletot-1").state == "UNKNOWN"


def test_pauses_double_up_to_half_an_hour():
    assert [babysit.pause(60, n) for n in (0, 1, 2)] == [60, 120, 240]
    assert babysit.pause(60, 9) == babysit.pause(60, 10**6) == 1800
    assert babysit.pause(7200, 0) == 7200


# -- whole stories ------------------------------------------------------------------------------------------------------

GCLOUD = """#!{python}
import json, os, sys, time
here, words = {folder!r}, sys.argv[1:]
looks = json.load(open(here + "/looks.json"))
count = here + "/count"
number = int(open(count).read()) if os.path.exists(count) else 0
if "describe" in words:
    look = looks[min(number, len(looks) - 1)]
    open(count, "w").write(str(number + 1))
    kind = "look"
else:
    look = looks[min(number, len(looks)) - 1]
    command = [word for word in words if word.startswith("--command=")]
    kind = next((name for name in ("create", "delete", "scp") if name in words), "")
    if command:
        kind = next((name for name in ("worker.sh status", "worker.sh setup", "worker.sh start") if name in command[0]), "unpack")
with open(here + "/calls", "a") as log:
    log.write(kind + "\\n")
time.sleep(look.get("slow", {{}}).get(kind, 0))
if kind in look.get("hang", []):
    time.sleep(60)
if kind in look.get("fail", []):
    print("ERROR: (gcloud) UNAVAILABLE: try again", file=sys.stderr)
    sys.exit(look.get("code", 1))
if kind == "look":
    if look["state"] == "ABSENT":
        sys.exit("ERROR: (gcloud) NOT_FOUND: no such queued resource")
    print(look["state"])
if kind == "worker.sh status":
    print(look.get("workers", "running, process 7"))
"""


@pytest.fixture
def cloud(tmp_path):
    """A checkout, and a function that tells a story and returns what came of it."""
    checkout = make_checkout(tmp_path)
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "gcloud"
    program.write_text(GCLOUD.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    fake(folder, "scaletot", f"sys.exit(int(open({str(folder / 'plan')!r}).read()))\n")

    def tell(looks, *more, timeout=120, plan=0):
        (folder / "looks.json").write_text(json.dumps(looks))
        (folder / "plan").write_text(str(plan))
        for name in ("count", "calls"):
            (folder / name).unlink(missing_ok=True)
        command = [sys.executable, str(checkout / "launch" / "babysit.py"), *ARGUMENTS, "--poll", "0.01", *more]
        env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
        calls = (folder / "calls").read_text().split("\n")[:-1] if (folder / "calls").exists() else []
        return done, [call for call in calls if call not in ("look", "worker.sh status", "scp", "unpack")]

    return tell


def ended(code):
    return {"state": "ACTIVE", "workers": f"ended with exit code {code}"}


def test_from_nothing_through_two_preemptions_to_the_end(cloud):
    idle, running = {"state": "ACTIVE", "workers": "not set up"}, {"state": "ACTIVE"}
    looks = [
        *[{"state": "ABSENT"}, {"state": "WAITING_FOR_RESOURCES"}, idle, running],
        *[{"state": "SUSPENDED"}, {"state": "DELETING"}, {"state": "ABSENT"}, idle, running],
        *[ended(75), running, ended(0)],
    ]
    done, calls = cloud(looks)
    assert done.returncode == 0, done.stdout + done.stderr
    start = ["worker.sh setup", "worker.sh start"]
    assert calls == ["create", *start, "delete", "create", *start, *start]
    assert "the run has ended well" in done.stdout


def test_an_error_of_the_run_ends_it_and_deletes_nothing(cloud):
    done, calls = cloud([{"state": "ACTIVE"}, ended(3)])
    assert done.returncode == 3
    assert calls == []
    assert "exit code 3" in done.stdout


def test_failures_in_a_row_end_it_and_a_running_run_forgives_them(cloud):
    down = {"state": "ACTIVE", "fail": ["look"]}
    done, calls = cloud([down] * 9, "--failures", "3")
    assert done.returncode == 5 and calls == []
    assert "given up after 3 failures" in done.stdout and "UNAVAILABLE" in done.stdout
    done, _ = cloud([down, down, {"state": "ACTIVE"}, down, down, {"state": "ACTIVE"}, ended(0)], "--failures", "3")
    assert done.returncode == 0, done.stdout


def test_a_step_that_fails_is_tried_again(cloud):
    idle = {"state": "ACTIVE", "workers": "not running"}
    done, calls = cloud(
        [{"state": "ABSENT", "fail": ["create"]}, {"state": "ABSENT"}, {**idle, "fail": ["scp"]}, idle, ended(0)]
    )
    assert done.returncode == 0, done.stdout
    assert calls == ["create", "create", "worker.sh setup", "worker.sh start"]


def test_a_gcloud_that_hangs_is_ended_with_its_children(cloud):
    begun = time.monotonic()
    done, _ = cloud([{"state": "ACTIVE", "hang": ["look"]}, {"state": "ACTIVE"}, ended(0)], "--call-timeout", "2")
    assert done.returncode == 0, done.stdout
    assert "no answer within 2 s" in done.stdout
    assert time.monotonic() - begun < 50  # a child that lived on would hold the pipe for its 60 seconds


def test_a_slow_answer_is_an_answer(cloud):
    slow = {"look": 1.0, "worker.sh status": 1.0, "create": 2.0}
    looks = [{"state": "ABSENT", "slow": slow}, {"state": "ACTIVE", "slow": slow}, {**ended(0), "slow": slow}]
    done, calls = cloud(looks, "--call-timeout", "10", "--failures", "1")
    assert done.returncode == 0, done.stdout
    assert calls == ["create"] and "no answer" not in done.stdout


def test_a_create_that_timed_out_here_and_came_about_there_is_not_done_twice(cloud):
    looks = [{"state": "ABSENT", "hang": ["create"]}, {"state": "WAITING_FOR_RESOURCES"}]
    looks += [{"state": "ACTIVE", "workers": "not set up"}, {"state": "ACTIVE"}, ended(0)]
    done, calls = cloud(looks, "--call-timeout", "8")
    assert done.returncode == 0, done.stdout
    assert calls == ["create", "worker.sh setup", "worker.sh start"]
    assert "tpu_vm.sh create ended with 124: no answer within 8 s" in done.stdout


@pytest.mark.parametrize("code", [2, 5])
def test_a_create_that_was_refused_is_not_tried_again(cloud, code):
    done, calls = cloud([{"state": "ABSENT", "fail": ["create"], "code": code}])
    assert done.returncode == code, done.stdout
    assert calls == ["create"] and f"ended with {code}" in done.stdout


@pytest.mark.parametrize("code", [2, 3, 5])
def test_what_the_check_finds_ends_it_before_anything_is_created(cloud, code):
    done, calls = cloud([{"state": "ABSENT"}], plan=code)
    assert done.returncode == code and calls == [], done.stdout
    done, calls = cloud([{"state": "ABSENT"}, ended(0)], "--no-check", plan=code)
    assert done.returncode == 0 and calls == ["create"], done.stdout


def test_a_check_that_passed_is_not_done_again_after_a_preemption(cloud):
    done, calls = cloud([{"state": "ABSENT"}, {"state": "SUSPENDED"}, {"state": "ABSENT"}, ended(0)])
    assert done.returncode == 0 and calls == ["create", "delete", "create"]
    assert done.stdout.count("tpu_vm.sh check") == 1


def test_a_start_that_leaves_nothing_running_is_a_failure(cloud):
    idle = {"state": "ACTIVE", "workers": "not running"}
    done, calls = cloud([idle] * 20, "--failures", "3")
    assert done.returncode == 5 and "was started, and is not running" in done.stdout
    assert calls == ["worker.sh setup", "worker.sh start"] * 4
    # A VM that was lost in between and a run that was seen are no such failures.
    gone = [idle, {"state": "SUSPENDING"}, idle, {"state": "ACTIVE"}, idle, {"state": "ACTIVE"}, ended(0)]
    done, _ = cloud(gone, "--failures", "1")
    assert done.returncode == 0, done.stdout


def test_a_run_that_comes_to_nothing_is_given_up_in_time(cloud):
    done, _ = cloud([{"state": "WAITING_FOR_RESOURCES"}], "--hours", "0.0003", "--poll", "0.3")
    assert done.returncode == 5 and "given up after 0.0003 hours" in done.stdout


def test_a_wrong_argument_is_refused_before_any_call(cloud):
    done, calls = cloud([{"state": "ABSENT"}], "--bucket", "my-bucket")
    assert done.returncode == 2 and "--bucket" in done.stderr and calls == []
    done, calls = cloud([{"state": "ABSENT"}], "--poll", "0")
    assert done.returncode == 2 and calls == []


def test_dry_run_prints_every_command_and_calls_nothing(cloud):
    done, calls = cloud([{"state": "ABSENT"}], "--dry-run", *POD, "--", "--config.seed=3")
    assert done.returncode == 0 and calls == []
    assert done.stdout == (Path(__file__).parent / "golden" / "babysit.txt").read_text()
