"""A model written as a Hugging Face directory that ``transformers`` loads, whole or not at all.

Every file is written in full under a temporary name; then the old ``config.json`` is taken away, the files are renamed,
``config.json`` last. A kill at any moment leaves the old model, the new one, or a directory without a configuration,
which nothing loads: never the weights of one model under the name of another.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.errors import DataError
from scaletot_jax.files import atomic_path
from scaletot_jax.lm import lora as lora_module
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.families import FAMILIES, layer_leaves
from scaletot_jax.lm.huggingface import parse_config
from scaletot_jax.lm.safetensors_file import DTYPES, INDEX, read_description
from scaletot_jax.lm.tokenizer import Tokenizer

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
)
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    kind: str  # key of DTYPES
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(DTYPES[self.kind]).itemsize


def save_directory(
    path: str | Path,
    config: LMConfig,
    params: Mapping[str, Any],
    *,
    lora: Mapping[str, Any] | None = None,
    lora_scale: float = 1.0,
    tokenizer: Tokenizer | str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes ``config.json``, safetensors and, where given, the tokenizer.

    Args:
      path: directory, made where absent. Weights files of an earlier model in it are replaced.
      config, params: the model, layers stacked or apart; without an exit map, which the formats have no place for. The
        weights keep their type and are fetched from their devices one at a time.
      lora, lora_scale: an adapter to be added into the weights.
      tokenizer: a Hugging Face directory whose tokenizer files and special ids are copied, or a tokenizer, written as
        ``tokenizer.json`` and ``tokenizer_config.json``. None leaves what is there.
      max_shard_bytes: more than this goes into several files with an index.

    Raises:
      DataError: the parameters hold an exit map, or the configuration cannot be said in the family's format.
      ResourceError: the disk is full; what was there before is still there.
    """
    if "exit" in params:
        raise DataError(
            "a truncated model with an exit map cannot be written as a Hugging Face model",
            where=str(path),
            why="no architecture there has an affine map before its final norm",
        )
    directory = Path(path)
    described = describe(config, str(params["embed"].dtype))
    shards = _shards(_tensors(config, params, lora, lora_scale), max_shard_bytes)
    count = len(shards)
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    names = ["model.safetensors"] if count == 1 else names
    with contextlib.ExitStack() as stack:  # leaves in reverse order: what is entered first is renamed last

        def new(name: str) -> Path:
            return stack.enter_context(atomic_path(directory / name))

        config_file = new("config.json")
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(new("tokenizer.json"))
            end = tokenizer.decode([tokenizer.eos_id])
            _write_json(new("tokenizer_config.json"), {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end})
        elif tokenizer is not None:
            described |= _special_ids(Path(tokenizer) / "config.json")
            for name in _TOKENIZER_FILES:
                if (Path(tokenizer) / name).is_file():
                    shutil.copyfile(Path(tokenizer) / name, new(name))
        for name, shard in zip(names, shards):
            _write_safetensors(new(name), shard)
        if count > 1:
            total = sum(tensor.size for shard in shards for tensor in shard)
            where = {tensor.name: name for name, shard in zip(names, shards) for tensor in shard}
            _write_json(new(INDEX), {"metadata": {"total_size": total}, "weight_map": where})
        _write_json(config_file, described)
        (directory / "config.json").unlink(missing_ok=True)
        for old in directory.iterdir():
            if (_WEIGHTS.fullmatch(old.name) or old.name == INDEX) and old.name not in (*names, count > 1 and INDEX):
                old.unlink()


