"""What is a prediction worth to an A/B test of the same users? Coverage and width of the intervals, simulated on real labels.

    python benchmarks/ab_cupac.py --workdir runs/quickstart [--experiments 300] [--users 2000] [--lift 0.1]

Each experiment draws users with replacement from the test rows of a finished run, assigns them to two arms by a coin, and
adds a day to active users of one arm at random until their mean is ``lift`` higher. The covariate is the head's prediction
from the profile (with ẑ), made without these users' labels. Reported for the plain difference and for CUPAC: how often the
95 % interval holds the truth, its width, and the share of experiments in which it excludes zero.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import harness
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.ab.analysis import analyse
from scaletot_jax.ab.table import Outcome
from scaletot_jax.files import read_table

HORIZON = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--experiments", type=int, default=300)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--lift", type=float, default=0.1)
    options = parser.parse_args()
    labels, predictions, target = test_rows(Path(options.workdir))
    chance = options.lift * labels.mean() / np.mean((labels > 0) & (labels < HORIZON))
    difference = chance * np.mean((labels > 0) & (labels < HORIZON))
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[bool, float, bool]]] = {"plain": [], "cupac": []}
    outcomes = [Outcome("y", "", "x")]
    for _ in range(options.experiments):
        rows = rng.integers(0, len(labels), options.users)
        treated = rng.random(options.users) < 0.5
        y = labels[rows] + (treated & (labels[rows] > 0) & (labels[rows] < HORIZON) & (rng.random(len(rows)) < chance))
        table = pa.table({"arm": np.where(treated, "new", "old"), "y": y.astype(float), "x": predictions[rows]})
        for effect in analyse(table, "arm", outcomes, control="old").comparisons[0].effects:
            if effect.form in found:
                holds = effect.low <= difference <= effect.high
                found[effect.form].append((holds, effect.high - effect.low, effect.p_value < 0.05))
    summary = {
        form: dict(zip(("coverage", "width", "power"), (float(value) for value in np.mean(values, axis=0))))
        for form, values in found.items()
    }
    correlation = float(np.corrcoef(labels, predictions)[0, 1])
    print(
        f"{target}: {len(labels)} test rows, true difference {difference:.3f}, correlation with the prediction {correlation:.3f}"
    )
    for form, values in summary.items():
        print(f"{form:<8} coverage {values['coverage']:.3f}  width {values['width']:.4f}  power {values['power']:.2f}")
    ratio = (summary["cupac"]["width"] / summary["plain"]["width"]) ** 2
    print(f"CUPAC needs {ratio:.2f} of the users")
    print(
        json.dumps(
            {
                "benchmark": "ab_cupac",
                "target": target,
                "experiments": options.experiments,
                "users": options.users,
                "correlation": round(correlation, 3),
                "forms": summary,
                "share_of_users": round(ratio, 3),
                "machine": harness.machine(),
            }
        )
    )


def test_rows(workdir: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Labels and predictions of the first target, by the head with profile and ẑ."""
    table = read_table(workdir / "evaluate" / "predictions.parquet")
    target, features = table["target"][0].as_py(), table["features"][0].as_py()
    for column, value in (("target", target), ("features", features), ("system", "profile_z")):
        table = table.filter(pc.equal(table[column], value))
    return (*(table[name].cast(pa.float64()).to_numpy() for name in ("label", "expected")), target)


if __name__ == "__main__":
    main()
