"""Two processes of one job, each on its own devices, draw together what one process draws."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scaletot_jax.sampler.replicas import generate_share

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
port, index, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
import tiny
from lm.conftest import make_config
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.sampler.constraint import free_text
from scaletot_jax.sampler.replicas import generate_share
from scaletot_jax.sampler.sampler import Request, Sampler
from scaletot_jax.sampler.slots import Sizes

assert jax.process_count() == count and len(jax.devices()) == count
config = make_config()
sampler = Sampler(
    tiny.random_params(config), config, [free_text([3])], Sizes(2, 2, 32, 8), mesh=make_mesh(devices=jax.local_devices())
)
requests = (Request(list(range(5, 8 + i)), jax.random.key(i)) for i in range(7))
for number, samples in generate_share(sampler, requests):
    print("drawn", json.dumps([number, [sample.tokens.tolist() for sample in samples]]), flush=True)
"""


def draw(count):
    """What each of ``count`` processes drew, by number of the request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    tests = Path(__file__).parents[1]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, port, str(index), str(count)],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    found = []
    for process in started:
        out, problems = process.communicate(timeout=300)
        assert process.returncode == 0, problems[-2000:]
        lines = [line.removeprefix("drawn ") for line in out.splitlines() if line.startswith("drawn ")]
        found.append(dict(map(json.loads, lines)))
    return found


def test_two_processes_draw_what_one_draws():
    (whole,), halves = draw(1), draw(2)
    assert sorted(whole) == list(range(7))
    assert [sorted(half) for half in halves] == [[0, 2, 4, 6], [1, 3, 5]]
    assert {**halves[0], **halves[1]} == whole


def test_a_replica_that_does_not_exist():
    with pytest.raises(ValueError, match="replica 2 of 2"):
        next(generate_share(None, [], index=2, count=2))
