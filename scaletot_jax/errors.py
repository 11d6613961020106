"""Errors a user can act on: what happened, where, why, and what to do next.

Every error raised on purpose is a :class:`ScaleToTError`. The command line prints it without a traceback and exits with
the class's ``exit_code``; these codes are stable and documented in ``docs/cli.md``.
"""

from __future__ import annotations


class ScaleToTError(Exception):
    """An expected failure.

    Args:
      what: what went wrong, in one sentence.
      where: the place: a file, and a row, field or configuration key where there is one.
      why: the reason, as far as it is known.
      do: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", why: str = "", do: str = ""):
        self.what, self.where, self.why, self.do = what, where, why, do
        parts = [what]
        for label, text in (("where", where), ("why", why), ("what to do", do)):
            if text:
                parts.append(f"  {label}: {text}")
        super().__init__("\n".join(parts))


class ConfigError(ScaleToTError):
    """A configuration key or command-line argument is unknown, of the wrong type, or impossible."""

    exit_code = 2


class DataError(ScaleToTError):
    """An input file (table, schema, chain specification, weights) is missing, damaged or invalid."""

    exit_code = 3


class OverlapError(DataError):
    """A user or a day lies on both sides of a line that an evaluation needs: figures across it cannot be believed."""


class StaleRunError(ScaleToTError):
    """A run directory holds work of another configuration, or is in use by another process."""

    exit_code = 4


class OutdatedStageError(StaleRunError):
    """A finished stage was built on another state of a stage before it."""


class ResourceError(ScaleToTError):
    """The machine ran out of something, or has none to give: disk, memory, time, budget, locks."""

    exit_code = 5


class LeakError(ScaleToTError):
    """An audit found that a figure of a run cannot be believed: a label, an identifier or a user is where it must not be."""

    exit_code = 7


class NotReproducedError(ScaleToTError):
    """A run done again, or what it was made of, is not what its record says."""

    exit_code = 8


class PreemptedError(ScaleToTError):
    """The machine is to be taken away; the work is saved and the same command continues it.

    Attributes:
      together: whether all processes of the run leave at this step; else this one does, and the others wait for it.
    """

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again
    together = True


class LostProcessError(ScaleToTError):
    """Another process of the same run has ended or cannot be reached; started again together, they continue."""

    exit_code = 75  # as after a preemption, which is what takes a process away as a rule
