"""Whitening, the layer probe and the transfer evidence, against scikit-learn and known populations."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from scaletot_jax.encoder import probe, transfer
from scaletot_jax.encoder.cka import debiased_cka
from scaletot_jax.encoder.label_skill import label_skill
from scaletot_jax.encoder.model import Encoded
from scaletot_jax.encoder.whiten import effective_rank, fit_whitening, whiten
from scaletot_jax.errors import DataError


def states(users=200, width=40, rank=6, seed=0):
    rng = np.random.default_rng(seed)
    return (100 + rng.normal(size=(users, rank)) @ (rng.normal(size=(rank, width)) * 2.0)).astype(np.float32)


def test_whitening_gives_uncorrelated_unit_columns_as_pca_does():
    h = states()
    w = fit_whitening(h, 4)
    z = whiten(w, h)
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(4), atol=1e-8)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-8)
    oracle = PCA(4, whiten=True).fit_transform(h.astype(np.float64))
    np.testing.assert_allclose(np.abs((z * oracle).mean(0)), 1, atol=1e-2)
    assert w.variance.tolist() == sorted(w.variance, reverse=True)


def test_whitening_keeps_no_more_than_the_rank():
    assert fit_whitening(states(), 64).axes.shape == (40, 6)
    assert fit_whitening(states(users=4), 64).axes.shape == (40, 3)


def test_whitening_uses_training_rows_only():
    h = states()
    w = fit_whitening(h[:100], 6)
    z = whiten(w, h[100:])
    assert np.abs(z.mean(0)).max() > 1e-3  # another sample has another mean: no statistics of its own were used
    np.testing.assert_allclose(z[:1], whiten(w, h[100:101]), atol=1e-12)


def test_whitening_is_deterministic_in_sign():
    h = states()
    np.testing.assert_allclose(fit_whitening(h[::-1].copy(), 4).axes, fit_whitening(h, 4).axes, atol=1e-8)


@pytest.mark.parametrize("bad", [np.ones((5, 3)), np.ones((1, 3)), np.full((5, 3), np.nan)])
def test_states_that_cannot_be_whitened_are_refused(bad):
    with pytest.raises(DataError):
        fit_whitening(bad, 2)


def test_effective_rank():
    rng = np.random.default_rng(0)
    assert effective_rank(np.outer(rng.normal(size=50), np.ones(8))) == pytest.approx(1)
    assert effective_rank(rng.normal(size=(100_000, 8))) == pytest.approx(8, abs=0.01)
    assert effective_rank(np.ones((5, 8))) == 0


def test_candidate_layers():
    assert probe.candidate_layers(30) == (15, 20, 23, 30)
    assert probe.candidate_layers(8) == (4, 6, 8)
    assert probe.candidate_layers(1) == (1,)


def test_probe_is_scikit_learns_ridge():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 120)) * rng.uniform(0.1, 9, 120)
    y = x[:, 0] + rng.normal(size=80)
    folds = np.arange(80) % 4
    got = probe.ridge_probe(x, y, folds, penalties=(0.3,))
    want = np.zeros(80)
    for fold in range(4):
        train, test = folds != fold, folds == fold
        scaled = (x - x[train].mean(0)) / x[train].std(0)
        alpha = 0.3 * np.sum(scaled[train] ** 2) / train.sum()
        want[test] = Ridge(alpha=alpha).fit(scaled[train], y[train]).predict(scaled[test])
    np.testing.assert_allclose(got.predictions, want, atol=1e-8)


def test_probe_finds_signal_and_only_signal():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 50))
    folds = probe.folds_of([f"user {i}" for i in range(300)], 5)
    assert len(np.unique(folds)) == 5
    assert probe.ridge_probe(x, x[:, 0] + 0.1 * rng.normal(size=300), folds).r2 > 0.8
    assert probe.ridge_probe(x, rng.normal(size=300), folds).r2 < 0.05
    assert np.isnan(probe.ridge_probe(x, np.ones(300), folds).r2)


def test_folds_keep_groups_together():
    folds = probe.folds_of(["a", "b", "a", "c", "b"], 7)
    assert folds[0] == folds[2] and folds[1] == folds[4]


def test_noise_ceiling_of_a_known_population():
    """Between-user variance 1, chain noise 2, four chains: 1/(1 + 2/4) for the mean, 1/(1 + 2) for one chain."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(4000, 1, 6))
    chains = truth + np.sqrt(2) * rng.normal(size=(4000, 4, 6))
    ceiling = transfer.noise_ceiling(chains)
    assert ceiling.mean_target == pytest.approx(2 / 3, abs=0.02)
    assert ceiling.single_chain == pytest.approx(1 / 3, abs=0.02)
    reached = transfer.transfer_r2(chains.mean(1), truth[:, 0])
    assert reached == pytest.approx(ceiling.mean_target, abs=0.02)  # the best predictor meets the ceiling
    assert transfer.noise_ceiling(chains[:, :1]) == (None, None)
    noise = transfer.noise_ceiling(rng.normal(size=(4000, 4, 6)))
    assert noise.mean_target < 0.03


def test_transfer_r2_is_variance_weighted():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, 4)) * [1, 2, 3, 4]
    p = z + rng.normal(size=z.shape)
    assert transfer.transfer_r2(z, p) == pytest.approx(r2_score(z, p, multioutput="variance_weighted"))
    assert transfer.transfer_r2(z[:1], p[:1]) is None


