"""A tiny student and a made-up population with teacher chains, for the tests of the student and of sharding."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import jax
import numpy as np
import pyarrow as pa
import tiny

from scaletot_jax.chains.grammar import compile_chain
from scaletot_jax.chains.reserved import reserved_ids
from scaletot_jax.chains.spec import parse_spec
from scaletot_jax.lm import lora
from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.model import forward
from scaletot_jax.student.constrained import grammar_arrays
from scaletot_jax.student.examples import build_examples
from scaletot_jax.student.policy import Student

SPEC = {
    "name": "toy",
    "version": 1,
    "instruction": "Think about the user.",
    "segments": [
        {
            "name": "context",
            "title": "Context",
            "slots": [
                {
                    "name": "stage",
                    "source": "scored",
                    "values": ["young", "settled", "senior", "unknown"],
                    "stems": ["Stage:", "Life:"],
                },
                {
                    "name": "home",
                    "source": "scored",
                    "values": ["single", "couple", "family", "unknown"],
                    "stems": ["Home:", "House:"],
                },
            ],
        },
        {
            "name": "habit",
            "title": "Habit",
            "slots": [
                {
                    "name": "rhythm",
                    "source": "scored",
                    "values": ["rare", "weekly", "weekly evening", "daily", "unknown"],
                    "stems": ["Rhythm:", "Habit:"],
                }
            ],
        },
    ],
    "answer": {
        "title": "Days",
        "label": "lt30",
        "buckets": [[0, 0], [1, 3], [4, 10], [11, 30]],
        "words": [" none", " few", " several", " many"],
        "phrases": [" 0 days", " 1-3 days", " 4-10 days", " 11-30 days"],
        "stems": ["Days:", "Active days:"],
    },
}


NOTES = ("music", "", "fresh food study", "sport")


@cache
def spec(free: bool = False):
    """With ``free``, a text between two judged slots and a segment of text alone."""
    content = copy.deepcopy(SPEC)
    if free:
        content["segments"][0]["slots"].insert(1, {"name": "note", "source": "free", "max_tokens": 3})
        why = {"name": "why", "title": "Why", "slots": [{"name": "why", "source": "free", "max_tokens": 4}]}
        content["segments"].append(why)
    return parse_spec(content, where="toy")


@cache
def student(layers: int = 2, rank: int = 4, free: bool = False, words: tuple[str, ...] = ()) -> Student:
    """``words``: the only tokens that free text may hold, so that a random model closes its texts early, too."""
    loaded = load_model(tiny.write_tiny_lm(Path(mkdtemp()), layers=layers))
    reserved = set(reserved_ids(loaded.tokenizer, loaded.config.vocab_size))
    if words:
        reserved |= set(range(loaded.config.vocab_size)) - {loaded.tokenizer.encode(f" {w}")[0] for w in words}
    chain = compile_chain(spec(free), loaded.tokenizer.encode, loaded.tokenizer.eos_id, reserved=reserved)
    adapter = lora.init(loaded.config, jax.random.key(3), rank)
    return Student(loaded.config, loaded.params, adapter, 2.0, loaded.tokenizer, chain, grammar_arrays(chain), 40)


def texts(count: int) -> list[str]:
    activity = ("low", "medium", "high")
    return [f"Age: {20 + 7 * u % 50}\nActivity: {u % 9} days ({activity[u % 3]})\n" for u in range(count)]


def chain_table(count: int, *, seed: int = 0, free: bool = False) -> pa.Table:
    """One or two chains a profile, whose values follow the profile's number so that there is something to learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(count):
        for rank in range(1 + u % 2):
            values, distributions = [], []
            for slot in spec(free).slots:
                if slot.source == "free":
                    values.append(NOTES[u % 4] if slot.name == "note" else NOTES[(u + rank) % 4])
                    distributions.append([])
                    continue
                place = {"stage": (u + rank) % 3, "home": u % 4, "rhythm": (u + rank) % 5}[slot.name]
                values.append(slot.values[place])
                p = rng.dirichlet(np.ones(len(slot.values))) * 0.4
                p[place] += 0.6
                distributions.append(p.tolist())
            answer = rng.dirichlet(np.ones(4)) * 0.4
            answer[u % 3] += 0.6
            rows.append(
                dict(exact_key=f"key{u:03d}", rank=rank, weight=1.0 if rank == 0 else 0.5, values=values,
                     distributions=distributions, answer=answer.tolist(), accepted=True)
            )  # fmt: skip
    return pa.Table.from_pylist(rows)


def examples(count: int = 8, free: bool = False):
    made = student(free=free)
    by_key = {f"key{u:03d}": text for u, text in enumerate(texts(count))}
    return build_examples(
        chain_table(count, free=free), by_key, made.chain, made.tokenizer, max_profile_tokens=made.max_profile_tokens
    )


_plain = jax.jit(forward, static_argnames=("config", "lora_scale"))


def plain_forward(student: Student, tokens) -> np.ndarray:
    """Hidden states [T, D] of one sequence in a row of its own, right-padded to a common length."""
    row = np.zeros((1, 64), np.int32)
    row[0, : len(tokens)] = tokens
    valid = np.arange(64)[None] < len(tokens)
    out = _plain(student.params, student.config, row, valid=valid, lora=student.lora, lora_scale=student.lora_scale)
    return np.asarray(out.hidden)[0, : len(tokens)]
