"""An ONNX graph under construction: nodes are added by calls that return the name of what they compute.

Opset 20 (the first with Gelu), IR version 10: every ONNX Runtime since 1.18 reads it. Equal weights give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 10
_LAYER_NORM_EPSILON = 1e-6  # of flax.linen.LayerNorm


def ints(*values: int) -> np.ndarray:
    """A list of axes, sizes or indices, as ONNX takes them."""
    return np.array(values, np.int64)


class Graph:
    """A graph with one dynamic dimension, the batch.

    ``g("Add", x, y)`` adds a node and returns the name of its first output. A NumPy array or number among the inputs becomes a
    constant of the graph; equal constants are stored once.
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[onnx.TensorProto] = []

    def __call__(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(
            helper.make_node(kind, [self._name(item) for item in inputs], [output], name=output, **attributes)
        )
        return output

    def constant(self, value: np.ndarray) -> str:
        """The name of a constant of the graph."""
        value = np.asarray(value, order="C")  # ascontiguousarray would give a scalar an axis
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = self._constants[key] = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(value, name))
        return self._constants[key]

    def _name(self, item: Any) -> str:
        if isinstance(item, str):
            return item
        if isinstance(item, bool | int | float):
            raise TypeError("a bare number has no type: write np.float32(…), np.int32(…) or ints(…)")
        return self.constant(np.asarray(item))

    # -- the few compositions that the networks are made of -----------------------------------------------------------------

    def dense(self, x: str, weights: Mapping[str, Any]) -> str:
        """x W (+ b) of ``flax.linen.Dense``: [B, I] → [B, O]."""
        bias = (weights["bias"],) if "bias" in weights else ()
        return self("Gemm", x, *(np.asarray(item, np.float32) for item in (weights["kernel"], *bias)))

    def layer_norm(self, x: str, weights: Mapping[str, Any]) -> str:
        """``flax.linen.LayerNorm`` over the last axis."""
        scale, bias = (np.asarray(weights[name], np.float32) for name in ("scale", "bias"))
        return self("LayerNormalization", x, scale, bias, axis=-1, epsilon=_LAYER_NORM_EPSILON)

    def gelu(self, x: str) -> str:
        """The tanh form, ``flax.linen.gelu``'s default."""
        return self("Gelu", x, approximate="tanh")

    def columns(self, x: str, index: Sequence[int], axis: int = 1) -> str:
        """The columns ``index`` of x [B, …], in that order."""
        return self("Gather", x, np.asarray(index, np.int64), axis=axis)

    def column(self, x: str, index: int) -> str:
        """One column of x [B, F, …] → [B, …]."""
        return self("Gather", x, np.int64(index), axis=1)

    def total(self, x: str, *, keepdims: bool) -> str:
        """Σ over axis 1."""
        return self("ReduceSum", x, ints(1), keepdims=int(keepdims))

    def as_float(self, x: str) -> str:
        return self("Cast", x, to=TensorProto.FLOAT)

    def model(
        self,
        inputs: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
        outputs: Mapping[str, tuple[str, tuple[int, ...]]],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The finished, checked model.

        Args:
          inputs: name → dtype and shape without the batch.
          outputs: name → what computes it (float32) and its shape without the batch.
          metadata: texts that the file carries.
        """
        nodes = [*self._nodes, *(helper.make_node("Identity", [of], [name]) for name, (of, _) in outputs.items())]
        graph = helper.make_graph(
            nodes,
            "scaletot",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), ["batch", *shape])
                for name, (kind, shape) in inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
                for name, (_, shape) in outputs.items()
            ],
            self._initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        model.producer_name = "scaletot_jax"
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model
