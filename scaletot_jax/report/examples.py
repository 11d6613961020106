"""Which reasoned profiles the report shows, and what of them: artifacts in, cards out, without any identifier."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.files import read_table
from scaletot_jax.report.cards import HASH_DIGITS, Card, Slot

_ANSWERS = (("from the profile", "answer_direct"), ("after the chain", "answer_chain"), ("stored", "answer"))


def example_cards(
    chains: pa.Table,
    nodes: pa.Table,
    population: Path | None,
    renderer: Mapping[str, Any] | None,
    spec: Any,
    count: int,
    show_text: bool = False,
) -> list[Card]:
    """``count`` selected chains in the order of their profile hash, those with a refined node first.

    Args:
      chains, nodes: chains.parquet and nodes.parquet.
      population: population.parquet, of which only the fields that the prompt shows are read; or None.
      renderer: renderer.json, or None.
      spec: the chain specification, or None: then slots and buckets have numbers for names.
      count: number of cards.
      show_text: whether text that people or the teacher wrote freely is shown.
    """
    refined = set(nodes.filter(nodes["refined"])["exact_key"].to_pylist())
    selected = chains.filter(pc.equal(chains["rank"], 0)).to_pylist()
    selected.sort(key=lambda row: (row["exact_key"] not in refined, row["exact_key"]))
    selected = selected[:count]
    wanted = pa.array([row["exact_key"] for row in selected], pa.string())
    trees: dict[str, list[dict[str, Any]]] = {row["exact_key"]: [] for row in selected}
    for row in nodes.filter(pc.is_in(nodes["exact_key"], value_set=wanted)).to_pylist():
        if row["depth"] > 0:
            trees[row["exact_key"]].append(row)
    prompts = _prompts(population, renderer, wanted, show_text)
    return [_card(row, trees[row["exact_key"]], prompts.get(row["exact_key"]), spec, show_text) for row in selected]


def _card(
    row: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], prompt: str | None, spec: Any, show_text: bool
) -> Card:
    answers = [(name, row[key]) for name, key in _ANSWERS if row.get(key)]
    buckets = bucket_names(spec.answer.buckets) if spec is not None else []
    sizes = {len(shares) for _, shares in answers}
    if sizes and sizes != {len(buckets)}:
        buckets = [str(i) for i in range(max(sizes))]
        answers = [(name, shares) for name, shares in answers if len(shares) == len(buckets)]
    titles = {segment.name: segment.title for segment in spec.segments} if spec is not None else {}
    return Card(
        profile=short_hash(row["exact_key"]),
        prompt=prompt,
        slots=_slots(row["values"], row.get("distributions") or [], spec, show_text),
        buckets=buckets,
        answers=answers,
        accepted=bool(row["accepted"]),
        reason=row.get("reason") or "",
        calls=row.get("calls"),
        nodes=[{**node, "segment": titles.get(node["segment"], node["segment"])} for node in nodes],
    )


def _slots(values: Sequence[str], distributions: Sequence[Sequence[float]], spec: Any, show_text: bool) -> list[Slot]:
    if spec is None or len(spec.slots) != len(values):
        free = [not len(shares) for shares in distributions] + [False] * len(
            values
        )  # only free text has no distribution
        hidden = [written and bool(value) and not show_text for written, value in zip(free, values)]
        return [
            Slot("Chain", f"slot {i + 1}", "text hidden" if hidden[i] else value, None, free[i])
            for i, value in enumerate(values)
        ]
    out = []
    for i, (slot, value) in enumerate(zip(spec.slots, values)):
        shares = distributions[i] if i < len(distributions) else []
        judged = slot.source == "scored" and value in slot.values and len(shares) == len(slot.values)
        share = shares[slot.values.index(value)] if judged else None
        title, written = spec.segments[spec.segment_of_slot[i]].title, slot.source == "free"
        shown = "text hidden" if written and value and not show_text else value
        out.append(Slot(title, slot.name.replace("_", " "), shown, share, written))
    return out


def _prompts(
    population: Path | None, renderer: Mapping[str, Any] | None, keys: pa.Array, show_text: bool
) -> dict[str, str]:
    if population is None or renderer is None:
        return {}
    from scaletot_jax.profiles.render import Renderer

    text = Renderer.from_dict(renderer)
    if not show_text:
        text = Renderer(tuple(field for field in text.fields if field.kind != "text"), text.cuts)
    table = read_table(population, columns=["exact_key", *(field.name for field in text.fields)])
    table = table.filter(pc.is_in(table["exact_key"], value_set=keys))
    return {record["exact_key"]: text.text(record) for record in reversed(table.to_pylist())}


def bucket_names(buckets: Sequence[Sequence[int]]) -> list[str]:
    """Names of answer buckets: ``[[0, 0], [2, 3]]`` gives ``["0", "2–3"]``."""
    return [str(low) if low == high else f"{low}–{high}" for low, high in buckets]


def short_hash(key: str) -> str:
    """The first hexadecimal digits of a profile's content hash; a key that is not one is not shown at all."""
    digits = str(key)[:HASH_DIGITS]
    return digits if re.fullmatch(r"[0-9a-f]+", digits) else "unnamed"
