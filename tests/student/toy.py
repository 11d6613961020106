"""A tiny student and a made-up population with teacher chains, for the tests of the student and of sharding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import jax
import numpy as np
import pyarrow as pa
import tiny

from scaletot_jax.chains.grammar import compile_chain
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


@cache
def spec():
    return parse_spec(SPEC, where="toy")


@cache
def student(layers: int = 2, rank: int = 4) -> Student:
    loaded = load_model(tiny.write_tiny_lm(Path(mkdtemp()), layers=layers))
    chain = compile_chain(spec(), loaded.tokenizer.encode, loaded.tokenizer.eos_id)
    adapter = lora.init(loaded.config, jax.random.key(3), rank)
    return Student(loaded.config, loaded.params, adapter, 2.0, loaded.tokenizer, chain, grammar_arrays(chain), 40)


def texts(count: int) -> list[str]:
    activity = ("low", "medium", "high")
    return [f"Age: {20 + 7 * u % 50}\nActivity: {u % 9} days ({activity[u % 3]})\n" for u in range(count)]


def chain_table(count: int, *, seed: int = 0) -> pa.Table:
    """One or two chains a profile, whose values follow the profile's number so that there is something to learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(count):
        for rank in range(1 + u % 2):
            places = [(u + rank) % 3, u % 4, (u + rank) % 5]
            values = [slot.values[place] for slot, place in zip(spec().slots, places)]
            distributions = []
            for slot, place in zip(spec().slots, places):
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


def examples(count: int = 8):
    made = student()
    by_key = {f"key{u:03d}": text for u, text in enumerate(texts(count))}
    return build_examples(
        chain_table(count), by_key, made.chain, made.tokenizer, max_profile_tokens=made.max_profile_tokens
    )


_plain = jax.jit(forward, static_argnames=("config", "lora_scale"))


def plain_forward(student: Student, tokens) -> np.ndarray:
    """Hidden states [T, D] of one sequence in a row of its own, right-padded to a common length."""
    row = np.zeros((1, 64), np.int32)
    row[0, : len(tokens)] = tokens
    valid = np.arange(64)[None] < len(tokens)
    out = _plain(student.params, student.config, row, valid=valid, lora=student.lora, lora_scale=student.lora_scale)
    return np.asarray(out.hidden)[0, : len(tokens)]
