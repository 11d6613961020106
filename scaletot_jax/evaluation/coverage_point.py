"""One point of the coverage curve: encoders distilled from the reasoned users, ẑ for everybody, heads, scores. No files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.embed import embed_rows
from scaletot_jax.encoder.model import EncoderSpec, Inputs, describe, encode, init_params
from scaletot_jax.encoder.spread import spread
from scaletot_jax.encoder.targets import Targets, label_targets, random_targets
from scaletot_jax.encoder.train import (
    CHECK_EVERY,
    LABELS,
    STATES,
    Data,
    LossWeights,
    init_state,
    make_optimizer,
    train_block,
)
from scaletot_jax.encoder.whiten import fit_whitening, whiten
from scaletot_jax.errors import DataError
from scaletot_jax.evaluation.coverage import EVERYWHERE, OWN, PROFILE, Labelled, Scores
from scaletot_jax.evaluation.heads import Scaler, fit_heads, hurdle_mixing, predict_heads
from scaletot_jax.evaluation.metrics import rps_rows
from scaletot_jax.losses.ltv import hurdle_distribution, hurdle_nll
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.split import unit_hash

_SELECT_SHARE, _SELECT_ROWS = (
    0.15,
    256,
)  # of the reasoned users, by hash: they choose the step; their fixed number of rows
_BATCH = 8192
PLACEBOS = ("labels", "shuffled", "random", "prompt_end")


class Everyone(NamedTuple):
    """What is known of all U rows, whatever the point."""

    space: FeatureSpace
    inputs: Inputs  # encoded profiles
    dense: np.ndarray  # [U, P]
    early: np.ndarray  # bool [F]
    labels: np.ndarray  # [U] days
    horizon: int
    groups: np.ndarray  # [U]
    test: np.ndarray  # index array
    profile: np.ndarray  # [U] number of each row's distinct profile
    trains: np.ndarray  # bool [U], rows of the training splits, whose profiles may stand without states and labels
    numbers: np.ndarray  # [U] numbers of the rows in prepare/population.parquet


class Reasoned(NamedTuple):
    """What is known of the M rows of reasoned users (``member``), in the order of the rows."""

    member: np.ndarray  # bool [U]
    states: np.ndarray  # [M, K, D] mean over the chains of each row's profile
    ends: np.ndarray  # [M, D] state at the end of the prompt, without reasoning
    names: tuple[str, ...]  # of the K segments


def summaries(
    everyone: Everyone, reasoned: Reasoned, fold: np.ndarray, settings: Mapping[str, Any], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """z and ẑ of every row, in one space: the leading ⌊E/K⌋ whitened directions of each segment.

    The encoders are made as stage ``distill`` makes its own (``pool``, ``emphasis``), but their values start as strangers
    always (``value_init`` is not followed) and nothing is chosen by a label.

    Args:
      everyone: all rows.
      reasoned: the reasoned users.
      fold: [U]; one encoder a fold is distilled from the members of all others, one from all members.
      settings: the configuration's ``distill`` section.
      seed: of weights, batches and the choice of the step.

    Returns:
      z [U, Σ d_k], zero where not a member; ẑ [U, Σ d_k], for members by the encoder that was distilled without their fold.
    """
    targets = _whitened(everyone, reasoned, reasoned.states, settings)
    return np.concatenate(targets.values, 1), _cross_fitted(everyone, targets, reasoned.member, fold, settings, seed)


def placebo(
    mode: str,
    everyone: Everyone,
    reasoned: Reasoned,
    labelled: np.ndarray,
    fold: np.ndarray,
    settings: Mapping[str, Any],
    seed: int,
) -> np.ndarray:
    """What encoders of the same code, distilled from other targets, say of every row: [U, width of ẑ].

    Args:
      mode: one of :data:`PLACEBOS`. ``labels``: of the labelled rows that the heads learn from, a fold at a time, so that no row's
        own label is in what feeds its head. ``shuffled``: the states of another reasoned profile. ``random``: a random linear map
        of the profile. ``prompt_end``: the student's states without reasoning.
      labelled: index array, rows with labels that may be used.
    """
    member, weights = reasoned.member, STATES
    kept = max(1, settings["dim"] // len(reasoned.names))
    width = reasoned.states.shape[1] * kept
    if mode == "labels":
        member, weights = np.zeros(len(member), bool), LABELS
        member[labelled] = True
        targets = label_targets({"label": np.where(member, everyone.labels, np.nan)}, member)
        targets = targets._replace(values=tuple(np.where(member[:, None], value, 0) for value in targets.values))
    elif mode == "shuffled":
        distinct, first, code = np.unique(everyone.profile[member], return_index=True, return_inverse=True)
        order = np.random.default_rng([seed, 11]).permutation(len(distinct))
        targets = _whitened(everyone, reasoned, reasoned.states[first[order]][code], settings)
    elif mode == "random":
        targets = random_targets(reasoned.names, everyone.dense, member, kept, seed)
    elif mode == "prompt_end":
        whole = reasoned._replace(names=("prompt_end",))
        targets = _whitened(everyone, whole, reasoned.ends[:, None], {**settings, "dim": width})
    else:
        raise ValueError(f"no placebo of the coverage curve: {mode}")
    found = _cross_fitted(everyone, targets, member, fold, settings, seed, weights)
    return np.pad(found, ((0, 0), (0, max(0, width - found.shape[1]))))[:, :width]


def _whitened(everyone: Everyone, reasoned: Reasoned, states: np.ndarray, settings: Mapping[str, Any]) -> Targets:
    """Whitened targets [U, d_k] by the members' own statistics, zero where not a member; states [M, K, D]."""
    kept = max(1, settings["dim"] // len(reasoned.names))
    statistics = tuple(fit_whitening(states[:, k], kept) for k in range(len(reasoned.names)))
    values = []
    for k, w in enumerate(statistics):
        value = np.zeros((len(reasoned.member), w.axes.shape[1]))
        value[reasoned.member] = whiten(w, states[:, k])
        values.append(value)
    return Targets(reasoned.names, tuple(values), statistics, ())


def _cross_fitted(
    everyone: Everyone,
    targets: Targets,
    member: np.ndarray,
    fold: np.ndarray,
    settings: Mapping[str, Any],
    seed: int,
    weights: LossWeights = STATES,
) -> np.ndarray:
    """ẑ [U, Σ d_k] of every row, of a member by the encoder that was distilled without its fold."""
    power = 0.0 if weights is LABELS else settings["emphasis"]
    emphasis = [(w.variance / w.variance.mean()) ** (power / 2) for w in targets.whitening]
    wanted = [(value * scale).astype(np.float32) for value, scale in zip(targets.values, emphasis)]
    spec = describe(
        everyone.space, everyone.inputs, segments=targets.names, target_dims=[t.shape[1] for t in wanted],
        dim=settings["dim"], width=settings["width"],
    )  # fmt: skip
    predicted = _distilled(everyone, spec, wanted, member, settings, seed, weights)
    for number in np.unique(fold):
        held = member & (fold == number)
        if held.any() and (member & ~held).any():
            predicted[held] = _distilled(everyone, spec, wanted, member & ~held, settings, seed, weights)[held]
    return predicted / np.concatenate(emphasis).astype(np.float32)


def _distilled(
    everyone: Everyone,
    spec: EncoderSpec,
    targets: Sequence[np.ndarray],
    member: np.ndarray,
    settings: Mapping[str, Any],
    seed: int,
    weights: LossWeights,
) -> np.ndarray:
    """What an encoder distilled from the members' targets says of every row, [U, Σ d_k].

    All shapes are those of the whole population, so that every point and fold runs one compiled program.
    """
    place = unit_hash([str(group) for group in everyone.groups], seed, "coverage select")
    chooses = member & (place < np.quantile(place[member], _SELECT_SHARE))
    learns = _first_of_each(everyone.profile, member & ~chooses)
    targets = [_mean_of_each(everyone.profile, member & ~chooses, target) for target in targets]
    if not len(learns) or not chooses.any():
        raise DataError("too few reasoned users to distil", why=f"{int(member.sum())} rows")
    select = np.resize(np.flatnonzero(chooses), _SELECT_ROWS)
    given, rows = targets, learns
    if settings["pool"]:
        given, rows = _spread(everyone, spec, targets, learns, member, settings["pool"], seed)
    whole = Data(Inputs(*map(jnp.asarray, everyone.inputs)), tuple(map(jnp.asarray, given)))
    chosen = Data(Inputs(*(column[select] for column in whole.inputs)), tuple(jnp.asarray(t[select]) for t in targets))
    checks = -(-settings["steps"] // CHECK_EVERY)
    optimizer = make_optimizer(settings["learning_rate"], checks * CHECK_EVERY)
    rng = np.random.default_rng([seed, 71])
    drawn = [np.resize(rng.permutation(rows), settings["batch_size"]) for _ in range(checks * CHECK_EVERY)]
    state, _ = train_block(
        init_state(init_params(spec, seed), optimizer), whole, chosen,
        np.asarray(drawn, np.int32).reshape(checks, CHECK_EVERY, -1), jnp.asarray(everyone.early),
        jax.random.fold_in(jax.random.key(seed), 6), spec=spec, optimizer=optimizer, rate=settings["field_dropout"],
        weights=weights,
    )  # fmt: skip
    if not np.isfinite(float(state.best_error)):
        raise DataError("the encoder's error is not finite", where="coverage", do="lower distill.learning_rate")

    def said(rows: Inputs) -> np.ndarray:
        return np.concatenate(
            [np.asarray(part) for part in encode(state.best, spec=spec, inputs=rows).segments], axis=1
        )

    return embed_rows(said, everyone.inputs, min(_BATCH, len(everyone.groups)))


def _spread(
    everyone: Everyone,
    spec: EncoderSpec,
    targets: Sequence[np.ndarray],
    learns: np.ndarray,
    member: np.ndarray,
    limit: int,
    seed: int,
) -> tuple[list[np.ndarray], np.ndarray]:
    """What :mod:`scaletot_jax.encoder.spread` expects, [U, d_k] for each segment, and the rows that have it.

    The pool is drawn from the training splits, of users nobody reasoned about.
    """
    free = _first_of_each(everyone.profile, everyone.trains & ~member)
    free = free[~np.isin(everyone.profile[free], everyone.profile[member])]
    order = np.argsort(unit_hash([str(number) for number in everyone.profile[free]], seed, "coverage pool"))
    pool = free[order[:limit]]
    found = spread(
        spec, Inputs(*(column[learns] for column in everyone.inputs)), [target[learns] for target in targets],
        everyone.groups[learns].astype(str), Inputs(*(column[pool] for column in everyone.inputs)),
    )  # fmt: skip
    rows = np.concatenate([learns, pool])
    out = [np.zeros_like(target) for target in targets]
    for whole, expected in zip(out, found.targets):
        whole[rows] = expected
    return out, rows


def _mean_of_each(profile: np.ndarray, mask: np.ndarray, target: np.ndarray) -> np.ndarray:
    """[U, d]: for the rows of ``mask`` the mean over those of the same profile. Equal profiles have equal states; not so labels."""
    rows = np.flatnonzero(mask)
    _, code = np.unique(profile[rows], return_inverse=True)
    total = np.zeros((code.max(initial=-1) + 1, target.shape[1]))
    np.add.at(total, code, target[rows])
    out = target.copy()
    out[rows] = (total / np.bincount(code)[:, None])[code]
    return out


def _first_of_each(profile: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The first row of each distinct profile among the rows of ``mask``."""
    rows = np.flatnonzero(mask)
    return rows[np.sort(np.unique(profile[rows], return_index=True)[1])]


def score_heads(
    everyone: Everyone,
    z: np.ndarray,
    predicted: np.ndarray,
    member: np.ndarray,
    labelled: Labelled,
    head: Mapping[str, Any],
    seed: int,
    placebos: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Scores]:
    """The same head on the profile alone, with ẑ everywhere, with z where a row has one, and with each placebo.

    Args:
      z, predicted: from :func:`summaries`. member: bool [U].
      placebos: mode → [U, width], from :func:`placebo`.
      labelled: rows that learn and choose.
      head: the configuration's ``head`` section.
      seed: of the heads.
    """
    extra = {PROFILE: np.zeros_like(predicted), EVERYWHERE: predicted, OWN: np.where(member[:, None], z, predicted)}
    extra |= placebos or {}
    return {
        name: head_scores(everyone, np.concatenate([everyone.dense, part], 1), labelled, head, seed)
        for name, part in extra.items()
    }


def head_scores(
    everyone: Everyone, x: np.ndarray, labelled: Labelled, head: Mapping[str, Any], seed: int
) -> Scores:  # fmt: skip
    """Fits hurdle-ordinal heads on inputs [U, P] and scores the test rows, averaged over the seeds' distributions."""
    y, horizon = everyone.labels, everyone.horizon
    x = Scaler.fit(x[labelled.head]).apply(x)
    mixing = hurdle_mixing(horizon)
    fitted = fit_heads(
        x[labelled.head], y[labelled.head], x[labelled.val], y[labelled.val], loss=hurdle_nll, mixing=mixing,
        seeds=[seed + i for i in range(head["seeds"])], bias=base_logits(y[labelled.head], horizon),
        **{key: head[key] for key in ("width", "steps", "batch_size", "learning_rate", "penalties")},
    )  # fmt: skip
    logits = predict_heads(fitted, x[everyone.test], width=head["width"], mixing=mixing)
    distribution = np.asarray(hurdle_distribution(jnp.asarray(logits)), np.float64).mean(0)
    distribution /= distribution.sum(1, keepdims=True)
    return Scores(rps_rows(y[everyone.test], distribution), distribution @ np.arange(horizon + 1))


def base_logits(y: np.ndarray, horizon: int) -> np.ndarray:
    """Logits [H] at which a hurdle-ordinal head says the base rate, with a pseudo-count so that they are finite."""
    counts = [((y == day).sum() + 0.5) / ((y >= day).sum() + 1) for day in range(1, horizon)]
    hazards = np.array([((y > 0).sum() + 0.5) / (len(y) + 1), *counts])
    return np.log(hazards / (1 - hazards)).astype(np.float32)
