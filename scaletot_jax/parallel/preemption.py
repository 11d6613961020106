"""Preemption: a notice that the machine will be taken away, and the step at which all processes heed it.

Clouds and schedulers announce it by SIGTERM. A single process notes the signal and the loop looks at the end of its step.
Where several run, JAX's own service catches the signal of any of them and names a step that all will reach, so that they
save one common checkpoint (``jax.experimental.multihost_utils.reached_preemption_sync_point``).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from scaletot_jax.parallel import distributed


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
        if distributed.count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
            self._listening = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._listening:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if self._before is None else self._before)
            self._listening = False

    def reached(self, step: int) -> bool:
        """Whether to save after this step and leave. Every process must ask at every step, with the same numbers."""
        if distributed.count() > 1:
            from jax.experimental import multihost_utils

            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._given

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._given = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
