"""Small good inputs of each format, written by hand: what is damaged afterwards must be cheap to read."""

from __future__ import annotations

import json
import struct
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_TYPES = {bool: 7, int: 4, float: 6, str: 8, list: 9}


def gguf(metadata: dict[str, Any], tensors: dict[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """A GGUF file, version 3: tensors are name → (shape, fastest axis first; ggml type; data)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + struct.pack("<I", _TYPES[type(value)]) + _value(value)
    body = b""
    for name, (shape, kind, data) in tensors.items():
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(body))
        body += data + bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + body


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        kind = _TYPES[type(value[0])] if value else 4
        return struct.pack("<IQ", kind, len(value)) + b"".join(map(_value, value))
    return struct.pack({bool: "<?", int: "<I", float: "<f"}[type(value)], value)


GGUF = gguf(
    {
        "general.architecture": "llama", "general.alignment": 32, "llama.block_count": 1, "llama.rope.freq_base": 1e4,
        "tokenizer.ggml.tokens": ["a", "b", "é"], "tokenizer.ggml.scores": [0.5, 1.5], "nested": [[1, 2], [3]], "flag": True,
    },
    {
        "token_embd.weight": ((4, 3), 0, struct.pack("<12f", *range(12))),
        "blk.0.attn_q.weight": ((32, 2), 8, bytes(2 * 34)),  # Q8_0
        "output_norm.weight": ((4,), 1, bytes(8)),  # F16
    },
)  # fmt: skip
GGUF_WORDS = [
    struct.pack("<IQ", 9, 1) * 3, struct.pack("<IQ", 9, 1) * 2000, struct.pack("<IQ", 8, 2**60), struct.pack("<IQ", 4, 2**61),
    b"general.alignment", struct.pack("<I", 8), struct.pack("<Q", 2**63), bytes(8), b"\xff" * 8,
]  # fmt: skip


def safetensors(header: Any, data: bytes) -> bytes:
    """``header`` is JSON-able, or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSORS = {
    "__metadata__": {"format": "pt"},
    "model.embed": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
    "model.norm": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "model.empty": {"dtype": "F16", "shape": [0, 5], "data_offsets": [32, 32]},
}
TENSOR_DATA = bytes(range(32))
JSON_WORDS = [
    b"[" * 3000,
    b'{"a":' * 3000,
    b"9" * 5000,
    b"NaN",
    b"1e999",
    b'"\\ud800"',
    b"null",
    b"{}",
    b"[]",
    b",",
    b":",
]
YAML_WORDS = [
    b"&a ", b"*a", b"<<: *a", b"[", b"]", b"{", b"}", b": ", b"\n- ", b"? ", b"!!int x", b"!!timestamp x", b"!!bool x",
    b"!!float x", b"!!binary x", b"!!set {a}", b"!!omap [a: 1]", b"!!python/object:os.system x", b"2024-99-99", b"0x_", b"0b_",
    b".nan", b"1e999", b"9" * 5000, b"[" * 600, b"- " * 600, b"{a: " * 600, b"|\n", b">-\n", b"%YAML 9", b"\x00", b"\xe2\x80\xa8",
    b"&a [*a]", b"a: &a [x,x]\nb: &b [*a,*a]\n",
]  # fmt: skip


def stream(table: pa.Table) -> bytes:
    """An Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=["city"])
    return sink.getvalue().to_pybytes()
