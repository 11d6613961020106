"""Room on the disk that is kept free for what has been paid for.

An answer that arrives when the disk is full would be lost, and paid for again. So a file of zeros is laid down before
the first request; it gives its room back when a write fails, which is then done once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from scaletot_jax.errors import ResourceError
from scaletot_jax.files import disk_errors


class Spare:
    """A file of ``size`` bytes at ``path``. Use as a context manager: it is gone afterwards.

    Raises:
      ResourceError: the disk has no such room.
    """

    def __init__(self, path: str | Path, size: int):
        self._path = Path(path)
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                left = size
                while left:
                    left -= os.write(descriptor, bytes(min(left, 1 << 20)))
                os.fsync(descriptor)
            except OSError:
                self.release()
                raise
            finally:
                os.close(descriptor)

    def __enter__(self) -> Spare:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        self._path.unlink(missing_ok=True)

    def keep(self, write: Callable[[], None]) -> None:
        """Does ``write``; where the disk is full, again with the room given back, and then says so all the same.

        Raises:
          ResourceError: the disk was full. What ``write`` had to write is kept, unless this is its second failure.
        """
        try:
            write()
        except ResourceError:
            self.release()
            write()
            raise
