"""The log of training steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.errors import DataError
from scaletot_jax.step_log import StepLog, read_steps


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 30))
def test_a_step_log_continues_without_doubled_or_torn_lines(tmp_path_factory, steps, checkpoint, torn):
    checkpoint = min(checkpoint, steps)
    path = tmp_path_factory.mktemp("log") / "steps.jsonl"
    log = StepLog(path, keep_through=-1)
    for step in range(1, steps + 1):
        log.append(step, loss=1 / step, bad=float("inf"))
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 99, "lo'[: torn % 16])
    log = StepLog(path, keep_through=checkpoint)
    for step in range(checkpoint + 1, steps + 1):
        log.append(step, loss=1 / step, bad=float("inf"))
    log.close()
    assert path.read_bytes() == whole
    assert [row["step"] for row in read_steps(path)] == list(range(1, steps + 1))
    assert all(row["bad"] is None for row in read_steps(path))


def test_the_kept_lines_are_those_of_the_checkpoint(tmp_path):
    path = tmp_path / "steps.jsonl"
    log = StepLog(path, keep_through=0)
    for step in range(1, 5):
        log.append(step, loss=1 / step)
        if step == 3:
            stated = log.sync()
    log.close()
    StepLog(path, keep_through=3, stated=stated).close()
    whole = path.read_text()
    for damaged in ("", whole.replace("0.5", "0.6"), whole.replace("}", "", 1), "12\n" + whole):
        path.write_text(damaged)
        with pytest.raises(DataError, match="run the same command again"):
            StepLog(path, keep_through=3, stated=stated)
        assert path.read_text() == damaged
