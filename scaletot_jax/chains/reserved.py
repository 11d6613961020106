"""Which tokens a free text cannot contain, for one tokenizer.

A text must not look like the structure around it. Besides the closing tokens themselves, a tokenizer has many tokens that
hold a line break or a ";" among other characters, control tokens such as ``<|im_start|>``, and a model may have rows of its
embedding that belong to no token at all. None of them may be written, by teacher or student: so a chain's text can be
split at its marks, and a text that was decoded can be encoded again.
"""

from __future__ import annotations

from typing import Any

from scaletot_jax.chains.automaton import CompiledChain
from scaletot_jax.chains.grammar import CLOSE, SEPARATOR, compile_chain
from scaletot_jax.chains.spec import ChainSpec

_MARKS = (SEPARATOR, CLOSE, "\r")


def reserved_ids(tokenizer: Any, rows: int = 0) -> tuple[int, ...]:
    """Ids that free text cannot contain, ascending.

    Args:
      tokenizer: has ``vocab_size``, ``special_ids`` and ``decode``, as :class:`scaletot_jax.lm.tokenizer.Tokenizer`.
      rows: rows of the model's embedding; those beyond the tokenizer's ids are listed too.
    """
    marked = (i for i in range(tokenizer.vocab_size) if any(mark in tokenizer.decode([i]) for mark in _MARKS))
    return tuple(sorted({*marked, *tokenizer.special_ids, *range(tokenizer.vocab_size, rows)}))


def compile_for(spec: ChainSpec, tokenizer: Any, rows: int = 0) -> CompiledChain:
    """:func:`~scaletot_jax.chains.grammar.compile_chain` with the reserved ids of ``tokenizer``, where free slots need them."""
    reserved = reserved_ids(tokenizer, rows) if spec.free_slots else ()
    return compile_chain(spec, tokenizer.encode, tokenizer.eos_id, reserved=reserved)
