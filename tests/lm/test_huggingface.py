"""Hugging Face directories: round trip, shards, bfloat16, and errors that name the place."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from fuzz import formats
from safetensors.numpy import load_file, save_file

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.huggingface import load_directory
from scaletot_jax.lm.safetensors_file import SafetensorsDirectory
from scaletot_jax.lm.save import save_directory


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path, tied):
    config = LMConfig(64, 32, 48, 2, 4, 2, 16, rope_theta=123.0, rms_norm_eps=1e-6, tie_embeddings=tied, eos_id=7)
    params = tiny.random_params(config)
    save_directory(tmp_path, config, params)
    read_config, read = load_directory(tmp_path)
    assert read_config == config
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_transformers_own_directory_is_read(tmp_path):
    """The oracle writes, we read: grouped heads, untied head, its own spelling of the configuration."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    described = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, eos_token_id=[3, 4],
        rope_parameters={"rope_type": "default", "rope_theta": 777.0},
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(described)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    config, params = load_directory(tmp_path)
    assert (config.rope_theta, config.eos_id, config.head_dim, config.tie_embeddings) == (777.0, 3, 4, False)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = model.state_dict()
    np.testing.assert_array_equal(params["layers"]["down"][1], state["model.layers.1.mlp.down_proj.weight"].numpy().T)
    np.testing.assert_array_equal(params["head"], state["lm_head.weight"].numpy().T)


@pytest.fixture
def saved(tmp_path):
    """A saved directory and a function that rewrites its tensors or configuration."""
    config = LMConfig(32, 16, 24, 2, 2, 1, 8)
    save_directory(tmp_path, config, tiny.random_params(config))

    def change(tensors=None, **options):
        file = tmp_path / "model.safetensors"
        content = load_file(file)
        if tensors is not None:
            tensors(content)
        save_file(content, file)
        described = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**described, **options}))
        return tmp_path

    return change


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": {**GOOD, "data_offsets": [0, 8, 8]}}, {"a": {**GOOD, "data_offsets": 8}}, {"a": {**GOOD, "dtype": ["F32"]}},
        {"a": {**GOOD, "shape": [True, 2]}}, {"a": {**GOOD, "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}},
        {"a": {**GOOD, "shape": [[2]]}}, {"a": [1]}, [1], b"[" * 3000, b'{"a": 1e999}',
    ],
)  # fmt: skip
def test_headers_of_any_other_form_are_refused(tmp_path, header):
    (tmp_path / "model.safetensors").write_bytes(formats.safetensors(header, bytes(8)))
    with pytest.raises(DataError, match=r"model\.safetensors"):
        SafetensorsDirectory(tmp_path)


def test_bfloat16_tensors_are_widened(saved, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    directory = saved(lambda content: content.update({name: content[name].astype(ml_dtypes.bfloat16)}))
    _, params = load_directory(directory)
    full = tiny.random_params(LMConfig(32, 16, 24, 2, 2, 1, 8))["layers"]["up"][1]
    np.testing.assert_array_equal(
        params["layers"]["up"][1], np.asarray(full).astype(ml_dtypes.bfloat16).astype(np.float32)
    )


def test_bad_directories_are_named(saved, tmp_path):
    name = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(DataError, match=r"no 'model\.layers\.0\.self_attn\.k_proj\.bias'"):
        load_directory(saved(model_type="qwen2"))
    with pytest.raises(DataError, match=r"layers\.0\.bias"):
        load_directory(saved(lambda c: c.update({"model.layers.0.bias": np.zeros(3, np.float32)}), model_type="llama"))
    with pytest.raises(DataError, match=r"k_proj\.weight[\s\S]*\[8, 4\]"):
        load_directory(saved(lambda content: content.update({name: np.zeros((8, 4), np.float32)})))
    with pytest.raises(DataError, match=r"no 'model\.layers\.1\.self_attn\.k_proj"):
        load_directory(saved(lambda content: content.pop(name)))
    with pytest.raises(DataError, match="attention_bias"):
        load_directory(saved(attention_bias=True))
    with pytest.raises(DataError, match="rope_parameters"):
        load_directory(saved(attention_bias=False, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}))
    with pytest.raises(DataError, match=r"lacks a key[\s\S]*factor"):
        load_directory(saved(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}))
    with pytest.raises(DataError, match="'phi3'; supported are gemma3, gemma3_text, llama, qwen2, qwen3"):
        load_directory(saved(model_type="phi3"))
    with pytest.raises(DataError, match=r"hidden_act[\s\S]*relu"):
        load_directory(saved(model_type="llama", hidden_act="relu"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    saved_config = json.loads((tmp_path / "config.json").read_text())
    restored = {**saved_config, "hidden_act": "silu", "rope_parameters": {"rope_type": "default"}}
    (tmp_path / "config.json").write_text(json.dumps(restored))
    with pytest.raises(DataError, match="truncated"):
        load_directory(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        load_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json"):
        load_directory(tmp_path)


def test_an_exit_map_has_no_place_in_the_format(tmp_path):
    config = LMConfig(32, 16, 24, 1, 2, 1, 8)
    params = {**tiny.random_params(config), "exit": {}}
    with pytest.raises(DataError, match="exit map"):
        save_directory(tmp_path, config, params)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_with_a_vision_tower_is_read(tmp_path, prefix):
    config = LMConfig(
        32, 16, 24, 2, 2, 1, 8, family="gemma3", windows=(4, 0), local_rope_theta=1e4, qk_norm=True, post_norms=True,
        norm_offset=1.0, activation="gelu_tanh", embed_scale=4.0, query_scale=0.25,
    )  # fmt: skip
    params = tiny.random_params(config)
    save_directory(tmp_path, config, params)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {prefix + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    vision = {
        "vision_tower.patch.weight": np.ones((2, 2), np.float32),
        "multi_modal_projector.w": np.ones(3, np.float32),
    }
    save_file({**tensors, **vision}, tmp_path / "model.safetensors")
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {}})
    )
    read_config, read = load_directory(tmp_path)
    assert read_config == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    save_file({**tensors, **vision, f"{prefix}layers.0.extra": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"gemma3 family[\s\S]*layers\.0\.extra"):
        load_directory(tmp_path)
