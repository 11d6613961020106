"""The programs of the line as shapes on a mesh: the steps themselves, with nothing but shapes for arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scaletot_jax.lm import lora as lora_module
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import init_params, unstack_layers
from scaletot_jax.parallel.compile import shard_step
from scaletot_jax.parallel.mesh import AXES
from scaletot_jax.parallel.sharding import ShardingRules, batch_shardings, parameter_shardings, replicated
from scaletot_jax.sampler import decode as decoding
from scaletot_jax.sampler import sampler, slots
from scaletot_jax.sampler.constraint import free_text, join
from scaletot_jax.student.adapter import adamw, start
from scaletot_jax.student.constrained import GrammarArrays
from scaletot_jax.student.full import decayed, full_sft_step, start_full
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.rollout import Rollouts, request_keys, sample_chains
from scaletot_jax.student.sft_step import SFTBatch, sft_step
from scaletot_jax.student.throughput import FULL, LORA, Work, model_flops

PROGRAMS = ("sft", "full_sft", "osipo", "rollouts", "decode")
LOOPS = ("rollouts", "decode")  # whose length the compiler does not know: no seconds


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is to be compiled.

    Attributes:
      program: one of :data:`PROGRAMS`. ``rollouts`` is how stage ``osipo`` samples its chains, ``decode`` the loop of
        :mod:`scaletot_jax.sampler`, which no stage runs.
      data, fsdp, tensor: the mesh.
      rows, prompt, chains, length: U prompts of P tokens, each with N chains of R tokens, so U · (P + N·R) tokens; for
        ``decode`` P prompts of as many slots, n branches each, and R new tokens.
      rank: of the adapters.
      remat: none, full or dots. attention: see :mod:`scaletot_jax.lm.attend`. accumulate: micro-batches. compute_dtype: of all products; the state stays float32.
      states, alternatives, buckets, segments: sizes of the chain grammar.
    """

    program: str
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    rows: int = 8
    prompt: int = 256
    chains: int = 4
    length: int = 192
    rank: int = 32
    remat: str = "full"
    attention: str = "splash"
    accumulate: int = 1
    compute_dtype: str = "bfloat16"
    states: int = 512
    alternatives: int = 16
    buckets: int = 10
    segments: int = 5

    @property
    def tokens(self) -> int:
        """Tokens that go through the model in one forward pass."""
        return self.rows * (self.prompt + self.chains * self.length)


class Compilable(NamedTuple):
    """A jitted program and the shapes it is to be compiled for, with their shardings; trace it under its mesh."""

    jitted: Any
    arguments: tuple[Any, ...]


def build(work: Workload, config: LMConfig, mesh: Mesh) -> Compilable:
    """The program of a workload.

    Raises:
      ValueError: another program.
      ConfigError: a size does not divide among the devices.
    """
    if work.program not in PROGRAMS:
        raise ValueError(f"program must be one of {', '.join(PROGRAMS)}, got {work.program!r}")
    if work.program == "decode":
        return _decode(work, config, mesh)
    if work.program == "rollouts":
        return _sampled(work, config, mesh)
    step, arguments, kinds = _step(work, config)
    sharded = shard_step(step, arguments, kinds, mesh=mesh, rules=ShardingRules())
    return Compilable(sharded.jitted, _placed(arguments, sharded.shardings))


def state_bytes(work: Workload, config: LMConfig) -> int:
    """Bytes of what a step changes, and must therefore reuse the memory of; of all devices together; rollouts change nothing."""
    if work.program == "rollouts":
        return 0
    if work.program == "decode":
        return _bytes(_slots(work, config))
    return _bytes(_step(work, config)[1][0])


def needed_flops(work: Workload, config: LMConfig) -> float:
    """Model FLOPs of a step by :mod:`scaletot_jax.student.throughput`, every token real; OSIPO: θ and φ and one forward
    pass of the reference, and the replay of as many teacher chains."""
    chain, prompt = work.length * work.chains, work.prompt
    pairs = prompt * (prompt + 1) // 2 + chain * prompt + work.chains * work.length * (work.length + 1) // 2
    full = Work(work.tokens, work.rows * chain, work.rows * pairs)
    if work.program in ("sft", "full_sft"):
        return model_flops(config, full, FULL if work.program == "full_sft" else LORA)
    if work.program == "osipo":
        few = full._replace(predicted=0)
        return 2 * model_flops(config, few, LORA) + model_flops(config, few, 2) + model_flops(config, full, LORA)
    return 0.0


