"""From the teacher's chains to training arrays: one example a distinct profile, with all its kept chains."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from scaletot_jax.chains.automaton import CompiledChain
from scaletot_jax.errors import DataError
from scaletot_jax.lm.tokenizer import Tokenizer
from scaletot_jax.student.policy import encode_prompts
from scaletot_jax.student.sft_step import SFTBatch


class Examples(NamedTuple):
    """Training examples.

    Attributes:
      keys: exact key of each profile, in the order of the arrays.
      arrays: an SFTBatch of NumPy arrays with the examples in the first dimension.
      truncated: profile texts that were cut.
    """

    keys: list[str]
    arrays: SFTBatch
    truncated: int


def build_examples(
    chains: pa.Table, texts: Mapping[str, str], chain: CompiledChain, tokenizer: Tokenizer, *, max_profile_tokens: int
) -> Examples:
    """Examples from ``teach/chains.parquet``.

    Args:
      chains: the teacher's table; rejected rows are left out, every other one counts with its ``weight``.
      texts: exact key → profile text.
      max_profile_tokens: see :func:`scaletot_jax.student.policy.encode_prompts`.

    Raises:
      DataError: no accepted chain, or a chain whose profile is unknown.
    """
    by_key: dict[str, list[dict[str, Any]]] = {}
    for row in chains.to_pylist():
        if row["accepted"]:
            by_key.setdefault(row["exact_key"], []).append(row)
    if not by_key:
        raise DataError(
            "the teacher accepted no chain", where="teach/chains.parquet", do="see the reasons in its column 'reason'"
        )
    keys = sorted(by_key)
    missing = [key for key in keys if key not in texts]
    if missing:
        raise DataError("a chain belongs to no profile", where="teach/chains.parquet, exact_key", why=missing[0])
    prompts, prompt_valid, truncated = encode_prompts(tokenizer, [texts[key] for key in keys], max_profile_tokens)
    encoded = [[_encode(row, chain) for row in sorted(by_key[key], key=lambda row: row["rank"])] for key in keys]
    count = max(len(rows) for rows in encoded)
    length = max(len(ids) for rows in encoded for ids, *_ in rows)
    width = chain.grammar.token.shape[1]
    shape = (len(keys), count, length)
    arrays = SFTBatch(
        prompts=prompts,
        prompt_valid=prompt_valid,
        chains=np.zeros(shape, np.int32),
        chain_valid=np.zeros(shape, bool),
        states=np.full(shape, chain.end, np.int32),
        targets=np.zeros((*shape, width), np.float32),
        weights=np.zeros(shape[:2], np.float32),
    )
    for e, rows in enumerate(encoded):
        for n, (ids, states, targets, weight) in enumerate(rows):
            arrays.chains[e, n, : len(ids)] = ids
            arrays.chain_valid[e, n, : len(ids)] = True
            arrays.states[e, n, : len(ids)] = states
            arrays.targets[e, n, : len(ids)] = targets
            arrays.weights[e, n] = weight
    return Examples(keys, arrays, truncated)


def blank_example(arrays: SFTBatch) -> SFTBatch:
    """A row that fills up a batch: the first example with weight 0."""
    first = SFTBatch(*(array[0] for array in arrays))
    return first._replace(weights=np.zeros_like(first.weights))


def hold_out(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples | None]:
    """Keeps a share of the profiles out of the training, by the hash of their key: the same ones at every restart.

    Args:
      fraction: share of the profiles, 0 keeps out none; above 0 at least one is kept out.
      seed: of the choice.

    Returns:
      The examples to train on and those kept out (None for none), both in the order of the arrays.

    Raises:
      DataError: nothing would be left to train on.
    """
    if fraction <= 0:
        return examples, None
    total = len(examples.keys)
    count = max(1, round(fraction * total))
    if count >= total:
        raise DataError(
            "no profile would be left to train on",
            where="sft.eval_fraction",
            why=f"{fraction} of {total} profiles with accepted chains",
            do="lower sft.eval_fraction or raise teacher.num_profiles",
        )
    order = sorted(range(total), key=lambda e: hashlib.sha256(f"{seed}:{examples.keys[e]}".encode()).digest())
    kept_out = np.zeros(total, bool)
    kept_out[order[:count]] = True

    def take(rows: np.ndarray) -> Examples:
        arrays = SFTBatch(*(array[rows] for array in examples.arrays))
        return Examples([examples.keys[e] for e in np.flatnonzero(rows)], arrays, examples.truncated)

    return take(~kept_out), take(kept_out)


def states_of(chain: CompiledChain, ids: Sequence[int]) -> np.ndarray:
    """Grammar state before each token of a whole chain, int32 [len(ids)]."""
    state, states = chain.start, []
    for token in ids:
        states.append(state)
        state = chain.step(state, int(token))
        if state < 0:
            raise DataError("a chain leaves its grammar", why=f"token {token} at position {len(states) - 1}")
    return np.asarray(states, np.int32)


def _encode(row: Mapping[str, Any], chain: CompiledChain) -> tuple[list[int], np.ndarray, np.ndarray, float]:
    answer = np.asarray(row["answer"], np.float64)
    bucket = int(np.argmax(answer))
    ids = chain.serialize(row["values"], bucket)
    distributions = [p if p else None for p in row["distributions"]]
    targets = chain.token_targets(distributions, answer.tolist(), row["values"])
    targets[~targets.any(axis=1), 0] = 1  # free text: the token itself, which the loss puts in the first column
    return ids, states_of(chain, ids), targets, float(row["weight"])
