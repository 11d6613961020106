"""Does a field, or a text, give a label away? Pure.

Seven ways; all but *absent* look only at the rows where the field is present:

    equal       the field's number is the label's in nearly all rows
    renamed     the field's value determines the label: rows of one value share one label, where labels differ enough for
                that to mean something (``"visits: 7"``, label + 3, a code a label)
    correlated  |Spearman's ρ| of a number, an ordered value or a date with the label is above a bound that no honest
                field reaches, as a share of what the ties allow (:func:`reachable`)
    separated   the field tells the rows above some label from the rest: the larger of AUC and 1 − AUC is nearly 1 (a flag
                "came again", bands of the label)
    absent      whether the field is there at all does so (the date of a purchase after the snapshot)
    written     the label's number stands in the text, far more often than another row's label does
    worded      the words of the texts order the labels of rows they were not fitted on, |ρ| above the same bound

Unordered values become numbers by their mean label in one half of the rows; *correlated* and *separated* judge the other half.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from scaletot_jax.evaluation.metrics import spearman

MIN_ROWS = 20  # fewer rows prove nothing
NEARLY_ALL = 0.99
CORRELATED = 0.95
SEPARATED = 0.99  # AUC
FEWEST_ROWS, RARE = (
    50,
    0.05,
)  # of the rarer side of a cut: fewer rows prove nothing; a smaller share asks for more than 0.99
MOST_CODES = 20  # a number with no more values may be a code
WRITTEN = 0.5  # how much more often a text holds its own row's label than another row's
_MOST_TEXTS, _MOST_WORDS, _COMMON, _PENALTY = 800, 1000, 5, 0.3  # a word stands in at least so many texts to count
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w.]*\d)")


class Suspicion(NamedTuple):
    """Why a field is taken for a label: ``how`` is one of the seven ways, ``figure`` what was measured."""

    field: str
    label: str
    how: str
    figure: float


def number_leak(values: np.ndarray, label: np.ndarray, bound: float = CORRELATED) -> tuple[str, float] | None:
    """How a number, an ordered value's place or a date gives the label away; None where it does not.

    Args:
      values: [U] float64, NaN where absent.
      label: [U] float64.
      bound: of |ρ|.
    """
    present = np.isfinite(values)
    x, y = values[present], label[present]
    found = _present_leak(x, y, bound)
    if not found and len(np.unique(x)) <= MOST_CODES:  # the numbers of segments have no order
        found = _valued(x, y, bound)
    return found or _absent(present, label)


def category_leak(
    values: Sequence[str | None], label: np.ndarray, bound: float = CORRELATED
) -> tuple[str, float] | None:
    """The same for unordered values [U], None where absent."""
    present = np.array([value is not None for value in values])
    x, y = np.array([value for value in values if value is not None], str), label[present]
    return _valued(x, y, bound) or _absent(present, label)


def list_leak(
    values: Sequence[Sequence[str] | None], label: np.ndarray, bound: float = CORRELATED
) -> tuple[str, float] | None:
    """The same for lists of unordered values [U], None where absent: as wholes, and each value that is common enough by itself."""
    whole = category_leak([None if v is None else "|".join(sorted(v)) for v in values], label, bound)
    if whole:
        return whole
    present = np.array([value is not None for value in values])
    held = [set(value) for value in values if value is not None]
    counts = Counter(word for words in held for word in words)
    for word, count in sorted(counts.items()):
        if FEWEST_ROWS <= count <= len(held) - FEWEST_ROWS:
            area = separation(np.array([float(word in words) for words in held]), label[present])
            if area is not None:
                return "separated", area
    return None


def reachable(x: np.ndarray, y: np.ndarray) -> float:
    """The most that Spearman's ρ of a leak can be where rows are tied: what it is measured against.

    Two rankings of many zeros cannot reach 1 unless the zeros are the same rows. The larger of what x reaches with both
    sorted alike, and of what y reaches against itself with its ties broken at random. The first alone would take a rare value
    that has no label above 0 for a leak, the second alone any count that shares the label's many zeros.
    1 where few labels differ from the commonest one, or labels are two: there :func:`separation` is the measure.
    """
    if (y != _mode(y)).sum() < max(FEWEST_ROWS, RARE * len(y)) or len(np.unique(y)) < 3:
        return 1.0
    broken = np.random.default_rng(0).permutation(len(y))
    alone = spearman(y, np.lexsort((broken, y)).argsort())
    return float(max(spearman(np.sort(x), np.sort(y)), alone))


def separation(x: np.ndarray, y: np.ndarray) -> float | None:
    """The largest max(AUC, 1 − AUC) of ``y > c`` by x over all c at which it gives the label away; None where it does at none.

    It does where at least :data:`FEWEST_ROWS` rows lie on either side and

        1 − AUC ≤ 0.01 · min(1, s / 0.05),   s the share of the rarer side

    because 0.01 of very many rows would be more false alarms than the rare side has rows: an honest gate ("has a subscription",
    without which nobody pays) comes as near as that.
    """
    order = np.argsort(-y, kind="stable")
    ordered, above = y[order], np.arange(1, len(y))  # a cut behind each row, kept where the label changes
    # With R the sum of the mid-ranks of x among the n₁ rows above c, AUC = (R − n₁(n₁ + 1)/2) / (n₁ n₀).
    wins = np.cumsum(rankdata(x)[order])[:-1] - above * (above + 1) / 2
    rarer = np.minimum(above, len(y) - above)
    cut = (ordered[1:] != ordered[:-1]) & (rarer >= FEWEST_ROWS)
    area = wins[cut] / (above * (len(y) - above))[cut]
    area = np.maximum(area, 1 - area)
    allowed = (1 - SEPARATED) * np.minimum(1, rarer[cut] / len(y) / RARE)
    found = area[1 - area <= allowed]
    return float(found.max()) if len(found) else None


def written_leak(texts: Sequence[str], label: np.ndarray) -> float | None:
    """The share of texts that hold their own label's number, minus that of the next row's label; None below the bound.

    Only rows whose label is not the commonest one are looked at: "0" stands in many texts for other reasons.
    """
    label = np.asarray(label, np.float64)
    rows = np.flatnonzero(label != _mode(label))
    if len(rows) < MIN_ROWS or _constant(label[rows]):
        return None
    held = [set(map(float, _NUMBER.findall(texts[row]))) for row in map(int, rows)]
    own = np.array([label[row] in numbers for row, numbers in zip(rows, held)])
    order = np.argsort(label[rows], kind="stable")
    other = np.empty(len(rows))
    other[order] = np.roll(label[rows][order], len(rows) // 2)  # half the sorted list away: rarely the same number
    differs = other != label[rows]
    if differs.sum() < MIN_ROWS:
        return None
    strange = np.array([value in numbers for value, numbers in zip(other, held)])
    excess = float(own[differs].mean() - strange[differs].mean())
    return excess if excess >= WRITTEN else None


def worded_leaks(texts: Sequence[str], labels: Mapping[str, np.ndarray], bound: float = CORRELATED) -> dict[str, float]:
    """Rank correlation of each label with a ridge regression on the texts' words, out of fold, where it reaches the bound.

    A word counts as present or absent, numbers too, so that a code for the label is found whatever it is called. Ranks are
    fitted, and every other text is left out in turn. Rows of one label cannot be ordered, so ρ is given as a share of what a
    score that breaks their ties at random can reach. At most :data:`_MOST_TEXTS` texts are read, evenly spaced.
    """
    rows = np.unique(np.linspace(0, len(texts) - 1, min(_MOST_TEXTS, len(texts))).astype(np.int64))
    names = [name for name, label in labels.items() if len(rows) and not _constant(np.asarray(label)[rows])]
    if len(rows) < 2 * MIN_ROWS or not names:
        return {}
    y = np.stack([rankdata(np.asarray(labels[name])[rows]) for name in names], axis=1)
    found = [set(re.findall(r"\w+", texts[row].lower())) for row in map(int, rows)]
    counts = Counter(word for words in found for word in words)
    place = {word: j for j, (word, n) in enumerate(counts.most_common(_MOST_WORDS)) if _COMMON <= n < len(rows)}
    x = np.zeros((len(rows), max(place.values(), default=-1) + 1))
    for i, words in enumerate(found):
        x[i, [place[word] for word in words if word in place]] = 1
    said = np.zeros_like(y)
    for fold in (0, 1):
        test = np.arange(len(rows)) % 2 == fold
        mean, base = x[~test].mean(0), y[~test].mean(0)
        a = x[~test] - mean
        weights = a.T @ np.linalg.solve(a @ a.T + _PENALTY * np.eye(len(a)), y[~test] - base)
        said[test] = base + (x[test] - mean) @ weights
    broken = np.random.default_rng(0).permutation(len(rows)) * 1e-6
    out = {}
    for j, name in enumerate(names):
        rho = float(spearman(y[:, j], said[:, j]) / spearman(y[:, j], y[:, j] + broken))
        if rho >= bound:
            out[name] = rho
    return out


def suspicions(
    numbers: Mapping[str, np.ndarray],
    categories: Mapping[str, Sequence[str | None]],
    lists: Mapping[str, Sequence[Sequence[str] | None]],
    texts: Mapping[str, Sequence[str]],
    labels: Mapping[str, np.ndarray],
    bound: float = CORRELATED,
) -> list[Suspicion]:
    """All fields against all labels.

    Args:
      numbers, categories, lists: by field; see :func:`number_leak`, :func:`category_leak` and :func:`list_leak`.
      texts: by name; see :func:`written_leak` and :func:`worded_leaks`.
      labels: by column.
    """
    out = []
    for column, label in labels.items():
        for name, values in numbers.items():
            if found := number_leak(values, label, bound):
                out.append(Suspicion(name, column, *found))
        for name, words in categories.items():
            if found := category_leak(words, label, bound):
                out.append(Suspicion(name, column, *found))
        for name, several in lists.items():
            if found := list_leak(several, label, bound):
                out.append(Suspicion(name, column, *found))
        for name, written in texts.items():
            if excess := written_leak(written, label):
                out.append(Suspicion(name, column, "written", excess))
    for name, written in texts.items():
        rest = {column: label for column, label in labels.items() if not any(s[:2] == (name, column) for s in out)}
        out += [Suspicion(name, column, "worded", rho) for column, rho in worded_leaks(written, rest, bound).items()]
    return out


def _present_leak(x: np.ndarray, y: np.ndarray, bound: float) -> tuple[str, float] | None:
    """Of numbers, all there."""
    if len(x) < MIN_ROWS or _constant(x) or _constant(y):
        return None
    if (same := float(np.mean(x == y))) >= NEARLY_ALL and _share_of_mode(y) < same:
        return "equal", same
    if found := _determined(x, y):
        return "renamed", found
    return _ordered(x, y, bound)


def _valued(x: np.ndarray, y: np.ndarray, bound: float) -> tuple[str, float] | None:
    """Of unordered values, all there."""
    if len(x) < MIN_ROWS or len(np.unique(x)) < 2 or _constant(y):
        return None
    if found := _determined(x, y):
        return "renamed", found
    names, codes = np.unique(x, return_inverse=True)
    judged = np.random.default_rng(0).permutation(len(x)) % 2 == 0
    counts = np.bincount(codes[~judged], minlength=len(names))
    sums = np.bincount(codes[~judged], weights=y[~judged], minlength=len(names))
    judged &= counts[codes] > 0
    score, y = (sums / np.maximum(counts, 1))[codes[judged]], y[judged]
    if len(y) < MIN_ROWS or _constant(score) or _constant(y):
        return None
    return _ordered(score, y, bound)


def _ordered(x: np.ndarray, y: np.ndarray, bound: float) -> tuple[str, float] | None:
    rho = float(spearman(x, y))
    if (share := min(1.0, abs(rho) / reachable(x if rho > 0 else -x, y))) >= bound:
        return "correlated", share
    return ("separated", area) if (area := separation(x, y)) is not None else None


def _absent(present: np.ndarray, label: np.ndarray) -> tuple[str, float] | None:
    return ("absent", area) if (area := separation(present.astype(float), label)) is not None else None


def _determined(x: np.ndarray, y: np.ndarray) -> float | None:
    """The share of rows whose label is the commonest one of their value, where that is nearly 1 and not trivially so.

    Only values of several rows count, which must make up half of the rows; and the labels must differ within what a
    constant guess explains.
    """
    _, codes, counts = np.unique(x, return_inverse=True, return_counts=True)
    several = counts[codes] > 1
    if several.sum() < max(MIN_ROWS, len(x) / 2) or _share_of_mode(y[several]) > 0.9:
        return None
    pairs = np.unique(
        np.stack([codes[several], np.unique(y[several], return_inverse=True)[1]]), axis=1, return_counts=True
    )
    best: dict[int, int] = {}
    for code, count in zip(pairs[0][0], pairs[1]):
        best[code] = max(best.get(code, 0), int(count))
    share = sum(best.values()) / several.sum()
    return float(share) if share >= NEARLY_ALL else None


def _mode(values: np.ndarray) -> float:
    distinct, counts = np.unique(values, return_counts=True)
    return float(distinct[counts.argmax()])


def _share_of_mode(values: np.ndarray) -> float:
    return float(np.unique(values, return_counts=True)[1].max() / len(values))


def _constant(values: np.ndarray) -> bool:
    return bool(values.min() == values.max())
