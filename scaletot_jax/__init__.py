"""ScaleToT in JAX: LLM reasoning about sparse users, distilled into a light encoder that serves everyone.

The folders are the stations of the line, in order: ``profiles``, ``datasets``, ``chains``, ``lm``, ``teacher``,
``student``, ``encoder``, ``evaluation``. The losses (``scaletot_jax.losses``) need jax and NumPy only. Names below are
imported on first use, so that ``import scaletot_jax`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "default_config": "scaletot_jax.config",
    "load_config": "scaletot_jax.config",
    "run_all": "scaletot_jax.pipeline",
    "ScaleToTEncoder": "scaletot_jax.estimator",
    "ScaleToTError": "scaletot_jax.errors",
}

__all__ = ["ScaleToTEncoder", "ScaleToTError", "__version__", "default_config", "load_config", "run_all"]

if TYPE_CHECKING:
    from scaletot_jax.config import default_config, load_config
    from scaletot_jax.errors import ScaleToTError
    from scaletot_jax.estimator import ScaleToTEncoder
    from scaletot_jax.pipeline import run_all


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'scaletot_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
