"""slurm.sh, gke_xpk.sh, gpu_host.sh, score_sky.yaml: their commands, their refusals, and what they do with fakes."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from launching import ROOT, calls, fake, make_checkout, run_script, without

GOLDEN = Path(__file__).parent / "golden"
RECIPE = ["--config", "launch/fake_recipe.py"]
SLURM = [*RECIPE, "--workdir", "/scratch/run"]
GKE = ["--cluster", "tpu-cluster", "--name", "scaletot-1", "--zone", "us-west4-a"]
HOST = ["--workdir", "runs/first"]
CREATE = ["create", *GKE, "--type", "v5e-16", *RECIPE, "--storage", "filestore-1", "--workdir", "/mnt/filestore/run"]
HOSTILE = '--config.data.path=it\'s a $(touch pwned); `id` \\ "x" && *'

DRY_RUNS = {
    "slurm": ("slurm.sh", [*SLURM, "--environment", "/opt/venv", "--", "--config.seed=3"]),
    "slurm_hosts": (
        "slurm.sh",
        [
            *SLURM,
            "--environment",
            "/opt/venv",
            "--nodes",
            "2",
            "--gpus",
            "8",
            "--time",
            "2-00:00:00",
            "--partition",
            "gpu",
        ]
        + ["--account", "ads", "--", "--config.mesh.data=0", "--config.data.path=it's"],
    ),
    "gke_create": ("gke_xpk.sh", [*CREATE, "--project", "my-project", "--", "--config.mesh.data=0"]),
    "gke_status": ("gke_xpk.sh", ["status", *GKE]),
    "gke_delete": ("gke_xpk.sh", ["delete", *GKE, "--yes"]),
    "host_setup": ("gpu_host.sh", ["setup"]),
    "host_run": ("gpu_host.sh", ["run", *HOST, *RECIPE, "--", "--config.mesh.data=0"]),
    "host_status": ("gpu_host.sh", ["status", *HOST]),
    "host_stop": ("gpu_host.sh", ["stop", *HOST]),
}


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path)


def dry(arguments):
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], "--dry-run", *arguments[end:]]


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").iterdir() if path.is_file()))
def test_what_begins_with_an_interpreter_can_be_run_and_nothing_else(script):
    path = ROOT / "launch" / script
    assert os.access(path, os.X_OK) == path.read_bytes().startswith(b"#!")


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_run_prints_the_golden_commands_and_calls_nothing(checkout, tmp_path, name):
    script, arguments = DRY_RUNS[name]
    result = run_script(checkout, script, *dry(arguments), path=without(tmp_path, "git"))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize(
    ("script", "arguments", "named"),
    [
        ("slurm.sh", RECIPE, "--workdir is missing"),
        ("slurm.sh", ["--workdir", "/scratch/run"], "--config is missing"),
        ("slurm.sh", [*SLURM, "--nodes", "0"], "--nodes"),
        ("slurm.sh", [*SLURM, "--gpus", "8; reboot"], "--gpus"),
        ("slurm.sh", [*SLURM, "--time", "soon"], "--time"),
        ("slurm.sh", [*SLURM, "--partition", "a b"], "--partition"),
        ("slurm.sh", [*SLURM, "--account", "x\n#SBATCH --uid=0"], "--account"),
        ("slurm.sh", [*SLURM, "--", "--workdir=/"], "override"),
        ("gke_xpk.sh", ["create", *GKE, *RECIPE], "--type is missing"),
        ("gke_xpk.sh", ["status", *GKE, "--storage", "$(x)"], "--storage"),
        ("gke_xpk.sh", ["delete", *GKE, "--type", "v5p-7"], "--type"),
        ("gke_xpk.sh", [*CREATE, "--storage", "$(x)"], "--storage"),
        ("gke_xpk.sh", [*CREATE, "--workdir", "relative"], "--workdir"),
        ("gke_xpk.sh", [*CREATE, "--image", "a b"], "--image"),
        ("gke_xpk.sh", ["status", *GKE, "--", "--config.seed=1"], "takes no overrides"),
        ("gke_xpk.sh", ["launch"], "unknown subcommand"),
        ("gpu_host.sh", ["run", *RECIPE], "--workdir is missing"),
        ("gpu_host.sh", ["run", *HOST, "--config", "configs/none.py"], "does not exist"),
        ("gpu_host.sh", ["run", *HOST, *RECIPE, "--colour", "red"], "unknown option"),
    ],
)
def test_a_wrong_argument_is_refused_and_nothing_is_called(checkout, tmp_path, script, arguments, named):
    bin_folder = tmp_path / "bin"
    for program in ("sbatch", "xpk", "python3"):
        fake(bin_folder, program, "log(arguments)\n")
    result = run_script(checkout, script, *arguments, path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.returncode == 2 and named in result.stderr and result.stdout == ""
    assert not (bin_folder / "calls.jsonl").exists()


@pytest.mark.parametrize(("script", "arguments"), [("slurm.sh", SLURM), ("gke_xpk.sh", ["status", *GKE])])
def test_without_the_scheduler_a_clear_error(checkout, tmp_path, script, arguments):
    result = run_script(checkout, script, *arguments, path=without(tmp_path, "sbatch", "xpk"))
    assert result.returncode == 5 and "is not installed" in result.stderr and "--dry-run" in result.stderr


def run_job(checkout, tmp_path, srun, *arguments, restarts=0, sleep=""):
    """The submitted job run with fakes for Slurm's programs: what it ended with, and what srun and scontrol logged."""
    bin_folder = tmp_path / "bin"
    fake(bin_folder, "sbatch", "open('job.sh', 'w').write(sys.stdin.read())\n")
    fake(bin_folder, "srun", srun)
    fake(bin_folder, "scontrol", "log(arguments)\n")
    fake(bin_folder, "sleep", sleep)  # before a requeue
    path, workdir = f"{bin_folder}:{os.environ['PATH']}", tmp_path / "run"
    submitted = run_script(checkout, "slurm.sh", *RECIPE, "--workdir", str(workdir), *arguments, path=path)
    assert submitted.returncode == 0 and workdir.is_dir()  # where the log will be
    env = {**os.environ, "PATH": path, "SLURM_JOB_ID": "71", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run(["bash", "job.sh"], cwd=checkout, env=env, capture_output=True, text=True, timeout=60)
    return done, calls(bin_folder)


REQUEUE = ["requeue", "71"]


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (4, 0, False), (139, 0, False), (75, 19, True), (75, 20, False)]
    + [(code, 0, True) for code in (75, 134, 137, 143)],
)
def test_the_job_goes_back_into_the_queue_after_what_is_not_its_fault(checkout, tmp_path, code, restarts, requeued):
    """The override arrives whole, the exit code is kept."""
    srun = f"log(arguments)\nsys.exit({code})\n"
    done, made = run_job(checkout, tmp_path, srun, "--nodes", "2", "--", HOSTILE, restarts=restarts)
    assert done.returncode == code and done.stderr == ""
    assert made[0][-1] == HOSTILE and made[0][6:8] == ["run", "--config"]
    assert made[1:] == ([REQUEUE] if requeued else [])


