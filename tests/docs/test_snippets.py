"""The example of the README runs as it stands there, and says what the losses' own tests say."""

import re
from pathlib import Path

import jax
import numpy as np

PAGE = Path(__file__).parents[2] / "README.md"


def test_the_loss_in_your_own_loop():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    rng = np.random.default_rng(0)
    ids = np.array([[-3, 0, 0, -1, 1, 2, 3, 4, -2], [0, 1, 1, 1, -1, 2, 3, 4, -2]] * 4)
    names = {
        "segment_ids": ids,
        "group_ids": np.repeat([0, 1], 4),
        "outcomes": rng.uniform(size=8).astype(np.float32),
        **{name: rng.normal(size=ids.shape).astype(np.float32) for name in ("prm_logps", "ref_logps", "old_logps")},
    }

    def loss(logps):
        scope = {**names, "logps": logps}
        exec(compile(code, "README.md", "exec"), scope)
        return scope["loss"]

    value, gradient = jax.value_and_grad(loss)(names["old_logps"])
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.abs(gradient[ids >= 0]).max() > 0 and not gradient[ids == -3].any()
