"""Complete Journey at full size: every layer of the student, every distinct profile of the teacher split reasoned about.

Command:  scaletot run --config configs/complete_journey.py --workdir runs/complete_journey
Hardware: two CPU cores and 16 GB take under two hours (1 h 48 min, measured beside other jobs); any GPU or TPU that JAX
          sees is used, and there the sizes below may grow
Result:   docs/results.md
"""

from ml_collections import ConfigDict

from scaletot_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "complete_journey"

    config.split.distill = 0.15  # docs/protocol.md: more households to judge on than by default
    config.split.head = 0.20
    config.split.test = 0.30

    config.sft.epochs = 1  # 174 steps of 8 profiles x 2 chains

    config.osipo.updates = 50
    config.osipo.prompts = 8
    config.osipo.rollouts = 4

    config.distill.num_profiles = 1000
    config.distill.chains = 2
    return config
