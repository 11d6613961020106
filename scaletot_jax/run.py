"""The run directory: one folder a stage, written atomically, resumed by fingerprint.

A stage's folder is trusted only through its ``stage.json``, which is written last, carries a digest of itself and lists
every artifact with its SHA-256. The fingerprint covers the configuration the stage reads, the results of the stages it
builds on, and :data:`FORMAT`; a stage whose fingerprint matches is not run again, a stage of another configuration is
refused with the difference shown, and so is unfinished work of another version. A process holds an exclusive lock on the
directory, which the kernel drops when it dies.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from scaletot_jax import __version__
from scaletot_jax.errors import ConfigError, DataError, OutdatedStageError, ResourceError, StaleRunError
from scaletot_jax.files import disk_errors, fingerprint, plain, read_json, sha256_file, sync_directory, write_json
from scaletot_jax.parallel.distributed import agree, barrier, check_same, check_shared, count, leads

FORMAT = 1  # raise it when a stage's artifacts change shape or meaning
STAGES = ("prepare", "teach", "sft", "osipo", "distill", "score", "evaluate", "report")
# After a loss the old first process holds the lock until JAX's watch over the processes ends it, in about 100 seconds.
_LOCK_WAIT_S = 180.0
_LOCK_LOOK_S = 2.0
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what flock(2), and NFS by fcntl(2), say where another has it

_RECORD = frozenset({"stage", "fingerprint", "identity", "artifacts", "summary"})


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes ``stage.json`` with a digest of its content."""
    content = json.loads(json.dumps(record, default=plain))
    write_json(path, {**content, "digest": fingerprint(content)})


