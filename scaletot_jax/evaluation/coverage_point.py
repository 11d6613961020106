"""One point of the coverage curve: encoders distilled from the reasoned users, ẑ for everybody, heads, scores. No files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.encoder.model import EncoderSpec, Inputs, describe, encode, init_params
from scaletot_jax.encoder.spread import spread
from scaletot_jax.encoder.train import CHECK_EVERY, Data, init_state, make_optimizer, train_block
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


def summaries(
    everyone: Everyone,
    states: np.ndarray,
    member: np.ndarray,
    fold: np.ndarray,
    names: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """z and ẑ of every row, in one space: the leading ⌊E/K⌋ whitened directions of each segment.

    The encoders are made as stage ``distill`` makes its own (``pool``, ``emphasis``), but their values start as strangers
    always (``value_init`` is not followed) and nothing is chosen by a label.

    Args:
      everyone: all rows.
      states: [M, K, D] mean over the chains of each member's profile, in the order of the rows.
      member: bool [U], the M rows of reasoned users.
      fold: [U]; one encoder a fold is distilled from the members of all others, one from all members.
      names: of the K segments.
      settings: the configuration's ``distill`` section.
      seed: of weights, batches and the choice of the step.

    Returns:
      z [U, Σ d_k], zero where not a member; ẑ [U, Σ d_k], for members by the encoder that was distilled without their fold.
    """
    kept = max(1, settings["dim"] // len(names))
    whitening = [fit_whitening(states[:, k], kept) for k in range(len(names))]
    emphasis = [(w.variance / w.variance.mean()) ** (settings["emphasis"] / 2) for w in whitening]
    targets = []
    for k, w in enumerate(whitening):
        target = np.zeros((len(member), w.axes.shape[1]), np.float32)
        target[member] = whiten(w, states[:, k])
        targets.append(target)
    scale = np.concatenate(emphasis).astype(np.float32)
    wanted = [target * part.astype(np.float32) for target, part in zip(targets, emphasis)]
    spec = describe(
        everyone.space, everyone.inputs, segments=names, target_dims=[t.shape[1] for t in targets],
        dim=settings["dim"], width=settings["width"],
    )  # fmt: skip
    predicted = _distilled(everyone, spec, wanted, member, settings, seed)
    for number in np.unique(fold):
        held = member & (fold == number)
        if held.any() and (member & ~held).any():
            predicted[held] = _distilled(everyone, spec, wanted, member & ~held, settings, seed)[held]
    return np.concatenate(targets, axis=1), predicted / scale


def _distilled(
    everyone: Everyone,
    spec: EncoderSpec,
    targets: Sequence[np.ndarray],
    member: np.ndarray,
    settings: Mapping[str, Any],
    seed: int,
) -> np.ndarray:
    """What an encoder distilled from the members' targets says of every row, [U, Σ d_k].

    All shapes are those of the whole population, so that every point and fold runs one compiled program.
    """
    place = unit_hash([str(group) for group in everyone.groups], seed, "coverage select")
    chooses = member & (place < np.quantile(place[member], _SELECT_SHARE))
    learns = _first_of_each(everyone.profile, member & ~chooses)
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
    )  # fmt: skip
    if not np.isfinite(float(state.best_error)):
        raise DataError("the encoder's error is not finite", where="coverage", do="lower distill.learning_rate")
    out = []
    count = len(everyone.groups)
    for begin in range(0, count, _BATCH):
        index = np.minimum(np.arange(begin, begin + min(_BATCH, count)), count - 1)
        found = encode(state.best, spec=spec, inputs=Inputs(*(column[index] for column in everyone.inputs)))
        out.append(np.concatenate([np.asarray(part) for part in found.segments], axis=1)[: count - begin])
    return np.concatenate(out)


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


def _first_of_each(profile: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The first row of each distinct profile among the rows of ``mask``: equal profiles have equal states."""
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
) -> dict[str, Scores]:
    """The same head on the profile alone, with ẑ everywhere, and with z where a row has one.

    Args:
      z, predicted: from :func:`summaries`. member: bool [U].
      labelled: rows that learn and choose.
      head: the configuration's ``head`` section.
      seed: of the heads.
    """
    extra = {PROFILE: np.zeros_like(predicted), EVERYWHERE: predicted, OWN: np.where(member[:, None], z, predicted)}
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
