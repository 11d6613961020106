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
from scaletot_jax.parallel import distributed

AXES = ("data", "fsdp", "tensor")


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """A mesh ``[data, fsdp, tensor]`` over ``data * fsdp * tensor`` devices, see :func:`choose_devices`.

    Args:
      data: copies of the model; 0 means as many as the devices allow.
      fsdp: parts of each weight along the model dimension.
      tensor: parts of each weight along heads, MLP or vocabulary.
      devices: the devices to choose from; by default all of the backend, those of other processes among them, or this
        process's own where it works :func:`~scaletot_jax.parallel.distributed.alone`.

    Raises:
      ConfigError: an axis below 1, more devices than there are, or a mesh in which a process has no share.
    """
    if devices is None:
        devices = jax.devices() if distributed.count() > 1 else jax.local_devices()
    devices = list(devices)
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
    grid = np.asarray(choose_devices(devices, needed), dtype=object).reshape(data, fsdp, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def choose_devices(devices: Sequence, needed: int) -> list:
    """``needed`` of the devices, as many from every process, in the order given.

    The first devices of a slice of several hosts all belong to the first process; the others would then run a program
    on devices that they cannot reach.

    Args:
      devices: objects with a ``process_index``.
      needed: how many; all of them may be unevenly owned, a part of them may not.

    Raises:
      ConfigError: a process would have no device, or fewer than another.
    """
    if needed == len(devices):
        return list(devices)
    owned: dict[int, list] = {}
    for device in devices:
        owned.setdefault(device.process_index, []).append(device)
    share, rest = divmod(needed, len(owned))
    if rest or min(map(len, owned.values())) < share:
        raise ConfigError(
            "the mesh does not give every process an equal share",
            where="mesh",
            why=f"{needed} of {len(devices)} devices, which belong to {len(owned)} processes",
            do="set mesh.data=0, which takes all devices, or sizes whose product is a multiple of the processes",
        )
    chosen = {id(device) for found in owned.values() for device in found[:share]}
    return [device for device in devices if id(device) in chosen]
