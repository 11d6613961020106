"""The notebook's encoder: scikit-learn's conventions, the same model as the line's, and what it refuses."""

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import quick_compile
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

import scaletot_jax
from scaletot_jax import ScaleToTEncoder
from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.errors import ConfigError, DataError, StaleRunError
from scaletot_jax.estimator_fit import state_targets
from scaletot_jax.population.model import load_model
from scaletot_jax.population.score import Options, score_table

pytestmark = pytest.mark.xdist_group("estimator")
SMALL = {"dim": 6, "width": 16, "steps": 50, "batch_size": 64, "learning_rate": 3e-3, "whiten_dim": 3,
         "head_seeds": 2, "head_width": 4, "head_steps": 200, "head_learning_rate": 1e-2, "head_penalties": (1e-2,)}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compile.here(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def users():
    return build_table(600, seed=6), build_table(300, seed=7).drop_columns(["lt30", "ltv30", "user_id"])


@pytest.fixture(scope="module")
def states(users):
    """Reasoning states of two segments, of two users in three: a map of what the profile says, and noise by chain."""
    rng = np.random.default_rng(0)
    visits = np.log1p(users[0]["visits_30"].to_numpy().astype(float))
    latent = np.stack([visits, users[0]["plan"].to_numpy(zero_copy_only=False) == "free", np.sqrt(visits)], 1)
    made = (
        9
        + np.einsum("uq,kqd->ukd", latent, rng.normal(size=(2, 3, 12)))[:, None]
        + 0.05 * rng.normal(size=(600, 2, 2, 12))
    )
    made[::3] = np.nan
    return made


@pytest.fixture(scope="module")
def fitted(users):
    return ScaleToTEncoder("synthetic", **SMALL).fit(users[0])


def test_the_example_of_the_api_page_runs(users, tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ScaleToTEncoder(" in block]
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(scaletot_jax.__file__).parent / "schemas" / "synthetic.yaml", "users.yaml")
    monkeypatch.setattr(scaletot_jax, "ScaleToTEncoder", partial(ScaleToTEncoder, **SMALL))
    names = {"table": users[0], "others": users[1]}
    exec(compile(code, "api.md", "exec"), names)
    assert names["z"].shape == (300, 6) and names["days"].shape == (300,)
    assert {"mean", "positive", "quantiles", "levels", "probabilities"} == set(names["found"]._fields)
    assert (tmp_path / "model" / "README.md").exists()


def test_it_predicts_users_it_never_saw(fitted, users):
    truth = build_table(300, seed=7)["lt30"].to_numpy()
    assert fitted.target_ == "labels" and fitted.transform(users[1]).shape == (300, 6)
    assert spearmanr(fitted.predict(users[1]), truth).statistic > 0.3
    money, cap = fitted.predict(users[1], "ltv30"), users[0]["ltv30"].to_numpy().max()
    assert (money > 0).all() and (money <= cap).all()


def test_a_distribution_is_one(fitted, users):
    found = fitted.predict_distribution(users[1])
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(found.probabilities @ np.arange(31), found.mean, rtol=1e-4)
    np.testing.assert_allclose(1 - found.probabilities[:, 0], found.positive, atol=1e-5)
    reached = np.cumsum(found.probabilities, axis=1)
    for level, quantile in zip(found.levels, found.quantiles.T):  # the first number whose probability reaches the level
        day = quantile.astype(int)
        assert (reached[np.arange(300), day] >= level - 1e-5).all()
        assert (np.where(day > 0, reached[np.arange(300), day - 1], 0) < level + 1e-5).all()
    money = fitted.predict_distribution(users[1], "ltv30")
    assert money.probabilities is None and (np.diff(money.quantiles, axis=1) >= 0).all()


def test_what_is_saved_is_a_served_model_with_a_card(fitted, users, tmp_path):
    folder = fitted.save_pretrained(tmp_path / "model")
    again = ScaleToTEncoder.from_pretrained(folder)
    assert again.target_ == "labels" and again.model_.fingerprint == fitted.model_.fingerprint
    np.testing.assert_array_equal(again.transform(users[1]), fitted.transform(users[1]))
    table = build_table(300, seed=7)
    pq.write_table(table, tmp_path / "users.parquet")
    score_table(folder, tmp_path / "users.parquet", tmp_path / "scores", Options(batch_rows=512))
    scores = pq.read_table(tmp_path / "scores" / "part-00000.parquet")
    np.testing.assert_allclose(scores["expected_lt30"], fitted.predict(tmp_path / "users.parquet"), rtol=1e-6)
    text = (folder / "README.md").read_text()
    assert fitted.model_.fingerprint in text and "| `visits_30` | number | early |" in text and "expectation" in text
    assert load_model(fitted.save_pretrained(folder)).fingerprint == fitted.model_.fingerprint
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(StaleRunError, match="holds other things"):
        fitted.save_pretrained(tmp_path / "other")


def test_a_fit_that_fails_leaves_what_was_fitted_before(fitted, users, tmp_path):
    some = users[1].slice(0, 5)
    before = fitted.transform(some)
    with pytest.raises(DataError, match="too few rows to fit"):
        fitted.fit(users[0].slice(0, 30))
    with pytest.raises(ConfigError, match="brings its own labels"):
        fitted.fit(tmp_path, y=[1])
    again = ScaleToTEncoder.from_pretrained(fitted.save_pretrained(tmp_path / "model"))  # its files are there, too
    np.testing.assert_array_equal(again.transform(some), before)


def test_states_of_some_users_are_learnt_without_a_label(users, states):
    encoder = ScaleToTEncoder("synthetic", **SMALL).fit(users[0], states=states)
    assert encoder.target_ == "states" and encoder.model_.spec.encoder.segments == ("segment_0", "segment_1")
    z, visits = encoder.transform(users[1]), np.log1p(users[1]["visits_30"].to_numpy().astype(float))
    inside = np.c_[z, np.ones(len(z))]
    left = visits - inside @ np.linalg.lstsq(inside, visits, rcond=None)[0]
    assert 1 - left.var() / visits.var() > 0.6  # what the states know, ẑ knows of users who have none


def test_states_by_name_are_those_by_number(states):
    train = np.arange(600) < 400
    stacked = state_targets(states, train, {"whiten_dim": 3})
    named = state_targets({"need": states[:, :, 0], "habit": states[:, :, 1]}, train, {"whiten_dim": 3})
    assert named.names == ("need", "habit") and stacked.names == ("segment_0", "segment_1")
    for a, b in zip(stacked.values, named.values):
        np.testing.assert_array_equal(a, b)
        assert np.isnan(a[::3]).all() and np.isfinite(a[1::3]).all()


def test_the_conventions_of_scikit_learn(fitted, users):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params() and "dim=6" in repr(copy)
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    check_is_fitted(fitted)
    assert copy.set_params(dim=9).dim == 9
    with pytest.raises(ValueError, match="unknown parameters: depth"):
        copy.set_params(depth=3)
    line = make_pipeline(fitted, StandardScaler())
    line.steps[1][1].fit(fitted.transform(users[0]))
    assert line.transform(users[1]).shape == (300, 6)
    assert fitted.get_feature_names_out().tolist() == [f"z{i}" for i in range(6)]


def test_what_is_refused(fitted, users):
    table, bare = users[0], users[0].drop_columns(["lt30", "ltv30"])
    fresh = ScaleToTEncoder("synthetic", **SMALL)
    with pytest.raises(DataError, match="not fitted"):
        fresh.transform(bare)
    with pytest.raises(ConfigError, match="needs a schema"):
        ScaleToTEncoder().fit(table)
    with pytest.raises(DataError, match="lacks columns"):
        fresh.fit(bare)
    with pytest.raises(DataError, match="another length"):
        fresh.fit(bare, y=[1, 2])
    with pytest.raises(DataError, match="names no label"):
        fresh.fit(bare, y={"lt90": [1]})
    with pytest.raises(DataError, match="another shape"):
        fresh.fit(table, states=np.zeros((5, 2, 3)))
    with pytest.raises(DataError, match="too few rows to fit"):
        fresh.fit(table.slice(0, 30))
    with pytest.raises(DataError, match="too few rows have states"):
        fresh.fit(table, states=np.full((600, 2, 3), np.nan))
    with pytest.raises(DataError, match="this is no table"):
        fitted.transform(3)
    with pytest.raises(DataError, match="no such label"):
        fitted.predict(bare, "lt90")
    with pytest.raises(DataError, match="lacks columns of the model"):
        fitted.transform({"age": [30]})
