"""A Hugging Face directory, read without torch: ``config.json`` and safetensors of every family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from jax.sharding import Mesh

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig, RopeScaling
from scaletot_jax.lm.families import FAMILIES, Family, layer_leaves
from scaletot_jax.lm.placement import Item, place
from scaletot_jax.lm.safetensors_file import SafetensorsDirectory, read_description
from scaletot_jax.parallel.sharding import ShardingRules

_ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# A model with a vision tower: the text model's tensors carry one of these in front, the others are another model's.
_TEXT_PARTS = ("model.language_model.", "language_model.model.")
_OTHER_PARTS = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def load_directory(
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    dtype: Any = jnp.float32,
    vectors: Any = None,
) -> tuple[LMConfig, dict[str, Any]]:
    """Reads a model from ``config.json`` and safetensors (one file, or shards with an index), a tensor at a time.

    Args:
      path: the directory.
      mesh, rules, dtype, vectors: see ``lm.placement.place``.

    Returns:
      The configuration and the parameters (layout: ``lm.model.init_params``) on the devices.

    Raises:
      DataError: another architecture or an unsupported option of it, or a missing, truncated, misshapen or unknown
        tensor.
    """
    directory = Path(path)
    file = directory / "config.json"
    config = parse_config(read_description(file), str(file))
    tensors = SafetensorsDirectory(directory)
    body = next((part for part in _TEXT_PARTS if f"{part}embed_tokens.weight" in tensors.names()), "model.")
    head = "language_model.lm_head.weight" if body == "language_model.model." else "lm_head.weight"
    width, table = config.hidden_size, (config.vocab_size, config.hidden_size)
    plan: dict[str, Any] = {
        "embed": Item(f"{body}embed_tokens.weight", table, flip=False),
        "layers": {
            leaf: [Item(f"{body}layers.{index}.{names.safetensors}", names.shape) for index in range(config.num_layers)]
            for leaf, names in layer_leaves(config).items()
        },
        "final_norm": Item(f"{body}norm.weight", (width,)),
    }
    if not config.tie_embeddings:
        plan["head"] = Item(head, table[::-1])

    def ignored(name: str) -> bool:
        if name.endswith("rotary_emb.inv_freq") or (config.tie_embeddings and name == head):
            return True  # some writers store the tied head a second time
        return body in _TEXT_PARTS and name.startswith(_OTHER_PARTS)

    return config, place(tensors, config, plan, ignored=ignored, mesh=mesh, rules=rules, dtype=dtype, vectors=vectors)


def parse_config(raw: Mapping[str, Any], where: str) -> LMConfig:
    """The content of a ``config.json`` as an LMConfig.

    Args:
      where: the file, for messages.

    Raises:
      DataError: no known family, a missing key, or something that is not supported.
    """
    kind = raw.get("model_type")
    family = next((f for f in FAMILIES.values() if kind == f.model_type or kind in f.also), None)
    if family is None:
        known = sorted(name for f in FAMILIES.values() for name in (f.model_type, *f.also))
        raise DataError(
            "the weights are of another architecture",
            where=f"{where}, model_type",
            why=f"{kind!r}; supported are {', '.join(known)}",
        )
    text = raw.get("text_config")
    if isinstance(text, Mapping):  # with a vision tower: the text model's options stand apart
        raw = {**raw, **text}
    values = {**family.assumed, **{key: value for key, value in raw.items() if value is not None}}
    try:
        return _config(family, values, where)
    except KeyError as error:
        raise DataError("a model configuration lacks a key", where=f"{where}, {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError("a model configuration is damaged", where=where, why=str(error)) from error


def _config(family: Family, raw: Mapping[str, Any], file: str) -> LMConfig:
    activation = raw.get("hidden_activation", raw.get("hidden_act", "silu"))
    refused = {
        "attention_bias": raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        "hidden_act": activation not in _ACTIVATIONS,
        "final_logit_softcapping": raw.get("final_logit_softcapping"),
        "attn_logit_softcapping": raw.get("attn_logit_softcapping"),
        "use_bidirectional_attention": raw.get("use_bidirectional_attention"),
        "quantization_config": raw.get("quantization_config"),
    }
    for name, present in refused.items():
        if present:
            why = f"{raw.get(name)!r} in a model of the {family.name} family"
            raise DataError("an option of a model is not supported", where=f"{file}, {name}", why=why)
    heads, width, layers = raw["num_attention_heads"], raw["hidden_size"], raw["num_hidden_layers"]
    gemma = family.name == "gemma3"
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    near: Mapping[str, Any] = {}
    if gemma and ("full_attention" in rope or "sliding_attention" in rope):
        rope, near = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    if _scaling(near, file) is not None:
        raise DataError("rotary scaling of local layers is not supported", where=f"{file}, rope_parameters")
    eos = raw.get("eos_token_id", 2)
    if isinstance(eos, list):
        eos = eos[0] if eos else None
    return LMConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=width,
        intermediate_size=raw["intermediate_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads", heads),
        head_dim=raw.get("head_dim", width // heads),
        rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        max_positions=raw.get("max_position_embeddings", 2048),
        eos_id=eos if isinstance(eos, int) else 2,
        family=family.name,
        rope_scaling=_scaling(rope, file),
        windows=_windows(raw, layers, gemma, file),
        local_rope_theta=float(near.get("rope_theta") or raw["rope_local_base_freq"]) if gemma else None,
        qkv_bias=family.name == "qwen2",
        qk_norm=family.name in ("qwen3", "gemma3"),
        post_norms=gemma,
        norm_offset=1.0 if gemma else 0.0,
        activation=_ACTIVATIONS[activation],
        embed_scale=width**0.5 if gemma else 1.0,
        query_scale=float(raw["query_pre_attn_scalar"]) ** -0.5 if gemma else None,
    )


def _windows(raw: Mapping[str, Any], layers: int, gemma: bool, file: str) -> tuple[int, ...]:
    """The window of each layer, 0 where it has none."""
    window = raw.get("sliding_window")
    if not gemma and not raw.get("use_sliding_window", False):
        window = None  # the Qwen files name a window and then do not use it
    if not window:
        return ()
    kinds = raw.get("layer_types")
    if kinds is None:
        period, first = raw.get("sliding_window_pattern", 1), raw.get("max_window_layers", 0)
        local = [(i + 1) % period != 0 if gemma else i >= first for i in range(layers)]
    else:
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown or len(kinds) != layers:
            why = f"{len(kinds)} for {layers} layers, of kinds {', '.join(sorted(set(kinds)))}"
            raise DataError("the layer types of a model are not supported", where=f"{file}, layer_types", why=why)
        local = [kind == "sliding_attention" for kind in kinds]
    return tuple(window if is_local else 0 for is_local in local)


def _scaling(rope: Mapping[str, Any], file: str) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if float(rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise DataError("partial rotary embedding is not supported", where=f"{file}, partial_rotary_factor")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise DataError(
        "this rotary scaling is not supported",
        where=f"{file}, rope_parameters",
        why=f"'{kind}'; 'linear' and 'llama3' are",
    )
