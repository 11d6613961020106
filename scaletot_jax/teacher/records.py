"""From finished searches to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.teacher import calibrate, questions
from scaletot_jax.teacher import tree as trees
from scaletot_jax.teacher.questions import Calibration
from scaletot_jax.teacher.search import Result
from scaletot_jax.teacher.tree import REASONS

_CHAINS = pa.schema(
    [
        ("exact_key", pa.string()),
        ("rank", pa.int8()),
        ("weight", pa.float32()),
        ("values", pa.list_(pa.string())),
        ("distributions", pa.list_(pa.list_(pa.float32()))),
        ("answer_direct", pa.list_(pa.float32())),
        ("answer_chain", pa.list_(pa.float32())),
        ("answer", pa.list_(pa.float32())),
        ("log_prob", pa.float32()),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),
        ("budget", pa.bool_()),
        ("calls", pa.int32()),
        ("tokens", pa.int32()),
    ]
)
_NODES = pa.schema(
    [
        ("exact_key", pa.string()),
        ("depth", pa.int8()),
        ("node", pa.int32()),
        ("parent", pa.int32()),
        ("segment", pa.string()),
        ("values", pa.list_(pa.string())),
        ("probability", pa.float32()),
        ("entropy", pa.float32()),
        ("disagreement", pa.float32()),
        ("uncertainty", pa.float32()),
        ("threshold", pa.float32()),
        ("refined", pa.bool_()),
        ("refinement_accepted", pa.bool_()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
    ]
)
_TEXTS = pa.schema(
    [
        ("exact_key", pa.string()),
        ("rank", pa.int8()),
        ("slot", pa.string()),
        ("text", pa.string()),
        ("accepted", pa.bool_()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("draft", pa.string()),
        ("closed", pa.bool_()),
        ("tokens", pa.list_(pa.int32())),
        ("log_probs", pa.list_(pa.float32())),
        ("entropies", pa.list_(pa.float32())),
    ]
)
_MEASURES = ("probability", "entropy", "disagreement", "uncertainty", "threshold")
_FLAGS = ("refined", "refinement_accepted", "kept")


def search_record(spec: ChainSpec, result: Result, *, profile_tokens: int) -> dict[str, Any]:
    """A finished search as JSON-able values: chains, nodes, direct answer and cost. Values stand as texts, free slots empty
    and without a distribution."""
    tree = result.tree
    nodes = []
    for n in range(1, tree.size):
        k = int(tree.depth[n]) - 1
        row: dict[str, Any] = {
            "node": n,
            "parent": int(tree.parent[n]),
            "depth": k + 1,
            "segment": spec.segments[k].name,
        }
        row["values"] = [
            slot.values[v] if slot.values else "" for slot, v in zip(spec.segments[k].slots, tree.values[n])
        ]
        row.update({name: float(getattr(tree, name)[n]) for name in _MEASURES})
        row.update({name: bool(getattr(tree, name)[n]) for name in _FLAGS})
        nodes.append({**row, "reason": REASONS[tree.reason[n]]})
    chains = [
        {
            "values": [value or "" for part in questions.texts(spec, chain.values) for value in part],
            "distributions": [
                p.tolist() if slot.values else []
                for slot, p in zip(spec.slots, (p for part in chain.distributions for p in part))
            ],
            "log_prob": chain.log_prob,
            "weight": chain.weight,
            "answer": None if chain.answer is None else chain.answer.tolist(),
            "accepted": chain.reason != trees.EXHAUSTED,
            "reason": REASONS[chain.reason],
        }
        for chain in result.chains
    ]
    return {
        "chains": chains,
        "nodes": nodes,
        "direct": None if result.direct is None else result.direct.tolist(),
        "calls": result.calls,
        "tokens": result.tokens + profile_tokens,
        "samples": result.samples,
        "refined": result.refined,
        "budget": result.budget,
    }


def answers(record: Mapping[str, Any], rank: int, prior: Sequence[float]) -> dict[str, list[float]]:
    """Direct, chain-conditioned and pooled answer of one chain.

    An answer that the budget did not allow is the direct one, and failing that the ``prior``.
    """
    direct = record["direct"] or list(prior)
    chain = record["chains"][rank]["answer"] or direct
    return {"direct": direct, "chain": chain, "pooled": calibrate.pool_answers(direct, chain).tolist()}


def chains_table(
    spec: ChainSpec,
    keys: Sequence[str],
    found: Sequence[Mapping[str, Any]],
    answer: str,
    base_rate: Sequence[float] | None,
) -> pa.Table:
    """chains.parquet: profiles in the given order, chains by rank. ``answer``: direct, chain or pooled."""
    prior = [1 / spec.num_buckets] * spec.num_buckets if base_rate is None else list(base_rate)
    rows = []
    for key, record in zip(keys, found, strict=True):
        for rank, chain in enumerate(record["chains"]):
            kept = answers(record, rank, prior)
            rows.append(
                {
                    "exact_key": key,
                    "rank": rank,
                    **{
                        name: chain[name]
                        for name in ("weight", "values", "distributions", "log_prob", "accepted", "reason")
                    },
                    "answer_direct": kept["direct"],
                    "answer_chain": kept["chain"],
                    "answer": kept[answer],
                    **{name: record[name] for name in ("budget", "calls", "tokens")},
                }
            )
    return pa.Table.from_pylist(rows, schema=_CHAINS)


def nodes_table(spec: ChainSpec, keys: Sequence[str], found: Sequence[Mapping[str, Any]]) -> pa.Table:
    """nodes.parquet: every node but the roots."""
    rows = [{"exact_key": key, **node} for key, record in zip(keys, found, strict=True) for node in record["nodes"]]
    return pa.Table.from_pylist(rows, schema=_NODES)


def texts_table(keys: Sequence[str], found: Sequence[Mapping[str, Any]]) -> pa.Table:
    """texts.parquet: every free text that was asked for, with what became of it; see :mod:`scaletot_jax.teacher.writing`."""
    rows = [
        {"exact_key": key, "rank": rank, **entry}
        for key, record in zip(keys, found, strict=True)
        for rank, chain in enumerate(record["chains"])
        for entry in chain["texts"]
    ]
    return pa.Table.from_pylist(rows, schema=_TEXTS)


def summarise_texts(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of the free texts: asked for, accepted (and empty among these), rejected by reason; their doubt and length.

    Entropies and log-probabilities are means over tokens, nats; None where no token was written.
    """
    entries = [entry for record in found for chain in record["chains"] for entry in chain["texts"]]
    rejected = sorted({entry["reason"] for entry in entries if not entry["accepted"]})
    entropies = [value for entry in entries for value in entry["entropies"]]
    log_probs = [value for entry in entries for value in entry["log_probs"]]
    return {
        "asked": len(entries),
        "accepted": sum(entry["accepted"] for entry in entries),
        "empty": sum(entry["accepted"] and not entry["text"] for entry in entries),
        "rejected": {reason: sum(entry["reason"] == reason for entry in entries) for reason in rejected},
        "closed": sum(entry["closed"] for entry in entries),
        "tokens": sum(len(entry["tokens"]) for entry in entries),
        "entropy": float(np.mean(entropies)) if entropies else None,
        "log_prob": float(np.mean(log_probs)) if log_probs else None,
    }


