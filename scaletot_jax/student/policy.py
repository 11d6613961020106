"""The student as one object: model, adapter, tokenizer and chain grammar of a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scaletot_jax.chains.automaton import CompiledChain
from scaletot_jax.chains.reserved import compile_for
from scaletot_jax.chains.spec import ChainSpec, spec_of_run
from scaletot_jax.errors import ConfigError, DataError
from scaletot_jax.files import read_arrays
from scaletot_jax.lm import lora as lora_module
from scaletot_jax.lm.attend import choose
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.exit import truncate
from scaletot_jax.lm.load import LoadedLM, load_model
from scaletot_jax.lm.padding import round_up
from scaletot_jax.lm.tokenizer import Tokenizer
from scaletot_jax.parallel.distributed import place
from scaletot_jax.parallel.sharding import ShardingRules, parameter_shardings, replicated
from scaletot_jax.profiles.prompt_ids import fit_profile
from scaletot_jax.run import Run
from scaletot_jax.student.adapter import Adapter, load_adapter
from scaletot_jax.student.constrained import GrammarArrays, grammar_arrays
from scaletot_jax.student.full import load_parameters

PROMPT_MULTIPLE = 16  # prompts are padded to a multiple of this, so that few shapes are compiled
ADAPTER_STREAM, ROLLOUT_STREAM, EVALUATION_STREAM = 1, 2, 3  # random streams of a run, folded into the key of its seed


@dataclasses.dataclass(frozen=True)
class Student:
    """A language model restricted to the chain grammar, with one adapter.

    Attributes:
      config, params: the model, truncated and calibrated where the run says so.
      lora, lora_scale: the adapter and its factor α / r; the base student has a fresh adapter, which changes nothing.
      tokenizer: of the model.
      chain: the compiled chain specification; ``grammar`` is its device form.
      max_profile_tokens: longer profile texts lose lines from the top.
    """

    config: LMConfig
    params: dict[str, Any]
    lora: Adapter
    lora_scale: float
    tokenizer: Tokenizer
    chain: CompiledChain
    grammar: GrammarArrays
    max_profile_tokens: int

    @property
    def spec(self) -> ChainSpec:
        return self.chain.spec

    @property
    def chain_length(self) -> int:
        """Tokens reserved for a chain: the longest that the grammar allows."""
        return self.chain.max_length

    def with_lora(self, lora: Adapter) -> Student:
        return dataclasses.replace(self, lora=lora)

    def with_params(self, params: dict[str, Any]) -> Student:
        return dataclasses.replace(self, params=params)


def load_student(run: Run, which: str = "osipo", *, loaded: LoadedLM | None = None) -> Student:
    """Loads the student of a run.

    Args:
      which: ``"base"`` (no training; calibrated where truncated), ``"sft"`` or ``"osipo"``.
      loaded: the run's language model, where it is in memory already; a student trained as a whole takes over its dtypes
        and its places on the devices.

    Raises:
      ValueError: another ``which``.
      DataError: the stage that makes the adapter or the exit map has not run.
    """
    if which not in ("base", "sft", "osipo"):
        raise ValueError(f"which must be 'base', 'sft' or 'osipo', not {which!r}")
    settings = run.config["student"]
    loaded = loaded or load_model(run.config["lm"]["weights"])
    exit_path = run.workdir / "sft" / "exit.safetensors"
    params, config = loaded.params, loaded.config
    if settings["num_layers"]:
        if not exit_path.exists():
            raise DataError(
                "the exit map of the shorter student is missing", where=str(exit_path), do="run 'scaletot sft' first"
            )
        params, config = shorten(loaded, settings["num_layers"], read_arrays(exit_path))
    student = build_student(run, params, config, loaded.tokenizer)
    if which == "base":
        return student
    if settings["trainable"] == "full":
        # OSIPO's adapters lie on the student that SFT trained; its own fresh adapter changes nothing.
        student = student.with_params(load_parameters(run.workdir / "sft" / "student.safetensors", params))
        if which == "sft":
            return student
    return student.with_lora(load_adapter(run.workdir / which / "adapter.safetensors"))


def load_split(run: Run, dtype: Any) -> LoadedLM:
    """The run's language model on the active mesh, a tensor and a shard at a time; matrices in ``dtype``, the rest float32."""
    mesh = jax.sharding.get_mesh()
    return load_model(run.config["lm"]["weights"], mesh=mesh, dtype=dtype, vectors=jnp.float32)


