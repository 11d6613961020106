"""A tiny language model shared by the teacher's tests."""

import pytest
import tiny

from scaletot_jax.lm.load import load_model


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    return load_model(tiny.write_tiny_lm(tmp_path_factory.mktemp("lm") / "tiny"))
