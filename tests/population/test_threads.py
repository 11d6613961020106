"""The threads around the device: order, bounds, errors with their place, and no hang."""

import threading
import time

import pytest

from scaletot_jax.population.threads import Reader, Writer


def test_items_arrive_in_order_and_are_bounded():
    ahead = []

    def items():
        for i in range(50):
            ahead.append(i)
            yield i

    got = []
    with Reader(items(), depth=3) as reader, Writer(got.append, lambda well: got.append(well), depth=3) as writer:
        for item in reader:
            assert len(ahead) <= item + 6
            writer.put(item)
    assert got == [*range(50), True]


@pytest.mark.parametrize("at", [0, 1, 20])
def test_an_error_of_the_reader_comes_after_the_items_before_it(at):
    def items():
        for i in range(30):
            if i == at:
                raise ValueError(f"row {i}")
            yield i

    seen, closed = [], []
    with (
        pytest.raises(ValueError, match=f"row {at}"),
        Reader(items()) as reader,
        Writer(seen.append, closed.append) as writer,
    ):
        for item in reader:
            writer.put(item)
    assert closed == [False] and seen == list(range(len(seen))) and len(seen) <= at


@pytest.mark.parametrize("at", [0, 7, 29])
def test_an_error_of_the_writer_ends_the_loop(at):
    def consume(item):
        if item == at:
            raise OSError(28, f"no space at {item}")

    closed = []
    with (
        pytest.raises(OSError, match=f"no space at {at}"),
        Reader(range(30)) as reader,
        Writer(consume, closed.append) as writer,
    ):
        for item in reader:
            writer.put(item)
    assert closed == [False]


def test_an_error_at_the_close_is_heard():
    def close(well):
        raise OSError("close")

    with pytest.raises(OSError, match="close"), Writer(print, close):
        pass


def test_an_error_in_the_loop_leaves_no_thread_behind():
    before = threading.active_count()
    begin = time.monotonic()
    with (
        pytest.raises(KeyError),
        Reader(iter(lambda: 1, 0)) as reader,
        Writer(lambda item: time.sleep(0.01), lambda well: None) as writer,
    ):
        for item in reader:
            writer.put(item)
            raise KeyError("device")
    assert threading.active_count() == before and time.monotonic() - begin < 5
