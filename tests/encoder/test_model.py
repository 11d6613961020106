"""The encoder: ids that stay apart, redaction, determinism, piecewise-linear bins."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from encoder.synthetic_profiles import SCHEMA, population
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.encoder import model
from scaletot_jax.errors import DataError
from scaletot_jax.profiles import features
from scaletot_jax.profiles.features import FeatureSpace


@pytest.fixture(scope="module")
def space():
    return FeatureSpace.fit(population(300)[0], SCHEMA, SCHEMA.profile_fields())


@pytest.fixture(scope="module")
def encoder(space):
    inputs = model.Inputs(*space.encode(population(300)[0]))
    spec = model.describe(space, inputs, segments=("a", "b"), target_dims=(5, 3), dim=8, width=16)
    return spec, model.init_params(spec, 0), inputs


def test_inputs_are_those_of_the_feature_space():
    assert model.Inputs._fields == features.Features._fields


def test_shapes_and_determinism(encoder):
    spec, params, inputs = encoder
    out = model.encode(params, spec=spec, inputs=inputs)
    assert out.embedding.shape == (300, 8) and [z.shape for z in out.segments] == [(300, 5), (300, 3)]
    again = model.init_params(spec, 0)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(model.init_params(spec, 1))))


def test_spec_survives_json(encoder):
    spec = encoder[0]
    copy = model.EncoderSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert copy == spec and hash(copy) == hash(spec)


def test_missing_unknown_redacted_and_a_value_are_four_embeddings(space, encoder):
    spec, params, _ = encoder
    base = {"age": "old", "loyal": True, "tops": ["food"], "visits": 2.0, "spend": 5.0}
    rows = [{**base, "region": region} for region in ("north", None, "atlantis", "[redacted]")]
    columns = {f.name: [row[f.name] for row in rows] for f in space.fields}
    types = population(1)[0].schema
    table = pa.table({name: pa.array(values, types.field(name).type) for name, values in columns.items()})
    inputs = model.Inputs(*space.encode(table))
    assert inputs.cat[:, space.cat_fields.index("region")].tolist() == [
        space.vocabulary["region"].index("north") + 4,
        1,
        2,
        3,
    ]
    out = np.asarray(model.encode(params, spec=spec, inputs=inputs).embedding)
    for i in range(4):
        for j in range(i):
            assert np.abs(out[i] - out[j]).max() > 1e-4


def test_padding_never_reaches_the_embedding(encoder):
    """More padding columns, and any weights at the padding id, change nothing."""
    spec, params, inputs = encoder
    wider = inputs._replace(multi=np.pad(inputs.multi, ((0, 0), (0, 0), (0, 3))))
    changed = jax.tree.map(lambda leaf: leaf, params)
    changed["multi_0"]["embedding"] = changed["multi_0"]["embedding"].at[0].set(99.0)
    want = model.encode(params, spec=spec, inputs=inputs).embedding
    np.testing.assert_allclose(model.encode(params, spec=spec, inputs=wider).embedding, want, atol=1e-6)
    np.testing.assert_allclose(model.encode(changed, spec=spec, inputs=inputs).embedding, want, atol=1e-6)


def test_redaction_hides_a_field_completely(encoder):
    spec, params, inputs = encoder
    for j, name in enumerate(spec.fields):
        withheld = np.arange(len(spec.fields)) == j
        hidden = model.redact(inputs, jnp.asarray(withheld), spec)
        other = inputs
        for column, owner in enumerate(spec.cat_fields):
            if owner == j:
                other = other._replace(cat=np.array(other.cat))
                other.cat[:, column] = 4
        for column, owner in enumerate(spec.num_fields):
            if owner == j:
                other = other._replace(num=np.array(other.num), missing=np.array(other.missing))
                other.num[:, column] = 7.0
                other.missing[:, column] = ~other.missing[:, column]
        if j in spec.multi_fields:
            other = other._replace(multi=np.full_like(other.multi, 5))
        also = model.redact(other, jnp.asarray(withheld), spec)
        jax.tree.map(np.testing.assert_array_equal, hidden, also)
        assert name == "loyal" or not all(np.array_equal(a, b) for a, b in zip(hidden, inputs))
    nothing = model.redact(inputs, jnp.zeros(len(spec.fields), bool), spec)
    jax.tree.map(np.testing.assert_array_equal, nothing, inputs)
    everything = model.redact(inputs, jnp.ones((300, len(spec.fields)), bool), spec)
    out = np.asarray(model.encode(params, spec=spec, inputs=everything).embedding)
    np.testing.assert_array_equal(out, np.broadcast_to(out[:1], out.shape))


def test_an_ordered_field_is_withheld_with_its_number_column(encoder):
    spec, _, inputs = encoder
    j = spec.fields.index("age")
    hidden = model.redact(inputs, jnp.arange(len(spec.fields)) == j, spec)
    column = spec.num_fields.index(j)
    assert (np.asarray(hidden.num)[:, column] == 0).all() and np.asarray(hidden.missing)[:, column].all()
    assert (np.asarray(hidden.cat)[:, spec.cat_fields.index(j)] == features.REDACTED_ID).all()


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9, unique=True), st.integers(-80, 80))
def test_piecewise_linear_sums_to_the_clipped_number(edges, x):
    edges = tuple(float(e) for e in sorted(edges))
    bins = np.asarray(model.piecewise_linear(jnp.asarray([float(x)]), edges))[0]
    assert ((bins >= 0) & (bins <= 1)).all() and (np.diff(bins) <= 1e-6).all()
    np.testing.assert_allclose(edges[0] + bins @ np.diff(edges), np.clip(x, edges[0], edges[-1]), atol=1e-3)


def test_knots_are_quantiles_of_known_values():
    values = np.arange(101.0)[:, None]
    missing = values > 80
    edges = model.fit_knots(values, missing, bins=4)[0]
    np.testing.assert_allclose(edges, [0, 20, 40, 60, 80])
    assert model.fit_knots(np.full((9, 1), 3.0), np.zeros((9, 1), bool)) == ((3.0, 4.0),)
    assert model.fit_knots(np.zeros((9, 1)), np.ones((9, 1), bool)) == ((0.0, 1.0),)


def test_foreign_ids_and_shapes_are_refused(encoder):
    spec, _, inputs = encoder
    model.check_inputs(spec, inputs)
    bad = np.array(inputs.cat)
    bad[3, 0] = spec.cat_sizes[0]
    with pytest.raises(DataError, match="vocabulary"):
        model.check_inputs(spec, inputs._replace(cat=bad))
    with pytest.raises(DataError, match="other fields"):
        model.check_inputs(spec, inputs._replace(cat=inputs.cat[:, 1:]))
    with pytest.raises(DataError, match="finite"):
        model.check_inputs(spec, inputs._replace(num=np.full_like(inputs.num, np.nan)))


def test_without_numbers_or_multi_fields(space):
    only = FeatureSpace(
        tuple(f for f in space.fields if f.kind == "enum"), space.vocabulary, space.active, space.scales
    )
    inputs = model.Inputs(*only.encode(population(5)[0]))
    spec = model.describe(only, inputs, segments=("a",), target_dims=(2,), dim=4, width=8)
    out = model.encode(model.init_params(spec, 0), spec=spec, inputs=model.redact(inputs, jnp.zeros(1, bool), spec))
    assert np.isfinite(out.embedding).all()