def summarise(
    spec: ChainSpec,
    found: Sequence[Mapping[str, Any]],
    calibration: Calibration,
    evidence: Mapping[str, Any],
    *,
    pilot_profiles: int,
    shortened: int,
) -> dict[str, Any]:
    """What the report shows: the funnel, what was spent, uncertainty by segment, and what the revisions did."""
    entropies: dict[str, list[float]] = {segment.name: [] for segment in spec.segments}
    revisions = taken = 0
    for record in found:
        for node in record["nodes"]:
            if node["kept"] and node["threshold"] > 0:
                entropies[node["segment"]].append(node["entropy"])
        # A revision is one expansion: count each (parent, segment) once.
        revised = {(n["parent"], n["depth"]): n["refinement_accepted"] for n in record["nodes"] if n["refined"]}
        revisions += len(revised)
        taken += sum(revised.values())
    chains = [chain for record in found for chain in record["chains"]]
    nodes = [node for record in found for node in record["nodes"]]
    reasons = sorted({node["reason"] for node in nodes if node["reason"]})
    unread = sum(record.get("unread", 0) for record in found)  # a served teacher's answers that named no value
    texts = {"texts": summarise_texts(found)} if spec.free_slots else {}
    return {
        **texts,
        "funnel": {
            "profiles": len(found),
            "pilot_profiles": pilot_profiles,
            "profiles_shortened": shortened,
            "nodes": len(nodes),
            "chains": len(chains),
            "accepted": sum(chain["accepted"] for chain in chains),
            "out_of_budget": sum(record["budget"] for record in found),
            **({"unread": unread} if unread else {}),
            "by_reason": {reason: sum(node["reason"] == reason for node in nodes) for reason in reasons},
        },
        "calls": {
            "pilot": evidence["calls"],
            "search": sum(r["calls"] for r in found),
            "most": max(r["calls"] for r in found),
        },
        "tokens": {
            "pilot": evidence["tokens"],
            "search": sum(r["tokens"] for r in found),
            "most": max(r["tokens"] for r in found),
        },
        "samples": sum(record["samples"] for record in found),
        "entropy": {name: float(np.mean(values)) for name, values in entropies.items() if values},
        "revisions": {"asked": revisions, "accepted": taken, "rate": taken / revisions if revisions else None},
        "scoring": calibration.mode,
        "dropped_slots": sorted(calibration.dropped),
    }
