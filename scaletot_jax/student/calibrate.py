"""A shorter student: the first layers of a model, calibrated to the model's own head.

Cut off after a middle layer, a language model predicts far worse than chance, because its head was trained on the last
layer's output. The affine map of :mod:`scaletot_jax.lm.exit` repairs that; here it is fitted on prompts with their teacher
chains. Neither contains a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.exit import fit_exit
from scaletot_jax.lm.model import forward
from scaletot_jax.parallel.distributed import gather

RIDGE = 1e-3  # relative to the states' variance: enough against the few directions that dominate it


def exit_map(
    params: Mapping[str, Any],
    config: LMConfig,
    num_layers: int,
    tokens: np.ndarray,
    valid: np.ndarray,
    *,
    batch_size: int = 8,
    ridge: float = RIDGE,
) -> dict[str, np.ndarray]:
    """Fits the exit map after ``num_layers`` layers.

    Args:
      params, config: the whole model, on one device or split over a mesh.
      tokens, valid: [N, T] texts, right-padded. The first token of each is left out: its state is an attention sink
        hundreds of times larger than the others and would decide the fit.
      batch_size: texts a forward pass.

    Returns:
      ``{"weight": [D, D], "bias": [D]}`` float32.
    """
    both = jax.jit(
        lambda params, tokens, valid: (
            forward(params, config, tokens, valid=valid, collect_layers=(num_layers, config.num_layers)).layers
        )
    )
    count = -(-len(tokens) // batch_size) * batch_size
    rows = np.arange(count) % len(tokens)  # the last batch is filled up with the first texts, which are then left out
    states, finals = [], []
    for begin in range(0, count, batch_size):
        part = rows[begin : begin + batch_size]
        kept = valid[part].copy()
        kept[:, 0] = False
        kept[np.arange(begin, begin + batch_size) >= len(tokens)] = False
        middle, last = both(params, tokens[part], valid[part])
        states.append(gather(middle)[kept])
        finals.append(gather(last)[kept])
    return fit_exit(np.concatenate(states), np.concatenate(finals), ridge)