def test_a_cancelled_job_stays_out_of_the_queue(checkout, tmp_path):
    """scancel sends SIGTERM to the tasks and to the shell of the job, which may come to hear of it after them."""
    cancel = "import signal\nos.kill(os.getppid(), signal.SIGTERM)\n"
    done, made = run_job(checkout, tmp_path, "log('srun')\nsys.exit(143)\n", sleep=cancel)
    assert done.returncode == -signal.SIGTERM and made == ["srun"]


@pytest.mark.parametrize(
    ("ends", "code", "requeued"),
    [((3, 75), 3, False), ((3, 137), 3, False), ((139, 143), 139, False), ((135, 137), 135, False)]
    + [((75, 75), 75, True), ((137, 75), 137, True), ((75, 134), 134, True), ((143, 75), 143, True)],
)
def test_an_error_of_one_task_is_not_outvoted_by_those_that_lost_it(checkout, tmp_path, ends, code, requeued):
    """srun reports the highest code; tasks that lost another end with 75, or are aborted (134) or killed (137)."""
    (tmp_path / "venv").mkdir()
    fake(tmp_path / "venv" / "bin", "scaletot", "sys.exit(int(os.environ['END']))\n")
    srun = (
        "import subprocess\n"
        f"tasks = [subprocess.run(arguments[1:], env=os.environ | {{'END': str(end)}}) for end in {ends}]\n"
        "log(max(task.returncode for task in tasks))\nsys.exit(max(task.returncode for task in tasks))\n"
    )
    done, made = run_job(checkout, tmp_path, srun, "--environment", str(tmp_path / "venv"))
    assert done.returncode == code and done.stderr == ""
    assert made == [max(ends), *([REQUEUE] if requeued else [])]


