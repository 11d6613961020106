"""What the loops of the training stages refuse."""

import math
from types import SimpleNamespace

import pytest

from scaletot_jax.errors import ConfigError
from scaletot_jax.student.loop import check_finite


def test_a_step_without_numbers_is_named_and_not_saved():
    stage = SimpleNamespace(name="sft", path=lambda name: f"run/sft/{name}")
    check_finite(stage, 3, {"loss": 1.0, "grad_norm": 0.0, "value_auc": math.nan})
    with pytest.raises(ConfigError, match=r"reward_grad_norm is nan[\s\S]*sft.reward_learning_rate"):
        check_finite(stage, 3, {"loss": 1.0, "grad_norm": 1.0, "reward_loss": 1.0, "reward_grad_norm": math.nan})
    for name, value in (("loss", math.nan), ("grad_norm", math.inf)):
        with pytest.raises(
            ConfigError, match=rf"'sft' diverged[\s\S]*step 3[\s\S]*{name} is {value}[\s\S]*sft.learning_rate"
        ):
            check_finite(stage, 3, {"loss": 1.0, name: value})
