"""A job of the population pass whose model is a few lines of NumPy: processes that run it never import jax, so they start
in no time and may be forked and killed by the hundred.

Run as a script it serves commands, one JSON a line: {"out": folder, "steps": [[kill, ...], ...]}. Every step forks one process
a number, which run at the same time; a process is killed (SIGKILL) at that event of its life, -1 lets it live. It answers
with the status of each. An event is everything that a kill may fall between: a write, before and after a sync, before
and after a rename, a hash. A command {"out": ..., "at": [name, file]} kills one process at a named place instead.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

SHARD_ROWS, ROWS = 170, 1000


def files(folder: Path) -> dict[str, bytes]:
    """Every file by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def compute(inputs):
    """Numbers that follow from a row's inputs."""
    total = inputs.num.sum(1) + inputs.cat.sum(1) + inputs.multi.reshape(len(inputs.cat), -1).sum(1)
    embedding = np.stack([total, np.sin(total)], axis=1).astype(np.float16)
    return {"embedding": embedding, "score": total.astype(np.float32), "finite": np.ones(len(total), bool)}


def open_job(table: str, features: str, out: str):
    from scaletot_jax.files import read_json
    from scaletot_jax.population.commit import Ledger, plan_shards
    from scaletot_jax.population.rows import Layout, RowEncoder
    from scaletot_jax.population.scoring import Job
    from scaletot_jax.population.source import Source
    from scaletot_jax.profiles.features import FeatureSpace

    space = FeatureSpace.from_dict(read_json(features))
    layout = Layout({"user_id": "user_id"}, {field.name: field.source for field in space.fields})
    source = Source(table, layout.columns, coded=list(layout.fields.values()))
    shards = plan_shards(source.rows, SHARD_ROWS)
    ledger = Ledger(out, {"toy": 1, "rows": source.rows}, shards, facts={"dim": 2}, stated={"model": "toy"})
    encode = RowEncoder(space, layout)
    return Job(source, encode, lambda inputs, where: None, compute, ["embedding", "score"], ledger)


def run(table: str, features: str, out: str) -> bool:
    from scaletot_jax.population.scoring import score_shards

    job = open_job(table, features, out)
    recorded = job.ledger.recorded(job.ledger.shards)
    todo = [shard for shard in job.ledger.shards if shard.number not in recorded]
    if todo:
        score_shards(job, todo)
    return job.ledger.seal()


class Events:
    """Calls ``happen`` between all things that a pass does to its files."""

    def __init__(self, happen):
        import pyarrow.parquet as pq

        from scaletot_jax.population import commit

        os.fsync = lambda descriptor: (
            None
        )  # a killed process loses nothing that it wrote; a lost machine is not tried here
        for module, name in (
            (os, "fsync"),
            (os, "replace"),
            (commit, "sha256_file"),
            (pq.ParquetWriter, "write_table"),
        ):
            setattr(module, name, self._around(getattr(module, name), name, happen))

    @staticmethod
    def _around(real, name, happen):
        def wrapped(*args, **kwargs):
            place = str(args[1]) if name == "replace" else str(args[0])
            happen(f"before {name}", place)
            out = real(*args, **kwargs)
            happen(f"after {name}", place)
            return out

        return wrapped


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _child(folder: str, out: str, kill) -> None:
    """Runs the pass in this forked process; ``kill``: number of the event, or [name, end of the place]."""
    seen = [0]

    def happen(name: str, place: str) -> None:
        if isinstance(kill, list):
            wanted = name == kill[0] and place.endswith(kill[1])
        else:
            wanted = seen[0] == kill
        seen[0] += 1
        if wanted:
            _die()

    Events(happen)
    os._exit(0 if run(f"{folder}/table.parquet", f"{folder}/features.json", out) else 3)


def _fork(folder: str, out: str, kill) -> int:
    child = os.fork()
    if child == 0:
        try:
            _child(folder, out, kill)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    return child


def serve(folder: str) -> None:
    import scaletot_jax.population.scoring  # noqa: F401 - imported once, before the forks

    assert "jax" not in sys.modules
    for line in sys.stdin:
        command = json.loads(line)
        steps = [[command["at"]]] if "at" in command else command["steps"]
        answer = []
        for step in steps:
            children = [_fork(folder, command["out"], kill) for kill in step]
            answer.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
