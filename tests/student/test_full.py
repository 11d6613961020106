"""Full-parameter SFT: it is the gradient of every parameter, in a float32 master, sharded and donated."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from student import toy

from scaletot_jax.errors import DataError
from scaletot_jax.lm.lora import merge
from scaletot_jax.parallel.compile import shard_step
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules
from scaletot_jax.student.adapter import adamw
from scaletot_jax.student.full import (
    compute_copy,
    decayed,
    full_sft_step,
    load_parameters,
    save_parameters,
    start_full,
)
from scaletot_jax.student.sft_step import SFTBatch, sft_loss

STUDENT = toy.student()
DATA = SFTBatch(*(jnp.asarray(array) for array in toy.examples(8).arrays))
QUICK = {"xla_backend_optimization_level": 0}
SGD = optax.sgd(0.5)


def copied(params):
    return jax.tree.map(jnp.copy, dict(params))


def test_one_step_of_sgd_is_the_finite_difference_of_the_loss():
    """Along its own gradient g the loss falls by η |g|² at first order, so the step holds every parameter's gradient."""
    step = jax.jit(partial(full_sft_step, config=STUDENT.config, optimizer=SGD), compiler_options=QUICK)
    state, metrics = step(start_full(copied(STUDENT.params), SGD), STUDENT.grammar, DATA)
    assert set(state.params["layers"]) == set(STUDENT.params["layers"])
    moved = jax.tree.map(lambda new, old: (np.asarray(old, np.float64) - new) / 0.5, state.params, dict(STUDENT.params))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moved))
    squared = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(moved))
    np.testing.assert_allclose(metrics["grad_norm"] ** 2, squared, rtol=1e-4)
    loss = jax.jit(lambda p: sft_loss(None, p, STUDENT.grammar, DATA, config=STUDENT.config)[0], compiler_options=QUICK)
    width = 0.02 / np.sqrt(squared)

    def shifted(by):
        return jax.tree.map(lambda leaf, g: jnp.asarray(leaf + by * g, jnp.float32), dict(STUDENT.params), moved)

    up, down = loss(shifted(width)), loss(shifted(-width))
    np.testing.assert_allclose((float(up) - float(down)) / (2 * width), squared, rtol=2e-2)


def test_it_learns_in_bfloat16_with_a_float32_master():
    optimizer = adamw(1e-2, steps=15, warmup=2, weight_decay=0.0, clip_norm=1.0)
    step = jax.jit(
        partial(full_sft_step, config=STUDENT.config, optimizer=optimizer, compute_dtype=jnp.bfloat16),
        compiler_options=QUICK,
    )
    state, losses = start_full(copied(STUDENT.params), optimizer), []
    for _ in range(15):
        state, metrics = step(state, STUDENT.grammar, DATA)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    # The master moves by less than a bfloat16 can tell: it is no rounded copy.
    assert any((leaf != leaf.astype(jnp.bfloat16)).any() for leaf in jax.tree.leaves(state.params))
    exact, _ = sft_loss(None, STUDENT.params, STUDENT.grammar, DATA, config=STUDENT.config)
    assert 0 < abs(losses[0] - float(exact)) < 0.02 * float(exact)


def test_matrices_alone_are_cast_and_decayed():
    params = {**STUDENT.params, "exit": {"weight": jnp.eye(2), "bias": jnp.zeros(2)}}
    low = compute_copy(params, STUDENT.config, jnp.bfloat16)
    assert low["embed"].dtype == low["layers"]["down"].dtype == jnp.bfloat16
    kept = [low["final_norm"], low["layers"]["attn_norm"], low["exit"]["weight"], low["exit"]["bias"]]
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
    which = decayed(params, STUDENT.config)
    assert which["embed"] and which["layers"]["q"] and not which["layers"]["mlp_norm"] and not which["exit"]["weight"]
    optimizer = adamw(1.0, steps=1, warmup=0, weight_decay=0.5, clip_norm=1.0, schedule="constant", decayed=which)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers"]["q"], -0.5 * params["layers"]["q"], rtol=1e-5)
    assert not updates["final_norm"].any()


def test_eight_devices_equal_one_and_the_old_state_is_reused():
    rules, found = ShardingRules(), []
    for sizes in ({}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = make_mesh(**sizes)
        state = start_full(copied(STUDENT.params), SGD)
        step = partial(full_sft_step, config=STUDENT.config, optimizer=SGD, accumulate=2, remat="dots", rules=rules)
        with jax.set_mesh(mesh):
            sharded = shard_step(
                step, (state, STUDENT.grammar, DATA), ("parameters", "replicated", "batch"), mesh=mesh, rules=rules
            )
            placed = jax.tree.map(jax.device_put, (state, STUDENT.grammar, DATA), sharded.shardings)
            compiled = sharded.jitted.lower(*placed).compile(compiler_options=QUICK)
            memory = compiled.memory_analysis()
            after, metrics = compiled(*placed)
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(after))
        assert memory.alias_size_in_bytes >= 0.95 * held
        found.append((jax.device_get(after.params), float(metrics["loss"]), held))
    (one, loss, whole), (many, same, share) = found
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), many, one)
    assert share < 0.4 * whole  # matrices lie on four devices, twice


def test_files(tmp_path):
    params = {**merge(STUDENT.params, STUDENT.lora, 1.0), "exit": {"weight": jnp.eye(2), "bias": jnp.ones(2)}}
    save_parameters(tmp_path / "student.safetensors", params)
    found = load_parameters(tmp_path / "student.safetensors", params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    with pytest.raises(DataError, match="do not fit"):
        load_parameters(tmp_path / "student.safetensors", {**params, "final_norm": jnp.ones(3)})
    with pytest.raises(DataError, match="it is not there"):
        load_parameters(tmp_path / "student.safetensors", {**params, "head": jnp.ones((3, 3))})
