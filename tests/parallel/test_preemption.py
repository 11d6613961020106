"""The notice that the machine will be taken away, in one process; whole stages are in test_two_processes."""

import os
import signal
import threading

from scaletot_jax.parallel.preemption import Notice


def test_the_first_signal_is_noted_and_the_second_would_end_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with Notice() as notice:
        assert not notice.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.reached(2) and notice.reached(3)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
    with Notice() as notice:  # of another loop: the old notice is not its
        assert not notice.reached(1)


def test_outside_the_main_thread_nothing_is_touched():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen():
        with Notice() as notice:
            seen.extend([signal.getsignal(signal.SIGTERM), notice.reached(1)])

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before, False]
