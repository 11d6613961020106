"""Four processes of the command line at once, one of them killed: the bytes of one process. Part of ``make soak``.

CI has the same on a toy model (test_kills.py) and with workers one after the other (test_score.py).
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from population.toy_job import files

from scaletot_jax.population.score import Options, score_table

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not os.environ.get("SCALETOT_SOAK"), reason="five processes with jax: run by make soak"),
]


def test_four_processes_one_of_them_killed(served, users, tmp_path):
    assert score_table(served.directory, users, tmp_path / "one", Options(shard_rows=60, batch_rows=128))
    environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    out = tmp_path / "four"

    def start(worker):
        program = [sys.executable, "-m", "scaletot_jax.cli", "score", "--model", str(served.directory)]
        sizes = ["--shard-rows=60", "--batch-rows=128", f"--worker={worker}/4"]
        return subprocess.Popen([*program, "--table", str(users), "--out", str(out), *sizes], env=environ)

    workers = [start(i) for i in range(4)]
    while not (out / "records" / "part-00002.json").exists() and workers[2].poll() is None:
        time.sleep(0.002)
    workers[2].send_signal(signal.SIGKILL)
    assert {worker.wait(120) for worker in workers} <= {0, -signal.SIGKILL}
    assert start(2).wait(120) == 0
    assert files(out) == files(tmp_path / "one")
