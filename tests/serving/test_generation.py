"""The gate: nothing is served that does not compute what its export recorded."""

import shutil

import numpy as np
import pytest
from serving.conftest import SHAPES

from scaletot_jax.errors import DataError
from scaletot_jax.files import read_arrays, write_arrays
from scaletot_jax.population import probe
from scaletot_jax.population.model import seal_model
from scaletot_jax.serving.generation import open_generation, successor

pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture(scope="module")
def generation(models):
    return open_generation(models[0].directory, SHAPES)


@pytest.fixture
def copy(models, tmp_path):
    shutil.copytree(models[1].directory, tmp_path / "copy")
    return tmp_path / "copy"


def test_another_export_of_the_same_fields_is_taken(generation, models):
    new = successor(generation, models[1].directory)
    assert new.model.fingerprint == models[1].fingerprint and 0 <= new.error <= 1e-5
    assert new.contract() == generation.contract() and set(new.programs) == set(SHAPES)


@pytest.mark.parametrize("change", [2e-5, np.nan])
def test_a_model_that_says_something_else_than_recorded_is_refused(generation, copy, change):
    def wrong(model):
        probe.write_probe(model)
        arrays = read_arrays(copy / probe.FILE)
        arrays["outputs/p_positive_lt30"][7] += change
        write_arrays(copy / probe.FILE, arrays)

    seal_model(copy, add=[wrong])
    with pytest.raises(DataError, match=r"does not say[\s\S]*p_positive_lt30"):
        successor(generation, copy)


def test_a_model_without_a_probe_a_changed_file_and_a_model_without_chains_are_refused(generation, copy):
    weights = (copy / "encoder.safetensors").read_bytes()
    (copy / "encoder.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(DataError, match="changed"):
        successor(generation, copy)
    (copy / "encoder.safetensors").write_bytes(weights)
    seal_model(copy, add=[probe.write_probe])
    with pytest.raises(DataError, match=r"other things[\s\S]*chains"):
        successor(generation, copy)
    seal_model(copy)
    with pytest.raises(DataError, match="no recorded probe"):
        successor(generation, copy)


def test_rows_of_any_number_get_the_same_numbers(generation, rows):
    inputs = generation.inputs(rows)
    whole = generation.compute(inputs)
    for begin, end in ((0, 1), (3, 9), (10, 50)):
        part = generation.compute(type(inputs)(*(column[begin:end] for column in inputs)))
        for name, value in part.items():
            np.testing.assert_allclose(value, whole[name][begin:end], rtol=1e-6, atol=1e-6)