def _step(work: Workload, config: LMConfig) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[str, ...]]:
    """The step, its arguments as shapes, and what each argument is."""
    dtype, rules = jnp.dtype(work.compute_dtype), ShardingRules()
    config = dataclasses.replace(config, attention=work.attention)  # type: ignore[arg-type]
    options: dict[str, Any] = dict(
        config=config, rules=rules, remat=work.remat, accumulate=work.accumulate, compute_dtype=dtype
    )
    grammar, replay = _grammar(work), _teacher_chains(work)
    recipe = dict(steps=1000, warmup=10, weight_decay=0.01, clip_norm=1.0)
    params = _params(config, jnp.float32 if work.program == "full_sft" else dtype)
    if work.program == "full_sft":
        optimizer = adamw(1e-5, **recipe, decayed=decayed(params, config))  # type: ignore[arg-type]
        state: Any = jax.eval_shape(lambda params: start_full(params, optimizer), params)
        step: Any = functools.partial(full_sft_step, optimizer=optimizer, **options)
        return step, (state, grammar, replay), ("parameters", "replicated", "batch")
    optimizer = adamw(1e-4, **recipe)  # type: ignore[arg-type]
    adapter = jax.eval_shape(lambda: lora_module.init(config, jax.random.key(0), work.rank))
    state = jax.eval_shape(lambda lora: start(lora, optimizer), adapter)
    if work.program == "sft":
        step = functools.partial(sft_step, optimizer=optimizer, lora_scale=2.0, **options)
        return step, (state, params, grammar, replay), ("parameters", "parameters", "replicated", "batch")
    step = functools.partial(
        osipo_step,
        options=OSIPOOptions(num_segments=work.segments, lora_scale=2.0),
        policy_optimizer=optimizer,
        reward_optimizer=optimizer,
        **options,
    )
    arguments = (OSIPOState(state, state), params, adapter, grammar, _rollouts(work), replay, _array(dtype=jnp.float32))
    return step, arguments, ("parameters",) * 3 + ("replicated", "batch", "batch", "replicated")


def _sampled(work: Workload, config: LMConfig, mesh: Mesh) -> Compilable:
    """Rollouts as stage ``osipo`` jits them: prompt and chains of a rollout lie in a cache of their own."""
    rules = ShardingRules()
    params = _params(config, jnp.dtype(work.compute_dtype))
    adapter = jax.eval_shape(lambda: lora_module.init(config, jax.random.key(0), work.rank))
    keys = jax.eval_shape(lambda: request_keys(jax.random.key(0), jnp.zeros((work.rows, work.chains), jnp.int32)))
    asked = (_array(work.rows, work.prompt), _array(work.rows, work.prompt, dtype=jnp.bool_), keys)
    grammar = _grammar(work)

    def run(params: Any, adapter: Any, grammar: GrammarArrays, prompts: Any, valid: Any, keys: Any) -> Rollouts:
        return sample_chains(
            params, config, grammar, prompts, valid, keys, max_length=work.length, lora=adapter, lora_scale=2.0
        )

    placed = (
        *(_placed(tree, parameter_shardings(tree, mesh, rules)) for tree in (params, adapter)),
        _placed(grammar, jax.tree.map(lambda _: replicated(mesh), grammar)),
        *_placed(asked, batch_shardings(asked, mesh, rules)),
    )
    return Compilable(jax.jit(run), placed)


