"""Complete Journey at full size: every layer of the student, 2,000 reasoned profiles, 100 OSIPO updates.

Command:  scaletot run --config configs/complete_journey.py --workdir runs/complete_journey
Hardware: two CPU cores and 8 GB take hours ('scaletot plan' says how many); any GPU or TPU that JAX sees is used
Result:   docs/results.md, once it has been run to its end
"""

from ml_collections import ConfigDict

from scaletot_jax.config import default_config


def get_config() -> ConfigDict:
    return default_config()