def split(student: Student) -> Student:
    """The student on the active mesh: parameters and adapter split as the steps split them, the grammar whole everywhere."""
    mesh, rules = jax.sharding.get_mesh(), ShardingRules()
    assert isinstance(mesh, Mesh) and not mesh.empty
    params, lora = ((tree, parameter_shardings(tree, mesh, rules)) for tree in (student.params, student.lora))
    return dataclasses.replace(
        student, params=place(*params), lora=place(*lora), grammar=place(student.grammar, replicated(mesh))
    )


def build_student(run: Run, params: dict[str, Any], config: LMConfig, tokenizer: Tokenizer) -> Student:
    """The student with a fresh adapter, drawn from the run's seed."""
    settings = run.config["student"]
    attention = choose(settings["attention"])
    if attention == "splash" and config.windows:
        raise ConfigError(
            "splash attention knows no sliding windows",
            where="student.attention",
            why=f"layers of '{config.family}' see {sorted(set(config.windows) - {0})} tokens",
            do="set student.attention=dot_product",
        )
    config = dataclasses.replace(config, attention=attention)  # type: ignore[arg-type]
    chain = compile_for(spec_of_run(run.config), tokenizer, config.vocab_size)
    key = jax.random.fold_in(jax.random.key(run.config["seed"]), ADAPTER_STREAM)
    return Student(
        config=config,
        params=params,
        lora=lora_module.init(config, key, settings["lora_rank"]),
        lora_scale=settings["lora_alpha"] / settings["lora_rank"],
        tokenizer=tokenizer,
        chain=chain,
        grammar=grammar_arrays(chain),
        max_profile_tokens=run.config["lm"]["max_profile_tokens"],
    )


def shorten(loaded: LoadedLM, num_layers: int, exit: dict[str, np.ndarray]) -> tuple[dict[str, Any], LMConfig]:
    """Parameters and configuration of the truncated model.

    Raises:
      ConfigError: the model has no more than ``num_layers`` layers.
    """
    check_layers(loaded.config, num_layers)
    return truncate(loaded.params, loaded.config, num_layers, exit)


def check_layers(config: LMConfig, num_layers: int) -> None:
    if not 0 < num_layers <= config.num_layers:
        raise ConfigError(
            "the student cannot have more layers than its model",
            where="student.num_layers",
            why=f"{num_layers} of {config.num_layers}",
            do="choose fewer, or 0 for all",
        )


def encode_prompts(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, *, length: int = 0
) -> tuple[np.ndarray, np.ndarray, int]:
    """Profile texts as right-padded ids, each begun as the model begins its texts.

    Args:
      max_tokens: of a profile; longer ones lose whole lines from the top, as they do before the teacher.
      length: padded length; 0: the longest text, rounded up to a multiple of 16.

    Returns:
      tokens [U, P] int32, valid [U, P] bool, and how many texts were cut.
    """
    fitted = [fit_profile(text, functools.partial(tokenizer.encode, control=False), max_tokens) for text in texts]
    if not all(row for row, _ in fitted):
        raise DataError("a profile has no text", where=f"profile {[bool(row) for row, _ in fitted].index(False)}")
    ids = [[*tokenizer.start, *row] for row, _ in fitted]
    cut = sum(left_out > 0 for _, left_out in fitted)
    longest = max((len(row) for row in ids), default=1)
    length = length or round_up(longest, PROMPT_MULTIPLE)
    if longest > length:
        raise DataError("a profile text does not fit", why=f"{longest} tokens for {length}")
    tokens = np.zeros((len(ids), length), np.int32)
    valid = np.zeros((len(ids), length), bool)
    for row, values in enumerate(ids):
        tokens[row, : len(values)] = values
        valid[row, : len(values)] = True
    return tokens, valid, cut
