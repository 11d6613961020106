"""SFT and OSIPO on eight emulated devices equal one device: loss to 1e-6, parameters to 1e-5."""

import json
import signal
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parallel import processes
from student import toy

from scaletot_jax.parallel import checkpoint
from scaletot_jax.parallel.compile import shard_step
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings, parameter_shardings
from scaletot_jax.student.adapter import start
from scaletot_jax.student.data import batches as make_batches
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.rollout import request_keys, sample_chains
from scaletot_jax.student.sft_step import SFTBatch, sft_step

STUDENT = toy.student()
RULES = ShardingRules()
ALL = SFTBatch(*toy.examples(16).arrays)
DATA = SFTBatch(*(array[:8] for array in ALL))
# Plain SGD: Adam's division by √v would turn rounding noise of near-zero gradients into whole steps.
SGD = optax.sgd(0.5)
LORA = jax.tree.map(lambda leaf: leaf + 0.03, STUDENT.lora)
MESHES = {
    "one": {},
    "four": {"data": 2, "fsdp": 2},
    "fsdp": {"fsdp": 8},
    "tensor": {"data": 4, "tensor": 2},
    "all": {"data": 2, "fsdp": 2, "tensor": 2},
}


@cache
def compiled(program, name):
    """The program's step on a mesh, its arguments and the mesh; compiled at its first call, and once."""
    step, arguments, kinds = arguments_of(program)
    mesh = make_mesh(**MESHES[name])
    with jax.set_mesh(mesh):
        return shard_step(step, arguments, kinds, mesh=mesh, rules=RULES), arguments, mesh


def run(program, name, *, state=None, batches=(DATA,) * 3):
    """A step for each batch of teacher chains, from ``state`` or from the start; the state and the steps' metrics."""
    step, arguments, mesh = compiled(program, name)
    place = KINDS[program].index("teacher")
    with jax.set_mesh(mesh):
        placed = [jax.device_put(jax.tree.map(jnp.copy, a), s) for a, s in zip(arguments, step.shardings)]
        state, history = placed[0] if state is None else state, []
        for batch in batches:
            placed[place] = jax.device_put(batch, step.shardings[place])
            state, metrics = step(state, *placed[1:])
            history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@cache
def on_one_device(program):
    state, history = run(program, "one")
    return jax.device_get(state), history


def compare(program, name):
    expected, history = on_one_device(program)
    assert history[-1]["loss"] != history[0]["loss"]
    state, found = run(program, name)
    np.testing.assert_allclose([h["loss"] for h in found], [h["loss"] for h in history], atol=1e-6, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), jax.device_get(state), expected)
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def sft_arguments():
    step = partial(
        sft_step, config=STUDENT.config, optimizer=SGD, lora_scale=STUDENT.lora_scale, rules=RULES, remat=True
    )
    arguments = (start(LORA, SGD), STUDENT.params, STUDENT.grammar, DATA)
    return step, arguments


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
    return step, arguments


KINDS = {
    "sft": ("parameters", "parameters", "replicated", "teacher"),
    "osipo": ("parameters", "parameters", "parameters", "replicated", "batch", "teacher", "replicated"),
}


@cache
def arguments_of(program):
    step, arguments = {"sft": sft_arguments, "osipo": osipo_arguments}[program]()
    return step, arguments, tuple("batch" if kind == "teacher" else kind for kind in KINDS[program])


@pytest.mark.parametrize("name", ["fsdp", "tensor", "all"])
def test_sft(name):
    compare("sft", name)


@pytest.mark.parametrize("name", ["fsdp", "tensor", "all"])
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