def describe(config: LMConfig, dtype: str = "float32") -> dict[str, Any]:
    """``config.json`` of a model: with today's keys, and with those that older readers know.

    Raises:
      DataError: read back, it would be another model: rotary factors by no rule with a name, windows of several sizes, an
        option that the family does not have.
    """
    family, scaling = FAMILIES[config.family], config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_positions,
            }
    described: dict[str, Any] = {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "max_position_embeddings": config.max_positions,
        "eos_token_id": config.eos_id,
        "bos_token_id": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": dtype,
    }
    if scaling is not None:
        described["rope_scaling"] = rope
    sizes = sorted(set(config.windows) - {0})
    kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
    if config.family.startswith("qwen"):
        described["use_sliding_window"] = bool(sizes)
        if sizes:
            first = next(i for i, window in enumerate(config.windows) if window)
            described |= {"sliding_window": sizes[0], "max_window_layers": first, "layer_types": kinds}
    if config.family == "gemma3":
        del described["hidden_act"], described["mlp_bias"]
        query = config.query_scale if config.query_scale is not None else config.head_dim**-0.5
        described |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": round(query**-2),
            "sliding_window": sizes[0] if sizes else 4096,
            "layer_types": kinds or ["full_attention"] * config.num_layers,
            "rope_local_base_freq": config.local_rope_theta,
            "rope_parameters": {
                "full_attention": described["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
            },
        }
    where = f"config.json of a {config.family} model"
    again = parse_config(described, where)
    different = [field.name for field in fields(config) if getattr(again, field.name) != getattr(config, field.name)]
    if different:
        raise DataError(
            "a model cannot be written in its family's format",
            where=where,
            why=f"no way to say {', '.join(f'{name}={getattr(config, name)!r}' for name in different)}",
        )
    return described


def _tensors(
    config: LMConfig, params: Mapping[str, Any], lora: Mapping[str, Any] | None, scale: float
) -> list[_Tensor]:
    """What the files hold, in order; nothing is fetched yet."""
    kind_of = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}
    tensors: list[_Tensor] = []

    def add(name: str, shape: tuple[int, ...], dtype: Any, read: Callable[[], Any], *, flip: bool = False) -> None:
        def stored() -> np.ndarray:
            return np.asarray(read()).T if flip else np.asarray(read())

        tensors.append(_Tensor(name, shape[::-1] if flip else shape, kind_of[np.dtype(dtype)], stored))

    embed, norm = params["embed"], params["final_norm"]
    add("model.embed_tokens.weight", embed.shape, embed.dtype, lambda: embed)
    for index in range(config.num_layers):
        for leaf, names in layer_leaves(config).items():

            def read(index: int = index, leaf: str = leaf) -> Any:
                weight = _leaf(params["layers"], leaf, index)
                if lora is None or f"{leaf}_a" not in lora:
                    return weight
                adapter = {name: lora[name][index] for name in (f"{leaf}_a", f"{leaf}_b")}
                return lora_module.merge({"layers": {leaf: weight}}, adapter, scale)["layers"][leaf]

            layers = params["layers"]
            dtype = (layers if isinstance(layers, Mapping) else layers[0])[leaf].dtype
            add(f"model.layers.{index}.{names.safetensors}", names.shape, dtype, read, flip=len(names.shape) == 2)
    add("model.norm.weight", norm.shape, norm.dtype, lambda: norm)
    if not config.tie_embeddings:
        add("lm_head.weight", params["head"].shape, params["head"].dtype, lambda: params["head"], flip=True)
    return tensors


def _leaf(layers: Any, leaf: str, index: int) -> Any:
    return layers[leaf][index] if isinstance(layers, Mapping) else layers[index][leaf]


def _shards(tensors: list[_Tensor], limit: int) -> list[list[_Tensor]]:
    shards: list[list[_Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > limit:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write_safetensors(file: Path, tensors: list[_Tensor]) -> None:
    """One tensor in memory at a time; the package's own writer wants all of them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.kind,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.size],
        }
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin on eight bytes, as the format asks
    with open(file, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            handle.write(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data)


def _special_ids(file: Path) -> dict[str, Any]:
    """The token ids that the configuration of the tokenizer's directory names and an LMConfig has no field for."""
    if not file.is_file():
        return {}
    raw = read_description(file)
    return {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if raw.get(key) is not None}


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