@pytest.mark.parametrize(
    ("on_signal", "code"), [("time.sleep(1), open('saved', 'w'), sys.exit(75)", 75), ("os.abort()", 134), ("", 143)]
)
def test_a_task_outlives_the_signal_to_see_how_its_scaletot_ends(checkout, tmp_path, on_signal, code):
    """Slurm signals the shell of the task and its child alike, once; without a handler SIGTERM ends the child."""
    (tmp_path / "venv").mkdir()
    listen = f"signal.signal(signal.SIGTERM, lambda *_: ({on_signal}))\n" if on_signal else ""
    body = f"import signal, time\n{listen}open('training', 'w').close()\ntime.sleep(60)\n"
    fake(tmp_path / "venv" / "bin", "scaletot", body)
    srun = (
        "import signal, subprocess, time\n"
        "task = subprocess.Popen(arguments[1:], start_new_session=True, stderr=subprocess.DEVNULL)\n"
        "while not os.path.exists('training') and task.poll() is None: time.sleep(0.02)\n"
        "os.killpg(task.pid, signal.SIGTERM)\n"
        "code = task.wait()\nlog([code, os.path.exists('saved')])\nsys.exit(code if code >= 0 else 128 - code)\n"
    )
    done, made = run_job(checkout, tmp_path, srun, "--environment", str(tmp_path / "venv"))
    assert made == [[code, code == 75], REQUEUE]  # a negative code: the shell itself was ended
    assert done.returncode == code and done.stderr == ""


def test_an_override_survives_the_shell_in_the_pod_unchanged(checkout, tmp_path):
    bin_folder = fake(tmp_path / "bin", "xpk", "log(arguments)\n")
    path = f"{bin_folder}:{os.environ['PATH']}"
    assert run_script(checkout, "gke_xpk.sh", *CREATE, "--no-check", "--", HOSTILE, path=path).returncode == 0
    (call,) = calls(bin_folder)
    command = call[-1].removeprefix("--command=")
    for program in ("pip", "scaletot"):
        fake(bin_folder, program, f"log([{program!r}, *arguments])\n")
    subprocess.run(["sh", "-c", command], env={**os.environ, "PATH": path}, check=True, cwd=tmp_path)
    assert calls(bin_folder)[-1][-1] == HOSTILE
    assert not (tmp_path / "pwned").exists()


def test_the_image_holds_the_commit_alone(checkout, tmp_path):
    """Neither an environment, nor a run with its user table, nor what is not committed."""
    body = (
        "folder = next(word for word in arguments if word.startswith('--script-dir=')).partition('=')[2]\n"
        "log(sorted(os.path.join(place, name) for place, _, names in os.walk(folder) for name in names))\n"
        "log(open(folder + '/setup.py').read())\n"
    )
    bin_folder = fake(tmp_path / "bin", "xpk", body)
    path = f"{bin_folder}:{os.environ['PATH']}"
    committed = subprocess.run(["git", "-C", str(checkout), "ls-files"], capture_output=True, text=True, check=True)
    for name in (
        "runs/first/prepare/population.parquet",
        ".venv/bin/python",
        "build/scaletot-1.image/of-an-earlier-commit",
    ):
        (checkout / name).parent.mkdir(parents=True)
        (checkout / name).touch()
    (checkout / "setup.py").write_text("version = 2\n")
    result = run_script(checkout, "gke_xpk.sh", *CREATE, "--no-check", path=path)
    assert result.returncode == 0 and "uncommitted changes are not copied" in result.stderr
    files, setup = calls(bin_folder)
    assert files == sorted("build/scaletot-1.image/" + name for name in committed.stdout.split())
    assert setup == "version = 1\n"


