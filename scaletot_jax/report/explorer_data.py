"""What the explorer shows, as plain JSON: users, their chains and trees, the nearest reasoned profile. Pure.

Redacted unless asked otherwise: a user is a row number of the run's own population, a profile the first digits of its content
hash; identifiers are absent, and so is all text that a person or a model wrote freely (values, words of tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.report.examples import bucket_names, short_hash

FORMAT = 1
NODE_COLUMNS = (
    "depth", "node", "parent", "segment", "values", "probability", "entropy", "disagreement", "uncertainty", "threshold",
    "refined", "taken", "kept", "reason",
)  # fmt: skip
_MEASURES = ("entropy", "disagreement", "uncertainty", "threshold")


class Users(NamedTuple):
    """Rows of the population, columns of equal length U.

    Attributes:
      row: row numbers. keys: exact keys. split: names of splits.
      lines: prompt lines of each profile, without free text where that is hidden.
      ids: identifiers, or None where they are hidden.
      observed: the days label. expected, positive: predictions of it, or None.
      z: [U, E] ẑ, or None.
    """

    row: np.ndarray
    keys: Sequence[str]
    split: Sequence[str]
    lines: Sequence[Sequence[str]]
    ids: Sequence[str] | None = None
    observed: np.ndarray | None = None
    expected: np.ndarray | None = None
    positive: np.ndarray | None = None
    z: np.ndarray | None = None


def choose(keys: Sequence[str], reasoned: set[str], most: int) -> np.ndarray:
    """Places of at most ``most`` rows: those of reasoned profiles first, then others evenly over the table; ascending."""
    mask = np.array([key in reasoned for key in keys], bool)
    first = np.flatnonzero(mask)[:most]
    others = np.flatnonzero(~mask)
    count = min(most - len(first), len(others))
    rest = others[np.unique(np.linspace(0, len(others) - 1, count).round().astype(int))] if count > 0 else others[:0]
    return np.sort(np.concatenate([first, rest]))


def nearest(z: np.ndarray, reasoned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every row the reasoned row whose ẑ has the largest cosine with its own.

    Args:
      z: [U, E]. reasoned: bool [U], at least one.

    Returns:
      place of that row [U], and the cosine [U]; of a reasoned row it is the row itself.
    """
    unit = np.asarray(z, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    places = np.flatnonzero(reasoned)
    cosine = unit @ unit[places].T
    best = places[np.argmax(cosine, axis=1)]
    best[places] = places
    return best, np.einsum("ue,ue->u", unit, unit[best])


def entropy_share(shares: Sequence[float]) -> float | None:
    """H(p) / ln n, in [0, 1]; None of fewer than two values."""
    p = np.asarray(shares, np.float64)
    if len(p) < 2 or not p.sum() > 0:
        return None
    p = p / p.sum()
    known = p[p > 0]
    return float(-(known * np.log(known)).sum() / np.log(len(p)))


def explorer_data(
    users: Users,
    chains: Sequence[Mapping[str, Any]],
    nodes: Mapping[str, Sequence[Mapping[str, Any]]],
    texts: Mapping[str, Sequence[Mapping[str, Any]]],
    spec: Any,
    *,
    total: int,
    label: str,
    show_text: bool = False,
    piece: Callable[[int], str] | None = None,
) -> dict[str, Any]:
    """Everything the page holds.

    Args:
      users: the rows shown, see :func:`choose`.
      chains: selected chains (rank 0), rows of chains.parquet. nodes, texts: rows of those tables, by exact key.
      spec: the chain specification, or None: slots and buckets then have numbers for names.
      total: rows of the population. label: name of the days label.
      show_text: whether free text is shown. piece: token id → its text; read where ``show_text``.
    """
    words, reasons, strings = _Index(), _Index([""]), _Index()
    slots = _slots(spec, chains)
    of_key: dict[str, int] = {}
    listed: list[dict[str, Any]] = []
    shown = set(users.keys)
    for row in chains:
        if row["exact_key"] in shown:
            of_key[row["exact_key"]] = len(listed)
            written = [_text(text, show_text, piece) for text in texts.get(row["exact_key"], ())]
            listed.append(
                _chain(row, nodes.get(row["exact_key"], ()), slots, spec, words, reasons, show_text)
                | {"texts": written}
            )
    reasoned = np.array([key in of_key for key in users.keys], bool)
    near, cosine = (None, None)
    if users.z is not None and reasoned.any():
        near, cosine = nearest(users.z, reasoned)
    people = []
    for i, key in enumerate(users.keys):
        person: dict[str, Any] = {
            "row": int(users.row[i]),
            "split": users.split[i],
            "profile": [strings[line] for line in users.lines[i]],
            "chain": of_key.get(key),
            "nearest": None if near is None or reasoned[i] else int(near[i]),
            "similarity": None if cosine is None or reasoned[i] else round(float(cosine[i]), 4),
            "observed": _rounded(users.observed, i),
            "expected": _rounded(users.expected, i),
            "positive": _rounded(users.positive, i),
        }
        if users.ids is not None:
            person["id"] = users.ids[i]
        people.append(person)
    return {
        "format": FORMAT,
        "total": total,
        "label": label,
        "unit": label if spec is None else spec.answer.title.lower(),
        "splits": sorted(set(users.split)),
        "segments": _segments(spec, len(slots)),
        "slots": slots,
        "buckets": bucket_names(spec.answer.buckets) if spec is not None else _numbers(listed),
        "node_columns": list(NODE_COLUMNS),
        "strings": strings.items,
        "words": words.items,
        "reasons": reasons.items,
        "chains": listed,
        "users": people,
        "redacted": {"ids": users.ids is None, "text": not show_text},
    }


class _Index:
    """Texts by number, in the order in which they were met."""

    def __init__(self, items: Sequence[str] = ()):
        self.items = list(items)
        self._place = {item: i for i, item in enumerate(self.items)}

    def __getitem__(self, item: str) -> int:
        if item not in self._place:
            self._place[item] = len(self.items)
            self.items.append(item)
        return self._place[item]


def _slots(spec: Any, chains: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    if spec is None:
        count = max((len(row["values"]) for row in chains), default=0)
        shares = [list(row.get("distributions") or ()) for row in chains]
        free = [
            any(i < len(row) and not len(row[i]) for row in shares) for i in range(count)
        ]  # text has no distribution
        return [{"name": f"slot {i + 1}", "source": "free" if free[i] else "scored"} for i in range(count)]
    return [{"name": slot.name.replace("_", " "), "source": slot.source} for slot in spec.slots]


def _segments(spec: Any, count: int) -> list[dict[str, Any]]:
    if spec is None:
        return [{"title": "Chain", "slots": list(range(count))}]
    every = enumerate(spec.segment_of_slot)
    pairs = [(slot, segment) for slot, segment in every]
    return [
        {"title": segment.title, "slots": [slot for slot, of in pairs if of == k]}
        for k, segment in enumerate(spec.segments)
    ]


def _numbers(chains: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(i) for i in range(max((len(s) for chain in chains for _, s in chain["answers"]), default=0))]


def _chain(
    row: Mapping[str, Any],
    nodes: Sequence[Mapping[str, Any]],
    slots: Sequence[Mapping[str, str]],
    spec: Any,
    words: _Index,
    reasons: _Index,
    show_text: bool,
) -> dict[str, Any]:
    free = [slot["source"] == "free" for slot in slots]
    told = [(value if show_text or not hidden else None) for value, hidden in zip(row["values"], free)]
    shares = list(row.get("distributions") or [])
    shares += [[]] * (len(slots) - len(shares))
    judged = [slot["source"] == "scored" and len(p) > 1 for slot, p in zip(slots, shares)]
    chance = [
        _share_of(spec, i, value, p) if ok else None
        for i, (value, p, ok) in enumerate(zip(row["values"], shares, judged))
    ]
    names = {segment.name: k for k, segment in enumerate(spec.segments)} if spec is not None else {}
    grown = [node for node in nodes if node["depth"] > 0]
    doubts = [node["uncertainty"] for node in grown if node["kept"] and node["threshold"] > 0]
    return {
        "key": short_hash(row["exact_key"]),
        "values": told,
        "shares": [None if p is None else _figures(p) for p in chance],
        "entropies": [round(entropy_share(p) or 0.0, 3) if ok else None for p, ok in zip(shares, judged)],
        "answers": [
            [name, [round(float(p), 4) for p in row[column]]]
            for name, column in (("profile", "answer_direct"), ("chain", "answer_chain"), ("stored", "answer"))
            if row.get(column)
        ],
        "log_prob": None if row.get("log_prob") is None else round(float(row["log_prob"]), 3),
        "accepted": bool(row["accepted"]),
        "reason": row.get("reason") or "",
        "calls": row.get("calls"),
        "tokens": row.get("tokens"),
        "refined": any(node["refined"] for node in grown),
        "doubt": round(float(np.mean(doubts)), 4) if doubts else None,
        "nodes": [
            [
                node["depth"], node["node"], node["parent"], names.get(node["segment"], -1),
                [words[value] if value else -1 for value in node["values"]],
                _figures(node["probability"]), *[round(float(node[name] or 0.0), 3) for name in _MEASURES],
                int(bool(node["refined"])), int(bool(node["refinement_accepted"])), int(bool(node["kept"])),
                reasons[node["reason"] or ""],
            ]
            for node in sorted(grown, key=lambda node: (node["depth"], node["node"]))
        ],
    }  # fmt: skip


def _figures(p: float | None) -> float:
    """A probability with three significant digits: the page shows its logarithm, too."""
    return float(f"{float(p or 0.0):.3g}")


def _share_of(spec: Any, slot: int, value: str, shares: Sequence[float]) -> float | None:
    """The probability that the teacher gave to the value it chose."""
    if spec is None:
        return None
    values = spec.slots[slot].values
    return float(shares[values.index(value)]) if value in values and len(values) == len(shares) else None


def _text(row: Mapping[str, Any], show_text: bool, piece: Callable[[int], str] | None) -> dict[str, Any]:
    """One free text: entropy and log-probability of every token; its words only where asked for."""
    out: dict[str, Any] = {
        "slot": row["slot"].replace("_", " "),
        "accepted": bool(row["accepted"]),
        "reason": row["reason"] or "",
        "entropies": [round(float(value), 3) for value in row["entropies"] or ()],
        "log_probs": [round(float(value), 3) for value in row["log_probs"] or ()],
    }
    if show_text and piece is not None:
        out["pieces"] = [piece(token) for token in row["tokens"] or ()]
    return out


def _rounded(values: np.ndarray | None, i: int) -> float | None:
    return None if values is None or not np.isfinite(values[i]) else round(float(values[i]), 3)
