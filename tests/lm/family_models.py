"""Tiny random models of every family, made and written by transformers, which is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SIZES = {
    "vocab_size": 67,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

# name -> (name of the transformers configuration and model, options)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama3 angles, own head": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "tie_word_embeddings": False,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,  # frequencies of all three ranges
            },
        },
    ),
    "llama, linear angles": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            "tie_word_embeddings": True,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
        },
    ),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen2, windows": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"tie_word_embeddings": False, "head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 10,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


def make(case: str, **changes: Any):
    """The transformers model of a case, float32, every parameter random: biases not zero, norms not one."""
    import torch
    import transformers

    config_class, model_class, options = CASES[case]
    described = getattr(transformers, config_class)(**{**_SIZES, **options, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(described).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            mean = parameter.mean() if parameter.ndim == 1 else 0.0  # norms keep their one (or Gemma's zero)
            parameter.copy_(mean + scale * torch.randn(parameter.shape))
    return model


def write(directory: Path, case: str, **changes: Any):
    """Writes the model as transformers does and returns it."""
    model = make(case, **changes)
    model.save_pretrained(directory, max_shard_size="30KB")
    return model


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))
