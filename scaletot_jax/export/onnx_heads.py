"""The LTV heads as an ONNX graph: dense features, the heads of all seeds, their averaged distributions and what is read of them.

The mathematics is that of ``population.forward`` and ``population.quantiles``, with one difference: ONNX knows no inverse of
the normal distribution, so a quantile of money is halved from a bracket that holds every component's quantiles at 1e-7 and
1 − 1e-7, not from the components' own quantiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scaletot_jax.export.onnx_encoder import encoder_graph
from scaletot_jax.export.onnx_graph import Graph, ints
from scaletot_jax.export.parity import output_names
from scaletot_jax.losses.ltv import _MIN_SIGMA
from scaletot_jax.population.forward import LEVELS, ServedSpec, TargetSpec
from scaletot_jax.profiles.features import PADDING

_HALVINGS = 34  # a bracket of 2 · 5.2 σ and the spread of the seeds, 50 in log money, ends below float32's precision
_TAIL = 5.2  # −Φ⁻¹(1e-7)
_MAX_SIGMA, _MAX_EXPONENT = 5.0, 20.0  # as losses.ltv.ziln_mean


def served_graph(g: Graph, spec: ServedSpec, params: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Adds everything that is served; returns output name → (what computes it, its shape without the batch)."""
    embedding = encoder_graph(g, spec.encoder, params["encoder"])
    found: list[str] = [embedding]
    if spec.targets:
        centre, scale = (np.asarray(params["scaler"][name], np.float32) for name in ("mean", "std"))
        x = g("Div", g("Sub", g("Concat", *_dense(g, spec), embedding, axis=1), centre), scale)
        x = g("Clip", x, np.float32(-8), np.float32(8))
    logits = [_logits(g, target, head, x) for target, head in zip(spec.targets, params["heads"])]
    agreed = _agreed(g, spec, logits)
    for place, (target, one) in enumerate(zip(spec.targets, logits)):
        if place in agreed:
            mean, positive, quantiles = _survival_read(g, agreed[place])
        else:
            mean, positive, quantiles = (_days if target.kind == "days" else _value)(g, target, one)
        found += [mean, positive, *(g.column(quantiles, i) for i in range(len(LEVELS)))]
    return {name: (of, () if i else (spec.encoder.dim,)) for i, (name, of) in enumerate(zip(output_names(spec), found))}


def _dense(g: Graph, spec: ServedSpec) -> list[str]:
    """The columns of ``population.forward.dense``."""
    bits = [2 * i for i in range(spec.numbers)] + [2 * spec.numbers + i for i in range(spec.ordered)]
    parts = ["num", g.as_float(g.columns("missing", bits))] if bits else []
    for index, active in enumerate(spec.cat_active):
        if active:
            parts.append(g.as_float(g("Equal", g.columns("cat", [index]), np.asarray(active, np.int32))))
    for index, active in enumerate(spec.multi_active):
        if active:
            ids = g.column("multi", index)  # [B, M]
            count = g.total(g.as_float(g("Not", g("Equal", ids, np.int32(PADDING)))), keepdims=True)
            hits = g("Equal", g("Unsqueeze", ids, ints(2)), np.asarray(active, np.int32))
            hits = g.total(g.as_float(hits), keepdims=False)
            parts.append(g("Div", hits, g("Max", count, np.float32(1))))
    return parts


def _logits(g: Graph, target: TargetSpec, head: Mapping[str, Any], x: str) -> str:
    """Raw outputs of all seeds' heads, [B, S, O]; the seeds' weights lie side by side in one matrix."""
    mixing = np.asarray(target.mixing, np.float32)  # [K, O]
    hidden, linear, scores = (np.asarray(head[name]["kernel"], np.float32) for name in ("hidden", "linear", "scores"))
    seeds, width, kinds = scores.shape
    inner = g("Gemm", x, _side_by_side(hidden), np.asarray(head["hidden"]["bias"], np.float32).reshape(-1))
    blocks = np.zeros((seeds, width, seeds, kinds), np.float32)
    blocks[np.arange(seeds), :, np.arange(seeds)] = scores
    found = g("MatMul", x, _side_by_side(linear))
    found = g("Add", found, g("MatMul", g.gelu(inner), blocks.reshape(seeds * width, seeds * kinds)))
    found = g("MatMul", g("Reshape", found, ints(-1, seeds, kinds)), mixing)
    return g("Add", found, np.asarray(head["bias"], np.float32))


