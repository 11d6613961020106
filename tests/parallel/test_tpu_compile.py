"""The SFT and OSIPO steps compile for a TPU v5e slice of four chips, with the real TPU compiler, on this machine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json
from functools import partial
import jax, jax.numpy as jnp
from jax.experimental import topologies
from scaletot_jax.lm import lora as lora_module
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import init_params
from scaletot_jax.parallel.compile import shard_step
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.student.adapter import adamw, start
from scaletot_jax.student.constrained import GrammarArrays
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.sft_step import SFTBatch, sft_step

config = LMConfig(vocab_size=512, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32)
topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh, rules = make_mesh(fsdp=2, tensor=2, devices=topology.devices), ShardingRules()
optimizer = adamw(1e-4, steps=10, warmup=1, weight_decay=0.0, clip_norm=1.0)
U, N, P, R, S, A, Kb, K = 4, 2, 32, 16, 24, 6, 5, 3


def array(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


params = jax.eval_shape(lambda: init_params(config, jax.random.key(0), jnp.bfloat16))
adapter = jax.eval_shape(lambda: lora_module.init(config, jax.random.key(0), 8))
state = jax.eval_shape(lambda lora: start(lora, optimizer), adapter)
grammar = GrammarArrays(array(S, A), array(S, A), array(S, A), array(S, A), array(), array(), array(), array(Kb))
chain, real, flag = (U, N, R), jnp.float32, jnp.bool_
replay = SFTBatch(
    array(U, P), array(U, P, dtype=flag), array(*chain), array(*chain, dtype=flag), array(*chain),
    array(*chain, A, dtype=real), array(U, N, dtype=real),
)
rollouts = Rollouts(
    array(*chain), array(*chain, dtype=flag), array(*chain), array(*chain, dtype=real), array(*chain, dtype=real),
    array(*chain, dtype=real), array(*chain), array(U, N, Kb, dtype=real), array(U, N, dtype=flag),
)
batch = OSIPOBatch(array(U, P), array(U, P, dtype=flag), rollouts, array(U))
programs = {
    "sft": (
        partial(sft_step, config=config, optimizer=optimizer, lora_scale=2.0, rules=rules, remat=True),
        (state, params, grammar, replay),
        ("parameters", "parameters", "replicated", "batch"),
    ),
    "osipo": (
        partial(
            osipo_step, config=config, options=OSIPOOptions(num_segments=K, lora_scale=2.0), policy_optimizer=optimizer,
            reward_optimizer=optimizer, rules=rules, remat=True,
        ),
        (OSIPOState(state, state), params, adapter, grammar, batch, replay, array(dtype=real)),
        ("parameters", "parameters", "parameters", "replicated", "batch", "batch", "replicated"),
    ),
}
for name, (step, arguments, kinds) in programs.items():
    with jax.set_mesh(mesh):
        sharded = shard_step(step, arguments, kinds, mesh=mesh, rules=rules)
        placed = jax.tree.map(
            lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), arguments, sharded.shardings
        )
        memory = sharded.jitted.lower(*placed).compile().memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[0]))
    print(json.dumps({"program": name, "peak": peak, "alias": memory.alias_size_in_bytes, "state": state_bytes}))
"""


@pytest.mark.tpu_compile
def test_steps_compile_for_v5e():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: the TPU compiler is missing")
    environ = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        row["program"]: row for row in map(json.loads, filter(lambda line: line[:1] == "{", done.stdout.splitlines()))
    }
    assert set(found) == {"sft", "osipo"}
    for row in found.values():
        assert 0 < row["peak"] < 15.75 * 2**30
        assert row["alias"] >= row["state"] // 4 * 0.9, "the old state's memory is not reused"
