"""Field values by their words."""

import numpy as np

from scaletot_jax.encoder.value_words import likeness, start_tables, value_vectors
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.fields import Field

WORDS = ["cold pizza", "cold fish", "warm bread", "warm soup"]
SPACE = FeatureSpace(
    (Field(name="a", kind="enum", role="static", words={"x1": "cold pizza"}), Field(name="b", kind="boolean", role="static")),
    {"a": ("x1", *WORDS[1:]), "b": ("true",)}, {}, {},
)  # fmt: skip
TOKENS = {word: i for i, word in enumerate(["cold", "warm", "pizza", "fish", "bread", "soup", "true"])}


def vectors():
    embedding = np.eye(7) * np.array([3, 3, 1, 1, 1, 1, 1])[:, None]
    return value_vectors(SPACE, embedding, lambda text: [TOKENS[word] for word in text.split()])


def test_values_that_share_a_word_are_alike():
    first, second = vectors()
    assert second is None  # one value: nothing to compare
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-12)
    alike = likeness(first)
    np.testing.assert_allclose(np.diag(alike), 1)
    assert (
        alike[4, 5] > 0.5 > alike[4, 6] and (alike[:4, 4:] == 0).all()
    )  # padding, missing, unknown, redacted: strangers
    assert np.linalg.eigvalsh(alike).min() > -1e-12 and likeness(None) is None


def test_tables_start_from_them_and_keep_their_scale():
    rng = np.random.default_rng(0)
    params = {f"cat_{j}": {"embedding": rng.normal(size=(size, 6))} for j, size in enumerate((8, 5))}
    started = start_tables(params, vectors(), 2)
    table, before = started["cat_0"]["embedding"], params["cat_0"]["embedding"]
    np.testing.assert_array_equal(table[:4], before[:4])
    np.testing.assert_allclose((table[4:] ** 2).mean(), (before[4:] ** 2).mean())
    distance = np.linalg.norm(table[4:, None] - table[None, 4:], axis=2)
    assert distance[0, 1] < distance[0, 2] and distance[2, 3] < distance[1, 2]
    np.testing.assert_array_equal(started["cat_1"]["embedding"], params["cat_1"]["embedding"])
