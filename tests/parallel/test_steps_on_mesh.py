"""SFT and OSIPO on eight emulated devices equal one device: loss to 1e-6, parameters to 1e-5."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from student import toy

from scaletot_jax.parallel.compile import shard_step
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings, parameter_shardings
from scaletot_jax.student.adapter import start
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.rollout import request_keys, sample_chains
from scaletot_jax.student.sft_step import SFTBatch, sft_step

STUDENT = toy.student()
RULES = ShardingRules()
DATA = SFTBatch(*toy.examples(8).arrays)
# Plain SGD: Adam's division by √v would turn rounding noise of near-zero gradients into whole steps.
SGD = optax.sgd(0.5)
LORA = jax.tree.map(lambda leaf: leaf + 0.03, STUDENT.lora)
MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


def run(step, arguments, kinds, mesh):
    """Three steps on a mesh; returns the state, the metrics of each step, and how the state was placed."""
    with jax.set_mesh(mesh):
        sharded = shard_step(step, arguments, kinds, mesh=mesh, rules=RULES)
        placed = [jax.device_put(jax.tree.map(jnp.copy, a), s) for a, s in zip(arguments, sharded.shardings)]
        state, history = placed[0], []
        for _ in range(3):
            state, metrics = sharded(state, *placed[1:])
            history.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(state), history, sharded.shardings[0]


@cache
def on_one_device(program):
    return run(*PROGRAMS[program](), make_mesh())


def compare(program, name):
    expected, history, _ = on_one_device(program)
    assert history[-1]["loss"] != history[0]["loss"]
    state, found, shardings = run(*PROGRAMS[program](), make_mesh(**MESHES[name]))
    np.testing.assert_allclose([h["loss"] for h in found], [h["loss"] for h in history], atol=1e-6, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), state, expected)
    if name != "data":
        assert not all(sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings))


def sft_arguments():
    step = partial(
        sft_step, config=STUDENT.config, optimizer=SGD, lora_scale=STUDENT.lora_scale, rules=RULES, remat=True
    )
    arguments = (start(LORA, SGD), STUDENT.params, STUDENT.grammar, DATA)
    return step, arguments, ("parameters", "parameters", "replicated", "batch")


def osipo_arguments(users=8, count=3):
    keys = request_keys(jax.random.key(0), jnp.arange(users * count).reshape(users, count))
    sample = jax.jit(
        partial(sample_chains, config=STUDENT.config, max_length=STUDENT.chain_length, lora_scale=STUDENT.lora_scale)
    )
    rollouts = sample(
        params=STUDENT.params, grammar=STUDENT.grammar, prompts=DATA.prompts, prompt_valid=DATA.prompt_valid,
        keys=keys, lora=LORA,
    )  # fmt: skip
    batch = OSIPOBatch(DATA.prompts, DATA.prompt_valid, rollouts, jnp.arange(users) % 4)
    step = partial(
        osipo_step,
        config=STUDENT.config,
        options=OSIPOOptions(num_segments=2, lora_scale=STUDENT.lora_scale),
        policy_optimizer=SGD,
        reward_optimizer=SGD,
        rules=RULES,
    )
    state = OSIPOState(start(LORA, SGD), start(LORA, SGD))
    arguments = (state, STUDENT.params, STUDENT.lora, STUDENT.grammar, batch, DATA, jnp.float32(0.1))
    kinds = ("parameters", "parameters", "parameters", "replicated", "batch", "batch", "replicated")
    return step, arguments, kinds


PROGRAMS = {"sft": sft_arguments, "osipo": osipo_arguments}


@pytest.mark.parametrize("name", ["data", "fsdp", "all"])
def test_sft(name):
    compare("sft", name)


@pytest.mark.parametrize("name", ["fsdp", "all"])
def test_osipo(name):
    compare("osipo", name)


def test_rollouts_do_not_depend_on_the_mesh():
    sample = partial(
        sample_chains, config=STUDENT.config, max_length=STUDENT.chain_length, lora_scale=STUDENT.lora_scale
    )

    def on(mesh):
        with jax.set_mesh(mesh):
            prompts = (DATA.prompts, DATA.prompt_valid)
            prompts = jax.device_put(prompts, batch_shardings(prompts, mesh, RULES))
            params = jax.device_put(STUDENT.params, parameter_shardings(STUDENT.params, mesh, RULES))
            keys = request_keys(jax.random.key(4), jnp.arange(16).reshape(8, 2))
            out = jax.jit(sample)(
                params=params,
                grammar=STUDENT.grammar,
                prompts=prompts[0],
                prompt_valid=prompts[1],
                keys=keys,
                lora=LORA,
            )
        return jax.device_get(out)

    one, many = on(make_mesh()), on(make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_allclose(one.logps, many.logps, atol=1e-5)
