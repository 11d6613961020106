"""The families of language models: what their files call themselves and their tensors.

| family | ``model_type`` (HF) | GGUF architecture | beside a Llama block |
|---|---|---|---|
| llama | llama | llama | rotary scaling "linear", "llama3" |
| qwen2 | qwen2 | qwen2 | biases of q, k, v; windows where the file says so |
| qwen3 | qwen3 | qwen3 | norms of q and k |
| gemma3 | gemma3_text, gemma3 | gemma3 | norms of q, k and after each half, 1 + w, gelu, √D, windows |

Names: transformers ``models/*/modeling_*.py``; llama.cpp ``gguf-py/gguf/tensor_mapping.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from scaletot_jax.lm.config import LMConfig

_COMMON = {
    "attn_norm": ("input_layernorm.weight", "attn_norm.weight"),
    "q": ("self_attn.q_proj.weight", "attn_q.weight"),
    "k": ("self_attn.k_proj.weight", "attn_k.weight"),
    "v": ("self_attn.v_proj.weight", "attn_v.weight"),
    "o": ("self_attn.o_proj.weight", "attn_output.weight"),
    "mlp_norm": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "gate": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "up": ("mlp.up_proj.weight", "ffn_up.weight"),
    "down": ("mlp.down_proj.weight", "ffn_down.weight"),
    "q_bias": ("self_attn.q_proj.bias", "attn_q.bias"),
    "k_bias": ("self_attn.k_proj.bias", "attn_k.bias"),
    "v_bias": ("self_attn.v_proj.bias", "attn_v.bias"),
    "q_norm": ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    "k_norm": ("self_attn.k_norm.weight", "attn_k_norm.weight"),
}
_GEMMA = {  # its name for the norm after attention is Llama's name for the norm before the feed-forward layer
    "post_attn_norm": ("post_attention_layernorm.weight", "post_attention_norm.weight"),
    "mlp_norm": ("pre_feedforward_layernorm.weight", "ffn_norm.weight"),
    "post_mlp_norm": ("post_feedforward_layernorm.weight", "post_ffw_norm.weight"),
}
_QWEN = {"sliding_window": 4096, "max_window_layers": 28}


class Family(NamedTuple):
    """One row of the table above.

    Attributes:
      model_type: what :mod:`scaletot_jax.lm.save` writes; ``also`` lists other types that are read.
      model_class: the class of transformers that runs it.
      names: our leaf of a layer -> (suffix in safetensors, suffix in GGUF).
      interleaved: whether GGUF stores the rows of W_q and W_k as interleaved rotary pairs.
      assumed: values of ``config.json`` that its writer leaves out where they are these.
    """

    name: str
    model_type: str
    model_class: str
    also: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, str]] = MappingProxyType(_COMMON)
    interleaved: bool = False
    assumed: Mapping[str, Any] = MappingProxyType({})


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("llama", "llama", "LlamaForCausalLM", interleaved=True),
        Family("qwen2", "qwen2", "Qwen2ForCausalLM", assumed=MappingProxyType(_QWEN)),
        Family("qwen3", "qwen3", "Qwen3ForCausalLM", assumed=MappingProxyType({**_QWEN, "head_dim": 128})),
        Family(
            "gemma3",
            "gemma3_text",
            "Gemma3ForCausalLM",
            also=("gemma3",),  # with a vision tower, which is left where it is
            names=MappingProxyType({**_COMMON, **_GEMMA}),
            assumed=MappingProxyType(
                {
                    "vocab_size": 262_208,
                    "hidden_size": 2304,
                    "intermediate_size": 9216,
                    "num_hidden_layers": 26,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 4,
                    "head_dim": 256,
                    "hidden_activation": "gelu_pytorch_tanh",
                    "max_position_embeddings": 131_072,
                    "tie_word_embeddings": True,
                    "query_pre_attn_scalar": 256,
                    "sliding_window": 4096,
                    "sliding_window_pattern": 6,
                    "rope_theta": 1_000_000.0,
                    "rope_local_base_freq": 10_000.0,
                    "eos_token_id": 1,
                }
            ),
        ),
    )
}


class LayerLeaf(NamedTuple):
    """One parameter of a layer: its suffixes in the two formats, and its shape as ours (inputs first)."""

    safetensors: str
    gguf: str
    shape: tuple[int, ...]


def layer_leaves(config: LMConfig) -> dict[str, LayerLeaf]:
    """Our leaf -> how files name it and how large it is, for every leaf that a layer of this model has."""
    names = FAMILIES[config.family].names
    shapes = {**{name: (size,) for name, size in config.vectors.items()}, **config.projections}
    return {leaf: LayerLeaf(*names[leaf], shape) for leaf, shape in shapes.items()}
