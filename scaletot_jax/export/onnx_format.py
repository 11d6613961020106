"""The served model as ONNX: one file with a dynamic batch, the weights and, as metadata, ``interface.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.export.interface import input_arrays
from scaletot_jax.export.onnx_graph import Graph
from scaletot_jax.export.onnx_heads import served_graph
from scaletot_jax.population.model import ServedModel


def to_onnx(model: ServedModel, carried: Mapping[str, Any]) -> bytes:
    """The program. Equal models give equal bytes.

    Args:
      model: to export.
      carried: JSON-able, the record of :func:`scaletot_jax.export.interface.describe`; lies in the file's metadata under
        ``interface`` and, so that it can be seen at a glance, its version and fingerprint beside it.
    """
    graph = Graph()
    outputs = served_graph(graph, model.spec, model.params)
    metadata = {
        "interface": json.dumps(carried, sort_keys=True),
        "version": carried["version"],
        "fingerprint": carried["model"]["fingerprint"],
    }
    return graph.model(input_arrays(model.space), outputs, metadata).SerializeToString(deterministic=True)


def load_onnx(program: bytes) -> Callable[[Inputs], dict[str, np.ndarray]]:
    """The program in ONNX Runtime on the CPU: encoded rows → outputs by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    reads = {item.name for item in session.get_inputs()}

    def call(inputs: Inputs) -> dict[str, np.ndarray]:
        feed = {name: np.asarray(value) for name, value in zip(Inputs._fields, inputs) if name in reads}
        return dict(zip(names, session.run(names, feed)))

    return call