def test_no_workload_is_created_where_the_recipe_does_not_fit(checkout, tmp_path):
    bin_folder = fake(tmp_path / "bin", "xpk", "log(arguments)\n")
    fake(bin_folder, "scaletot", "log(['scaletot', *arguments])\nsys.exit(5)\n")
    result = run_script(checkout, "gke_xpk.sh", *CREATE, "--", HOSTILE, path=f"{bin_folder}:{os.environ['PATH']}")
    assert result.returncode == 5
    place = [*RECIPE, "--workdir", "build/scaletot-1.plan"]
    assert calls(bin_folder) == [["scaletot", "plan", *place, "--target", "v5e-16", "--compile", HOSTILE]]


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_on_a_gpu_host_from_start_to_stop(checkout, tmp_path):
    """A made-up scaletot that saves on SIGTERM; the run outlives the terminal, stop lets it save, run continues it."""
    body = (
        "import signal, time\nlog(arguments)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (log('saved'), sys.exit(75)))\nlog('training')\ntime.sleep(60)\n"
    )
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    assert run_script(checkout, "gpu_host.sh", "run", *HOST, *RECIPE).returncode == 5  # not set up yet
    fake(folder, "scaletot", body)

    def here(*arguments):
        return run_script(checkout, "gpu_host.sh", *arguments).stdout

    assert here("status", *HOST) == "not running\n"
    assert "log in runs/first.log" in here("run", *HOST, *RECIPE, "--", HOSTILE)
    wait_for(lambda: (folder / "calls.jsonl").exists() and "training" in calls(folder))
    group = int((checkout / "runs" / "first.pid").read_text())
    try:
        assert "already running" in here("run", *HOST, *RECIPE)
        assert here("status", *HOST).startswith("running, process")
        assert "stopped" in here("stop", *HOST)
    finally:
        if not (checkout / "runs" / "first.exit").exists():
            os.killpg(group, signal.SIGKILL)
    assert here("status", *HOST).startswith("ended with exit code 75")
    made = calls(folder)
    assert made[0] == ["run", "--config", "launch/fake_recipe.py", "--workdir", "runs/first", HOSTILE]
    assert made[1:] == ["training", "saved"]
    assert here("stop", *HOST) == "stop: not running\n"


def test_the_workers_of_the_sky_task_share_all_shards(tmp_path):
    task = yaml.safe_load((ROOT / "launch" / "score_sky.yaml").read_text())
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "envs", "file_mounts", "setup", "run"}
    home = tmp_path / "home"
    fake_bin = home / "scaletot-venv" / "bin"
    fake_bin.mkdir(parents=True)
    fake(fake_bin, "scaletot", "log(arguments)\n")
    for rank in range(3):
        env = {**os.environ, **task["envs"], "HOME": str(home)}
        env |= {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": "3"}
        subprocess.run(["bash", "-c", task["run"]], env=env, check=True)
    made = calls(fake_bin)
    assert [call[-2:] for call in made] == [["--worker", f"{rank}/3"] for rank in range(3)]
    options = set(re.findall(r"--[a-z-]+", " ".join(made[0])))
    assert options == {"--model", "--table", "--out", "--worker"}
    syntax = subprocess.run(["bash", "-n"], input=task["setup"], text=True, capture_output=True)
    assert syntax.returncode == 0, syntax.stderr


def test_the_options_that_the_commands_use_are_options_of_the_command_line():
    from scaletot_jax.cli import VERBS
    from scaletot_jax.population.cli import handles

    for name in ("slurm", "gke_create", "host_run"):
        text = (GOLDEN / f"{name}.txt").read_text()
        words = shlex.split(
            text[text.index("scaletot run") if "scaletot run" in text else 0 :].split("\n")[0].rstrip("'")
        )
        assert words[1] in VERBS and "--config" in words and "--workdir" in words
    assert handles(["score", "--model", "m", "--table", "t", "--out", "o", "--worker", "0/3"])
