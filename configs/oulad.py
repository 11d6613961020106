"""OULAD: students of the Open University, active days in the first 30 days of a course.

Command:  SCALETOT_DATA=/path/to/tables scaletot run --config configs/oulad.py --workdir runs/oulad
          or --config.data.manual_dir=DIR with the official anonymisedData.zip in DIR
Hardware: two CPU cores, 8 GB; sizes as in the quickstart
"""

from ml_collections import ConfigDict

from scaletot_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "oulad"
    config.data.low_activity = False  # --config.data.low_activity=true: at most two active days before the course
    config.lm.max_profile_tokens = 128

    config.split.distill = 0.15  # docs/protocol.md: more users to judge on than by default
    config.split.head = 0.20
    config.split.test = 0.30

    config.teacher.num_profiles = 300
    config.teacher.pilot_profiles = 300

    config.student.num_layers = 15
    config.sft.epochs = 1
    config.sft.checkpoint_every = 5
    config.osipo.updates = 20
    config.osipo.prompts = 4
    config.osipo.rollouts = 4
    config.osipo.eval_profiles = 200

    config.distill.num_profiles = 300
    config.distill.chains = 2
    config.distill.steps = 800
    config.distill.batch_size = 64
    config.head.steps = 800
    return config
