"""The losses once more, in float64 NumPy with plain loops, written from the equations and not from the package."""

import numpy as np


def real_tokens(ids, num_segments, answer="zero"):
    """Tokens with credit, row by row."""
    out = np.zeros(ids.shape, bool)
    for i, row in enumerate(ids):
        seen_answer = False
        for t, label in enumerate(row):
            if label == -2:
                out[i, t] = answer == "outcome"
                seen_answer = True
            elif -1 <= label < num_segments:
                out[i, t] = not seen_answer
    return out


def alive_rows(ids, num_segments):
    return np.array([any(-2 <= label < num_segments for label in row) for row in ids])


def rewards(prm, ref, ids, num_segments, beta):
    r, v = np.zeros((len(ids), num_segments)), np.zeros((len(ids), num_segments), bool)
    for i, row in enumerate(ids):
        for t, label in enumerate(row):
            if 0 <= label < num_segments:
                r[i, label] += beta * (prm[i, t] - ref[i, t])
                v[i, label] = True
    return r, v


def centred(values, valid, groups, baseline):
    """x minus its baseline over the valid members of the group; 0 in groups of fewer than two."""
    out = np.zeros(len(values))
    for i in range(len(values)):
        members = [j for j in range(len(values)) if groups[j] == groups[i] and valid[j]]
        if not valid[i] or len(members) < 2:
            continue
        if baseline == "loo":
            members = [j for j in members if j != i]
        out[i] = values[i] - np.mean([values[j] for j in members])
    return out


def group_std(values, valid, groups):
    out = np.zeros(len(values))
    for i in range(len(values)):
        members = [values[j] for j in range(len(values)) if groups[j] == groups[i] and valid[j]]
        out[i] = np.std(members, ddof=1) if len(members) > 1 else 0.0
    return out


def advantages(r, v, outcomes, groups, ids, *, outcome_weight=1.0, process_weight=0.1, gamma=0.0, segment_weights=None,
               baseline="loo", scale="batch_rms", min_scale=1e-3, answer="zero", clip=5.0):  # fmt: skip
    rows, num_segments = r.shape
    weights = np.ones(num_segments) if segment_weights is None else segment_weights
    alive = alive_rows(ids, num_segments)
    outcome = centred(outcomes, alive, groups, baseline)
    process = np.stack([centred(r[:, k], v[:, k] & alive, groups, baseline) for k in range(num_segments)], 1)
    if scale == "batch_rms":
        outcome = outcome / max(np.sqrt(np.mean(outcome[alive] ** 2)) if alive.any() else 0.0, min_scale)
        used = v & alive[:, None]
        process = process / max(np.sqrt(np.mean(process[used] ** 2)) if used.any() else 0.0, min_scale)
    elif scale == "group_std":
        outcome = outcome / (group_std(outcomes, alive, groups) + min_scale)
        stds = np.stack([group_std(r[:, k], v[:, k] & alive, groups) for k in range(num_segments)], 1)
        process = process / (stds + min_scale)
    out = np.zeros(ids.shape)
    credit = real_tokens(ids, num_segments, answer)
    for i in range(rows):
        for t in range(ids.shape[1]):
            if not credit[i, t]:
                continue
            value = outcome_weight * outcome[i]
            k = ids[i, t]
            if k >= 0:
                for later in range(k, num_segments):
                    factor = 1.0 if later == k else gamma ** (later - k)
                    value += process_weight * factor * weights[later] * process[i, later]
            out[i, t] = value
    return out if clip is None else np.clip(out, -clip, clip)


def units(ids, i, t, ratio, credit):
    """Token positions that share the ratio of token (i, t)."""
    if ratio == "sequence":
        return [s for s in range(ids.shape[1]) if credit[i, s]]
    if ratio == "segment" and ids[i, t] >= 0:
        return [s for s in range(ids.shape[1]) if credit[i, s] and ids[i, s] == ids[i, t]]
    return [t]


