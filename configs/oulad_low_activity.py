"""OULAD, low-activity: students who were seen on at most two days before the course.

Command:  SCALETOT_DATA=/path/to/tables scaletot run --config configs/oulad_low_activity.py --workdir runs/oulad_low_activity
Hardware: as configs/oulad.py
Protocol: docs/protocol.md
"""

from pathlib import Path

from ml_collections import ConfigDict

from scaletot_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("oulad.py"))
    config.data.low_activity = True
    return config