def _side_by_side(kernel: np.ndarray) -> np.ndarray:
    """[S, P, W] → [P, S · W]."""
    return kernel.transpose(1, 0, 2).reshape(kernel.shape[1], -1)


def _log_sigmoid(g: Graph, x: str) -> str:
    return g("Neg", g("Softplus", g("Neg", x)))


def _days(g: Graph, target: TargetSpec, logits: str) -> tuple[str, str, str]:
    """Mean, P(y > 0) and quantiles of the averaged hurdle distribution; logits [B, S, H]."""
    distribution, below = _distribution(g, target, logits)
    days = np.arange(target.horizon + 1, dtype=np.float32)
    mean = g.total(g("Mul", distribution, days), keepdims=False)
    positive = g("Sub", np.float32(1), g.column(distribution, 0))
    under = g("Less", g("Unsqueeze", below, ints(1)), np.asarray(LEVELS, np.float32)[:, None])
    return mean, positive, g("ReduceSum", g.as_float(under), ints(2), keepdims=0)


def _distribution(g: Graph, target: TargetSpec, logits: str) -> tuple[str, str]:
    """P(y = 0..H) averaged over seeds, [B, H + 1], and P(y ≤ 0..H−1), [B, H]."""
    hurdle = g.columns(logits, [0], axis=2)
    active, none = _log_sigmoid(g, hurdle), g("Neg", g("Softplus", hurdle))
    if target.horizon > 1:
        hazards = g.columns(logits, range(1, target.horizon), axis=2)
        reached = g("CumSum", g("Neg", g("Softplus", hazards)), np.int64(2))
        nothing = g("Mul", hurdle, np.float32(0))
        before = g("Concat", nothing, reached, axis=2)
        stops = g("Concat", _log_sigmoid(g, hazards), nothing, axis=2)
        active = g("Add", g("Add", active, before), stops)
    by_seed = g("Exp", g("Concat", none, active, axis=2))
    distribution = g("ReduceMean", by_seed, ints(1), keepdims=0)  # [B, H + 1]
    distribution = g("Div", distribution, g.total(distribution, keepdims=True))
    return distribution, g.columns(g("CumSum", distribution, np.int64(1)), range(target.horizon))


def _agreed(g: Graph, spec: ServedSpec, logits: Sequence[str]) -> dict[int, str]:
    """Place of each label that nests → P(y > j) [B, H]; the mathematics of ``population.nested.ordered``."""
    if not spec.nested:
        return {}
    horizons = [spec.targets[place].horizon for place in spec.nested]
    survivals = [
        g("Sub", np.float32(1), _distribution(g, spec.targets[place], logits[place])[1]) for place in spec.nested
    ]
    s = []
    for one, horizon in zip(survivals[:-1], horizons):
        beyond = g("Mul", g.columns(survivals[-1], range(horizon, horizons[-1])), np.float32(0))
        s.append(g("Concat", one, beyond, axis=1))
    s.append(survivals[-1])
    count, out = len(s), {}

    def mean(a: int, b: int) -> str:
        return s[a] if a == b else g("Div", g("Sum", *s[a : b + 1]), np.float32(b + 1 - a))

    means = {(a, b): mean(a, b) for a in range(count) for b in range(a, count)}
    for i, place in enumerate(spec.nested):
        pooled = [g("Min", *(means[a, b] for b in range(i, count))) for a in range(i + 1)]
        out[place] = g.columns(g("Max", *pooled), range(horizons[i]))
    return out


