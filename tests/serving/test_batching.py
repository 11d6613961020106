"""The queue and its batches: bounded, by generation, and one bad request costs nobody else an answer."""

import asyncio
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from serving.conftest import SHAPES

from scaletot_jax.encoder.model import Inputs
from scaletot_jax.population.compute import FINITE
from scaletot_jax.serving.batching import Batcher, Work, answer
from scaletot_jax.serving.failures import RequestError
from scaletot_jax.serving.generation import open_generation
from scaletot_jax.serving.meters import Meters

pytestmark = pytest.mark.xdist_group("serve")


@pytest.fixture(scope="module")
def generation(models):
    return open_generation(models[0].directory, SHAPES)


def work(generation, table):
    return Work(generation, table, time.monotonic(), None)


def test_a_batch_gives_each_request_its_own_rows_and_refuses_only_those_at_fault(generation, rows):
    young = rows.slice(3, 2).set_column(0, "age", pa.array([30.5, 7.0]))
    assert rows.column_names[0] == "age"
    parts = [rows.slice(0, 1), young, rows.slice(1, 2), rows.slice(5, 4)]
    found = answer([work(generation, part) for part in parts])
    alone = [answer([work(generation, part)])[0] for part in parts]
    for part, one, other in zip(parts, found, alone):
        if part is young:
            for error in (one, other):
                assert isinstance(error, RequestError) and (error.status, error.row, error.field) == (422, 1, "age")
            continue
        assert FINITE not in one
        for name, value in one.items():
            assert len(value) == part.num_rows
            np.testing.assert_allclose(value, other[name], rtol=1e-6, atol=1e-6)
    assert all(isinstance(error, RequestError) for error in answer([work(generation, young)] * 2))


def test_a_value_beyond_what_can_be_rounded_is_refused(generation, rows):
    huge = rows.slice(0, 1).set_column(5, "visits_30", pa.array([1e308]))
    assert isinstance(answer([work(generation, huge)])[0], RequestError)


class Slow:
    """A generation whose calls wait until they may go on; it notes how many rows each had."""

    most_rows = 8

    def __init__(self, gate):
        self.gate, self.sizes = gate, []

    def inputs(self, table):
        return Inputs(*[np.asarray(table["x"])[:, None]] * 4)

    def compute(self, inputs):
        self.sizes.append(len(inputs.cat))
        self.gate.wait(10)
        return {"x": inputs.cat[:, 0], FINITE: np.ones(len(inputs.cat), bool)}


def table(*values):
    return pa.table({"x": pa.array(values, pa.int64())})


@pytest.fixture
def slow():
    return Slow(threading.Event())


def test_a_full_queue_says_when_to_come_again_and_closing_answers_what_waits(slow):
    meters = Meters()

    async def run():
        batcher = Batcher(limit=4, wait=0.0, meters=meters)
        batcher.start()
        first = batcher.submit(slow, table(1))
        while not slow.sizes:
            await asyncio.sleep(0.01)
        waiting = [batcher.submit(slow, table(10 + i)) for i in range(4)]
        with pytest.raises(RequestError) as caught:
            batcher.submit(slow, table(99))
        assert caught.value.status == 503 and int(caught.value.headers()["retry-after"]) >= 1
        waiting[1].cancel()  # its client has gone
        slow.gate.set()
        await asyncio.to_thread(batcher.close)
        with pytest.raises(RequestError, match="closing"):
            batcher.submit(slow, table(1))
        return [(await future)["x"].tolist() for future in (first, waiting[0], *waiting[2:])]

    assert asyncio.run(run()) == [[1], [10], [12], [13]]
    assert slow.sizes == [1, 3]
    assert (
        b'scaletot_refused_total{limit="queue"} 1.0' in meters.text() and b"scaletot_queued_rows 0.0" in meters.text()
    )


def test_a_batch_waits_for_company_until_it_is_full_or_its_time_is_over(slow):
    slow.gate.set()

    async def run(wait, count):
        batcher = Batcher(limit=100, wait=wait, meters=Meters())
        batcher.start()
        started = time.monotonic()
        await asyncio.gather(*[batcher.submit(slow, table(i)) for i in range(count)])
        took = time.monotonic() - started
        await asyncio.to_thread(batcher.close)
        return took

    assert asyncio.run(run(0.3, 3)) >= 0.3
    assert asyncio.run(run(60.0, 8)) < 30
    assert slow.sizes == [3, 8]


def test_who_is_alone_waits_once(slow):
    slow.gate.set()

    async def run():
        batcher = Batcher(limit=100, wait=2.0, meters=Meters())
        batcher.start()
        took = []
        for count in (1, 1, 1, 2, 2):
            started = time.monotonic()
            await asyncio.gather(*[batcher.submit(slow, table(i)) for i in range(count)])
            took.append(time.monotonic() - started)
        await asyncio.to_thread(batcher.close)
        return took

    took = asyncio.run(run())
    assert took[0] >= 2.0 > max(took[1:3])
    assert slow.sizes[:3] == [1, 1, 1] and sum(slow.sizes[3:]) == 4


def test_two_generations_never_share_a_batch_and_a_bug_costs_its_batch_alone(slow):
    broken = Slow(slow.gate)
    broken.compute = lambda inputs: 1 / 0
    slow.gate.set()

    async def run():
        batcher = Batcher(limit=100, wait=0.2, meters=Meters())
        batcher.start()
        futures = [batcher.submit(which, table(i)) for i, which in enumerate((slow, broken, slow, slow))]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert batcher.alive
        await asyncio.to_thread(batcher.close)
        return results

    results = asyncio.run(run())
    assert isinstance(results[1], ZeroDivisionError) and slow.sizes == [1, 2]
    assert [result["x"].tolist() for i, result in enumerate(results) if i != 1] == [[0], [2], [3]]