def osipo_loss(logps, old, adv, ids, *, aggregation, num_segments, ratio="segment", clip_low=0.2, clip_high=0.28,
               ref=None, kl_weight=0.0, answer="zero", constant=1.0):  # fmt: skip
    """Value of the loss, chain by chain."""
    credit = real_tokens(ids, num_segments, answer)
    chain_losses, all_tokens = [], []
    for i in range(len(ids)):
        by_segment = {}
        for t in range(ids.shape[1]):
            if not credit[i, t]:
                continue
            members = units(ids, i, t, ratio, credit)
            rho = np.exp(np.clip(np.mean([logps[i, s] - old[i, s] for s in members]), -20, 20))
            loss = -min(rho * adv[i, t], np.clip(rho, 1 - clip_low, 1 + clip_high) * adv[i, t])
            if ref is not None:
                d = np.clip(ref[i, t] - logps[i, t], -20, 20)
                loss += kl_weight * (np.exp(d) - d - 1)
            by_segment.setdefault(max(ids[i, t], -1), []).append(loss)
        tokens = [x for part in by_segment.values() for x in part]
        all_tokens += tokens
        if tokens:
            if aggregation == "segment_mean":
                chain_losses.append(np.mean([np.mean(part) for part in by_segment.values()]))
            elif aggregation == "sequence_mean":
                chain_losses.append(np.mean(tokens))
            else:
                chain_losses.append(np.sum(tokens) / constant)
    if aggregation == "token_mean":
        return np.mean(all_tokens) if all_tokens else 0.0
    return np.mean(chain_losses) if chain_losses else 0.0


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_odds(labels, counted, groups):
    out = np.zeros(len(labels))
    for i in range(len(labels)):
        members = [labels[j] for j in range(len(labels)) if groups[j] == groups[i] and counted[j]]
        if members:
            mean = np.clip(np.mean(members), 0.05, 0.95)
            out[i] = np.log(mean / (1 - mean))
    return out


def implicit_reward_loss(prm, ref, ids, outcomes, groups, *, num_segments, beta, boundary_weights="uniform", shift=True,
                         complete=None):  # fmt: skip
    r, v = rewards(prm, ref, ids, num_segments, beta)
    counted = v.any(1) & (np.ones(len(ids), bool) if complete is None else complete)
    z = np.clip(np.where(counted, outcomes, 0), 0, 1)
    b = log_odds(z, counted, groups) if shift else np.zeros(len(ids))
    losses = []
    for i in np.flatnonzero(counted):
        present = np.flatnonzero(v[i])
        if boundary_weights == "last":
            present = present[-1:]
        terms = []
        for k in present:
            p = sigmoid(r[i, : k + 1].sum() + b[i])
            terms.append(-(z[i] * np.log(p) + (1 - z[i]) * np.log(1 - p)))
        losses.append(np.mean(terms))
    return np.mean(losses) if losses else 0.0


def prefix_critic(r, v, outcomes, groups, ids, *, trace, shift=True, residual_weight=1.0):
    """Unscaled, leave-one-out."""
    rows, num_segments = r.shape
    alive = alive_rows(ids, num_segments)
    b = log_odds(np.clip(outcomes, 0, 1), v.any(1) & alive, groups) if shift else np.zeros(rows)
    estimate = np.zeros((rows, num_segments))
    for i in range(rows):
        p = [sigmoid(b[i] + np.where(v[i, :k], r[i, :k], 0).sum()) for k in range(num_segments + 1)]
        for k in range(1, num_segments + 1):
            estimate[i, k - 1] = sum(trace ** (m - k) * (p[m] - p[m - 1]) for m in range(k, num_segments + 1))
            estimate[i, k - 1] += residual_weight * trace ** (num_segments - k) * (outcomes[i] - p[num_segments])
    content = np.stack([centred(estimate[:, k], v[:, k] & alive, groups, "loo") for k in range(num_segments)], 1)
    outcome = centred(outcomes, alive, groups, "loo")
    credit = real_tokens(ids, num_segments)
    out = np.zeros(ids.shape)
    for i, t in zip(*np.nonzero(credit), strict=True):
        out[i, t] = content[i, ids[i, t]] if ids[i, t] >= 0 else outcome[i]
    return out


def prime(prm, ref, credit, outcomes, groups, *, beta, formula, outcome_weight=1.0, process_weight=1.0, gamma=1.0,
          scale=None, whiten=False):  # fmt: skip
    """Token by token, from the two printed forms of d_it."""
    rows, length = credit.shape
    r = np.where(credit, beta * (np.where(credit, prm, 0) - np.where(credit, ref, 0)), 0.0)
    if scale == "batch_max":
        r = r / (np.abs(np.cumsum(r[:, ::-1], 1)).max() + 1e-6)
    alive = credit.any(1)
    mean = np.array([r[i][credit[i]].mean() if alive[i] else 0.0 for i in range(rows)])
    outcome = centred(outcomes, alive, groups, "loo")
    out = np.zeros((rows, length))
    for i in range(rows):
        members = [j for j in range(rows) if groups[j] == groups[i] and alive[j]]
        n = len(members)
        total = 0.0
        for t in reversed(range(length)):
            if not credit[i, t]:
                continue
            if n < 2:
                d = 0.0
            elif formula == "paper":
                d = r[i, t] - sum(mean[j] for j in members if j != i) / (n - 1)
            else:
                d = r[i, t] * n / (n - 1) - sum(mean[j] for j in members) / (n - 1)
            total = d + gamma * total
            out[i, t] = process_weight * total + outcome_weight * outcome[i]
    if whiten:
        x = out[credit]
        out = np.where(credit, (out - x.mean()) / np.sqrt(x.var(ddof=1) + 1e-8), 0.0)
    return out
