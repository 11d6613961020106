"""GGUF files of every family, converted from transformers' models by the rules of llama.cpp's converter."""

import jax
import numpy as np
import pytest
from lm import family_models
from lm.conftest import finish_gguf, interleave

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import RopeScaling
from scaletot_jax.lm.gguf import GGUFFile
from scaletot_jax.lm.gguf_model import load_gguf
from scaletot_jax.lm.huggingface import load_directory

gguf = pytest.importorskip("gguf")
pytest.importorskip("torch")
pytest.importorskip("transformers")

_NATIVE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]  # what the package quantises itself
_SCALES = {"Q4_K": [0, 2], "Q6_K": [208]}  # bytes of a block that hold a float16


def _llama3_factors(rope, head_dim):  # convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def _raw_blocks(shape, kind, rng):
    """Random bytes of a format that the package cannot write, with small scales."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), np.uint8)
    for at in _SCALES[kind]:
        scale = rng.uniform(0.001, 0.01, blocks.shape[:-1]).astype(np.float16)
        blocks[..., at : at + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def _convert(path, model, kind="F32", drop=(), add=()):
    """Writes a transformers model as GGUF and returns what each matrix became: name -> dequantised."""
    described, state = model.config, {name: t.numpy() for name, t in model.state_dict().items()}
    name = described.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, name)
    head_dim = getattr(described, "head_dim", None) or described.hidden_size // described.num_attention_heads
    writer.add_block_count(described.num_hidden_layers)
    writer.add_context_length(described.max_position_embeddings)
    writer.add_embedding_length(described.hidden_size)
    writer.add_feed_forward_length(described.intermediate_size)
    writer.add_head_count(described.num_attention_heads)
    writer.add_head_count_kv(described.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(described.rms_norm_eps)
    writer.add_eos_token_id(described.eos_token_id)
    rope, tensors = described.rope_parameters, {}
    if name == "gemma3":
        rope = rope["full_attention"]
        writer.add_sliding_window(described.sliding_window)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(rope, head_dim)
    architecture = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(architecture, described.num_hidden_layers)
    for theirs, tensor in state.items():
        if theirs == "lm_head.weight" and described.tie_word_embeddings:
            continue
        if name == "llama" and "q_proj" in theirs:
            tensor = interleave(tensor, described.num_attention_heads)
        if name == "llama" and "k_proj" in theirs:
            tensor = interleave(tensor, described.num_key_value_heads)
        if name == "gemma3" and theirs.endswith("norm.weight"):
            tensor = tensor + np.float32(1)
        tensors[names.get_name(theirs, (".weight", ".bias"))] = tensor
    written, rng = {}, np.random.default_rng(0)
    for ours, tensor in {**tensors, **dict(add)}.items():
        block = gguf.GGMLQuantizationType["F32" if tensor.ndim == 1 else kind]
        if ours in drop:
            continue
        raw = _raw_blocks(tensor.shape, kind, rng) if block.name in _SCALES else gguf.quants.quantize(tensor, block)
        writer.add_tensor(ours, np.ascontiguousarray(raw), raw_dtype=block)
        written[ours] = gguf.quants.dequantize(raw, block).reshape(tensor.shape)
    finish_gguf(writer)
    return written


_LAYERS = {"num_hidden_layers": 7, "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]}
_GEMMA = {  # what GGUF has no key for: the pattern, the local angles, the scale of the queries
    **_LAYERS,
    "query_pre_attn_scalar": 16,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}


@pytest.mark.parametrize("case", [case for case in family_models.CASES if "windows" not in case])
def test_every_family_equals_its_directory(case, tmp_path):
    changes = _GEMMA if case == "gemma3" else {}
    if case.startswith("llama3"):  # the converter writes what the rule gives; original length and factors are Llama 3's
        options = family_models.CASES[case][2]["rope_parameters"]
        changes = {"rope_parameters": {**options, "rope_theta": 5e5, "original_max_position_embeddings": 8192}}
    model = family_models.write(tmp_path / "model", case, **changes)
    _convert(tmp_path / "model.gguf", model)
    expected_config, expected = load_directory(tmp_path / "model")
    config, params = load_gguf(tmp_path / "model.gguf")
    assert config == expected_config
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    exact = config.norm_offset == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=0 if exact else 1e-7), params, expected)


def test_factors_by_no_known_rule_are_kept(tmp_path):
    factors = np.array([1.0, 1.5, 2.0, 7.0], np.float32)
    model = family_models.make("llama, linear angles", rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    _convert(tmp_path / "model.gguf", model, add={"rope_freqs.weight": factors}.items())
    config, _ = load_gguf(tmp_path / "model.gguf")
    assert config.rope_scaling == RopeScaling("factors", factors=(1.0, 1.5, 2.0, 7.0))
    _convert(tmp_path / "short.gguf", model, add={"rope_freqs.weight": factors[:3]}.items())
    with pytest.raises(DataError, match=r"rope_freqs\.weight[\s\S]*\[3\] instead of \[4\]"):
        load_gguf(tmp_path / "short.gguf")


@pytest.mark.parametrize("kind", [*_NATIVE, *_SCALES])
def test_every_format_is_dequantised_as_the_package_does(kind, tmp_path):
    """Rows of 256: whole blocks of every format."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = family_models.make("qwen2", num_hidden_layers=1, vocab_size=8, **sizes)
    written = _convert(tmp_path / "model.gguf", model, kind)
    _, params = load_gguf(tmp_path / "model.gguf")
    np.testing.assert_array_equal(params["embed"], written["token_embd.weight"])
    for leaf, name in (("q", "attn_q"), ("o", "attn_output"), ("gate", "ffn_gate"), ("down", "ffn_down")):
        np.testing.assert_array_equal(params["layers"][leaf][0], written[f"blk.0.{name}.weight"].T)
    np.testing.assert_array_equal(params["layers"]["q_bias"][0], written["blk.0.attn_q.bias"])
    assert np.ptp(written["blk.0.ffn_down.weight"]) > 0


def test_what_is_wrong_is_named(tmp_path):
    model = family_models.make("gemma3", **_GEMMA)
    path = tmp_path / "model.gguf"
    _convert(path, model, drop=("blk.3.post_ffw_norm.weight",))
    with pytest.raises(DataError, match=r"blk\.3\.post_ffw_norm\.weight"):
        load_gguf(path)
    _convert(path, model, add={"blk.0.attn_q.bias": np.zeros(64, np.float32)}.items())
    with pytest.raises(DataError, match=r"gemma3 family[\s\S]*blk\.0\.attn_q\.bias"):
        load_gguf(path)
    _convert(path, model)
    file = GGUFFile(path)
    file.metadata["gemma3.rope.scaling.type"] = "yarn"
    with pytest.raises(DataError, match=r"rope\.scaling\.type[\s\S]*'yarn'"):
        load_gguf(file)
    file.metadata["general.architecture"] = "gemma2"
    with pytest.raises(DataError, match=r"'gemma2'; supported are llama, qwen2, qwen3, gemma3"):
        load_gguf(file)


def test_windows_may_be_listed(tmp_path):
    _convert(tmp_path / "model.gguf", family_models.make("gemma3", **_GEMMA))
    file = GGUFFile(tmp_path / "model.gguf")
    file.metadata["gemma3.attention.sliding_window_pattern"] = [True, False] * 3 + [True]
    assert load_gguf(file)[0].windows == (5, 0, 5, 0, 5, 0, 5)
    file.metadata["gemma3.attention.sliding_window_pattern"] = [True]
    with pytest.raises(DataError, match="1 entries for 7 layers"):
        load_gguf(file)
