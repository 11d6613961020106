"""Memory of a step on one chip by arithmetic: what ``scaletot plan --target`` says before it asks the compiler.

    state         12 bytes a trained number (float32 and two moments), and the frozen base in the compute dtype
    gradient      4 bytes a trained number, and for full training the compute copy of the weights
    activations   one [B, T, D] float32 array a layer under full recomputation, all of a layer's otherwise
    layer         what one layer needs while it is computed again, attention's scores unless a kernel hides them
    head          a chunk of logits, its probabilities, and the rows that are read

Everything split is divided by the devices that split it; the layers of one chip are gathered two at a time.
"""

from __future__ import annotations

import math

from scaletot_jax.lm.config import LMConfig
from scaletot_jax.lm.head import COLUMNS, ROWS
from scaletot_jax.parallel.tpu.models import parameters
from scaletot_jax.parallel.tpu.programs import Workload


def analytic_bytes(work: Workload, config: LMConfig) -> dict[str, float]:
    """Bytes a chip by part; their sum is the estimate of the peak."""
    width = 2 if work.compute_dtype == "bfloat16" else 4
    parts = work.fsdp * work.tensor
    whole = parameters(config)
    layer = sum(inputs * outputs for inputs, outputs in config.projections.values())
    gathered = 2 * layer * width / work.tensor if work.fsdp > 1 else 0.0
    if work.program in ("decode", "rollouts"):
        own = work.program == "rollouts"  # every rollout holds its prompt, and the adapter is merged into a second copy
        slots = work.rows * (work.prompt * (work.chains if own else 1) + work.chains * work.length)
        cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * width * slots
        split = math.gcd(config.num_kv_heads, work.tensor)
        if own:
            split *= work.data * work.fsdp
        return {"weights": (2 if own else 1) * whole * width / parts, "cache": cache / split}
    adapter = config.num_layers * work.rank * sum(sum(sizes) for sizes in config.projections.values())
    if work.program == "full_sft":
        state, gradient = 12 * whole / parts, (4 + width) * whole / parts
    else:
        models = {"sft": 1, "osipo": 2}[work.program]
        state = (width * whole + (12 * models + 4 * (models - 1)) * adapter) / parts
        gradient = 4 * models * adapter / parts
    rows = max(1, work.rows // (work.data * work.fsdp * work.accumulate))
    length = work.prompt + work.chains * work.length
    tokens = rows * length
    inner = (6 * config.hidden_size + 4 * config.intermediate_size / work.tensor) * 4
    scores = 0.0 if work.attention == "splash" else 3 * config.num_heads / work.tensor * length * 4
    one = tokens * (inner + scores)
    kept: float = config.num_layers * tokens * config.hidden_size * 4
    if work.remat == "none":
        kept += config.num_layers * one
    elif work.remat == "dots":
        kept += (
            config.num_layers * tokens * sum(outputs for _, outputs in config.projections.values()) * 4 / work.tensor
        )
    read = rows * work.chains * work.length * work.fsdp * config.hidden_size * (width + 4)
    head = 3 * min(ROWS, read) * COLUMNS * 4 + read
    return {"state": state, "gradient": gradient, "activations": kept, "layer": 2 * one + gathered, "head": head}
