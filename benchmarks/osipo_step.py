"""The OSIPO update, everything after the rollouts, against Tunix's and TRL's GRPO update on the same model and batch.

    python benchmarks/osipo_step.py --tunix-python PATH --trl-python PATH       [--layers 4] [--rounds 5] [--remat dots]

Tunix (package google-tunix) and TRL (with peft) conflict with this package's requirements: each lives in an environment of
its own, whose interpreter is given; without one the peer is named as missing. SmolLM2's shape with fewer layers, random
float32 weights, rank-16 adapters on all seven projections, ``--users`` prompts (8) of 112 tokens with 4 chains of 56, the same
numbers on all sides (benchmarks/osipo_peers.py). Every token is chosen from the whole vocabulary; under a chain grammar, as the product
runs it, ours would be cheaper. An update reads reference log-probabilities, then makes a step of AdamW behind clipping.

    ours            OSIPO as it is: reference, reward model forward and backward, policy, replay of 2 teacher chains a prompt
    ours_policy     OSIPO's policy update alone, without the reward model's pass: what a run does whose process weight is 0
    ours_rloo       the same without replay, ratios by token, a mean by chain: what GRPO's update does
    tunix, trl      without recomputation of activations; tunix_remat, trl_remat: with it, which is TRL's default

Each has a process of its own; they step in turn. Before any time is taken the three sides must agree: reference
log-probabilities, trained parameters, and the norm of RLOO's and GRPO's gradient, which from the same advantages are one.
Beside the time stands the processor's, which other work on the machine changes less. Peak memory is the highest resident set
above what the process held with its libraries loaded. The last line is JSON: ``ratio`` is the speed of each of ours against
each peer (goal 1.0), ``memory`` the same of bytes (goal at most 0.7).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import osipo_peers as peers

SEGMENTS, BUCKETS, REPLAYED = 5, 5, 2
OURS = ("ours", "ours_policy", "ours_rloo")
PEERS = ("tunix", "tunix_remat", "trl", "trl_remat")


def ours(form: str, layers: int, remat: str) -> peers.Step:
    """One of our updates, jitted, with its state donated."""
    from functools import partial

    import jax
    import jax.numpy as jnp

    from scaletot_jax.lm.config import LMConfig
    from scaletot_jax.student.adapter import adamw, start
    from scaletot_jax.student.osipo_step import OSIPOBatch, OSIPOOptions, OSIPOState, osipo_step
    from scaletot_jax.student.rollout import Rollouts
    from scaletot_jax.student.sft_step import SFTBatch

    config = LMConfig(**peers.SHAPE, num_layers=layers, head_dim=peers.HEAD, rope_theta=float(peers.THETA))
    optimizer = adamw(peers.RATE, steps=1000, warmup=0, weight_decay=0.0, clip_norm=1.0, schedule="constant")
    params = jax.tree.map(jnp.asarray, peers.weights(layers))
    adapter = {}
    for name, drawn in peers.adapters(layers).items():
        adapter[f"{name}_a"] = jnp.asarray(drawn)
        adapter[f"{name}_b"] = jnp.zeros((layers, peers.RANK, peers.SIZES[name][1]))
    made, grammar = peers.work(), free_grammar()
    shape = made.chains.shape
    chains, places = jnp.asarray(made.chains), jnp.broadcast_to(jnp.arange(peers.LENGTH), shape)
    floats, valid = jnp.zeros(shape, jnp.float32), jnp.ones(shape, bool)
    prompts, known = jnp.asarray(made.prompts), jnp.ones(made.prompts.shape, bool)
    options = OSIPOOptions(
        num_segments=SEGMENTS, lora_scale=peers.SCALE, kl_weight=peers.KL, answer_weight=0.0,
        **({"ratio": "token", "aggregation": "sequence_mean", "sft_weight": 0.0} if form == "ours_rloo" else {}),
    )  # fmt: skip
    rollouts = Rollouts(
        tokens=chains, valid=valid, states=places, logps=floats, plain_logps=floats, entropy=floats,
        segment_ids=places * SEGMENTS // peers.LENGTH, answers=jnp.asarray(answers(made.outcomes)),
        complete=jnp.ones(shape[:2], bool),
    )  # fmt: skip
    batch = OSIPOBatch(prompts, known, rollouts, jnp.zeros(peers.USERS, jnp.int32))
    taught = tuple(array[:, :REPLAYED] for array in (chains, valid, places, jnp.ones((*shape, 1)), jnp.ones(shape[:2])))
    replay = SFTBatch(prompts, known, *taught)
    shared: dict[str, Any] = {"config": config, "options": options, "remat": remat}
    reference_logps = jax.jit(partial(score, **shared))(adapter, params, grammar, batch)
    # The policy that drew the chains is the reference, so that the first step's ratios are 1, as the peers' always are.
    batch = batch._replace(rollouts=rollouts._replace(logps=reference_logps))
    say = {
        "logps": float(jnp.mean(reference_logps)),
        "trained": float(sum(leaf.size for leaf in adapter.values())),
    }
    state = start(adapter, optimizer)
    if form == "ours":
        update = jax.jit(
            partial(osipo_step, policy_optimizer=optimizer, reward_optimizer=optimizer, **shared), donate_argnums=0
        )
        held = [OSIPOState(state, jax.tree.map(jnp.copy, state))]
        more: tuple[Any, ...] = (batch, replay, jnp.float32(0.1))
    else:
        update = jax.jit(partial(policy_step, optimizer=optimizer, **shared), donate_argnums=0)
        held, more = [state], (batch, replay)
    adapter = jax.tree.map(jnp.copy, adapter)
    held = jax.tree.map(jnp.copy, held)

    def step() -> dict[str, float]:
        held[0], metrics = update(held[0], params, adapter, grammar, *more)
        return {**say, "grad_norm": float(metrics["grad_norm"])}

    return step


def free_grammar() -> Any:
    """A grammar whose every token is free text: place r of a chain is the free state r, and any token may stand there."""
    import jax.numpy as jnp

    from scaletot_jax.student.constrained import GrammarArrays
    from scaletot_jax.student.free_text import FreeText

    length = peers.LENGTH
    states, end = jnp.arange(length), jnp.int32(length)
    free = FreeText(
        states=states, number=jnp.append(states, -1), next_states=states + 1, segments=states * SEGMENTS // length,
        closes=jnp.zeros(length, jnp.int32), reserved=jnp.zeros(1, jnp.int32),
    )  # fmt: skip
    table = jnp.zeros((length + 1, 1), jnp.int32)
    return GrammarArrays(
        table, jnp.full_like(table, length), table, table - 1, jnp.int32(0), end, jnp.int32(-1), jnp.zeros(BUCKETS, jnp.int32), free
    )  # fmt: skip


def answers(outcomes: np.ndarray) -> np.ndarray:
    """Distributions over buckets with p in the first and the rest in the second: 1 − RPS for a label in the first is
    1 − (1 − p)² / (buckets − 1), the given outcome."""
    miss = np.sqrt((1 - outcomes) * (BUCKETS - 1))
    rest = np.zeros((*outcomes.shape, BUCKETS - 2))
    return np.concatenate([(1 - miss)[..., None], miss[..., None], rest], axis=-1).astype(np.float32)


def score(lora: Any, params: Any, grammar: Any, batch: Any, *, config: Any, options: Any, remat: str) -> Any:
    """Log-probabilities of the rollouts under one adapter, [U, N, R]."""
    from scaletot_jax.student.constrained import token_log_probs
    from scaletot_jax.student.packing import pack, predicting_states

    rollouts = batch.rollouts
    packed = pack(batch.prompts, batch.prompt_valid, rollouts.tokens, rollouts.valid)
    hidden = predicting_states(params, config, packed, lora=lora, lora_scale=options.lora_scale, remat=remat)
    chosen = (rollouts.states, rollouts.tokens, rollouts.valid)
    return token_log_probs(params, config, hidden, grammar, *chosen, temperature=options.temperature).logps


def policy_step(
    state: Any, params: Any, reference: Any, grammar: Any, batch: Any, replay: Any, *, config: Any, options: Any,
    optimizer: Any, remat: str,
) -> tuple[Any, dict[str, Any]]:  # fmt: skip
    """OSIPO's update of the policy from the outcomes alone, of the package's own parts and in the order of its step."""
    import jax
    import jax.numpy as jnp
    import optax

    from scaletot_jax.losses import osipo_advantages, osipo_loss
    from scaletot_jax.student.accumulate import in_turn
    from scaletot_jax.student.adapter import apply_gradients
    from scaletot_jax.student.osipo_step import outcomes_of
    from scaletot_jax.student.sft_step import loss_weight, sft_part

    users, count, length = batch.rollouts.tokens.shape
    flat = (users * count, length)
    segments = batch.rollouts.segment_ids.reshape(flat)
    given = {"config": config, "options": options, "remat": remat}
    ref_logps = score(reference, params, grammar, batch, **given)
    nothing = jnp.zeros((users * count, SEGMENTS))
    advantages = osipo_advantages(
        nothing, nothing > 0, outcomes_of(batch.rollouts, batch.buckets).reshape(-1),
        jnp.repeat(jnp.arange(users), count), segments, process_weight=0.0, min_scale=options.min_scale,
    )  # fmt: skip

    def surrogate(lora: Any, batch: Any, ref_logps: Any, advantages: Any) -> Any:
        return osipo_loss(
            score(lora, params, grammar, batch, **given).reshape(flat), batch.rollouts.logps.reshape(flat), advantages,
            segments, aggregation=options.aggregation, num_segments=SEGMENTS, ratio=options.ratio,
            clip_low=options.clip_low, clip_high=options.clip_high, ref_logps=ref_logps.reshape(flat),
            kl_weight=options.kl_weight,
        )[0]  # fmt: skip

    gradients = in_turn(
        lambda *rows: jax.grad(surrogate)(state.lora, *rows), ref_logps, batch, ref_logps, advantages
    )  # fmt: skip
    if options.sft_weight > 0:
        weight = loss_weight(grammar, replay, 1.0)

        def teach(replay: Any) -> Any:
            more = {"config": config, "lora_scale": options.lora_scale, "remat": remat}
            return jax.grad(lambda lora: sft_part(lora, params, grammar, replay, weight, **more)[0])(state.lora)

        taught = in_turn(teach, gradients, replay)
        gradients = jax.tree.map(lambda g, m: g + options.sft_weight * m, gradients, taught)
    return apply_gradients(state, gradients, optimizer), {"grad_norm": optax.tree.norm(gradients)}


# -- one process a side ----------------------------------------------------------------------------------------------------


def worker(side: str, layers: int, remat: str) -> None:
    """Answers each line of stdin with an update: what it says of itself, and what the process has held at most so far."""
    make: Callable[[], peers.Step]
    if side.startswith("ours"):
        import jax

        jax.devices()
        import scaletot_jax.student.osipo_step  # noqa: F401

        make = lambda: ours(side, layers, remat)  # noqa: E731
    else:
        if side.startswith("tunix"):
            import jax
            import qwix  # noqa: F401
            import tunix.rl.grpo.grpo_learner  # noqa: F401

            jax.devices()
        else:
            import peft  # noqa: F401
            import torch
            import trl  # noqa: F401

            torch.zeros(1)
        make = lambda: getattr(peers, side.removesuffix("_remat"))(layers, side.endswith("_remat"))  # noqa: E731
    before = peers.peak_mib()
    step = make()
    for _ in sys.stdin:
        busy = time.process_time()
        said = step()
        print(json.dumps({**said, "cpu": time.process_time() - busy, "mib": peers.peak_mib() - before}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tunix-python", default="", help="interpreter with google-tunix")
    parser.add_argument("--trl-python", default="", help="interpreter with trl and peft")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--users", type=int, default=peers.USERS, help="prompts; the peers need about 0.7 GB for each")
    parser.add_argument("--remat", default="dots", choices=("none", "dots", "full"), help="ours")
    parser.add_argument("--sides", nargs="+", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    peers.USERS = options.users
    if options.worker:
        return worker(options.worker, options.layers, options.remat)
    missing, programs = {}, {}
    for side in options.sides:
        name = side.removesuffix("_remat")
        program = sys.executable if side in OURS else getattr(options, f"{name}_python")
        if program:
            programs[side] = program
        else:
            missing[side] = f"no --{name}-python was given"
    if importlib.util.find_spec("scaletot_jax") is None:
        raise SystemExit("scaletot_jax cannot be imported: pip install -e .")
    measure(options, programs, missing)


def measure(options: argparse.Namespace, programs: dict[str, str], missing: dict[str, str]) -> None:
    script = [str(Path(__file__).resolve()), "--layers", str(options.layers), "--remat", options.remat]
    script += ["--users", str(options.users)]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    workers = {
        side: subprocess.Popen(
            [program, *script, "--worker", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )
        for side, program in programs.items()
    }
    first: dict[str, dict[str, float]] = {}
    memory: dict[str, float] = {}
    busy: dict[str, list[float]] = {side: [] for side in workers}  # processor seconds of each update after the first

    def job(side: str) -> float:
        pipe = workers[side]
        assert pipe.stdin is not None and pipe.stdout is not None
        pipe.stdin.write("step\n")
        pipe.stdin.flush()
        line = pipe.stdout.readline()
        while line and not line.startswith("{"):  # a library that greets
            line = pipe.stdout.readline()
        if not line:
            raise SystemExit(f"{side} ended: see its message above")
        answer = json.loads(line)
        if side in first:
            busy[side].append(answer["cpu"])
        first.setdefault(side, answer)
        memory[side] = answer["mib"]
        return float(options.users * peers.CHAINS)

    try:
        rates = harness.in_turn({side: lambda side=side: job(side) for side in workers}, options.rounds)
    finally:
        for pipe in workers.values():
            if pipe.stdin is not None:
                pipe.stdin.close()
            pipe.wait()
    agree(first)
    chains = options.users * peers.CHAINS
    taken = {side: [chains * seconds for seconds in found] for side, found in rates.items()}
    median = {side: statistics.median(seconds) for side, seconds in taken.items()}
    print(f"\n{'':16}{'seconds':>10}{'lowest':>10}{'highest':>10}{'processor':>11}{'peak MiB':>10}{'gradient':>11}")
    for side, seconds in taken.items():
        print(
            f"{side:16}{median[side]:10.3f}{min(seconds):10.3f}{max(seconds):10.3f}"
            f"{statistics.median(busy[side]):11.3f}{memory[side]:10,.0f}{first[side]['grad_norm']:11.6f}"
        )
    against = {side: [peer for peer in median if peer not in OURS] for side in OURS if side in median}
    ratio = {side: {peer: round(median[peer] / median[side], 3) for peer in found} for side, found in against.items()}
    held = {side: {peer: round(memory[side] / memory[peer], 3) for peer in found} for side, found in against.items()}
    harness.last_line(
        "osipo_step", rates, "chains/s", missing=missing, layers=options.layers, users=options.users, remat=options.remat,
        memory_mib={side: round(value) for side, value in memory.items()}, ratio=ratio, memory=held,
        processor_seconds={side: round(statistics.median(seconds), 3) for side, seconds in busy.items()},
        peers_versions=versions(programs),
    )  # fmt: skip


def agree(first: dict[str, dict[str, float]]) -> None:
    """The same model, tokens and number of trained parameters on all sides; one gradient of RLOO's and GRPO's updates."""
    for name in ("logps", "trained", "grad_norm"):
        found = {side: said[name] for side, said in first.items() if name != "grad_norm" or side not in OURS[:2]}
        if found and max(found.values()) - min(found.values()) > 1e-4 * abs(min(found.values())):
            raise SystemExit(f"the sides do not compute the same {name}: {found}")


def versions(programs: dict[str, str]) -> dict[str, str]:
    """Of the peers' packages, asked of their interpreters."""
    ask = "import sys, importlib.metadata as m; print(*[f'{n}={m.version(n)}' for n in sys.argv[1:]])"
    wanted = {"tunix": ["google-tunix", "jax", "qwix"], "trl": ["trl", "torch", "transformers", "peft"]}
    found = {}
    for side, names in wanted.items():
        if side in programs:
            done = subprocess.run([programs[side], "-c", ask, *names], capture_output=True, text=True)
            found[side] = done.stdout.strip()
    return found


if __name__ == "__main__":
    main()
