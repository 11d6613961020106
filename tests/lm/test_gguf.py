"""GGUF files: read back what the reference writer wrote, and name what is wrong with a bad one."""

import contextlib
import dataclasses
import struct

import jax
import numpy as np
import pytest
import tiny
from fuzz import formats
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.gguf import GGUFFile
from scaletot_jax.lm.gguf_model import load_gguf

CONFIG = LMConfig(64, 32, 64, 2, 4, 2, 16, eos_id=5)  # rows of 32 or 64: whole quantisation blocks


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(np.asarray, tiny.random_params(CONFIG))


@pytest.mark.parametrize("tied", [True, False])
def test_float_file_round_trips_exactly(params, write_gguf, tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    params = params if tied else {**params, "head": np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)}
    read_config, read = load_gguf(write_gguf(config, params))
    assert read_config == config
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize("kind, error", [("Q8_0", 0.01), ("Q4_1", 0.1), ("F16", 1e-3), ("BF16", 0.01)])
def test_block_formats_are_dequantised(params, write_gguf, kind, error):
    _, read = load_gguf(write_gguf(CONFIG, params, kind=kind))
    for leaf in jax.tree.leaves(read):
        assert leaf.dtype == np.float32
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=error * float(np.abs(b).max())), read, params)
    assert not np.array_equal(read["embed"], params["embed"])


def test_header_equals_the_reference_reader(params, write_gguf):
    gguf = pytest.importorskip("gguf")
    path = write_gguf(CONFIG, params, kind="Q8_0")
    ours, reference = GGUFFile(path), gguf.GGUFReader(path)
    assert ours.metadata == {
        key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")
    }
    assert {name: (t.shape, t.offset, t.size) for name, t in ours.tensors.items()} == {
        t.name: (tuple(int(n) for n in t.shape[::-1]), t.data_offset, t.n_bytes) for t in reference.tensors
    }


def test_missing_unknown_and_misshapen_tensors_are_named(params, write_gguf):
    for name in ("blk.1.ffn_up.weight", "token_embd.weight", "output_norm.weight"):
        with pytest.raises(DataError, match=name):
            load_gguf(write_gguf(CONFIG, params, leave_out=(name,), metadata=()))
    with pytest.raises(DataError, match=r"blk\.0\.attn_q\.bias"):
        load_gguf(write_gguf(CONFIG, params, extra={"blk.0.attn_q.bias": np.zeros(64, np.float32)}))
    wrong = {**params, "final_norm": np.ones(31, np.float32)}
    with pytest.raises(DataError, match=r"output_norm\.weight[\s\S]*\[31\] instead of \[32\]"):
        load_gguf(write_gguf(CONFIG, wrong))


def test_other_architectures_and_rotary_scaling_are_refused(params, write_gguf):
    with pytest.raises(DataError, match="'gemma2'; supported are"):
        load_gguf(write_gguf(CONFIG, params, architecture="gemma2"))
    with pytest.raises(DataError, match="rotary scaling"):
        load_gguf(write_gguf(CONFIG, params, metadata=[("llama.rope.scaling.type", "yarn")]))


def test_truncated_tensor_is_named(params, write_gguf, tmp_path):
    path = write_gguf(CONFIG, params)
    last = max(GGUFFile(path).tensors.items(), key=lambda item: item[1].offset)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[: last[1].offset + last[1].size - 1])
    with pytest.raises(DataError, match="truncated") as caught:
        load_gguf(cut)
    assert last[0] in str(caught.value) and str(cut) in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "tensors", "why"),
    [
        ({"general.alignment": 0}, {}, "general.alignment is 0"),
        ({"general.alignment": 0.5}, {}, "general.alignment is 0.5"),
        ({}, {"a": ((0, 2**62, 2**62), 0, b"")}, "tensor 'a' has no values"),
    ],
)
def test_headers_that_say_the_impossible_are_refused(tmp_path, metadata, tensors, why):
    path = tmp_path / "model.gguf"
    path.write_bytes(formats.gguf(metadata, tensors))
    with pytest.raises(DataError, match=why):
        GGUFFile(path)


def test_arrays_in_arrays_without_end_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    whole = formats.gguf({"deep": "text"}, {})
    path.write_bytes(whole[: whole.index(b"deep") + 4] + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3000)
    with pytest.raises(DataError, match="RecursionError"):
        GGUFFile(path)


def test_every_truncation_and_damage_is_a_data_error(params, write_gguf, tmp_path):
    whole = write_gguf(CONFIG, params).read_bytes()
    header = GGUFFile(write_gguf(CONFIG, params)).tensors["token_embd.weight"].offset
    path = tmp_path / "damaged.gguf"

    @given(st.integers(0, header + 100))
    def cut(length):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            load_gguf(path)

    @given(st.integers(0, header - 1), st.integers(1, 255))
    def flip(place, bits):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
        with contextlib.suppress(DataError):  # anything else fails; many bytes are free text or padding
            load_gguf(path)

    cut()
    flip()
    with pytest.raises(DataError, match="opened"):
        load_gguf(tmp_path / "absent.gguf")
    path.write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(DataError, match="not a GGUF"):
        load_gguf(path)
