"""KuaiRand-Pure, low-activity: users who watched at most ten videos in 16 days; active days in the 14 days after.

Command:  SCALETOT_DATA=/path/to/tables scaletot run --config configs/kuairand.py --workdir runs/kuairand
          or --config.data.manual_dir=DIR with the official KuaiRand-Pure.tar.gz in DIR
Hardware: two CPU cores, 8 GB; sizes as in the quickstart
Protocol: docs/protocol.md
"""

from pathlib import Path

from ml_collections import ConfigDict

from scaletot_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("oulad.py"))
    config.data.name = "kuairand_pure"
    config.data.low_activity = True
    config.lm.max_profile_tokens = 112
    config.teacher.num_profiles = 400  # 7 % of 5,775 users
    config.teacher.pilot_profiles = 400
    return config