def read_record(path: Path) -> dict[str, Any]:
    """The content of ``stage.json``; DataError where it is missing, damaged or changed."""
    try:
        found = read_json(path)
    except DataError:
        if not path.exists():
            raise
        found = None
    digest = found.pop("digest", None) if isinstance(found, dict) else None  # a record of an earlier version has none
    if not isinstance(found, dict) or found.keys() != _RECORD or digest not in (None, fingerprint(found)):
        raise DataError(
            "the record of a finished stage is damaged",
            where=str(path),
            why="its content is not what was written",
            do=f"run 'scaletot {path.parent.name}' or 'scaletot run' again: the stage is finished anew",
        )
    return found


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys: ``{"a": {"b": 1}}`` gives ``{"a.b": 1}``."""
    out: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            out.update(flatten(item, name + "."))
        else:
            out[name] = list(item) if isinstance(item, tuple) else item
    return out


class Stage:
    """The folder of one stage. Made by :meth:`Run.stage`.

    Attributes:
      directory: the folder, which exists.
      done: whether a finished result of this very configuration lies there.
      fingerprint: hash of the configuration it reads and of the results it builds on.
    """

    def __init__(self, name: str, directory: Path, identity: dict[str, Any]):
        self.name, self.directory, self.identity = name, directory, identity
        self.fingerprint = fingerprint(identity)
        self.done = False
        self._started = time.monotonic()

    def path(self, name: str) -> Path:
        return self.directory / name

    def summary(self) -> dict[str, Any]:
        """What the finished stage said of itself."""
        return read_record(self.path("stage.json"))["summary"]

    @property
    def result(self) -> str:
        """Hash of what the finished stage is and what it wrote; stages after it carry it in their identity."""
        record = read_record(self.path("stage.json"))
        return fingerprint({"fingerprint": self.fingerprint, "artifacts": record["artifacts"]})

    def check_artifacts(self, only: str | None = None) -> None:
        """Raises StaleRunError if an artifact, or the one named, is not what was recorded."""
        for name, entry in read_record(self.path("stage.json"))["artifacts"].items():
            if only not in (None, name):
                continue
            artifact = self.path(name)
            if not artifact.exists() or sha256_file(artifact) != entry["sha256"]:
                raise StaleRunError(
                    f"an artifact of the finished stage '{self.name}' is missing or was changed",
                    where=str(artifact),
                    why="its SHA-256 is not the recorded one",
                    do=f"delete {self.directory} and run the same command again; stages after it rerun only if the "
                    "new result differs, and then want --on-change=redo",
                )

    def finish(self, artifacts: Sequence[str], summary: Mapping[str, Any] | None = None) -> None:
        """Records the stage as done. ``artifacts``: file names in the folder, hashed now and checked at every reuse."""
        if leads():
            self._record(artifacts, summary)
        barrier(f"finish {self.name}")
        self.done = True

    def _record(self, artifacts: Sequence[str], summary: Mapping[str, Any] | None) -> None:
        listed = {}
        for name in artifacts:
            path = self.path(name)
            listed[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        write_json(self.path("timing.json"), {"seconds_of_last_process": round(time.monotonic() - self._started, 2)})
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "artifacts": listed,
            "summary": dict(summary or {}),
        }
        write_record(self.path("stage.json"), record)


class Run:
    """A run directory opened by one process, or by all processes of a group, of which the first writes and locks.

    Args:
      workdir: the folder; made where absent.
      config: the whole configuration as a nested mapping (``ConfigDict.to_dict()``).
      on_change: ``"refuse"`` (default) raises StaleRunError when a stage's folder holds work of another configuration;
        ``"redo"`` removes that folder and does the stage again.
      lock: a reader of a finished run passes False.
    """

    def __init__(self, workdir: str | Path, config: Mapping[str, Any], *, on_change: str = "refuse", lock: bool = True):
        self.workdir = Path(workdir)
        self.config = dict(config)
        self.on_change = on_change
        self._finished: dict[str, Stage] = {}
        self._lock_file: IO[str] | None = None
        with disk_errors(self.workdir):
            try:
                self.workdir.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise ConfigError("the run directory is a file", where=str(self.workdir), do="--workdir=DIR") from error
            if lock:
                check_shared(self.workdir)
                if leads():
                    self._acquire()
                barrier("lock")

    def _acquire(self) -> None:
        path = self.workdir / ".lock"
        handle = open(path, "a+")
        try:
            _lock(handle, self.workdir, _LOCK_WAIT_S if count() > 1 else 0.0)
        except BaseException:
            handle.close()
            raise
        self._lock_file = handle
        # What a killed process left behind; nobody else can be at work here.
        for leftover in [*self.workdir.rglob(".*.tmp"), *self.workdir.glob(".*.old")]:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    def close(self) -> None:
        if self._lock_file is not None:
            self._lock_file.close()
            self._lock_file = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stage(self, name: str, *, sections: Sequence[str], needs: Sequence[str] = (), extra: Any = None) -> Stage:
        """Opens a stage.

        Args:
          name: one of :data:`STAGES`.
          sections: the configuration sections (or dotted keys) the stage reads; they enter its fingerprint.
          needs: stages that must be finished before.
          extra: further identity, e.g. the SHA-256 of an input file.

        Raises:
          StaleRunError: an upstream stage is not finished, or the folder holds work of another configuration.
        """
        identity = {
            "format": FORMAT,
            "config": flatten({key: self._section(key) for key in sections}),
            "needs": {need: self.finished(need).result for need in needs},
            "extra": extra,
        }
        identity = json.loads(json.dumps(identity, default=plain))
        stage = Stage(name, self.workdir / name, identity)
        if leads():
            self._check_owner(stage)
        check_same(stage.fingerprint, f"stage '{name}'")  # which the others open after the first has
        stage.done = agree(self._is_done(stage))  # one that went on alone would wait for the others, or they for it
        self._finished.pop(name, None)
        return stage

    def finished(self, name: str) -> Stage:
        """The finished stage ``name``, as this run's configuration and the stages before it would have it.

        Raises:
          StaleRunError: it is not finished, was done with another configuration, or an artifact was changed.
          OutdatedStageError: a stage it was built on, or one before that, has been done again with another result.
        """
        if name in self._finished:
            return self._finished[name]
        path = self.workdir / name / "stage.json"
        if not path.exists():
            raise StaleRunError(
                f"stage '{name}' is not finished",
                where=str(self.workdir / name),
                do=f"run 'scaletot {name}' with the same --config and --workdir first, or 'scaletot run' for the whole line",
            )
        stage = Stage(name, self.workdir / name, read_record(path)["identity"])
        now = json.loads(json.dumps(flatten(self.config), default=plain))
        before = stage.identity["config"]
        changed = {key: now[key] for key in before if key in now and now[key] != before[key]}
        if changed:
            raise StaleRunError(
                f"stage '{name}' was done with another configuration",
                where=str(stage.directory),
                why="changed: " + _difference({key: before[key] for key in changed}, changed),
                do="use the configuration of that stage, another --workdir, or 'scaletot run --on-change=redo'",
            )
        for need, result in stage.identity["needs"].items():
            if self.finished(need).result != result:
                raise OutdatedStageError(
                    f"stage '{name}' was built on another state of '{need}'",
                    where=str(stage.directory),
                    do=f"run 'scaletot {name} --on-change=redo', or 'scaletot run --on-change=redo' for the whole line",
                )
        stage.check_artifacts()
        stage.done = True
        self._finished[name] = stage
        return stage

    def discard(self, name: str) -> None:
        """Removes the folder of a stage in one step: a kill in the middle leaves nothing that looks like work."""
        folder = self.workdir / name
        if folder.exists():
            aside = self.workdir / f".{name}.{os.getpid()}.old"
            os.rename(folder, aside)
            sync_directory(self.workdir)
            shutil.rmtree(aside, ignore_errors=True)

    def _section(self, key: str) -> Any:
        value: Any = self.config
        for part in key.split("."):
            value = value[part]
        return value

    def _check_owner(self, stage: Stage) -> None:
        """Refuses, or with ``redo`` removes, work in the stage's folder that is not this stage's; then owns the folder."""
        owner = stage.directory / "owner.json"
        refusal = self._refusal(stage, owner) if owner.exists() else None
        if refusal is not None:
            if self.on_change != "redo":
                raise refusal
            self.discard(stage.name)
        if refusal is not None or not owner.exists() or _owner(owner) is None:
            write_json(owner, {**stage.identity, "version": __version__})

    def _refusal(self, stage: Stage, owner: Path) -> StaleRunError | None:
        before = _owner(owner)
        finished = _is_recorded(stage)
        if before is None:
            if finished:
                return None
            return StaleRunError(
                f"the unfinished work of stage '{stage.name}' belongs to nobody knows which configuration",
                where=str(owner),
                why="the file is damaged",
                do=f"delete {stage.directory}, or pass --on-change=redo to do this stage and those after it again",
            )
        version = before.pop("version", "an earlier version")
        if fingerprint(before) != stage.fingerprint:
            return StaleRunError(
                f"stage '{stage.name}' was started with another configuration",
                where=str(stage.directory),
                why="changed: " + _difference(before, stage.identity),
                do="use another --workdir, restore the old values, or pass --on-change=redo to do this stage "
                "and those after it again",
            )
        if version != __version__ and not finished:
            return StaleRunError(
                f"stage '{stage.name}' was begun by another version of this program",
                where=str(stage.directory),
                why=f"by {version}, this is {__version__}",
                do="finish it with that version, use another --workdir, or pass --on-change=redo to do this stage "
                "and those after it again",
            )
        return None

    def _is_done(self, stage: Stage) -> bool:
        if not _is_recorded(stage):
            return False
        stage.check_artifacts()
        return True


def _lock(handle: IO[str], workdir: Path, patience: float) -> None:
    """Takes the lock of a run directory; where another process has it, tries again for ``patience`` seconds.

    Raises:
      StaleRunError: another process has it.
      ResourceError: the file system gives none.
    """
    deadline, said = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in _HELD:
                raise _no_locks(workdir, error) from error
            if time.monotonic() >= deadline:
                raise StaleRunError(
                    "another process is working in this run directory",
                    where=str(workdir),
                    why=f"its lock is held ({error.strerror})",
                    do="wait for it to end, stop it, or choose another --workdir",
                ) from error
        if not said:
            print(
                f"{workdir} is in use; waiting up to {patience:.0f} s for a process lost before to end", file=sys.stderr
            )
            said = True
        time.sleep(_LOCK_LOOK_S)


def _no_locks(workdir: Path, error: OSError) -> ResourceError:
    return ResourceError(
        "the run directory cannot be locked, and two runs in it at once would spoil it",
        where=str(workdir),
        why=f"its file system gives no locks ({error.strerror})",
        do="mount it with locks (Lustre: -o flock; NFS: version 4, or rpc.statd running here and on the server), "
        "or choose a --workdir elsewhere",
    )


def _owner(path: Path) -> dict[str, Any] | None:
    """What ``owner.json`` holds; None where it is damaged."""
    try:
        found = read_json(path)
    except DataError:
        return None
    return found if isinstance(found, dict) else None


def _is_recorded(stage: Stage) -> bool:
    """Whether a whole record says that this very stage is finished; its artifacts are not looked at."""
    try:
        return read_record(stage.path("stage.json"))["fingerprint"] == stage.fingerprint
    except DataError:
        return False


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    old, new = flatten(before), flatten(after)
    changed = [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    return "; ".join(changed[:12]) + (f"; and {len(changed) - 12} more" if len(changed) > 12 else "")
