"""The verdict with a known truth: a simulated teacher that knows the towns must help, one that does not must not."""

import importlib.util
from pathlib import Path

from scaletot_jax.files import read_table
from scaletot_jax.population import controls

_PATH = Path(__file__).parents[2] / "benchmarks" / "controls.py"
_SPEC = importlib.util.spec_from_file_location("controls_benchmark", _PATH)
line = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(line)
SMALL = line.SIZES | {
    "distill.steps": 200, "distill.batch_size": 128, "distill.width": 32, "distill.dim": 12, "distill.whiten_dim": 6,
    "head.seeds": 1, "head.steps": 200, "head.width": 4, "evaluate.bootstrap": 500, "distill.pool": 0,
}  # fmt: skip


def test_the_verdict_says_yes_and_says_no(tmp_path):
    """One world, the same shapes: the chains alone differ, and with them the states."""
    found = {
        kind: line.summary(line.run_control(tmp_path, kind, rows=2400, seed=0, sizes=SMALL)) for kind in controls.KINDS
    }
    assert found["positive"]["helps"] and not found["negative"]["helps"]
    for one in found.values():
        assert one["skill"]["profile"] < one["best"]["rps_skill"]
    assert found["positive"]["skill"]["profile_z"] > found["negative"]["skill"]["profile_z"]
    assert found["positive"]["skill"]["profile_z"] < found["positive"]["best"]["rps_skill"]
    chains = read_table(tmp_path / "positive" / "teach" / "chains.parquet")
    assert set(chains["values"].to_pylist()[0]) <= {v for s in line.load_spec("control").slots for v in s.values}
