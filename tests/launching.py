"""A checkout to launch from, and fakes of the programs that the launch scripts call."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def make_checkout(tmp_path: Path) -> Path:
    """A committed copy of launch/ with one recipe, so that the test needs neither git history nor real recipes."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / "launch" / "fake_recipe.py").write_text("def get_config(): ...\n")
    (folder / "setup.py").write_text("version = 1\n")
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "x"], check=True)
    return folder


def fake(folder: Path, name: str, body: str) -> Path:
    """Puts an executable Python program ``name`` into ``folder``; it may use ``arguments`` and ``log(value)``."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    head = (
        f"#!{sys.executable}\nimport json, os, sys\narguments = sys.argv[1:]\n"
        f"def log(value):\n    with open({str(folder / 'calls.jsonl')!r}, 'a') as handle:\n"
        "        handle.write(json.dumps(value) + '\\n')\n"
    )
    program.write_text(head + body)
    program.chmod(0o755)
    return folder


def calls(folder: Path) -> list:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def without(tmp_path: Path, *missing: str) -> str:
    """A PATH with the ordinary programs but not those named."""
    folder = tmp_path / "some_programs"
    folder.mkdir()
    for program in ("bash", "env", "dirname", "cat", "git", "mkdir", "tar", "gzip", "printf"):
        found = shutil.which(program)
        if found and program not in missing:
            (folder / program).symlink_to(found)
    return str(folder)


def run_script(checkout: Path, script: str, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, "PATH": path or os.environ["PATH"]}
    command = ["/usr/bin/env", "bash", str(checkout / "launch" / script), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
