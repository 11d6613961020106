"""Preemption: a notice that the machine will be taken away, and the step at which all processes heed it.

Clouds and schedulers announce it by SIGTERM. A single process notes the signal and the loop looks at the end of its step.
Where several run, JAX's own service catches the signal of any of them and names a step that all will reach, so that they
save one common checkpoint (``jax.experimental.multihost_utils.reached_preemption_sync_point``). That step is the one after the
last that any of them has asked about, so what it is told are not the loop's steps, which begin anew in another stage and
in the middle after a restart, but how often it was asked since the process began.

That service takes SIGTERM for itself from the moment the processes join, and only a training loop asks it. So its handler
is put away where they join, and put back for as long as a loop listens: everywhere else the signal ends the process, as it
does a single one.
"""

from __future__ import annotations

import ctypes
import itertools
import signal
import threading
from types import FrameType
from typing import Any

from scaletot_jax.parallel import distributed

_asked = itertools.count(1)
_service: Any = None  # the handler of JAX's service, as sigaction(2) describes it


def put_away() -> None:
    """Keeps the handler that JAX's service has installed for the loops to come, and gives SIGTERM its usual effect.

    To be called right after ``jax.distributed.initialize``. Outside the main thread, where Python sets no handlers, the
    signal stays with the service.
    """
    global _service
    if threading.current_thread() is threading.main_thread():
        _service = ctypes.create_string_buffer(1024)  # larger than the structure anywhere; nothing reads into it
        _sigaction(None, _service)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _sigaction(new: Any, old: Any) -> None:
    if ctypes.CDLL(None, use_errno=True).sigaction(int(signal.SIGTERM), new, old):
        raise OSError(ctypes.get_errno(), "sigaction of SIGTERM failed")


class Notice:
    """Listens for a notice while it is open.

    A second SIGTERM ends the process at once, as the signal does elsewhere.
    """

    def __init__(self) -> None:
        self._given = False
        self._before: Any = None
        self._listening = False

    def __enter__(self) -> Notice:
        # Python takes signals in the main thread alone; several processes leave them to JAX.
        if threading.current_thread() is threading.main_thread():
            if distributed.count() == 1:
                self._before = signal.signal(signal.SIGTERM, self._note)
                self._listening = True
            elif _service is not None:
                _sigaction(_service, None)
                self._listening = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)
            self._listening = False

    def reached(self) -> bool:
        """Whether to save after this step and leave. Every process must ask at every step of every loop."""
        if distributed.count() > 1:
            from jax.experimental import multihost_utils

            return bool(multihost_utils.reached_preemption_sync_point(next(_asked)))
        return self._given

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._given = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
