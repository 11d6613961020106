"""``scaletot plan``: what a run would cost, before anything is spent.

Reads and splits the table (stage ``prepare``, which needs no language model), counts users, distinct profiles, calls and
tokens, and times the model itself for a few seconds on this machine: cached forward, one decoding step, one training
step of the student. Minutes are those rates times the counts; compilation and the heads are allowances measured nowhere
but in the quickstart, and said so.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from ml_collections import ConfigDict

from scaletot_jax.chains.spec import spec_of_run
from scaletot_jax.profiles.prepare import Population, open_population
from scaletot_jax.run import Run, flatten

if TYPE_CHECKING:
    from scaletot_jax.teacher.served.estimate import Estimate

GIB = 1024**3
COMPILE_S = 15.0  # allowance for each stage that compiles a program of the language model
REQUEST_S = 0.5  # allowance for one request to a served teacher
HEADS_S = 240.0  # allowance for evaluation: heads, baselines, bootstrap, page; 346 CPU seconds on the quickstart


class Rates(NamedTuple):
    """What this machine does, measured now.

    Attributes:
      teacher: tokens a second through the whole model, forward only.
      student: the same through the student's layers.
      training: tokens a second of one LoRA step, forward and backward.
      decode: rows a second of one decoding step of the student.
      seconds: what measuring took, compilation included.
    """

    teacher: float
    student: float
    training: float
    decode: float
    seconds: float


class StagePlan(NamedTuple):
    """One line of the plan."""

    stage: str
    units: str
    calls: int
    tokens: int
    minutes: float
    memory_gib: float
    disk_mib: float


class Plan(NamedTuple):
    """The whole plan; :func:`show` prints it."""

    config: dict[str, Any]
    users: int
    rows: int
    distinct: int
    repeated: float
    rates: Rates
    stages: list[StagePlan]
    served: Estimate | None = None  # of a served teacher
    model: Any = None  # the student's shape
    padded: tuple[int, int] = (0, 0)  # lengths of a prompt and of a chain in the student's steps


def plan(config: ConfigDict, workdir: str | Path, *, seconds: float = 2.0) -> Plan:
    """Makes the plan. Runs stage ``prepare`` in ``workdir``; spends nothing else.

    Args:
      config, workdir: of the run.
      seconds: for which each of four programs is timed, after compiling it.

    Raises:
      ScaleToTError: whatever would stop the run itself on its first stages.
    """
    from scaletot_jax.lm.load import load_model
    from scaletot_jax.profiles.prepare import prepare

    with Run(workdir, config.to_dict()) as run:
        summary = prepare(run).summary()
        population = open_population(run)
        lm = load_model(config.lm.weights)
        lengths = _lengths(run.config, population, lm.tokenizer)
        rates = measure(lm, run.config, lengths, seconds=seconds)
        served = _served(run.config, population, lm, lengths)
        stages = _stages(run.config, population, lm, lengths, rates, served)
    table = population.table
    return Plan(
        config=flatten(run.config),
        users=len(pc.unique(table["group"])),
        rows=table.num_rows,
        distinct=summary["distinct_profiles"]["exact"],
        repeated=1 - summary["distinct_profiles"]["exact"] / max(1, table.num_rows),
        rates=rates,
        stages=stages,
        served=served,
        model=student_shape(run.config, lm.config),
        padded=(lengths.prompt, lengths.chain),
    )


def show(result: Plan) -> str:
    """The plan as text."""
    lines = ["configuration"]
    lines += [f"  {key} = {value}" for key, value in sorted(result.config.items())]
    lines += [
        "",
        f"population: {result.rows:,} rows of {result.users:,} users, {result.distinct:,} distinct profiles "
        f"({result.repeated:.1%} of the rows repeat one)",
        f"this machine: {result.rates.teacher:,.0f} tokens/s through the model, {result.rates.training:,.0f} tokens/s "
        f"training the student, {result.rates.decode:,.0f} decoded tokens/s (measured in {result.rates.seconds:.0f} s)",
        "",
        f"{'stage':<9} {'units':<44} {'calls':>8} {'tokens':>11} {'minutes':>8} {'GiB':>6} {'disk MiB':>9}",
    ]
    for row in result.stages:
        lines.append(
            f"{row.stage:<9} {row.units:<44} {row.calls:>8,} {row.tokens:>11,} {row.minutes:>8.1f} "
            f"{row.memory_gib:>6.1f} {row.disk_mib:>9.1f}"
        )
    total = sum(row.minutes for row in result.stages)
    calls, tokens = sum(row.calls for row in result.stages), sum(row.tokens for row in result.stages)
    peak, disk = max(row.memory_gib for row in result.stages), sum(row.disk_mib for row in result.stages)
    lines.append(f"{'all':<9} {'':<44} {calls:>8,} {tokens:>11,} {total:>8.1f} {peak:>6.1f} {disk:>9.1f}")
    lines.append("")
    lines += _show_served(result)
    lines.append(
        "calls and tokens of the teacher are an estimate from the bounds; its budget is enforced before each call"
    )
    return "\n".join(lines)


class _Lengths(NamedTuple):
    profile: float  # mean tokens of a profile's text
    prompt: int  # padded prompt
    chain: int  # padded chain


def _lengths(config: Mapping[str, Any], population: Population, tokenizer: Any) -> _Lengths:
    from scaletot_jax.chains.grammar import compile_chain
    from scaletot_jax.lm.padding import round_up
    from scaletot_jax.student.policy import PROMPT_MULTIPLE

    sample = population.table.slice(0, 200).to_pylist()
    limit = config["lm"]["max_profile_tokens"]
    counts = [min(limit, len(tokenizer.encode(population.renderer.text(row)))) for row in sample]
    chain = compile_chain(spec_of_run(config), tokenizer.encode, tokenizer.eos_id)
    return _Lengths(float(np.mean(counts)), round_up(len(tokenizer.start) + limit, PROMPT_MULTIPLE), chain.max_length)


def student_shape(config: Mapping[str, Any], model: Any) -> Any:
    """The student's LMConfig: the first ``student.num_layers`` layers of the language model, all where it is 0."""
    layers = config["student"]["num_layers"] or model.num_layers
    return dataclasses.replace(model, num_layers=layers, windows=model.windows[:layers])


