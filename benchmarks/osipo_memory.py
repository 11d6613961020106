"""Peak memory of the OSIPO update against the SFT step on the same batch, by the compiler's own figures.

    python benchmarks/osipo_memory.py                     # a model of SmolLM2's proportions, small enough for any machine
    python benchmarks/osipo_memory.py --size smollm2      # SmolLM2-135M itself, 8 prompts of 112 tokens, 4 chains of 56

Both steps see the same number of rows and tokens: U prompts of P tokens, each with N chains of R. Nothing runs: the steps
are compiled and ``memory_analysis`` is read. The last line is one JSON object; ``ratio`` is OSIPO / SFT, and the goal is
at most 1.25 with the same policy of recomputation.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scaletot_jax.lm import lora as lora_module
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.model import init_params
from scaletot_jax.student.adapter import TrainState, adamw, start
from scaletot_jax.student.constrained import GrammarArrays
from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
from scaletot_jax.student.rollout import Rollouts
from scaletot_jax.student.sft_step import SFTBatch, sft_step

MIB = 2**20
SIZES = {
    "small": LMConfig(
        vocab_size=2048, hidden_size=144, intermediate_size=384, num_layers=6, num_heads=9, num_kv_heads=3, head_dim=16
    ),
    "smollm2": LMConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
    ),
}


def memory(step: Any, *arguments: Any, quick: bool = False) -> dict[str, int]:
    """Bytes of one compiled step: ``peak`` = arguments + outputs − aliased + temporary, and ``temporary`` alone.

    ``quick`` leaves out the optimisation of machine code, which no buffer depends on.
    """
    options = {"xla_backend_optimization_level": 0} if quick else None
    compiled = jax.jit(step, donate_argnums=0, compiler_options=options).lower(*arguments).compile()
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return {"peak": held + found.temp_size_in_bytes, "temporary": found.temp_size_in_bytes}


class Shapes(NamedTuple):
    """What both steps are given, as shapes alone: no parameters are made."""

    optimizer: Any
    params: Any
    adapter: Any
    state: TrainState
    grammar: GrammarArrays
    taught: SFTBatch


def _array(*shape: int, dtype: Any = jnp.int32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def shapes(config: LMConfig, users: int, prompt: int, chains: int, length: int) -> Shapes:
    """Of U prompts with N teacher chains, under a grammar of 40 states of at most 8 alternatives."""
    states, width, buckets = 40, 8, 5
    optimizer = adamw(1e-4, steps=10, warmup=1, weight_decay=0.0, clip_norm=1.0)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    adapter = jax.eval_shape(lambda: lora_module.init(config, jax.random.key(0), 16))
    table, shape = _array(states, width), (users, chains, length)
    return Shapes(
        optimizer,
        params,
        adapter,
        jax.eval_shape(lambda lora: start(lora, optimizer), adapter),
        GrammarArrays(table, table, table, table, _array(), _array(), _array(), _array(buckets)),
        SFTBatch(
            _array(users, prompt), _array(users, prompt, dtype=jnp.bool_), _array(*shape),
            _array(*shape, dtype=jnp.bool_), _array(*shape), _array(*shape, width, dtype=jnp.float32),
            _array(users, chains, dtype=jnp.float32),
        ),
    )  # fmt: skip


def sft_memory(
    config: LMConfig, *, users: int = 4, prompt: int = 112, chains: int = 4, length: int = 56, quick: bool = False, **more: Any
) -> dict[str, int]:  # fmt: skip
    """Memory of the SFT step; ``more``: ``remat`` and ``accumulate``."""
    given = shapes(config, users, prompt, chains, length)
    step = partial(sft_step, config=config, optimizer=given.optimizer, lora_scale=2.0, **more)
    return memory(step, given.state, given.params, given.grammar, given.taught, quick=quick)


def osipo_memory(
    config: LMConfig, *, users: int = 4, prompt: int = 112, chains: int = 4, length: int = 56, quick: bool = False, **more: Any
) -> dict[str, int]:  # fmt: skip
    """Memory of the OSIPO update on as many rows and tokens, the replay of two teacher chains a prompt included."""
    given = shapes(config, users, prompt, 2, length)
    shape, flag = (users, chains, length), jnp.bool_
    floats = _array(*shape, dtype=jnp.float32)
    rollouts = Rollouts(
        _array(*shape), _array(*shape, dtype=flag), _array(*shape), floats, floats, floats, _array(*shape),
        _array(users, chains, 5, dtype=jnp.float32), _array(users, chains, dtype=flag),
    )  # fmt: skip
    batch = OSIPOBatch(_array(users, prompt), _array(users, prompt, dtype=flag), rollouts, _array(users))
    step = partial(
        osipo_step, config=config, options=OSIPOOptions(num_segments=3, lora_scale=2.0),
        policy_optimizer=given.optimizer, reward_optimizer=given.optimizer, **more,
    )  # fmt: skip
    state, weight = OSIPOState(given.state, given.state), _array(dtype=jnp.float32)
    return memory(
        step, state, given.params, given.adapter, given.grammar, batch, given.taught, weight, quick=quick
    )  # fmt: skip


def measure(config: LMConfig, **more: Any) -> dict[str, dict[str, int]]:
    """Memory of both steps on the same number of rows and tokens."""
    return {"sft": sft_memory(config, **more), "osipo": osipo_memory(config, **more)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--remat", nargs="+", default=["none", "dots", "full"])
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--chains", type=int, default=4)
    options = parser.parse_args()
    found = {
        remat: measure(
            SIZES[options.size],
            users=options.users,
            chains=options.chains,
            remat=remat,
            accumulate=options.accumulate,
            quick=True,
        )
        for remat in options.remat
    }
    print(f"{'remat':8}{'step':8}{'peak MiB':>10}{'temporary MiB':>15}{'OSIPO / SFT':>13}")
    ratios = {}
    for remat, steps in found.items():
        ratios[remat] = {name: steps["osipo"][name] / steps["sft"][name] for name in ("peak", "temporary")}
        for name, row in steps.items():
            ratio = f"{ratios[remat]['peak']:13.2f}" if name == "osipo" else ""
            print(f"{remat:8}{name:8}{row['peak'] / MIB:10.1f}{row['temporary'] / MIB:15.1f}{ratio}")
    record = {
        "benchmark": "osipo_memory",
        "backend": jax.default_backend(),
        "size": options.size,
        "users": options.users,
        "chains": options.chains,
        "accumulate": options.accumulate,
        "mib": {
            r: {n: {k: round(v / MIB, 1) for k, v in row.items()} for n, row in s.items()} for r, s in found.items()
        },
        "ratio": {remat: {name: round(value, 3) for name, value in row.items()} for remat, row in ratios.items()},
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
