"""Llama-architecture weights and vocabulary from a GGUF file, memory-mapped, without torch.

The header is read here (the ``gguf`` package's reader takes seconds for a vocabulary of 49,152 and cannot name the
tensor that a truncated file lacks); block formats are dequantised by ``gguf.quants``, one tensor at a time.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# our leaf -> (tensor name after "blk.N.", whether it is a matrix stored as [outputs, inputs])
_LAYER_TENSORS = {
    "attn_norm": ("attn_norm.weight", False),
    "q": ("attn_q.weight", True),
    "k": ("attn_k.weight", True),
    "v": ("attn_v.weight", True),
    "o": ("attn_output.weight", True),
    "mlp_norm": ("ffn_norm.weight", False),
    "gate": ("ffn_gate.weight", True),
    "up": ("ffn_up.weight", True),
    "down": ("ffn_down.weight", True),
}


class _Tensor(NamedTuple):
    shape: tuple[int, ...]  # slowest axis first, as in NumPy
    kind: int  # ggml type number
    offset: int  # bytes from the start of the file
    size: int  # bytes


class GGUFFile:
    """An open GGUF file.

    Args:
      path: the file.

    Attributes:
      metadata: key -> number, bool, string, or list of these.
      tensors: name -> where its bytes lie.

    Raises:
      DataError: not a GGUF file, a version other than 2 or 3, or truncated (naming the first tensor that is cut).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as handle:
                self._bytes = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise DataError("a weights file cannot be opened", where=str(path), why=str(error)) from error
        if self._bytes[:4] != b"GGUF":
            raise DataError("not a GGUF file", where=str(path), why="it does not begin with 'GGUF'")
        self._at = 4
        try:
            self._read_header()
        except (struct.error, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(
                "the header of a GGUF file is damaged or truncated",
                where=f"{path}, byte {self._at}",
                why=f"{type(error).__name__}: {error}",
                do="download or install the file again",
            ) from error
        for name, tensor in self.tensors.items():
            if tensor.offset + tensor.size > len(self._bytes):
                raise DataError(
                    "a GGUF file is truncated",
                    where=f"{path}, tensor '{name}'",
                    why=f"it ends at byte {tensor.offset + tensor.size}, the file has {len(self._bytes)}",
                    do="download or install the file again",
                )

    def value(self, key: str, default: Any = None) -> Any:
        """Metadata ``key``; without a default, a missing key is a DataError."""
        if key in self.metadata:
            return self.metadata[key]
        if default is None:
            raise DataError("a GGUF file lacks a metadata key", where=str(self.path), why=f"no '{key}'")
        return default

    def count(self, key: str, default: int | None = None) -> int:
        """Metadata ``key`` as a whole number of at least 1, or DataError."""
        number = self.value(key, default)
        if not isinstance(number, int) or number < 1:
            raise DataError("a GGUF file has an impossible size", where=f"{self.path}, {key}", why=f"{number!r}")
        return number

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of tensor ``name``, slowest axis first, or DataError where it is missing."""
        if name not in self.tensors:
            raise DataError("a GGUF file lacks a tensor", where=str(self.path), why=f"no '{name}'")
        return self.tensors[name].shape

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """DataError where tensor ``name`` is missing or of another shape."""
        if self.shape(name) != shape:
            raise DataError(
                "a tensor has an unexpected shape",
                where=f"{self.path}, tensor '{name}'",
                why=f"{list(self.shape(name))} instead of {list(shape)}",
            )

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Tensor ``name`` as float32, or DataError where it is missing, of another shape or of an unknown format."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        self.require(name, shape)
        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        raw = np.frombuffer(self._bytes, np.uint8, tensor.size, tensor.offset)
        if kind == GGMLQuantizationType.F32:
            return raw.view(np.float32).reshape(shape)
        if kind == GGMLQuantizationType.F16:
            return raw.view(np.float16).reshape(shape).astype(np.float32)
        try:
            return dequantize(raw.reshape(*shape[:-1], -1), kind).reshape(shape)
        except (NotImplementedError, ValueError) as error:  # ValueError: a row is not a whole number of blocks
            raise DataError(
                "a tensor is stored in a format that cannot be read",
                where=f"{self.path}, tensor '{name}'",
                why=f"no dequantisation for {kind.name}",
                do="use a file in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 or a K-quant",
            ) from error

    # -- header -----------------------------------------------------------------------------------------------------

    def _read_header(self) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        version = self._number("I")
        if version not in (2, 3):
            raise ValueError(f"version {version} is not supported (2 and 3 are)")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self._string()
            self.metadata[key] = self._value(self._number("I"))
        infos = []
        for _ in range(tensor_count):
            name = self._string()
            shape = tuple(self._number("Q") for _ in range(self._number("I")))[::-1]
            infos.append((name, shape, self._number("I"), self._number("Q")))
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, _Tensor] = {}
        for name, shape, kind, offset in infos:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            self.tensors[name] = _Tensor(shape, kind, start + offset, math.prod(shape) // block * block_bytes)

    def _number(self, code: str) -> Any:
        (number,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return number

    def _string(self) -> str:
        length = self._number("Q")
        if self._at + length > len(self._bytes):
            raise ValueError(f"a string of {length} bytes runs past the end of the file")
        self._at += length
        return self._bytes[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_SCALARS[kind])
        item, count = self._number("I"), self._number("Q")
        if item in (_STRING, _ARRAY):
            return [self._value(item) for _ in range(count)]
        code = f"<{count}{_SCALARS[item]}"
        values = list(struct.unpack_from(code, self._bytes, self._at))
        self._at += struct.calcsize(code)
        return values


def load_gguf(source: str | Path | GGUFFile) -> tuple[LMConfig, dict[str, Any]]:
    """Reads a model of the ``llama`` architecture.

    Args:
      source: a path, or a file already open.

    Returns:
      The configuration and the parameters (layout: ``lm.model.init_params``) as float32 NumPy arrays. GGUF stores the
      rows of W_q and W_k of this architecture in the order of interleaved rotary pairs; they are put back into the
      half-split order that ``lm.model.rotate`` turns.

    Raises:
      DataError: another architecture, rotary scaling, a missing, truncated, misshapen or unknown tensor.
    """
    file = source if isinstance(source, GGUFFile) else GGUFFile(source)
    config = _config(file)
    width, vocab = config.hidden_size, config.vocab_size
    known = {"token_embd.weight", "output_norm.weight", "output.weight"}
    shapes = {leaf: config.projections[leaf] if matrix else (width,) for leaf, (_, matrix) in _LAYER_TENSORS.items()}
    for index in range(config.num_layers):  # before anything is allocated: a damaged header can ask for terabytes
        for leaf, (suffix, _) in _LAYER_TENSORS.items():
            known.add(f"blk.{index}.{suffix}")
            file.require(f"blk.{index}.{suffix}", shapes[leaf][::-1])

    layers: dict[str, np.ndarray] = {}
    for leaf, (suffix, _) in _LAYER_TENSORS.items():
        shape = shapes[leaf]
        layers[leaf] = np.empty((config.num_layers, *shape), np.float32)
        for index in range(config.num_layers):
            tensor = file.tensor(f"blk.{index}.{suffix}", shape[::-1])
            if leaf in ("q", "k"):
                tensor = _half_split(tensor, config.num_heads if leaf == "q" else config.num_kv_heads)
            layers[leaf][index] = tensor.T
    params: dict[str, Any] = {
        "embed": file.tensor("token_embd.weight", (vocab, width)),
        "layers": layers,
        "final_norm": file.tensor("output_norm.weight", (width,)),
    }
    if not config.tie_embeddings:
        params["head"] = np.ascontiguousarray(file.tensor("output.weight", (vocab, width)).T)
    unknown = sorted(set(file.tensors) - known)
    if unknown:
        raise DataError(
            "a GGUF file holds tensors that a Llama model does not have",
            where=f"{file.path}, tensor '{unknown[0]}'",
            why=f"{len(unknown)} unknown: {', '.join(unknown[:5])}",
        )
    return config, params


def _config(file: GGUFFile) -> LMConfig:
    architecture = file.value("general.architecture")
    if architecture != "llama":
        raise DataError(
            "the weights are of another architecture",
            where=f"{file.path}, general.architecture",
            why=f"'{architecture}'; only 'llama' is supported",
            do="use a Llama-architecture model, e.g. SmolLM2",
        )
    if file.metadata.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.tensors:
        raise DataError("rotary scaling is not supported", where=str(file.path), why="llama.rope.scaling or rope_freqs")
    heads, width = file.count("llama.attention.head_count"), file.count("llama.embedding_length")
    head_dim = file.count("llama.attention.key_length", width // heads)
    if file.count("llama.rope.dimension_count", head_dim) != head_dim:
        raise DataError("partial rotary embedding is not supported", where=f"{file.path}, llama.rope.dimension_count")

    def decimal(key: str, default: float | None = None) -> float:
        """Stored as float32; the shortest decimal that rounds to the same float32 is the number that was meant."""
        number = file.value(key, default)
        if not isinstance(number, float) or not 0.0 < number < math.inf:
            raise DataError("a GGUF file has an impossible constant", where=f"{file.path}, {key}", why=f"{number!r}")
        return float(str(np.float32(number)))

    return LMConfig(
        vocab_size=file.shape("token_embd.weight")[0],
        hidden_size=width,
        intermediate_size=file.count("llama.feed_forward_length"),
        num_layers=file.count("llama.block_count"),
        num_heads=heads,
        num_kv_heads=file.count("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=decimal("llama.rope.freq_base", 10000.0),
        rms_norm_eps=decimal("llama.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in file.tensors,
        max_positions=file.count("llama.context_length"),
        eos_id=file.value("tokenizer.ggml.eos_token_id", 2),
    )


def _half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (head, pair, 2) to (head, 2, pair)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