def measure(lm: Any, config: Mapping[str, Any], lengths: _Lengths, *, seconds: float = 2.0) -> Rates:
    """Times the four programs for about ``seconds`` each, after compiling them."""
    import jax
    import jax.numpy as jnp

    from scaletot_jax.lm import lora as lora_module
    from scaletot_jax.lm.cache import extend, prefill
    from scaletot_jax.lm.exit import truncate
    from scaletot_jax.lm.model import forward

    started = time.monotonic()
    width = lm.config.hidden_size
    params, shape = lm.params, lm.config
    if config["student"]["num_layers"]:
        identity = {"weight": np.eye(width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
        params, shape = truncate(lm.params, lm.config, config["student"]["num_layers"], identity)
    params, whole = jax.device_put(params), jax.device_put(lm.params)
    length = lengths.prompt + lengths.chain
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, lm.config.vocab_size, (8, length)), jnp.int32)
    rows = config["osipo"]["prompts"] * config["osipo"]["rollouts"]

    run_teacher = jax.jit(lambda p, t: forward(p, lm.config, t).hidden)
    run_student = jax.jit(lambda p, t: forward(p, shape, t).hidden)
    adapter = lora_module.init(shape, jax.random.key(0), config["student"]["lora_rank"])
    train = jax.jit(jax.grad(lambda a, p, t: forward(p, shape, t, lora=a).hidden.sum()))
    start = jax.jit(functools.partial(prefill, config=shape, size=length))
    _, cache = start(params=params, tokens=jnp.broadcast_to(tokens[:1, : lengths.prompt], (rows, lengths.prompt)))
    step = jax.jit(lambda p, t, c: extend(p, shape, t, c, write_at=lengths.prompt)[0])
    one = jnp.broadcast_to(tokens[:1, :1], (rows, 1))

    def rate(function: Callable[..., Any], count: int, *arguments: Any) -> float:
        jax.block_until_ready(function(*arguments))
        begin, done = time.monotonic(), 0
        while done == 0 or time.monotonic() - begin < seconds:
            jax.block_until_ready(function(*arguments))
            done += count
        return done / (time.monotonic() - begin)

    return Rates(
        teacher=rate(run_teacher, tokens.size, whole, tokens),
        student=rate(run_student, tokens.size, params, tokens),
        training=rate(train, tokens.size, adapter, params, tokens),
        decode=rate(step, rows, params, one, cache),
        seconds=time.monotonic() - started,
    )


