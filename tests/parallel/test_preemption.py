"""The notice that the machine will be taken away; whole stages are in test_two_processes."""

import os
import signal
import threading

from parallel import processes

from scaletot_jax.parallel.preemption import Notice


def test_the_first_signal_is_noted_and_the_second_would_end_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with Notice() as notice:
        assert not notice.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert notice.reached() and notice.reached()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
    with Notice() as notice:  # of another loop: the old notice is not its
        assert not notice.reached()


def test_outside_the_main_thread_nothing_is_touched():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def listen():
        with Notice() as notice:
            seen.extend([signal.getsignal(signal.SIGTERM), notice.reached()])

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert seen == [before, False]


LOOPS = """
import os, signal, sys, time
from scaletot_jax.parallel import distributed
from scaletot_jax.parallel.preemption import Notice

distributed.initialize()
with Notice() as notice:  # a stage before this one
    assert not any(notice.reached() for _ in range(10))
distributed.barrier("between")
with Notice() as notice:
    if distributed.index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)  # the first step of a stage compiles; by then everybody knows, as a rule
    distributed.barrier("compiled")
    for number in range(1, 200):
        if notice.reached():
            print("left at", number, flush=True)
            break
        time.sleep(0.05)
distributed.barrier("end")
"""


def test_a_signal_before_the_first_step_of_a_later_stage_is_heeded_by_all():
    """JAX names the step after the last that anybody has asked about, which a loop that counts anew may never reach."""
    done = processes.run(LOOPS, processes=2, environ=processes.environment())
    assert [code for code, _, _ in done] == [0, 0], done
    said = [out.splitlines()[-1] for _, out, _ in done]
    assert said[0] == said[1] and "left at" in said[0]
