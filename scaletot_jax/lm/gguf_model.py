"""Models in GGUF files: what their metadata says and how their tensors differ from Hugging Face's.

llama.cpp (``convert_hf_to_gguf.py``) stores the rows of Llama's W_q and W_k as interleaved rotary pairs, Gemma's norms as
1 + w, and Llama 3's rotary scaling as a tensor of divisors; all three are undone here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig, RopeScaling
from scaletot_jax.lm.families import FAMILIES, layer_leaves
from scaletot_jax.lm.gguf import GGUFFile
from scaletot_jax.lm.placement import Item, place
from scaletot_jax.lm.rope import scaling_factors
from scaletot_jax.parallel.sharding import ShardingRules

_ROPE_FACTORS = "rope_freqs.weight"
_GEMMA_27B = 62  # layers of the one Gemma 3 whose queries are not scaled by its head width (llama.cpp llama-model.cpp)


def load_gguf(
    source: str | Path | GGUFFile,
    *,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    dtype: Any = jnp.float32,
    vectors: Any = None,
) -> tuple[LMConfig, dict[str, Any]]:
    """Reads a model of the ``llama``, ``qwen2``, ``qwen3`` or ``gemma3`` architecture, a tensor at a time.

    Args:
      source: a path, or a file already open.
      mesh, rules, dtype, vectors: see ``lm.placement.place``.

    Returns:
      The configuration and the parameters (layout: ``lm.model.init_params``) on the devices.

    Raises:
      DataError: another architecture or an unsupported option of it, or a missing, truncated, misshapen or unknown
        tensor.
    """
    file = source if isinstance(source, GGUFFile) else GGUFFile(source)
    config = _config(file)
    family = FAMILIES[config.family]

    def change(leaf: str) -> Callable[[np.ndarray], np.ndarray] | None:
        if family.interleaved and leaf in ("q", "k"):
            heads = config.num_heads if leaf == "q" else config.num_kv_heads
            return lambda rows: _half_split(rows, heads)
        if config.norm_offset and leaf.endswith("norm"):
            return lambda weight: weight - np.float32(config.norm_offset)
        return None

    width, table = config.hidden_size, (config.vocab_size, config.hidden_size)
    plan: dict[str, Any] = {
        "embed": Item("token_embd.weight", table, flip=False),
        "layers": {
            leaf: [Item(f"blk.{index}.{names.gguf}", names.shape, change(leaf)) for index in range(config.num_layers)]
            for leaf, names in layer_leaves(config).items()
        },
        "final_norm": Item("output_norm.weight", (width,), change("final_norm")),
    }
    if not config.tie_embeddings:
        plan["head"] = Item("output.weight", table[::-1])
    read_already = {_ROPE_FACTORS} if config.rope_scaling else set()
    return config, place(
        file,
        config,
        plan,
        ignored=lambda name: name in read_already,
        mesh=mesh,
        rules=rules,
        dtype=dtype,
        vectors=vectors,
    )


def _config(file: GGUFFile) -> LMConfig:
    name = file.value("general.architecture")
    if name not in FAMILIES:
        raise DataError(
            "the weights are of another architecture",
            where=f"{file.path}, general.architecture",
            why=f"'{name}'; supported are {', '.join(FAMILIES)}",
        )
    heads, width = file.count(f"{name}.attention.head_count"), file.count(f"{name}.embedding_length")
    layers = file.count(f"{name}.block_count")
    head_dim = file.count(f"{name}.attention.key_length", width // heads)
    if file.count(f"{name}.rope.dimension_count", head_dim) != head_dim:
        raise DataError("partial rotary embedding is not supported", where=f"{file.path}, {name}.rope.dimension_count")
    for key in ("final_logit_softcapping", "attn_logit_softcapping"):
        if file.metadata.get(f"{name}.{key}"):
            raise DataError("an option of a model is not supported", where=f"{file.path}, {name}.{key}")
    gemma = name == "gemma3"
    theta = _decimal(file, f"{name}.rope.freq_base", 1_000_000.0 if gemma else 10000.0)
    per_head = width // heads if gemma and layers == _GEMMA_27B else head_dim
    return LMConfig(
        vocab_size=file.shape("token_embd.weight")[0],
        hidden_size=width,
        intermediate_size=file.count(f"{name}.feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=file.count(f"{name}.attention.head_count_kv", heads),
        head_dim=head_dim,
        rope_theta=theta,
        rms_norm_eps=_decimal(file, f"{name}.attention.layer_norm_rms_epsilon"),
        tie_embeddings="output.weight" not in file.tensors,
        max_positions=file.count(f"{name}.context_length"),
        eos_id=file.value("tokenizer.ggml.eos_token_id", 2),
        family=name,
        rope_scaling=_scaling(file, name, theta, head_dim),
        windows=_windows(file, name, layers),
        local_rope_theta=_decimal(file, f"{name}.rope.freq_base_swa", 10000.0) if gemma else None,
        qkv_bias=name == "qwen2",
        qk_norm=name in ("qwen3", "gemma3"),
        post_norms=gemma,
        norm_offset=1.0 if gemma else 0.0,
        activation="gelu_tanh" if gemma else "silu",
        embed_scale=width**0.5 if gemma else 1.0,
        query_scale=float(per_head) ** -0.5 if gemma else None,
    )


def _windows(file: GGUFFile, name: str, layers: int) -> tuple[int, ...]:
    """Gemma 3: five layers with a window, then one without. llama.cpp uses windows in no other of the families."""
    if name != "gemma3":
        return ()
    window, pattern = file.count(f"{name}.attention.sliding_window"), 6
    stored = file.metadata.get(f"{name}.attention.sliding_window_pattern", pattern)
    if isinstance(stored, list):
        if len(stored) != layers:
            raise DataError(
                "the window pattern does not fit the layers of a model",
                where=f"{file.path}, {name}.attention.sliding_window_pattern",
                why=f"{len(stored)} entries for {layers} layers",
            )
        return tuple(window if local else 0 for local in stored)
    pattern = file.count(f"{name}.attention.sliding_window_pattern", pattern)
    return tuple(window if (index + 1) % pattern else 0 for index in range(layers))


def _scaling(file: GGUFFile, name: str, theta: float, head_dim: int) -> RopeScaling | None:
    kind = file.metadata.get(f"{name}.rope.scaling.type", "none")
    if kind == "linear":
        factor = _decimal(file, f"{name}.rope.scaling.factor")
        return None if factor == 1.0 else RopeScaling("linear", factor)
    if kind != "none":
        raise DataError(
            "this rotary scaling is not supported",
            where=f"{file.path}, {name}.rope.scaling.type",
            why=f"'{kind}'; 'linear' and the factors of Llama 3 are",
        )
    if _ROPE_FACTORS not in file.tensors:
        return None
    if file.shape(_ROPE_FACTORS) != (head_dim // 2,):
        raise DataError(
            "a tensor has an unexpected shape",
            where=f"{file.path}, tensor '{_ROPE_FACTORS}'",
            why=f"{list(file.shape(_ROPE_FACTORS))} instead of {[head_dim // 2]}",
        )
    factors = np.asarray(file.read(_ROPE_FACTORS), np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise DataError("rotary factors must be positive", where=f"{file.path}, tensor '{_ROPE_FACTORS}'")
    named = RopeScaling("llama3", float(factors.max()))  # the only rule that the converter writes as a tensor
    if np.allclose(scaling_factors(named, theta, head_dim), factors, rtol=1e-5):
        return named
    return RopeScaling("factors", factors=tuple(factors.tolist()))


def _decimal(file: GGUFFile, key: str, default: float | None = None) -> float:
    """Stored as float32; the shortest decimal that rounds to the same float32 is the number that was meant."""
    number = file.value(key, default)
    if not isinstance(number, float) or not 0.0 < number < math.inf:
        raise DataError("a GGUF file has an impossible constant", where=f"{file.path}, {key}", why=f"{number!r}")
    return float(str(np.float32(number)))


def _half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (head, pair, 2) to (head, 2, pair)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
