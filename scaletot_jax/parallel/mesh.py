"""The device mesh: three axes, ``data × fsdp × tensor``, whose sizes are stated and whose types are Auto.

``data`` repeats the model and splits the batch, ``fsdp`` splits the batch and the weights along the model dimension,
``tensor`` splits heads, hidden units of the MLP and the vocabulary. XLA places the communication (GSPMD); the explicit
part is in :mod:`scaletot_jax.parallel.sharding`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from scaletot_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """A mesh ``[data, fsdp, tensor]`` over the first ``data * fsdp * tensor`` devices.

    Args:
      data: copies of the model; 0 means as many as the devices allow.
      fsdp: parts of each weight along the model dimension.
      tensor: parts of each weight along heads, MLP or vocabulary.
      devices: the devices to use; all of this process's backend by default.

    Raises:
      ConfigError: an axis below 1 or more devices than there are.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    if fsdp < 1 or tensor < 1 or data < 0:
        raise ConfigError(
            "a mesh axis must be at least 1", where="mesh", why=f"data={data}, fsdp={fsdp}, tensor={tensor}"
        )
    data = data or len(devices) // (fsdp * tensor)
    needed = math.prod((data, fsdp, tensor))
    if needed < 1 or needed > len(devices):
        raise ConfigError(
            "the mesh does not fit the machine",
            where="mesh",
            why=f"data={data} × fsdp={fsdp} × tensor={tensor} needs {max(needed, fsdp * tensor)} devices, there are {len(devices)}",
            do="lower mesh.data, mesh.fsdp or mesh.tensor",
        )
    grid = np.asarray(devices[:needed], dtype=object).reshape(data, fsdp, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