@pytest.mark.parametrize("program,names", [("sft", ("all", "four", "one")), ("osipo", ("all", "one"))])
def test_resumed_on_fewer_devices(program, names, tmp_path):
    """Two steps on eight devices, two on four, two on one: the same batches in the same order, the same losses."""

    def data():
        return make_batches(ALL, batch_size=8, seed=3, epochs=None)

    total = 2 * len(names)
    _, expected = run(program, names[0], batches=[batch for _, batch in zip(range(total), data())])
    state, found = None, []
    for part, name in enumerate(names):
        order = data()
        if part:
            step, arguments, _ = compiled(program, name)
            like = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype, sharding=sharding),
                arguments[0], step.shardings[0],
            )  # fmt: skip
            unit = checkpoint.restore(tmp_path, like)
            assert unit.step == 2 * part
            state = unit.arrays
            order.set_state(unit.record["data"])
        state, history = run(program, name, state=state, batches=[next(order), next(order)])
        found += history
        with checkpoint.Checkpoints(tmp_path) as units:
            units.save(2 * (part + 1), state, {"data": order.get_state()})
    losses = [row["loss"] for row in expected]
    assert len({round(loss, 3) for loss in losses}) == total  # the batches differ, so their order shows
    np.testing.assert_allclose([row["loss"] for row in found], losses, atol=1e-5)


TWO = """
import json, os, signal, sys, time
from pathlib import Path
from scaletot_jax.parallel import distributed
distributed.initialize()
import jax, numpy as np
from parallel import test_steps_on_mesh as here
from scaletot_jax.errors import PreemptedError
from scaletot_jax.parallel.mesh import make_mesh
from scaletot_jax.run import Stage
from scaletot_jax.student.loop import Keeper

assert distributed.count() == 2 and len(jax.devices()) == 2 and len(jax.local_devices()) == 1
step, arguments, kinds = here.arguments_of("sft")
mesh, losses = make_mesh(fsdp=2), []
try:
    with jax.set_mesh(mesh):
        sharded = here.shard_step(step, arguments, kinds, mesh=mesh, rules=here.RULES)
        placed = [distributed.place(a, s) for a, s in zip(arguments, sharded.shardings)]
        data = here.make_batches(here.ALL, batch_size=8, seed=3, epochs=None)
        keeper = Keeper(Stage("sft", Path(sys.argv[1]), {}), {"keep": 2, "keep_best": 0, "asynchronous": True})
        state, done = keeper.resume(placed[0], {"data": data})
        assert not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(state))
        with keeper:
            for number in range(done + 1, 200):
                state, metrics = sharded(state, *placed[1:3], distributed.place(next(data), sharded.shardings[3]))
                losses.append(float(metrics["loss"]))
                if number == done + 2 and distributed.index() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)  # one of the hosts alone is taken away
                time.sleep(0.05)
                keeper.after(number, state, {"data": data}, due=number % 2 == 0)
except PreemptedError as error:
    assert f"after step {done + len(losses)}" in str(error)
    print(json.dumps([error.exit_code, *losses]), flush=True)
distributed.barrier("left")
if distributed.index() == 0:  # the one where the processes meet stays a moment longer
    time.sleep(1)
os.kill(os.getpid(), signal.SIGTERM)  # outside the loop the signal has its usual effect
time.sleep(60)
"""


@pytest.mark.pipeline
def test_two_processes_split_the_weights_and_leave_together(tmp_path):
    """FSDP over two real processes, of which one gets SIGTERM; then a single one goes on, on one device.

    Outside the loop SIGTERM ends them at once.
    """
    environ = processes.environment() | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles in half the time
    done = processes.run(TWO, str(tmp_path), processes=2, environ=environ)
    assert [code for code, _, _ in done] == [-signal.SIGTERM, -signal.SIGTERM], done
    (code, *losses), other = (json.loads(out.splitlines()[-1]) for _, out, _ in done)
    assert [code, *losses] == other and code == 75 and len(losses) >= 2
    step, arguments, _ = compiled("sft", "one")
    found = checkpoint.restore(tmp_path / "checkpoints", jax.device_put(arguments[0], step.shardings[0]))
    assert found.step == len(losses)
    data = make_batches(ALL, batch_size=8, seed=3, epochs=None)
    data.set_state(found.record["data"]["data"])
    state, history = run("sft", "one", state=found.arrays, batches=[next(data)])
    losses += [row["loss"] for row in history]
    whole = make_batches(ALL, batch_size=8, seed=3, epochs=None)
    expected, history = run("sft", "one", batches=[batch for _, batch in zip(losses, whole)])
    np.testing.assert_allclose(losses, [row["loss"] for row in history], atol=1e-6, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), jax.device_get(state), jax.device_get(expected))
