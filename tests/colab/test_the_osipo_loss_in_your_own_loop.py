"""The notebook on credit runs as it stands, at sizes for a test, and its known credit is right."""

import re
from pathlib import Path

import numpy as np
import pytest
import quick_compile

jupytext = pytest.importorskip("jupytext")
matplotlib = pytest.importorskip("matplotlib")

SOURCE = Path(__file__).resolve().parents[2] / "colab" / "the_osipo_loss_in_your_own_loop.py"
SMALL = {"UPDATES, SEEDS": "6, 2", "USERS, ROLLOUTS": "3, 4", "RATES": "(64.0, 128.0)"}


@pytest.fixture(scope="module")
def ran(programs):
    """The names that the notebook's cells leave behind."""
    with matplotlib.rc_context({"backend": "agg"}), quick_compile.here(programs):
        names: dict = {"__name__": "notebook"}
        for cell in jupytext.read(SOURCE).cells:
            if cell.cell_type != "code":
                continue
            text = cell.source
            if "parameters" in cell.metadata.get("tags", []):
                for left, right in SMALL.items():
                    text, count = re.subn(rf"^{left} = [^#\n]*", f"{left} = {right}  ", text, flags=re.MULTILINE)
                    assert count == 1
            exec(compile(text, str(SOURCE), "exec"), names)
        matplotlib.pyplot.close("all")
    return names


def test_the_cells_ran(ran):
    assert set(ran["runs"]) == set(ran["verdicts"]) == set(ran["ESTIMATORS"]) == {"RLOO", "GRPO", "PRIME", "OSIPO"}
    for run in ran["runs"].values():
        assert run["true"].shape == (2, 6) and np.isfinite(run["true"]).all()
    assert ran["verdicts"]["RLOO"] == "cannot be told"


def test_the_deserved_credit_is_what_a_change_of_the_segment_would_bring(ran):
    """Against the sum over all values, in float64."""
    rng = np.random.default_rng(0)
    users, values, count = 4, ran["VALUES"], ran["K"]
    right, logits = rng.integers(0, values, (users, count)), rng.normal(size=(users, count, values))
    chains, who = rng.integers(0, values, (6, count)), rng.integers(0, users, 6)
    made = np.asarray(ran["true_credit"]({"right": right}, logits.astype(np.float32), who, chains))

    def outcome(user, chain):
        hit = chain == right[user]
        return 0.5 * hit[0] + 0.5 * hit[2] - 0.3 * hit[3]

    for row, (user, chain) in enumerate(zip(who, chains)):
        for k in range(count):
            p = np.exp(logits[user, k]) / np.exp(logits[user, k]).sum()
            others = sum(p[v] * outcome(user, np.where(np.arange(count) == k, v, chain)) for v in range(values))
            assert abs(made[row, k] - (outcome(user, chain) - others)) < 1e-5


def test_rloo_gives_every_segment_of_a_chain_the_same(ran):
    given = ran["runs"]["RLOO"]["given"]
    np.testing.assert_allclose(given, given[..., :1].repeat(given.shape[-1], -1), atol=1e-6)
    assert np.ptp(ran["runs"]["OSIPO"]["given"], axis=-1).max() > 1e-3
