"""What an importer sees: light imports, documented names, examples that run."""

import doctest
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from scaletot_jax import losses

MODULES = sorted(f"scaletot_jax.losses.{module.name}" for module in pkgutil.iter_modules(losses.__path__))

# Not "etils": jax imports it where it is installed.
FORBIDDEN = {
    "absl", "datasets", "flax", "grain", "ml_collections", "optax", "orbax", "pandas", "pyarrow", "pydantic",
    "safetensors", "tensorflow", "tensorflow_datasets", "tokenizers", "torch", "transformers", "yaml",
}  # fmt: skip


def test_importing_a_loss_imports_jax_and_numpy_only():
    code = "import sys; from scaletot_jax.losses import osipo_loss; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    loaded = set(done.stdout.split())
    assert {"jax", "numpy", "scaletot_jax"} <= loaded
    assert not loaded & FORBIDDEN


def test_importing_a_loss_loads_no_other_part_of_the_package():
    code = "import sys; import scaletot_jax.losses; print(*[name for name in sys.modules if name.startswith('scaletot_jax.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name.split(".")[1] for name in done.stdout.split()} == {"losses"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"jnp": jnp}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_public_name_is_documented_and_annotated():
    assert list(losses.__all__) == sorted(losses.__all__)
    for name in losses.__all__:
        value = getattr(losses, name)
        if callable(value):
            assert len(value.__doc__ or "") > 40, name
            signature = inspect.signature(value)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values()), name


def test_segment_helpers_by_hand():
    ids = np.array([[0, 0, 1, -1, -2, -3, 7]])
    values = jnp.array([[1.0, 3.0, 5.0, 7.0, 9.0, jnp.nan, jnp.inf]], jnp.bfloat16)
    assert losses.segment_counts(ids, 3).tolist() == [[2, 1, 0]]
    assert losses.segment_sums(values, ids, 3).tolist() == [[4.0, 5.0, 0.0]]
    assert losses.segment_means(values, ids, 3).tolist() == [[2.0, 5.0, 0.0]]
    assert losses.segment_sums(values, ids, 3).dtype == jnp.float32
    assert losses.segment_mask(ids, 2)[0].sum(axis=0).tolist() == [2, 1]
    with pytest.raises(ValueError, match="segment_ids must have shape"):
        losses.segment_counts(ids[0], 3)
    with pytest.raises(ValueError, match="num_segments must be a Python int"):
        losses.segment_counts(ids, 2.0)
