"""The profile encoder as an ONNX graph: the same operations, in the same order, as ``encoder.model.ProfileEncoder``.

All bins of all numbers are computed side by side, one column a bin, because they lie side by side in the network's input
anyway; the fields' embeddings stay one gather each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scaletot_jax.encoder.model import EncoderSpec
from scaletot_jax.export.onnx_graph import Graph, ints
from scaletot_jax.profiles.features import PADDING, REDACTED_ID, UNKNOWN


def encoder_graph(g: Graph, spec: EncoderSpec, params: Mapping[str, Any]) -> str:
    """Adds the encoder, which reads the graph's inputs cat, num, missing and multi; returns its embedding [B, E]."""
    x = base = g.dense(_fields(g, spec, params), params["inputs"])
    for layer in range(spec.cross_layers):
        x = g("Add", g("Mul", base, g.dense(x, params[f"cross_{layer}"])), x)
    for layer in range(spec.mlp_layers):
        h = g.dense(g.layer_norm(x, params[f"mlp_{layer}_norm"]), params[f"mlp_{layer}_in"])
        x = g("Add", x, g.dense(g.gelu(h), params[f"mlp_{layer}_out"]))
    return g.dense(g.layer_norm(x, params["norm"]), params["embedding"])


def known_numbers(g: Graph) -> tuple[str, str]:
    """Of the number columns: 1 where present [B, Fn], 1 where missing [B, Fn]."""
    return g.as_float(g("Not", "missing")), g.as_float("missing")


def _fields(g: Graph, spec: EncoderSpec, params: Mapping[str, Any]) -> str:
    """All fields side by side, [B, sum of their widths]."""
    parts = []
    for j in range(len(spec.cat_sizes)):
        parts.append(g("Gather", np.asarray(params[f"cat_{j}"]["embedding"], np.float32), g.column("cat", j), axis=0))
    for j in range(len(spec.multi_sizes)):
        parts += _multi(g, g.column("multi", j), np.asarray(params[f"multi_{j}"]["embedding"], np.float32))
    if spec.knots:
        known, missing = known_numbers(g)
        owner = [j for j, edges in enumerate(spec.knots) for _ in edges[1:]]
        low = np.array([edge for edges in spec.knots for edge in edges[:-1]], np.float32)
        high = np.array([edge for edges in spec.knots for edge in edges[1:]], np.float32)
        ratio = g("Div", g("Sub", g.columns("num", owner), low), high - low)
        bins = g("Clip", ratio, np.float32(0), np.float32(1))
        parts += [g("Mul", bins, g.columns(known, owner)), g("Mul", "num", known), missing]
    return g("Concat", *parts, axis=1)


def _multi(g: Graph, ids: str, table: np.ndarray) -> list[str]:
    """Mean of the embeddings of a multi field's ids [B, M] → [B, w], and log1p of how many values it has, [B, 1]."""
    present = g("Unsqueeze", g.as_float(g("Not", g("Equal", ids, np.int32(PADDING)))), ints(2))  # [B, M, 1]
    summed = g.total(g("Mul", g("Gather", table, ids, axis=0), present), keepdims=False)
    mean = g("Div", summed, g("Max", g.total(present, keepdims=False), np.float32(1)))
    valued = g("Or", g("Equal", ids, np.int32(UNKNOWN)), g("Greater", ids, np.int32(REDACTED_ID)))
    count = g.total(g.as_float(valued), keepdims=True)
    return [mean, g("Log", g("Add", count, np.float32(1)))]
