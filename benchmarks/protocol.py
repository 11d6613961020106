"""What difference can the test sets of docs/protocol.md detect? Simulated before any run, without a label of a test row.

    SCALETOT_DATA=… python benchmarks/protocol.py [--recipes configs/oulad.py …] [--sets 2000] [--labelled N]

For each recipe, two predictions are fitted that differ in nothing real: from the profile alone, and from the profile beside
64 random functions of it, which is what a ẑ without knowledge looks like. Each is a ridge regression, whose mean and residual
spread make a normal distribution over the days, cut at 0 and the horizon; a head of the evaluation has the same rows and
inputs, and takes minutes. Rows are predicted out of fold by user, within the splits teacher, distill and head; the splits val
and test give nothing but their sizes. With d_u the difference of the two rows'
ranked probability scores, the skill difference of a test set is Σ d_u / Σ RPS_base,u. Test sets of the recipe's number of
users are drawn from these rows by user, an effect δ is added, and the least δ whose one-sided end of the paired interval
lies above zero in 80 % of the sets is the minimum detectable difference: for one comparison at 95 %, and for the worst of the
five rivals that the verdict asks for, after Holm (level 1 − .05/5).

Labels are scarce (7.32 % of all users, or ``--labelled``, drawn from the same splits) or plentiful (all rows of those splits). A
head of the coverage curve has the labels of fewer: of those reasoned users that lie in the splits distill and head.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import NormalDist

import harness
import numpy as np
import pyarrow as pa
from scipy.stats import norm

from scaletot_jax.config import load_config
from scaletot_jax.datasets.load import load
from scaletot_jax.evaluation.heads import Scaler, ridge
from scaletot_jax.evaluation.metrics import rps_rows
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.prepare import build_population
from scaletot_jax.profiles.split import TRAIN, unit_hash

RECIPES = ("complete_journey", "oulad", "oulad_low_activity", "oulad_shift", "kuairand")
SCARCE, RANDOM, FOLDS, COMPARISONS, POWER = 0.0732, 64, 2, 5, 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parent.parent / "configs"
    parser.add_argument("--recipes", nargs="*", default=[str(folder / f"{name}.py") for name in RECIPES])
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--labelled", type=int, default=0, help="users with scarce labels (default: 7.32 %% of all)")
    options = parser.parse_args()
    print(
        f"{'recipe':20}{'rows':>7}{'test rows':>11}{'users':>7}{'labels':>9}{'labelled':>9}{'RPS base':>10}{'one':>8}{'Holm':>8}"
    )
    found = []
    for path in options.recipes:
        for line in detectable(path, options.sets, options.labelled):
            found.append(line)
            print(
                f"{line['recipe']:20}{line['rows']:>7,}{line['test_rows']:>11,}{line['test_users']:>7,}{line['labels']:>10}"
                f"{line['labelled']:>8,}{line['rps_base']:>10.4f}{line['one']:>8.4f}{line['holm']:>8.4f}",
                flush=True,
            )
    print(json.dumps({"benchmark": "protocol", "machine": harness.machine(), "tables": found}))


def detectable(recipe: str, sets: int, labelled: int = 0) -> list[dict]:
    """Both rows of one recipe: labels scarce and plentiful."""
    config = load_config(recipe).to_dict()
    table, schema = load(config["data"], seed=config["seed"])
    population = build_population(table, schema, config["data"]["profile_fields"], config["split"], config["seed"])
    split, groups = (population[name].to_numpy(zero_copy_only=False).astype(str) for name in ("split", "group"))
    known = np.flatnonzero(np.isin(split, TRAIN))
    fields = schema.profile_fields(config["data"]["profile_fields"])
    rows = population.take(pa.array(known))
    space = FeatureSpace.fit(rows, schema, fields)
    dense = space.dense(space.encode(rows)).astype(np.float64)
    standard = Scaler.fit(dense).apply(dense)
    rng = np.random.default_rng(0)
    noise = np.tanh(standard @ rng.normal(size=(standard.shape[1], RANDOM)) / np.sqrt(standard.shape[1]))
    label = schema.labels.days
    y = rows[label.column].cast(pa.float64()).to_numpy()
    users = groups[known]
    everyone = len(set(groups[split != "unused"]))
    tested = len(set(groups[split == "test"]))
    place = unit_hash(list(users), 0, "labelled")
    out = []
    for labels in ("scarce", "plentiful"):
        chosen = np.ones(len(users), bool)
        if labels == "scarce":
            wanted = labelled or round(SCARCE * everyone)
            distinct = np.unique(place)
            chosen = place <= distinct[min(wanted, len(distinct)) - 1]
        difference, base = out_of_fold(y, label.horizon, dense, noise, users, chosen)
        one, holm = least(difference, base, users, tested, sets)
        out.append(
            {
                "recipe": Path(recipe).stem, "rows": population.num_rows, "test_rows": int((split == "test").sum()),
                "test_users": tested, "labels": labels, "labelled": len(set(users[chosen])), "rps_base": float(base.mean()),
                "one": one, "holm": holm,
            }
        )  # fmt: skip
    return out


def out_of_fold(
    y: np.ndarray, horizon: int, dense: np.ndarray, noise: np.ndarray, users: np.ndarray, labelled: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """RPS with the profile minus that with random columns beside it, and RPS of the base rate; each row out of fold [U]."""
    fold = (unit_hash(list(users), 0, "fold") * FOLDS).astype(int)
    selects = unit_hash(list(users), 0, "select") < 0.25
    difference, base = np.zeros(len(users)), np.zeros(len(users))
    for f in range(FOLDS):
        fit, test = labelled & (fold != f), fold == f
        train, val = fit & ~selects, fit & selects
        scores = []
        for x in (dense, np.concatenate([dense, noise], 1)):
            x = Scaler.fit(x[train]).apply(x)
            mean = ridge(x[train], y[train], x[val], y[val], x)
            spread = max(float(np.sqrt(np.mean((y[val] - mean[val]) ** 2))), 1e-3)
            below = norm.cdf((np.arange(horizon) + 0.5 - mean[test, None]) / spread)
            edges = np.concatenate([np.zeros((len(below), 1)), below, np.ones((len(below), 1))], axis=1)
            scores.append(rps_rows(y[test], np.diff(edges, axis=1)))
        share = np.bincount(y[fit].astype(int), minlength=horizon + 1) / fit.sum()
        difference[test], base[test] = scores[0] - scores[1], rps_rows(y[test], np.tile(share, (int(test.sum()), 1)))
    return difference, base


def least(difference: np.ndarray, base: np.ndarray, users: np.ndarray, tested: int, sets: int) -> tuple[float, float]:
    """The minimum detectable skill difference of test sets of ``tested`` users, for one comparison and after Holm."""
    _, code = np.unique(users, return_inverse=True)
    d, b = np.bincount(code, difference), np.bincount(code, base)
    d = d - b * d.sum() / b.sum()  # no effect: δ is what will be added
    drawn = np.random.default_rng(1).integers(0, len(d), size=(sets, tested))
    skill = d[drawn].sum(1) / b[drawn].sum(1)
    residual = d[drawn] - skill[:, None] * b[drawn]
    error = np.sqrt((residual**2).sum(1)) / b[drawn].sum(1)
    out = []
    for alpha in (0.05, 0.05 / COMPARISONS):
        low = skill - NormalDist().inv_cdf(1 - alpha / 2) * error
        out.append(float(np.quantile(-low, POWER)))  # P(low + δ > 0) = POWER
    return out[0], out[1]


if __name__ == "__main__":
    main()
