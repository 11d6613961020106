"""The served model: what it computes, and what it refuses."""

import json
import shutil

import numpy as np
import pytest

from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.encoder.model import Inputs
from scaletot_jax.errors import DataError
from scaletot_jax.population.model import FILES, dense, load_model, seal_model
from scaletot_jax.profiles.table import validate


def test_dense_features_are_those_of_the_feature_space(served):
    features = served.space.encode(validate(build_table(300, seed=5), served.schema))
    np.testing.assert_allclose(dense(served.spec, Inputs(*features)), served.space.dense(features), atol=1e-7)


@pytest.mark.parametrize("name", [*FILES, "model.json"])
def test_a_missing_or_changed_file_is_refused(served, tmp_path, name):
    broken = tmp_path / "broken"
    shutil.copytree(served.directory, broken)
    (broken / name).unlink()
    with pytest.raises(DataError, match=r"missing|no served model"):
        load_model(broken)
    data = bytearray((served.directory / name).read_bytes())
    data[len(data) // 2] ^= 1
    (broken / name).write_bytes(data)
    with pytest.raises(DataError, match=r"changed|damaged|another format"):
        load_model(broken)


def test_parts_of_two_models_do_not_mix(served, tmp_path):
    """With hashes that fit, the encoder still says that the feature space is not its own."""
    mixed = tmp_path / "mixed"
    shutil.copytree(served.directory, mixed)
    features = json.loads((mixed / "features.json").read_text())
    features["scales"]["age"]["mean"] += 1
    (mixed / "features.json").write_text(json.dumps(features))
    with pytest.raises(DataError, match="do not belong together"):
        seal_model(mixed)


def test_the_reference_is_a_value_or_a_function_of_the_model_and_enters_the_fingerprint(served, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(served.directory, copy)
    plain = load_model(copy)
    stated = seal_model(copy, reference={"rows": 3})
    made = seal_model(copy, reference=lambda model: {"fields": len(model.fields)})
    assert (plain.reference, stated.reference, made.reference) == ({}, {"rows": 3}, {"fields": len(plain.fields)})
    assert len({plain.fingerprint, stated.fingerprint, made.fingerprint}) == 3
