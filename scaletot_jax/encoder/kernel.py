"""A kernel regression from profiles to reasoning states: what a few hundred states say of profiles that have none. Pure NumPy.

    k(a, b) = exp( Σ_f w_f (k_f(a, b) − 1) ),    ẑ(x) = z̄ + Σ_i k(x, x_i) α_i,    α_j = (K + λ_j I)⁻¹ (z_j − z̄_j)

k_f ∈ [0, 1] is how alike two profiles are in field f: equal values (or the cosine of the values' words) of an enum, a Gaussian
of the distance of numbers, rank-weighted overlap of lists; missing is like missing only, and so is an empty list. w_f says how much the states care for
the field, λ_j how noisy component j is; both are chosen by the leave-one-group-out error, which has a closed form:

    e_G = (I − H_GG)⁻¹ (z − H z)_G,    H = K (K + λ I)⁻¹

A noise direction gets a large λ and with it the prediction "the mean". Sources: product kernels as in Gaussian processes with one
length a dimension (Rasmussen and Williams 2006, 5.1), the shortcut of leave-one-out (5.4.2) for blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from scaletot_jax.encoder.model import EncoderSpec, Inputs
from scaletot_jax.profiles.features import PADDING

PENALTIES = tuple(10.0**power for power in np.arange(-3, 1.51, 0.5))
WEIGHTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # tried for each field
START = 0.1
MAX_ROWS = (
    3000  # training profiles that a caller should fit at once: time grows with their cube, memory with their square
)
SEARCH_ROWS = 400  # rows on which the weights are chosen: their number costs its cube


Words = Sequence["np.ndarray | None"] | None


class KernelFit(NamedTuple):
    """A fitted regression."""

    rows: Inputs  # N training profiles
    weights: np.ndarray  # [F]
    penalties: np.ndarray  # [J] λ of each component
    mean: np.ndarray  # [J]
    coefficients: np.ndarray  # [N, J]
    error: float  # leave-one-group-out squared error, as a share of the variance


def field_kernels(spec: EncoderSpec, a: Inputs, b: Inputs, words: Words = None) -> Iterator[tuple[int, np.ndarray]]:
    """Yields for each field its number and how alike profiles are in it, [A, B] float32 in [0, 1].

    Args:
      spec: says which columns belong to which field.
      a, b: profiles.
      words: for each single-valued, then each multi-valued column, the likeness of its ids [size, size], or None for equality.
    """
    likeness = list(words) if words is not None else [None] * (len(spec.cat_sizes) + len(spec.multi_sizes))
    for field in range(len(spec.fields)):
        found = []
        if field not in spec.num_fields:  # the place of an ordered value is a number column
            for j in _columns(spec.cat_fields, field):
                table = _values(spec.cat_sizes[j], likeness[j])
                found.append(table[a.cat[:, j][:, None], b.cat[:, j][None]])
        for j in _columns(spec.num_fields, field):
            both = ~a.missing[:, j][:, None] & ~b.missing[:, j][None]
            neither = a.missing[:, j][:, None] & b.missing[:, j][None]
            distance = a.num[:, j][:, None] - b.num[:, j][None]
            found.append(np.where(both, np.exp(-2.0 * distance**2), neither).astype(np.float32))
        for j in _columns(spec.multi_fields, field):
            table = _values(spec.multi_sizes[j], likeness[len(spec.cat_sizes) + j])
            found.append(_lists(table, np.asarray(a.multi[:, j]), np.asarray(b.multi[:, j])))
        if found:
            yield field, found[0] if len(found) == 1 else np.mean(found, axis=0)


def _columns(owner: Sequence[int], field: int) -> list[int]:
    return [j for j, index in enumerate(owner) if index == field]


def _values(size: int, likeness: np.ndarray | None) -> np.ndarray:
    return np.eye(size, dtype=np.float32) if likeness is None else np.asarray(likeness, np.float32)


def _lists(table: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Rank-weighted overlap of two lists of ids, a cosine: [A, M], [B, M] → [A, B]. An empty list is like an empty one only."""
    x, y = (_bag(ids, len(table), 1.0 / np.arange(1, ids.shape[1] + 1)) for ids in (left, right))
    inner = x @ table @ y.T
    norm = [np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", z, table, z), 1e-12)) for z in (x, y)]
    blank = [np.asarray(z.sum(1) == 0) for z in (x, y)]  # no id at all: each counts by a positive rank weight
    both = blank[0][:, None] & blank[1][None]
    return np.where(both, np.float32(1), np.clip(inner / (norm[0][:, None] * norm[1][None]), 0, 1))


def _bag(ids: np.ndarray, size: int, place: np.ndarray) -> np.ndarray:
    bag = np.zeros((len(ids), size), np.float32)
    for m in range(ids.shape[1]):
        np.add.at(bag, (np.arange(len(ids)), ids[:, m]), place[m] * (ids[:, m] != PADDING))
    return bag


def profile_kernel(spec: EncoderSpec, a: Inputs, b: Inputs, weights: np.ndarray, words: Words = None) -> np.ndarray:
    """k [A, B] float64, a field at a time: no more than two matrices are held."""
    total = np.full((len(a.cat), len(b.cat)), -float(weights.sum()), np.float32)
    for field, alike in field_kernels(spec, a, b, words):
        if weights[field]:
            total += np.float32(weights[field]) * alike
    return np.exp(total.astype(np.float64))


def group_errors(
    kernel: np.ndarray, targets: np.ndarray, groups: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> np.ndarray:
    """Leave-one-group-out squared error of each component at each penalty, [len(penalties), J].

    Args:
      kernel: [N, N].
      targets: [N, J], centred.
      groups: [N], left out together.
    """
    values, vectors = np.linalg.eigh(np.asarray(kernel, np.float64))
    values = np.maximum(values, 0)
    projected = vectors.T @ targets
    _, place = np.unique(groups, return_inverse=True)
    order = np.argsort(place, kind="stable")
    bounds = np.r_[0, np.cumsum(np.bincount(place))]
    sizes = np.diff(bounds)
    single = order[bounds[:-1][sizes == 1]]
    several = [order[bounds[g] : bounds[g + 1]] for g in np.flatnonzero(sizes > 1)]
    out = []
    for penalty in penalties:
        shrink = values / (values + penalty)
        residual = targets - vectors @ (shrink[:, None] * projected)
        leverage = (vectors**2) @ shrink
        error = np.zeros(targets.shape[1])
        error += ((residual[single] / np.maximum(1 - leverage[single], 1e-9)[:, None]) ** 2).sum(0)
        for rows in several:
            hat = (vectors[rows] * shrink) @ vectors[rows].T
            error += (np.linalg.solve(np.eye(len(rows)) * (1 + 1e-9) - hat, residual[rows]) ** 2).sum(0)
        out.append(error)
    return np.stack(out)


def choose_weights(kernels: np.ndarray, targets: np.ndarray, groups: np.ndarray, *, rounds: int = 2) -> np.ndarray:
    """Weights w [F] by coordinate descent on the summed leave-one-group-out error; targets [N, J] centred."""
    weights = np.full(len(kernels), START)

    def score(candidate: np.ndarray) -> float:
        kernel = np.exp(np.tensordot(candidate, kernels, axes=1) - candidate.sum())
        return float(group_errors(kernel, targets, groups).min(0).sum())

    best = score(weights)
    for _ in range(rounds):
        before = best
        for field in range(len(weights)):
            for value in WEIGHTS:
                if value == weights[field]:
                    continue
                trial = weights.copy()
                trial[field] = value
                found = score(trial)
                if found < best:
                    best, weights = found, trial
        if best > before * (1 - 1e-3):
            break
    return weights


def fit_kernel(
    spec: EncoderSpec,
    rows: Inputs,
    targets: np.ndarray,
    groups: np.ndarray,
    words: Words = None,
) -> KernelFit:
    """Fits the regression.

    Args:
      spec: of the encoder's inputs.
      rows: N profiles, at best no more than :data:`MAX_ROWS`; the weights are chosen on the first :data:`SEARCH_ROWS`.
      targets: [N, J]; the scale of a component is its say in the choice of the weights.
      groups: [N].
      words: as in :func:`field_kernels`.
    """
    rows = Inputs(*(np.asarray(part) for part in rows))
    mean = targets.mean(0)
    centred = targets - mean
    few = np.arange(min(len(targets), SEARCH_ROWS))
    sample = Inputs(*(part[few] for part in rows))
    kernels = np.zeros((len(spec.fields), len(few), len(few)), np.float32)
    for field, alike in field_kernels(spec, sample, sample, words):
        kernels[field] = alike
    # The choice needs directions, not all components: the leading ones carry it.
    _, singular, axes = np.linalg.svd(centred[few] - centred[few].mean(0), full_matrices=False)
    leading = axes[: min(24, len(singular))].T
    weights = choose_weights(kernels, (centred[few] - centred[few].mean(0)) @ leading, groups[few])
    kernel = profile_kernel(spec, rows, rows, weights, words)
    errors = group_errors(kernel, centred, groups)
    penalties = np.asarray(PENALTIES)[errors.argmin(0)]
    values, vectors = np.linalg.eigh(np.asarray(kernel, np.float64))
    projected = vectors.T @ centred
    coefficients = vectors @ (projected / (np.maximum(values, 0)[:, None] + penalties[None]))
    total = max(float((centred**2).sum()), 1e-300)
    return KernelFit(rows, weights, penalties, mean, coefficients, float(errors.min(0).sum() / total))


def predict_kernel(
    fit: KernelFit, spec: EncoderSpec, rows: Inputs, words: Words = None, chunk: int = 1024
) -> np.ndarray:
    """ẑ [A, J] of other profiles."""
    rows = Inputs(*(np.asarray(part) for part in rows))
    out = []
    for begin in range(0, len(rows.cat), chunk):
        part = Inputs(*(column[begin : begin + chunk] for column in rows))
        out.append(profile_kernel(spec, part, fit.rows, fit.weights, words) @ fit.coefficients)
    return fit.mean + np.concatenate(out)
