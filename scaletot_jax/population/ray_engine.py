"""The engine ``ray``: a cluster places whole shards on its machines and makes those of a lost machine again elsewhere.

Ray moves and retries; that no row is lost or doubled is the ledger's doing, as with any other worker. A task is one shard; a
process of Ray keeps the loaded model and its compiled program for its next task. Every machine must see the model, the
table and the folder of the results under the same paths.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from scaletot_jax.errors import ConfigError, ResourceError, ScaleToTError
from scaletot_jax.population.commit import Shard
from scaletot_jax.population.model import load_model
from scaletot_jax.population.score import DEFAULT, Options, open_job
from scaletot_jax.population.scoring import Job, score_shards
from scaletot_jax.progress import Progress

_RETRIES = 5  # of one shard, when its process or machine is lost


def score_on_ray(
    model: str | Path,
    table: str | Path,
    out: str | Path,
    options: Options = DEFAULT,
    *,
    address: str = "",
    cpus: float = 1,
    gpus: float = 0,
) -> bool:
    """Scores a table on a Ray cluster; arguments and errors as in :func:`scaletot_jax.population.score.score_table`.

    Args:
      address: of a running cluster; by default one is started on this machine for the time of the call.
      cpus, gpus: that a task asks of its machine.

    Returns:
      whether the manifest is there.

    Raises:
      ConfigError: Ray is not installed.
      ResourceError: a shard failed with its machine more often than it is retried.
    """
    ray = _ray()
    places = tuple(str(Path(place).resolve()) for place in (model, table, out))
    begun = not ray.is_initialized()
    if begun:
        ray.init(address=address or None, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_RETRIES)
        # This process may have another kind of device than the cluster, so it does not open the job itself.
        rows, missing = _get(ray, remote(_survey).remote(places, options), "the job")
        left = sum(end - begin for *_, begin, end in missing)
        make = remote(_make)
        waiting = {make.remote(places, options, shard): shard for shard in missing}
        with Progress("score", rows, "rows", done=rows - left) as progress:
            while waiting:
                (found,), _ = ray.wait(list(waiting), num_returns=1)
                _, file, begin, end = waiting.pop(found)
                _get(ray, found, file)
                progress.advance(end - begin)
        return _get(ray, remote(_seal).remote(places, options), "the manifest")
    finally:
        if begun:
            ray.shutdown()


def _get(ray: Any, reference: Any, what: str) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ScaleToTError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ResourceError(
            "the cluster could not finish a task",
            where=what,
            why=" ".join(str(error).split())[:300],
            do="run the same command again: what is recorded stays",
        ) from error


# -- in the processes of Ray ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _job(places: tuple[str, str, str], options: Options) -> Job:
    """Opened and compiled once a process."""
    return open_job(load_model(places[0]), places[1], places[2], options)


def _survey(places: tuple[str, str, str], options: Options) -> tuple[int, list[tuple[int, str, int, int]]]:
    """Rows of the table, and the shards that are not recorded. Opens the job anew: it is refused if anything changed."""
    _job.cache_clear()
    job = _job(places, options)
    recorded = job.ledger.recorded(job.ledger.shards)
    missing = [tuple(shard) for shard in job.ledger.shards if shard.number not in recorded]
    return job.source.rows, missing  # type: ignore[return-value]


def _make(places: tuple[str, str, str], options: Options, shard: tuple[int, str, int, int]) -> None:
    job = _job(places, options)
    score_shards(job, [Shard(*shard)])


def _seal(places: tuple[str, str, str], options: Options) -> bool:
    return _job(places, options).ledger.seal()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "the engine 'ray' needs Ray", where="--engine", why=str(error), do="pip install 'scaletot_jax[ray]'"
        ) from error
    return ray
