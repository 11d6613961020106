"""Two processes of one job, each on its own devices, draw together what one process draws."""

import json

import pytest
from parallel import processes

from scaletot_jax.sampler.replicas import generate_share

PROGRAM = """
import json, sys
import jax
from scaletot_jax.parallel import distributed
distributed.initialize()
import tiny
from lm.conftest import make_config
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.sampler.constraint import free_text
from scaletot_jax.sampler.replicas import generate_share
from scaletot_jax.sampler.sampler import Request, Sampler
from scaletot_jax.sampler.slots import Sizes

assert jax.process_count() == len(jax.devices()) == int(sys.argv[1])
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
    found = []
    for code, out, problems in processes.run(PROGRAM, str(count), processes=count, environ=processes.environment()):
        assert code == 0, problems[-2000:]
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