def _decode(work: Workload, config: LMConfig, mesh: Mesh) -> Compilable:
    """The sampler's loop, as :class:`scaletot_jax.sampler.sampler.Sampler` jits it."""
    rules = ShardingRules()
    params = jax.eval_shape(unstack_layers, _params(config, jnp.dtype(work.compute_dtype)))
    constraint, kinds, _ = join([free_text([config.eos_id])], config.vocab_size)
    features = decoding.Features(kinds)
    storage = _slots(work, config)
    placed = sampler.slot_shardings(storage, mesh, rules)
    stops, occupied = _array(1, 1, 1, dtype=jnp.int16), _array(work.rows, dtype=jnp.bool_)
    small = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), (constraint, stops, occupied))
    constraint, stops, occupied = _placed(small, jax.tree.map(lambda _: replicated(mesh), small))

    def run(params: Any, constraint: Any, stops: Any, slots: Any, occupied: Any) -> Any:
        return decoding.decode(params, config, constraint, stops, slots, occupied, features=features, until_group=False)

    jitted = jax.jit(run, donate_argnums=(3,), out_shardings=placed)
    shardings = _layer_shardings(params, mesh, rules)
    return Compilable(jitted, (_placed(params, shardings), constraint, stops, _placed(storage, placed), occupied))


def _layer_shardings(params: Mapping[str, Any], mesh: Mesh, rules: ShardingRules) -> Any:
    """Shardings of unstacked layers: those of the stacked ones without their first dimension."""
    stacked = {
        **params,
        "layers": jax.tree.map(
            lambda *leaves: jax.ShapeDtypeStruct((1, *leaves[0].shape), leaves[0].dtype), params["layers"][0]
        ),
    }
    found = parameter_shardings(stacked, mesh, rules)
    one = jax.tree.map(
        lambda sharding: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*sharding.spec[1:])),
        found["layers"],
    )
    return {**found, "layers": tuple(one for _ in params["layers"])}


def _slots(work: Workload, config: LMConfig) -> slots.Slots:
    sizes = slots.Sizes(groups=work.rows, branches=work.chains, prompt=work.prompt, new=work.length)
    return jax.eval_shape(lambda: slots.empty(config, sizes, jnp.dtype(work.compute_dtype)))


def check_split(work: Workload, config: LMConfig) -> None:
    """Makes sure that the weights can be split as the run splits them.

    Raises:
      ConfigError: a dimension is not divisible by the mesh axes that split it.
    """
    mesh = jax.sharding.AbstractMesh((work.data, work.fsdp, work.tensor), AXES)
    parameter_shardings(_params(config, jnp.float32), mesh, ShardingRules())


def _params(config: LMConfig, dtype: Any) -> dict[str, Any]:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


def _grammar(work: Workload) -> GrammarArrays:
    table = _array(work.states, work.alternatives)
    return GrammarArrays(table, table, table, table, _array(), _array(), _array(), _array(work.buckets))


def _teacher_chains(work: Workload) -> SFTBatch:
    users, chain = work.rows, (work.rows, work.chains, work.length)
    return SFTBatch(
        prompts=_array(users, work.prompt),
        prompt_valid=_array(users, work.prompt, dtype=jnp.bool_),
        chains=_array(*chain),
        chain_valid=_array(*chain, dtype=jnp.bool_),
        states=_array(*chain),
        targets=_array(*chain, work.alternatives, dtype=jnp.float32),
        weights=_array(users, work.chains, dtype=jnp.float32),
    )


def _rollouts(work: Workload) -> OSIPOBatch:
    users, chain, real = work.rows, (work.rows, work.chains, work.length), jnp.float32
    rollouts = Rollouts(
        _array(*chain), _array(*chain, dtype=jnp.bool_), _array(*chain), _array(*chain, dtype=real),
        _array(*chain, dtype=real), _array(*chain, dtype=real), _array(*chain),
        _array(users, work.chains, work.buckets, dtype=real), _array(users, work.chains, dtype=jnp.bool_),
    )  # fmt: skip
    return OSIPOBatch(_array(users, work.prompt), _array(users, work.prompt, dtype=jnp.bool_), rollouts, _array(users))


def _array(*shape: int, dtype: Any = jnp.int32) -> Any:  # stands where an array would
    return jax.ShapeDtypeStruct(shape, dtype)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), tree, shardings)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
