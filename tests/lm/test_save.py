"""Writing Hugging Face directories: exact, sharded, merged, with a tokenizer, and whole or not at all."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from scaletot_jax import files
from scaletot_jax.errors import DataError, ResourceError
from scaletot_jax.lm import lora, save
from scaletot_jax.lm.config import LMConfig, RopeScaling
from scaletot_jax.lm.huggingface import load_directory, parse_config
from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.model import unstack_layers
from scaletot_jax.lm.save import describe, save_directory

CONFIG = LMConfig(64, 32, 48, 2, 4, 2, 16, rms_norm_eps=1e-6, tie_embeddings=False, eos_id=7)
QWEN = dataclasses.replace(CONFIG, family="qwen2", qkv_bias=True, windows=(0, 9))


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(CONFIG)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [CONFIG, QWEN], ids=["llama", "qwen2"])
def test_types_and_shards_round_trip_exactly(tmp_path, dtype, config):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), tiny.random_params(config))
    save_directory(tmp_path, config, params, max_shard_bytes=10_000)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    assert len(list(tmp_path.glob("model-0000*-of-*.safetensors"))) > 2
    again_config, again = load_directory(tmp_path, dtype=dtype)
    assert again_config == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_the_reference_reader_reads_every_tensor(tmp_path, params):
    from safetensors.numpy import load_file

    save_directory(tmp_path, CONFIG, unstack_layers(params))
    tensors = load_file(tmp_path / "model.safetensors")
    assert len(tensors) == 2 * 9 + 3
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.down_proj.weight"], params["layers"]["down"][1].T)
    np.testing.assert_array_equal(tensors["lm_head.weight"], params["head"].T)


def test_an_adapter_is_merged(tmp_path, params):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: lora.init(CONFIG, jax.random.key(0), 2))
    adapter = {name: jnp.float32(rng.normal(size=leaf.shape)) for name, leaf in shapes.items()}
    save_directory(tmp_path, CONFIG, params, lora=adapter, lora_scale=0.5)
    expected = lora.merge(params, adapter, 0.5)
    _, merged = load_directory(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), merged, expected)
    assert np.abs(merged["layers"]["q"] - params["layers"]["q"]).max() > 0.1


def test_the_tokenizer_comes_along(tiny_lm, tmp_path):
    source = tiny.write_tiny_lm(tmp_path / "source")
    described = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**described, "bos_token_id": 1, "eos_token_id": [2, 0]}))
    for name, tokenizer in (("copied", source), ("written", tiny_lm.tokenizer)):
        save_directory(tmp_path / name, tiny_lm.config, tiny_lm.params, tokenizer=tokenizer)
        again = load_model(tmp_path / name)
        assert again.tokenizer.fingerprint == tiny_lm.tokenizer.fingerprint
        assert again.config == tiny_lm.config
    assert (tmp_path / "copied" / "tokenizer_config.json").read_bytes() == (
        source / "tokenizer_config.json"
    ).read_bytes()
    written = json.loads((tmp_path / "copied" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"]) == (1, [2, 0])
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "written")
    assert theirs.encode("Days: few\n") == tiny_lm.tokenizer.encode("Days: few\n")
    assert theirs.eos_token_id == tiny_lm.tokenizer.eos_id


def test_what_stood_there_before_is_replaced(tmp_path, params):
    save_directory(tmp_path, CONFIG, params, max_shard_bytes=10_000)
    (tmp_path / "notes.safetensors").touch()
    small = LMConfig(32, 16, 24, 1, 2, 1, 8)
    save_directory(tmp_path, small, tiny.random_params(small))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.safetensors"]
    assert load_directory(tmp_path)[0] == small


@pytest.mark.parametrize("broken", range(8))
def test_a_kill_leaves_the_old_model_or_none(tmp_path, params, monkeypatch, broken):
    """The process dies at the n-th write or rename: what loads afterwards is the old model or the new one, whole."""
    small = LMConfig(32, 16, 24, 1, 2, 1, 8)
    save_directory(tmp_path, small, tiny.random_params(small))
    steps = iter(range(100))

    class Killed(BaseException):
        pass

    def counted(function):
        def run(*arguments):
            if next(steps) == broken:
                raise Killed
            return function(*arguments)

        return run

    monkeypatch.setattr(save, "_write_safetensors", counted(save._write_safetensors))
    monkeypatch.setattr(save, "_write_json", counted(save._write_json))
    monkeypatch.setattr(files.os, "replace", counted(files.os.replace))
    with pytest.raises(Killed):
        save_directory(tmp_path, CONFIG, params, max_shard_bytes=30_000)
    try:
        config, found = load_directory(tmp_path)
    except DataError as error:
        assert "config.json" in str(error)
        assert not (tmp_path / "config.json").exists()
        return
    assert config == small
    jax.tree.map(np.testing.assert_array_equal, found, tiny.random_params(small))


def test_a_full_disk_says_so_and_keeps_the_old_model(tmp_path, params, monkeypatch):
    save_directory(tmp_path, CONFIG, params)

    def full(file, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "_write_safetensors", full)
    with pytest.raises(ResourceError, match="disk is full"):
        save_directory(tmp_path, CONFIG, jax.tree.map(jnp.zeros_like, params))
    jax.tree.map(np.testing.assert_array_equal, load_directory(tmp_path)[1], params)
    assert not list(tmp_path.glob(".*"))


def test_what_the_format_cannot_say_is_refused():
    for change, name in (
        ({"windows": (4, 0)}, "windows"),
        ({"family": "qwen2", "qkv_bias": True, "windows": (4, 5)}, "windows"),
        ({"qk_norm": True}, "qk_norm"),
        ({"rope_scaling": RopeScaling("factors", factors=(1.0,) * 8)}, "factors"),
        ({"embed_scale": 2.0}, "embed_scale"),
    ):
        with pytest.raises(DataError, match=name):
            describe(dataclasses.replace(CONFIG, **change))


def test_older_spellings_of_a_configuration():
    """As the publishers' own files have it: rotary options at the top, no layer types, defaults left out."""
    gemma = {
        "model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512,
        "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "max_position_embeddings": 32768, "eos_token_id": 1,
    }  # fmt: skip
    config = parse_config(gemma, "here")
    assert config.windows == ((512,) * 5 + (0,)) * 3
    assert (config.rope_theta, config.local_rope_theta, config.tie_embeddings) == (1e6, 1e4, True)
    assert config.rope_scaling == RopeScaling("linear", 8.0) and config.query_scale == 1 / 16
    # A model with a vision tower keeps its text options apart and leaves out what is the default of its class.
    large = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    nested = parse_config({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **large}}, "here")
    assert (nested.vocab_size, nested.num_heads, nested.head_dim, nested.num_layers) == (262208, 8, 256, 34)
    llama = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 8,
        "num_attention_heads": 4, "rope_theta": 5e5, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }  # fmt: skip
    config = parse_config(llama, "here")
    assert config.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192) and config.rope_theta == 5e5
    qwen = {**llama, "model_type": "qwen2", "rope_scaling": None, "sliding_window": 32768, "use_sliding_window": False}
    assert parse_config(qwen, "here").windows == () and parse_config(qwen, "here").qkv_bias
    for bad in ({"num_attention_heads": "4"}, {"rope_theta": "x"}, {"layer_types": 3, "use_sliding_window": True}):
        with pytest.raises(DataError):
            parse_config({**qwen, **bad}, "here")
