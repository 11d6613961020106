"""Llama weights in a Hugging Face directory: ``config.json`` and safetensors, read and written without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# our leaf -> (tensor name after "model.layers.N.", whether it is a matrix stored as [outputs, inputs])
_LAYER_TENSORS = {
    "attn_norm": ("input_layernorm.weight", False),
    "q": ("self_attn.q_proj.weight", True),
    "k": ("self_attn.k_proj.weight", True),
    "v": ("self_attn.v_proj.weight", True),
    "o": ("self_attn.o_proj.weight", True),
    "mlp_norm": ("post_attention_layernorm.weight", False),
    "gate": ("mlp.gate_proj.weight", True),
    "up": ("mlp.up_proj.weight", True),
    "down": ("mlp.down_proj.weight", True),
}


def load_directory(path: str | Path) -> tuple[LMConfig, dict[str, Any]]:
    """Reads a Llama model from ``config.json`` and safetensors (one file, or shards with an index).

    Args:
      path: the directory.

    Returns:
      The configuration and the parameters (layout: ``lm.model.init_params``) as float32 NumPy arrays, converted one
      memory-mapped tensor at a time.

    Raises:
      DataError: another architecture or an unsupported option of it, or a missing, truncated, misshapen or unknown
        tensor.
    """
    directory = Path(path)
    config = _config(directory / "config.json")
    tensors: dict[str, np.ndarray] = {}
    for file in weight_files(directory):
        tensors.update(_map_safetensors(file))

    known: set[str] = set()

    def require(name: str, shape: tuple[int, ...]) -> None:
        known.add(name)
        if name not in tensors:
            raise DataError("a weights directory lacks a tensor", where=str(directory), why=f"no '{name}'")
        if tensors[name].shape != shape:
            raise DataError(
                "a tensor has an unexpected shape",
                where=f"{directory}, tensor '{name}'",
                why=f"{list(tensors[name].shape)} instead of {list(shape)}",
            )

    def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
        require(name, shape)
        return tensors[name].astype(np.float32)

    width = config.hidden_size
    shapes = {leaf: config.projections[leaf] if matrix else (width,) for leaf, (_, matrix) in _LAYER_TENSORS.items()}
    for index in range(config.num_layers):  # before anything is allocated: a wrong configuration can ask for terabytes
        for leaf, (suffix, _) in _LAYER_TENSORS.items():
            require(f"model.layers.{index}.{suffix}", shapes[leaf][::-1])

    layers: dict[str, np.ndarray] = {}
    for leaf, (suffix, _) in _LAYER_TENSORS.items():
        shape = shapes[leaf]
        layers[leaf] = np.empty((config.num_layers, *shape), np.float32)
        for index in range(config.num_layers):
            layers[leaf][index] = take(f"model.layers.{index}.{suffix}", shape[::-1]).T
    table = (config.vocab_size, config.hidden_size)
    params: dict[str, Any] = {
        "embed": take("model.embed_tokens.weight", table),
        "layers": layers,
        "final_norm": take("model.norm.weight", (width,)),
    }
    if config.tie_embeddings:
        known.add("lm_head.weight")  # some writers store the tied head a second time
    else:
        params["head"] = np.ascontiguousarray(take("lm_head.weight", table).T)
    unknown = sorted(name for name in set(tensors) - known if not name.endswith("rotary_emb.inv_freq"))
    if unknown:
        raise DataError(
            "a weights directory holds tensors that a Llama model does not have",
            where=f"{directory}, tensor '{unknown[0]}'",
            why=f"{len(unknown)} unknown: {', '.join(unknown[:5])}",
        )
    return config, params


def save_directory(path: str | Path, config: LMConfig, params: Mapping[str, Any]) -> None:
    """Writes ``config.json`` and ``model.safetensors`` (float32) so that ``transformers`` loads them.

    Args:
      path: directory, made where absent.
      config, params: the model; without an exit map, which the format has no place for.

    Raises:
      DataError: the parameters hold an exit map.
    """
    from safetensors.numpy import save_file

    if "exit" in params:
        raise DataError(
            "a truncated model with an exit map cannot be written as a Hugging Face model",
            where=str(path),
            why="the Llama architecture has no affine map before its final norm",
        )
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["final_norm"]}
    for leaf, (suffix, is_matrix) in _LAYER_TENSORS.items():
        for index in range(config.num_layers):
            tensor = np.asarray(params["layers"][leaf][index])
            tensors[f"model.layers.{index}.{suffix}"] = tensor.T if is_matrix else tensor
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = np.asarray(params["head"]).T
    plain = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in tensors.items()}
    save_file(plain, directory / "model.safetensors", metadata={"format": "pt"})
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_positions,
        "eos_token_id": config.eos_id,
        "bos_token_id": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, in a fixed order; DataError where one is missing."""
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    files = [directory / name for name in names]
    for file in files:
        if not file.is_file():
            raise DataError("a weights file is missing", where=str(file))
    return files


def _config(file: Path) -> LMConfig:
    raw = _read_json(file)
    if raw.get("model_type") != "llama":
        raise DataError(
            "the weights are of another architecture",
            where=f"{file}, model_type",
            why=f"{raw.get('model_type')!r}; only 'llama' is supported",
            do="use a Llama-architecture model, e.g. SmolLM2",
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    unsupported = {
        "attention_bias": raw.get("attention_bias", False),
        "mlp_bias": raw.get("mlp_bias", False),
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "rope_parameters": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for name, present in unsupported.items():
        if present:
            raise DataError("an option of the Llama architecture is not supported", where=f"{file}, {name}")
    try:
        heads, width = raw["num_attention_heads"], raw["hidden_size"]
        eos = raw.get("eos_token_id", 2)
        if isinstance(eos, list):
            eos = eos[0] if eos else None
        return LMConfig(
            vocab_size=raw["vocab_size"],
            hidden_size=width,
            intermediate_size=raw["intermediate_size"],
            num_layers=raw["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or width // heads,
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_positions=raw.get("max_position_embeddings", 2048),
            eos_id=eos if isinstance(eos, int) else 2,
        )
    except KeyError as error:
        raise DataError("a model configuration lacks a key", where=f"{file}, {error.args[0]}") from error


def _map_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Name -> memory-mapped view. NumPy has no bfloat16, so the views are made here, with ml_dtypes."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > size - 8:
                raise ValueError(f"its header claims {length} bytes, the file has {size}")
            header = json.loads(handle.read(length))
        data = np.memmap(file, np.uint8, "r", offset=8 + length)
    except (OSError, ValueError) as error:
        raise DataError("a safetensors file is damaged", where=str(file), why=str(error)) from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise DataError("a tensor has an unsupported type", where=f"{file}, tensor '{name}'", why=entry["dtype"])
        if end > data.size:
            raise DataError(
                "a safetensors file is truncated",
                where=f"{file}, tensor '{name}'",
                why=f"it ends at byte {end} of {data.size}",
            )
        tensors[name] = data[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("a model configuration cannot be read", where=str(file), why=str(error)) from error