def _served(config: Mapping[str, Any], population: Population, lm: Any, lengths: _Lengths) -> Estimate | None:
    """What a served teacher is expected to be asked; None for a local one."""
    from scaletot_jax.teacher.served.estimate import estimate
    from scaletot_jax.teacher.teach import distinct_profiles

    teacher = config["teacher"]
    if teacher["backend"] == "local":
        return None
    reasoned = distinct_profiles(population.table, teacher["num_profiles"]).num_rows
    counts = {"num_profiles": reasoned, "pilot_profiles": min(teacher["pilot_profiles"], reasoned)}
    return estimate(spec_of_run(config), lm.tokenizer.encode, {**teacher, **counts}, lengths.profile)


def _show_served(result: Plan) -> list[str]:
    served, config = result.served, result.config
    if served is None:
        return []
    text = (
        f"served teacher: about {served.requests:,} requests, {served.input_tokens:,} input and "
        f"{served.output_tokens:,} output tokens"
    )
    if config["teacher.served.usd_per_million_input"] or config["teacher.served.usd_per_million_output"]:
        text += f", {served.usd:,.2f} US dollars"
    if config["teacher.served.api"] == "chat":
        text += f"; {config['teacher.served.samples']} times that where it gives no log-probabilities"
    limits = [f"{served.limit_usd:g} US dollars (teacher.served.max_usd)"] * (served.limit_usd > 0)
    tokens = config["teacher.served.max_total_tokens"]
    limits += [f"{tokens:,} tokens (teacher.served.max_total_tokens)"] * (tokens > 0)
    return [text, f"  hard limit: {' and '.join(limits) or 'none; set teacher.served.max_usd or max_total_tokens'}"]