def _survival_read(g: Graph, survival: str) -> tuple[str, str, str]:
    """Mean, P(y > 0) and quantiles of P(y > j) [B, H]."""
    above = 1 - np.asarray(LEVELS, np.float32)[:, None]
    over = g("Greater", g("Unsqueeze", survival, ints(1)), above)
    return (
        g.total(survival, keepdims=False),
        g.column(survival, 0),
        g("ReduceSum", g.as_float(over), ints(2), keepdims=0),
    )


def _value(g: Graph, target: TargetSpec, logits: str) -> tuple[str, str, str]:
    """Mean, P(y > 0) and quantiles of the averaged zero-inflated log-normal, none above the cap; logits [B, S, 3]."""
    cap = np.float32(target.cap)
    hurdle, centre, raw = (g("Gather", logits, np.int64(i), axis=2) for i in range(3))  # [B, S]
    positive, softplus = g("Sigmoid", hurdle), g("Softplus", raw)
    bounded = g("Clip", softplus, np.float32(_MIN_SIGMA), np.float32(_MAX_SIGMA))
    exponent = g("Add", centre, g("Mul", np.float32(0.5), g("Mul", bounded, bounded)))
    means = g("Mul", positive, g("Exp", g("Min", exponent, np.float32(_MAX_EXPONENT))))
    mean = g("ReduceMean", g("Min", means, cap), ints(1), keepdims=0)
    share = g("ReduceMean", positive, ints(1), keepdims=0)
    quantiles = _mixture_quantiles(g, hurdle, positive, centre, g("Max", softplus, np.float32(_MIN_SIGMA)))
    return mean, share, g("Min", quantiles, cap)


def _mixture_quantiles(g: Graph, hurdle: str, positive: str, centre: str, sigma: str) -> str:
    """[B, Q]; arguments [B, S]. See ``population.quantiles.ziln_quantiles``."""
    levels = np.asarray(LEVELS, np.float32)
    zero = g("ReduceMean", g("Sigmoid", g("Neg", hurdle)), ints(1), keepdims=1)  # [B, 1]
    target = g("Div", g("Sub", levels, zero), g("Sub", np.float32(1), zero))
    target = g("Clip", target, np.float32(1e-7), np.float32(1 - 1e-7))  # [B, Q]
    reach = g("Mul", sigma, np.float32(_TAIL))
    spread = g("Mul", target, np.float32(0))
    low = g("Add", g("ReduceMin", g("Sub", centre, reach), ints(1), keepdims=1), spread)
    high = g("Add", g("ReduceMax", g("Add", centre, reach), ints(1), keepdims=1), spread)
    weights = g("Div", positive, g.total(positive, keepdims=True))
    weights, centre, sigma = (g("Unsqueeze", item, ints(1)) for item in (weights, centre, sigma))  # [B, 1, S]
    low, high = _halved(g, low, high, target, weights, centre, sigma)
    money = g("Exp", g("Mul", g("Add", low, high), np.float32(0.5)))
    return g("Where", g("GreaterOrEqual", zero, levels), np.float32(0), money)


def _halved(g: Graph, low: str, high: str, target: str, weights: str, centre: str, sigma: str) -> tuple[str, str]:
    """The bracket [B, Q] after all halvings, written out: a Loop would cost ONNX Runtime more than these small nodes."""
    half = np.float32(0.5)
    for _ in range(_HALVINGS):
        middle = g("Mul", g("Add", low, high), half)
        z = g("Div", g("Sub", g("Unsqueeze", middle, ints(2)), centre), sigma)  # [B, Q, S]
        normal = g("Add", g("Mul", g("Erf", g("Mul", z, np.float32(0.5**0.5))), half), half)
        under = g("Less", g("ReduceSum", g("Mul", weights, normal), ints(2), keepdims=0), target)
        low, high = g("Where", under, middle, low), g("Where", under, high, middle)
    return low, high
