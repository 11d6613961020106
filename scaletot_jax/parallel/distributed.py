"""One run by several processes: how they find each other, who writes, and how values pass between host and mesh.

Every process runs the same program on the same run directory, which all of them must see. The first process alone writes
files and keeps the directory's lock; the others read what it wrote, after a :func:`barrier`. A single process needs
none of this: nothing is initialised, every function here returns at once, and jax is not even imported.

A process joins others when it is told so: by ``--coordinator HOST:PORT --processes N --process I``, by the environment
(``SCALETOT_COORDINATOR``, ``SCALETOT_PROCESSES``, ``SCALETOT_PROCESS``), as a task of a Slurm step of several, or as a
worker of a TPU slice whose hosts stand in ``TPU_WORKER_HOSTNAMES``. The coordinator ``auto`` leaves the search to JAX,
which asks the metadata server on a TPU VM.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scaletot_jax.errors import ConfigError, LostProcessError

_NAMES = ("SCALETOT_COORDINATOR", "SCALETOT_PROCESSES", "SCALETOT_PROCESS")
_WAIT_S = 7 * 24 * 3600  # the first process may be teaching for days while the others wait
_JOIN_S = 1800  # between two stages the first process may be busy sending the run directory somewhere
_PART = 1 << 26  # bytes of an array that are gathered at a time
_alone = False  # see alone()
_CALLS = itertools.count()  # every process makes the same calls in the same order, so a count names each of them


class Group(NamedTuple):
    """Where the processes meet. ``processes`` and ``process`` are None where JAX finds them out itself."""

    coordinator: str | None
    processes: int | None
    process: int | None


def find_group(
    environ: Mapping[str, str], coordinator: str = "", processes: int | None = None, process: int | None = None
) -> Group | None:
    """The group that this process belongs to; None where it is alone.

    Args:
      environ: the environment.
      coordinator, processes, process: from the command line; they go before the environment.

    Raises:
      ConfigError: a part is missing or impossible.
    """
    given = {
        "coordinator": coordinator or environ.get(_NAMES[0], ""),
        "processes": environ.get(_NAMES[1], "") if processes is None else processes,
        "process": environ.get(_NAMES[2], "") if process is None else process,
    }
    if given["coordinator"] == "auto":
        return Group(None, None, None)
    if any(value != "" for value in given.values()):
        return _stated(given)
    # srun sets these for each step; a plain shell inside an allocation has no step of several tasks.
    if _integer(environ.get("SLURM_STEP_NUM_TASKS", "")) > 1 and "SLURM_PROCID" in environ:
        return Group(None, None, None)
    # A compiler for TPUs without a TPU sets the same names, and TPU_SKIP_MDS_QUERY with them.
    if "," in environ.get("TPU_WORKER_HOSTNAMES", "") and "TPU_SKIP_MDS_QUERY" not in environ:
        return Group(None, None, None)
    return None


def _stated(given: Mapping[str, Any]) -> Group | None:
    missing = [name for name, value in given.items() if value == ""]
    if missing:
        raise ConfigError(
            "a run of several processes needs a coordinator, their number, and this one's",
            where="--coordinator, --processes, --process",
            why=f"missing: {', '.join(missing)}",
            do=f"give all three, or set {', '.join(_NAMES)}; --coordinator=auto finds them on TPU pods and under Slurm",
        )
    processes, process = _integer(given["processes"]), _integer(given["process"])
    host, _, port = str(given["coordinator"]).rpartition(":")
    if not host or not 0 < _integer(port) < 65536 or processes < 1 or not 0 <= process < processes:
        raise ConfigError(
            "the processes of this run are not numbered 0 to N − 1, or the coordinator is no HOST:PORT",
            where="--coordinator, --processes, --process",
            why=", ".join(f"{name} {value!r}" for name, value in given.items()),
        )
    return None if processes == 1 else Group(str(given["coordinator"]), processes, process)


def _integer(value: Any) -> int:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else -1


def initialize(coordinator: str = "", processes: int | None = None, process: int | None = None) -> bool:
    """Joins the other processes, where there are any; call it before anything touches a device.

    Returns:
      whether this process is one of several.

    Raises:
      ConfigError: as :func:`find_group`, or nothing says who the others are.
      LostProcessError: the others could not be reached.
    """
    group = find_group(os.environ, coordinator, processes, process)
    if group is None or _joined():
        return group is not None
    import jax

    try:
        jax.distributed.initialize(group.coordinator, group.processes, group.process, initialization_timeout=_JOIN_S)
    except (RuntimeError, ValueError) as error:
        # A RuntimeError: one of them is not there, which may be as passing as its end. A ValueError: nobody says who they are.
        raise (LostProcessError if isinstance(error, RuntimeError) else ConfigError)(
            "the processes of this run did not find each other",
            where=group.coordinator or "the cluster's own description",
            why=str(error).splitlines()[0],
            do="start the same command in every process within half an hour; give --coordinator, --processes and "
            "--process where the cluster does not say them",
        ) from error
    from scaletot_jax.parallel import preemption

    preemption.put_away()  # JAX's service has taken SIGTERM even where it found no other process
    return count() > 1


def _joined() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def count() -> int:
    """How many processes run this part of the program together."""
    return sys.modules["jax"].process_count() if _joined() and not _alone else 1


def index() -> int:
    """The number of this process among them; the first is 0."""
    return sys.modules["jax"].process_index() if count() > 1 else 0


def members() -> set[int] | None:
    """The processes that :func:`count` counts, by their numbers; None where there has only ever been one."""
    if not _joined():
        return None
    return {sys.modules["jax"].process_index()} if _alone else set(range(count()))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process works by itself, on its own devices, as if there were no other.

    For work that is not divided: the first process does it, and the others wait at a :func:`barrier` after it.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def leads() -> bool:
    """Whether this process writes the files: the first does, and so does a single one."""
    return index() == 0


# What JAX's coordinator, Gloo (CPU) and NCCL (GPU) say where the other end is gone; the type is RuntimeError or ValueError.
_GONE = re.compile(
    r"\b(UNAVAILABLE|ABORTED)\b|Gloo .* failed|Connection (reset|closed) by peer|heartbeat|"
    r"NCCL .*(remote|network|peer)|[Cc]oordination service"
)


def lost(error: BaseException | None) -> LostProcessError | None:
    """The error to show where ``error``, or what it came from, says that another process of this run is gone; else None."""
    seen: set[int] = set()  # `raise error from error` is its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if count() > 1 and isinstance(error, (RuntimeError, ValueError, OSError)) and _GONE.search(str(error)):
            return _lost(error)
        error = error.__cause__ or error.__context__
    return None


def _lost(error: BaseException) -> LostProcessError:
    return LostProcessError(
        "another process of this run has ended",
        where=f"process {index()} of {count()}, waiting for it",
        why=str(error).splitlines()[0][:200],
        do="see what that process said, then start the same command again in every process",
    )


@contextlib.contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # JaxRuntimeError: UNAVAILABLE, or ABORTED by the coordinator
        raise _lost(error) from error


def barrier(name: str) -> None:
    """Waits until every process is here. No device takes part, so the wait may be long."""
    if count() > 1:
        from orbax.checkpoint import multihost

        key = f"scaletot:{next(_CALLS)}:{name}"
        with _others_alive():  # with the processes named, the barrier goes through the coordinator, not the devices
            multihost.sync_global_processes(key, timeout=_WAIT_S, processes=members())


def exchange(values: np.ndarray) -> np.ndarray:
    """A small array of every process, [processes, ...], on every process; through the coordinator, not the devices."""
    values = np.ascontiguousarray(values)
    if count() == 1:
        return values[None]
    from jax._src.distributed import global_state  # the only door to the coordinator's table; orbax uses it, too

    client: Any = global_state.client
    call = next(_CALLS)
    with _others_alive():
        client.key_value_set(f"scaletot/{call}/{index()}", values.tobytes().hex())
        texts = [client.blocking_key_value_get(f"scaletot/{call}/{i}", _WAIT_S * 1000) for i in range(count())]
    return np.stack([np.frombuffer(bytes.fromhex(text), values.dtype).reshape(values.shape) for text in texts])


def agree(here: bool) -> bool:
    """Whether ``here`` is true on every process."""
    return bool(exchange(np.asarray([here])).all())


def check_same(text: str, what: str) -> None:
    """Makes sure that all processes work on the same thing; waits for all of them.

    Raises:
      ConfigError: ``text`` differs between processes.
    """
    own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint64)
    if not (exchange(own) == own).all():
        raise ConfigError(
            "the processes were given different configurations",
            where=what,
            do="start the same command, with the same recipe and the same code, in every process",
        )


def place(tree: Any, shardings: Any) -> Any:
    """Host arrays, equal on every process, as arrays with the given shardings; each process keeps its own shards.

    Args:
      tree: arrays on the host or on this process's devices, or arrays of the whole mesh, which are resharded.
      shardings: a tree of shardings of the same structure, or one for all.
    """
    import jax

    if count() == 1:
        return jax.device_put(tree, shardings)

    def put(leaf: Any, sharding: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # jnp makes such under a mesh of several
            here = leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
            return leaf if here else _resharding(sharding)(leaf)
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raw = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(raw, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda piece: host[piece])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: put(leaf, shardings), tree)
    return jax.tree.map(put, tree, shardings)


@functools.lru_cache(maxsize=64)
def _rows(sharding: Any, count: int) -> Callable[[Any, int], Any]:
    import jax

    return jax.jit(lambda leaf, first: jax.lax.dynamic_slice_in_dim(leaf, first, count), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _resharding(sharding: Any) -> Callable[[Any], Any]:
    import jax

    return jax.jit(lambda leaf: leaf, out_shardings=sharding)  # device_put reaches this process's devices alone


def gather(tree: Any) -> Any:
    """Arrays of the mesh as whole NumPy arrays on every process. Every process must call it.

    What other processes hold passes through the devices a part at a time, so none of them ever holds a whole large array.
    """
    import jax

    if count() == 1:
        return jax.device_get(tree)

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            everywhere = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())  # type: ignore[attr-defined]
            rows = max(1, _PART * len(leaf) // max(1, leaf.nbytes))
            parts = [np.asarray(_rows(everywhere, rows)(leaf, i)) for i in range(0, len(leaf) - rows, rows)]
            last = len(leaf) - len(parts) * rows
            return np.concatenate([*parts, np.asarray(_rows(everywhere, last)(leaf, len(leaf) - last))])
        return np.asarray(leaf)

    return jax.tree.map(whole, tree)


def check_shared(directory: str | Path) -> None:
    """Makes sure that all processes mean the same folder: the first leaves a mark in it that the others must find.

    Raises:
      ConfigError: a process does not see the mark.
    """
    if count() == 1:
        return
    token = exchange(np.frombuffer(os.urandom(8), np.uint64))[0]
    mark = Path(directory) / f".processes.{int(token[0]):016x}"
    if leads():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    barrier("mark")
    seen = agree(mark.exists())
    if leads():
        mark.unlink(missing_ok=True)
    if not seen:
        raise ConfigError(
            "the processes do not share the run directory",
            where=str(directory),
            why="a file that the first process wrote there is not seen by every other",
            do="put --workdir on a disk that all hosts mount, such as NFS, Filestore or Lustre",
        )
