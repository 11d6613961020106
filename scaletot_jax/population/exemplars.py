"""Reasoned chains that a served model may show as explanations: what the teacher wrote of users with a similar embedding.

A chain is content that was read off one profile, so a rare one could point at a person. Only chains whose whole content is
shared by at least ``min_users`` users of the run's population are kept, each once, with the mean embedding and the mean
answer of all its profiles; free texts are left out. No identifier and no key of a profile is written.

    chains.json         segments and slots, buckets, of each chain its values, answer and number of users; what was left out
    chains.safetensors  embedding [C, E] float32, center [E] float32
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.encoder.embed import compile_embedding, embed_rows
from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import DataError
from scaletot_jax.files import read_arrays, read_json, write_arrays, write_json
from scaletot_jax.population.model import ServedModel
from scaletot_jax.report.examples import bucket_names

FILES = ("chains.json", "chains.safetensors")
FORMAT = 1
_BATCH = 512


class Reasoned(NamedTuple):
    """Distinct profiles that the teacher reasoned about."""

    values: list[tuple[str | None, ...]]  # of each profile's chain, None in place of free texts
    answers: np.ndarray  # [U, Kb]
    users: list[set[str]]  # groups of the population that have this profile
    embedding: np.ndarray  # [U, E] float32


class Exemplars(NamedTuple):
    """The kept chains. ``record``: chains.json; ``embedding`` [C, E]; ``center`` [E], the mean of all reasoned profiles."""

    record: Mapping[str, Any]
    embedding: np.ndarray
    center: np.ndarray

    def nearest(self, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For rows [B, E] the nearest chain and its similarity: cosine of what is left after the center is taken away."""
        similarity = _unit(embedding.astype(np.float32) - self.center) @ _unit(self.embedding - self.center).T
        best = similarity.argmax(1)
        return best, similarity[np.arange(len(best)), best]


def share_chains(reasoned: Reasoned, min_users: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Chains whose content at least ``min_users`` users share, the most shared first. Pure.

    Returns:
      of each chain ``values``, ``answer``, ``profiles`` and ``users`` (numbers); and their mean embeddings [C, E].
    """
    members: dict[tuple[str | None, ...], list[int]] = {}
    for i, values in enumerate(reasoned.values):
        members.setdefault(values, []).append(i)
    kept = []
    for values, rows in members.items():
        users = set().union(*(reasoned.users[i] for i in rows))
        if len(users) >= min_users:
            kept.append((values, rows, len(users)))
    kept.sort(key=lambda item: (-item[2], str(item[0])))
    chains = [
        {
            "values": list(values),
            "answer": [round(float(p), 6) for p in reasoned.answers[rows].mean(0)],
            "profiles": len(rows),
            "users": users,
        }
        for values, rows, users in kept
    ]
    width = reasoned.embedding.shape[1]
    means = [reasoned.embedding[rows].mean(0) for _, rows, _ in kept]
    return chains, np.stack(means).astype(np.float32) if means else np.zeros((0, width), np.float32)


def collect(model: ServedModel, chains: pa.Table, population: pa.Table, spec: ChainSpec) -> Reasoned:
    """The accepted first chain of every reasoned profile, its users and its embedding.

    Args:
      model: gives the embeddings.
      chains: chains.parquet of the stage ``teach``.
      population: population.parquet of ``prepare``.
      spec: of the chains.
    """
    first = chains.filter(pc.and_(pc.equal(chains["rank"], 0), chains["accepted"]))
    keys = first["exact_key"].to_pylist()
    if not keys:
        raise DataError("the teacher's chains hold none that was accepted", where="teach/chains.parquet")
    rows = population.append_column("place", pa.array(np.arange(population.num_rows)))
    rows = rows.filter(pc.is_in(rows["exact_key"], value_set=pa.array(keys, pa.string())))
    users: dict[str, set[str]] = {}
    place: dict[str, int] = {}
    for key, group, row in zip(*(rows[name].to_pylist() for name in ("exact_key", "group", "place"))):
        users.setdefault(key, set()).add(group)
        place.setdefault(key, row)
    inputs = Inputs(*model.space.encode(population.take(pa.array([place[key] for key in keys]))))
    forward = compile_embedding(model.spec.encoder, model.params["encoder"])
    free = [slot.source == "free" for slot in spec.slots]
    return Reasoned(
        [
            tuple(None if hidden else value for value, hidden in zip(values, free, strict=True))
            for values in first["values"].to_pylist()
        ],
        np.asarray(first["answer"].to_pylist(), np.float64),
        [users[key] for key in keys],
        embed_rows(forward, inputs, min(_BATCH, len(keys))),
    )


def write_exemplars(model: ServedModel, reasoned: Reasoned, spec: ChainSpec, min_users: int) -> None:
    """Writes both files beside the model; DataError where no chain is shared by so many users."""
    chains, embedding = share_chains(reasoned, min_users)
    if not chains:
        raise DataError(
            "no chain is shared by enough users to be shown",
            where="--min-users",
            why=f"{len(set(reasoned.values))} distinct chains of {len(reasoned.values)} profiles, none of "
            f"{min_users} users",
            do="export without --chains, have more profiles reasoned about, or use a coarser chain specification",
        )
    slots = [
        {"segment": spec.segments[spec.segment_of_slot[i]].title, "slot": slot.name}
        for i, slot in enumerate(spec.slots)
    ]
    record = {
        "format": FORMAT,
        "min_users": min_users,
        "slots": slots,
        "buckets": bucket_names(spec.answer.buckets),
        "chains": chains,
        "left_out": len(set(reasoned.values)) - len(chains),
        "note": "chains of a language model, shared by at least min_users users; free texts are left out",
    }
    write_arrays(
        model.directory / FILES[1], {"embedding": embedding, "center": reasoned.embedding.mean(0).astype(np.float32)}
    )
    write_json(model.directory / FILES[0], record)


def read_exemplars(model: ServedModel) -> Exemplars | None:
    """The chains of a model that :func:`scaletot_jax.population.model.load_model` has checked; None where it has none."""
    if not set(FILES) <= set(model.record["files"]):
        return None
    record, arrays = read_json(model.directory / FILES[0]), read_arrays(model.directory / FILES[1])
    if record.get("format") != FORMAT or arrays["embedding"].shape != (
        len(record["chains"]),
        model.spec.encoder.dim,
    ):
        raise DataError("the chains of a served model have another format", where=str(model.directory / FILES[0]))
    return Exemplars(record, arrays["embedding"], arrays["center"])


def show(record: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One chain as JSON: segment → slot → value, the answer by bucket, and how many users share it."""
    chain = record["chains"][index]
    segments: dict[str, dict[str, str]] = {}
    for slot, value in zip(record["slots"], chain["values"]):
        if value is not None:
            segments.setdefault(slot["segment"], {})[slot["slot"]] = value
    return {
        "chain": segments,
        "answer": dict(zip(record["buckets"], chain["answer"])),
        "users": chain["users"],
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norm > 0, norm, 1.0)