def test_retrieval():
    z = np.random.default_rng(0).normal(size=(300, 20))
    perfect = transfer.retrieval(z, 3 * z)
    assert perfect["recall_at_1"] == perfect["mrr"] == 1
    collapsed = transfer.retrieval(z, np.ones_like(z))
    assert collapsed["recall_at_1"] < 0.02
    constant = transfer.retrieval(np.ones_like(z), np.ones_like(z))
    assert constant["recall_at_1"] == 0  # ties are not hits
    guess = np.mean([transfer.retrieval(z, np.random.default_rng(s).normal(size=z.shape))["mrr"] for s in range(1, 31)])
    assert guess == pytest.approx(perfect["chance_mrr"], rel=0.2)
    assert transfer.retrieval(z, z, pool=10)["pool"] == 10


def test_what_is_reproduced_for_trained_groups_only_is_no_evidence_for_the_others():
    """A predictor that knows the states of trained groups by heart and says the mean for the others."""
    rng = np.random.default_rng(0)
    chains = rng.normal(size=(120, 1, 1, 5)) + 0.1 * rng.normal(size=(120, 3, 1, 5))
    held_out, trained = np.arange(120) >= 60, np.arange(120) % 2 == 0
    w = fit_whitening(chains[~held_out, :, 0].mean(1), 5)
    target = whiten(w, chains[held_out, :, 0].mean(1))
    predicted = np.where(trained[held_out, None], target, target.mean(0))
    found = transfer.evidence_by_exposure(
        ["a"], [chains[:, :, 0]], held_out, trained, ~held_out, [w], Encoded(np.zeros((60, 2)), (predicted,))
    )
    (known,), (new,) = found[transfer.TRAINED], found[transfer.UNSEEN]
    assert (known["held_out"], new["held_out"]) == (30, 30)
    assert known["r2"] == pytest.approx(1) and known["retrieval"]["recall_at_1"] == 1
    assert new["r2"] <= 0 and new["retrieval"]["recall_at_1"] <= new["retrieval"]["chance_recall_at_1"]
    nobody = transfer.evidence_by_exposure(
        ["a"], [chains[:, :, 0]], held_out, held_out, ~held_out, [w], Encoded(np.zeros((60, 2)), (predicted,))
    )
    assert set(nobody[transfer.UNSEEN][0]) == {"segment", "dim", "effective_rank", "held_out"}


def test_debiased_cka_is_one_for_a_rotation_and_nought_for_strangers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 200))  # wider than users are many: the plain CKA of strangers is near one
    rotation = np.linalg.qr(rng.normal(size=(200, 200)))[0]
    assert debiased_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-9)
    strangers = [debiased_cka(x, rng.normal(size=(40, 200))) for _ in range(200)]
    assert abs(np.mean(strangers)) < 0.02
    half = debiased_cka(x, np.hstack([x[:, :100], rng.normal(size=(40, 100))]))
    assert half == pytest.approx(0.5, abs=0.1)  # half of the dimensions are shared
    assert debiased_cka(x[:3], x[:3]) is None and debiased_cka(x, np.ones((40, 2))) is None


def test_debiased_cka_is_its_definition_term_by_term():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 2))

    def hsic(a, b):  # Song et al. (2012), equation 5, by sums over different users
        n, total = len(a), 0.0
        for i in range(n):
            for j in range(n):
                if i == j:
                    continue
                total += a[i, j] * b[i, j] / (n * (n - 1))
                for q in range(n):
                    if q in (i, j):
                        continue
                    total -= 2 * a[i, j] * b[i, q] / (n * (n - 1) * (n - 2))
                    for r in range(n):
                        if r not in (i, j, q):
                            total += a[i, j] * b[q, r] / (n * (n - 1) * (n - 2) * (n - 3))
        return total

    a, b = x @ x.T, y @ y.T
    assert debiased_cka(x, y) == pytest.approx(hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b)), rel=1e-9)


def test_label_skill_knows_a_collapsed_student():
    rng = np.random.default_rng(2)
    groups = np.array([f"g{i // 2}" for i in range(300)])
    folds = probe.folds_of(list(groups), 5)
    labels = rng.normal(size=300)
    telling = labels[:, None] + rng.normal(0, 0.7, (300, 4))
    known = label_skill(probe.ridge_probe(telling, labels, folds), labels, groups)
    assert known.estimate == pytest.approx(probe.ridge_probe(telling, labels, folds).r2) and known.low > 0.5
    collapsed = label_skill(probe.ridge_probe(1e-9 * rng.normal(size=(300, 4)), labels, folds), labels, groups)
    assert collapsed.low <= 0 and collapsed.estimate < 0.05


def test_slices_by_sparsity_and_by_the_like():
    present = np.array([1, 2, 3, 4, 5, 6])
    coarse = np.array(["a", "a", "b", "b", "c", "d"], object)
    trained = np.array([1, 0, 0, 0, 1, 0], bool)
    found = transfer.slices_of(present, coarse, trained, ~trained)
    assert {name: member.tolist() for name, member in found.items()} == {
        "sparse": [1, 1, 1, 0, 0, 0], "rich": [0, 0, 0, 1, 1, 1], "seen": [1, 1, 0, 0, 1, 0], "unseen": [0, 0, 1, 1, 0, 1],
    }  # fmt: skip
    assert set(transfer.slices_of(present, np.array(list("abcdef"), object), trained, ~trained)) == {"sparse", "rich"}
