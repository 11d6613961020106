"""How much a training step does, and how much of the device that takes: tokens a second, model FLOPs utilisation.

The convention. A step's *model FLOPs* are what its mathematics needs, whatever is computed again or padded:

    FLOPs = f · ( N · tokens + D·V · predicted ) + a · L · H · hd · pairs

with N the parameters of the projections (no embedding, no head, no adapter), ``tokens`` the real tokens of prompts and
chains, ``predicted`` those whose logits over the vocabulary are made, and ``pairs`` the query-key pairs that attention
must look at: a causal prompt, and chains that see it and themselves. f is 2 for a forward pass; 4 for a LoRA step, whose
backward pass needs no gradient of the base weights ("4ND"); 6 for a full step ("6ND"). Attention has no weights: a is 4
forward, and 12 for either step.

Utilisation is FLOPs / (seconds · devices · peak), with the device's dense bfloat16 peak whatever the dtype. Counting
real tokens and causal pairs alone makes it lower than the usual count of T² pairs over padded rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scaletot_jax.lm.config import LMConfig

FORWARD, LORA, FULL = 2, 4, 6  # f
# Dense bfloat16 FLOP/s of one device, as its maker states them, by the beginning of jax's ``device_kind``.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "Tesla T4": 65e12,  # float16
}


class Work(NamedTuple):
    """What a batch holds: real tokens, tokens whose logits over the vocabulary are made, query-key pairs."""

    tokens: int
    predicted: int
    pairs: int


def count_work(prompt_valid: np.ndarray, chain_valid: np.ndarray, *, vocabulary: bool) -> Work:
    """Counts a batch of prompts with their chains.

    Args:
      prompt_valid: [B, P] bool.
      chain_valid: [B, N, R] bool.
      vocabulary: whether chain tokens are scored over the whole vocabulary (SFT) or among a few alternatives (OSIPO).
    """
    prompt = np.asarray(prompt_valid).sum(axis=1)[:, None]
    chain = np.asarray(chain_valid).sum(axis=2)
    pairs = np.sum(prompt * (prompt + 1) // 2) + np.sum(chain * prompt + chain * (chain + 1) // 2)
    written = int(chain.sum())
    return Work(int(prompt.sum()) + written, written if vocabulary else 0, int(pairs))


def model_flops(config: LMConfig, work: Work, factor: int) -> float:
    """FLOPs of one pass over the batch, by the convention above; ``factor`` is FORWARD, LORA or FULL."""
    matrices = config.num_layers * sum(inputs * outputs for inputs, outputs in config.projections.values())
    head = config.hidden_size * config.vocab_size
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * (1 if factor == FORWARD else 3)
    return float(factor * (matrices * work.tokens + head * work.predicted) + attention * work.pairs)


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device, None where it is not in :data:`PEAKS` (a CPU, for one)."""
    names = [name for name in PEAKS if device_kind.startswith(name)]
    return PEAKS[max(names, key=len)] if names else None


def utilisation(flops: float, seconds: float, devices: int, device_kind: str) -> float | None:
    """Share of the peak, None where no peak is known."""
    peak = peak_flops(device_kind)
    return None if peak is None else flops / (seconds * devices * peak)