def _stages(
    config: Mapping[str, Any],
    population: Population,
    lm: Any,
    lengths: _Lengths,
    rates: Rates,
    served: Estimate | None = None,
) -> list[StagePlan]:
    from scaletot_jax.lm.remat import kept_bytes
    from scaletot_jax.teacher.cost import plan_cost
    from scaletot_jax.teacher.teach import distinct_profiles

    teacher, osipo, distill = config["teacher"], config["osipo"], config["distill"]
    table = population.table
    reasoned = distinct_profiles(table, teacher["num_profiles"]).num_rows
    settings = {**teacher, "num_profiles": reasoned, "pilot_profiles": min(teacher["pilot_profiles"], reasoned)}
    cost = plan_cost(spec_of_run(config), lm.tokenizer.encode, settings, lengths.profile)["total"]
    splits = table["split"]
    available = {name: len(pc.unique(table.filter(pc.equal(splits, name))["exact_key"])) for name in ("distill", "val")}

    weights = sum(np.size(leaf) for leaf in _leaves(lm.params)) * 4 / GIB
    shape = student_shape(config, lm.config)
    depth = shape.num_layers / lm.config.num_layers
    width = lm.config.hidden_size
    base = 0.7  # interpreter, jax and compiled programs

    def activations(section: Mapping[str, Any], prompts: int, length: int) -> float:
        """GiB that the backward pass of one micro-batch holds."""
        return kept_bytes(shape, prompts // section["accumulate"], length, section["remat"]) / GIB

    rows = []

    def add(stage: str, units: str, calls: int, tokens: float, seconds: float, memory: float, disk: float) -> None:
        rows.append(StagePlan(stage, units, calls, int(tokens), seconds / 60, memory, disk))

    add("prepare", f"{table.num_rows:,} rows", 0, 0, 3, base, table.nbytes / 2**20)
    calls, tokens, seconds = round(cost["calls"]), cost["tokens"], COMPILE_S + cost["tokens"] / rates.teacher
    if served is not None:
        calls, tokens = served.requests, served.input_tokens + served.output_tokens
        pace = teacher["served"]["requests_per_minute"]
        seconds = max(calls * REQUEST_S / teacher["served"]["concurrency"], calls * 60 / pace if pace else 0.0)
    add(
        "teach",
        f"{reasoned:,} profiles, pilot of {settings['pilot_profiles']:,}" + (", served" if served else ""),
        calls,
        tokens,
        seconds,
        base + (0.0 if served else weights * 1.3),
        reasoned * 0.06 + calls * (0.004 if served else 0.0),
    )
    evaluated = min(osipo["eval_profiles"], available["val"])
    sample_chains = osipo["eval_chains"]
    evaluation = evaluated * (lengths.prompt / rates.student + sample_chains * lengths.chain / rates.decode)
    length = lengths.prompt + lengths.chain
    examples = reasoned * teacher["beam"]
    sft_tokens = examples * config["sft"]["epochs"] * length
    several = lengths.prompt + teacher["beam"] * lengths.chain  # a prompt packed with its chains
    # All parameters: the master copy with its gradient and two moments. An adapter's share does not show.
    full = config["student"]["trainable"] == "full"
    sft_memory = base + weights * (0.5 + (4 if full else 1) * depth)
    sft_memory += activations(config["sft"], config["sft"]["batch_size"], several)
    texts = min(config["student"]["exit_texts"], reasoned)
    calibration = texts * length / rates.teacher if config["student"]["num_layers"] else 0.0
    add(
        "sft",
        f"{examples:,} chains x {config['sft']['epochs']} epochs",
        0,
        sft_tokens,
        2 * COMPILE_S + calibration + sft_tokens / rates.training + 2 * evaluation,
        sft_memory,
        40
        + full
        * weights
        * depth
        * 1024
        * (1 + 3 * (config["checkpoint"]["keep"] + config["checkpoint"]["keep_best"] + 1)),
    )
    together = lengths.prompt + osipo["rollouts"] * lengths.chain
    packed, replayed = osipo["prompts"] * together, osipo["prompts"] * several
    decoded = osipo["prompts"] * osipo["rollouts"] * lengths.chain
    batches, updating = osipo_seconds(osipo, packed, replayed, decoded, rates)
    # Policy, reward model and replay are passes one after another: the largest counts.
    osipo_memory = max(activations(osipo, osipo["prompts"], tokens) for tokens in (together, several))
    add(
        "osipo",
        f"{osipo['updates']:,} updates x {osipo['prompts']} users x {osipo['rollouts']} chains"
        if osipo["epochs"] == 1
        else f"{batches:,} batches x {osipo['prompts']} users x {osipo['rollouts']} chains, {osipo['updates']:,} updates",
        batches * osipo["prompts"] * osipo["rollouts"],
        batches * (packed + decoded),
        (3 + (osipo["epochs"] > 1)) * COMPILE_S + updating + evaluation,
        base + weights * (1.5 + 3 * depth) + osipo_memory,
        60,
    )
    distilled = reasoned + min(distill["num_profiles"], available["distill"])
    states = distilled * (lengths.prompt + 2 * distill["chains"] * lengths.chain)
    add(
        "distill",
        f"{distilled:,} profiles x {distill['chains']} chains, {distill['steps']:,} encoder steps",
        distilled * distill["chains"],
        states,
        2 * COMPILE_S + states / rates.student + distilled * distill["chains"] * lengths.chain / rates.decode,
        base + weights * (0.5 + depth),
        distilled * distill["chains"] * 5 * width * 4 * 4 / 2**20,
    )
    add(
        "score",
        f"{table.num_rows:,} rows",
        0,
        0,
        5 + table.num_rows / 5e4,
        base,
        table.num_rows * distill["dim"] * 2 / 2**20,
    )
    add(
        "evaluate",
        f"heads x {config['head']['seeds']} seeds, {config['evaluate']['bootstrap']:,} resamples",
        0,
        0,
        HEADS_S,
        base,
        1,
    )
    add("report", "one page", 0, 0, 5, base, 1)
    return rows


def osipo_seconds(
    osipo: Mapping[str, Any], packed: float, replayed: float, decoded: float, rates: Rates
) -> tuple[int, float]:
    """Batches of rollouts and seconds of all updates: sampling, the reference and the reward model come once a batch, the
    policy and its replay at every update.

    Args:
      packed, replayed: tokens of an update's rollouts and of its replayed chains, with their prompts.
      decoded: tokens that are sampled for a batch.
    """
    batches = -(-osipo["updates"] // osipo["epochs"])
    judging = packed / rates.training + packed / rates.student + decoded / rates.decode
    return batches, batches * judging + osipo["updates"] * (packed + replayed) / rates.training


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)
