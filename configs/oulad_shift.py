"""OULAD under a shift: everything is learnt on the students of one module (BBB) and judged on those of another (AAA).

Command:  SCALETOT_DATA=/path/to/tables scaletot run --config configs/oulad_shift.py --workdir runs/oulad_shift
Hardware: as configs/oulad.py
Protocol: docs/protocol.md
"""

from pathlib import Path

from ml_collections import ConfigDict

from scaletot_jax.config import load_config


def get_config() -> ConfigDict:
    config = load_config(Path(__file__).with_name("oulad.py"))
    config.split.shift_field = "module"
    config.split.shift_train = "BBB"
    config.split.shift_test = "AAA"
    return config
