"""The account keeps its limits over kills, torn lines and full disks; starts keep their pace."""

import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_disk import needs_root, run_on_small_disk

from scaletot_jax.errors import DataError, ResourceError
from scaletot_jax.teacher.served.ledger import Ledger, Prices, Spent
from scaletot_jax.teacher.served.pace import Pace, backoff
from scaletot_jax.teacher.served.transport import retry_after

PRICES = Prices(2.0, 10.0)


def test_it_adds_up_and_reads_back(tmp_path):
    with Ledger(tmp_path / "l", PRICES) as ledger:
        first, second, third, fourth = (ledger.reserve(f"k{i}", 100, 10) for i in range(4))
        ledger.settle(first, "answered", 40, 2)
        ledger.settle(second, "answered")  # the server tells no usage: the most
        ledger.settle(third, "lost", why="no answer")
        ledger.settle(fourth, "free", why="HTTP 429")
        total = Spent(2, 1, 240, 22, pytest.approx((240 * 2 + 22 * 10) / 1e6))
        assert ledger.spent == total
    with Ledger(tmp_path / "l", Prices(0, 0)) as ledger:  # other prices change no past
        assert ledger.spent == total and not ledger.unsettled
        assert ledger.reserve("k", 1, 1) == 5
    events = [json.loads(line)["event"] for line in (tmp_path / "l").read_text().splitlines()]
    assert events == ["sent"] * 4 + ["answered", "answered", "lost", "free", "sent"]


@pytest.mark.parametrize("limits", [{"max_tokens": 250}, {"max_usd": 250 * 2e-6 + 20 * 10e-6}])
def test_a_limit_is_checked_before_the_request(tmp_path, limits):
    with Ledger(tmp_path / "l", PRICES, **limits) as ledger:
        ledger.settle(ledger.reserve("a", 100, 10), "answered", 100, 10)
        number = ledger.reserve("b", 100, 5)
        ledger.settle(number, "free")  # what cost nothing counts nothing
        ledger.settle(ledger.reserve("b", 100, 5), "answered", 100, 5)
        size = (tmp_path / "l").stat().st_size
        with pytest.raises(ResourceError, match="budget") as caught:
            ledger.reserve("c", 100, 10)
        assert "max_" in str(caught.value) and (tmp_path / "l").stat().st_size == size  # nothing was announced
    with Ledger(tmp_path / "l", PRICES, **limits) as ledger, pytest.raises(ResourceError, match="budget"):
        ledger.reserve("c", 100, 10)  # nor after a restart


def test_a_request_waits_while_only_what_is_in_flight_hinders_it(tmp_path):
    with Ledger(tmp_path / "l", PRICES, max_tokens=150) as ledger:
        first, got = ledger.reserve("a", 100, 0), []
        thread = threading.Thread(target=lambda: got.append(ledger.reserve("b", 100, 0)))
        thread.start()
        time.sleep(0.05)
        assert not got
        ledger.settle(first, "answered", 30, 0)
        thread.join(2)
        assert got == [2]
        ledger.refuse_more()
        with pytest.raises(ResourceError, match="stopping"):
            ledger.reserve("c", 1, 0)


def test_what_a_kill_left_open_is_known_by_its_key(tmp_path):
    with Ledger(tmp_path / "l", PRICES, max_tokens=1000) as ledger:
        ledger.settle(ledger.reserve("a", 100, 10), "answered", 50, 1)
        ledger.reserve("b", 200, 20)
    with Ledger(tmp_path / "l", PRICES, max_tokens=1000) as ledger:
        assert ledger.unsettled == {2: "b"}
        ledger.settle(2, "lost")
        assert not ledger.unsettled and ledger.spent[:4] == (1, 1, 250, 21)


LINES = b"".join(
    json.dumps({"id": i, "event": event, "key": "k", "input": 3, "output": 1, "usd": 0.5}).encode() + b"\n"
    for i in (1, 2)
    for event in ("sent", "answered")
)


@given(st.integers(0, len(LINES)), st.binary(max_size=9).filter(lambda b: b"\n" not in b and b"\r" not in b))
def test_a_torn_end_is_cut_off_and_the_rest_counts(tmp_path_factory, cut, rubbish):
    path = tmp_path_factory.mktemp("torn") / "l"
    path.write_bytes(LINES[:cut] + rubbish)
    whole = LINES[:cut].count(b"\n")
    with Ledger(path, PRICES) as ledger:
        assert ledger.spent.requests == whole // 2
        ledger.reserve("next", 1, 1)
    assert path.read_bytes().startswith(LINES[:cut][: LINES[:cut].rfind(b"\n") + 1]) and path.read_bytes().endswith(
        b"\n"
    )
    with Ledger(path, PRICES) as ledger:
        assert "next" in ledger.unsettled.values()


def test_a_damaged_middle_is_an_error_and_an_empty_file_is_none(tmp_path):
    (tmp_path / "l").write_bytes(LINES[:20] + b"\x00\x00\n" + LINES)
    with pytest.raises(DataError, match="damaged"):
        Ledger(tmp_path / "l", PRICES)
    (tmp_path / "e").touch()
    with Ledger(tmp_path / "e", PRICES) as ledger:
        assert ledger.spent == Spent()


@needs_root
def test_on_a_full_disk_what_was_paid_for_is_kept(tmp_path):
    """In a private mount namespace with a small tmpfs: the store and the ledger find the spare room."""
    script = """
        import sys
        from pathlib import Path
        from scaletot_jax.errors import ResourceError
        from scaletot_jax.teacher.served.ledger import Ledger, Prices
        from scaletot_jax.teacher.served.spare import Spare
        from scaletot_jax.teacher.store import Store
        folder = Path(sys.argv[1])
        with Store(folder / "store") as store, Ledger(folder / "l", Prices(1, 1)) as ledger:
            spare = Spare(folder / "spare", 128 << 10)
            number = ledger.reserve("paid", 1, 1)
            rest = open(folder / "rest", "wb", buffering=0)
            try:
                while True:
                    rest.write(bytes(512))
            except OSError:
                pass
            for write in (lambda: store.put({"paid": bytes(20000)}), lambda: ledger.settle(number, "answered", 1, 1)):
                try:
                    spare.keep(write)
                except ResourceError as error:
                    print("full")
        with Store(folder / "store") as store, Ledger(folder / "l", Prices(1, 1)) as ledger:
            print(len(store.get("paid")), ledger.spent.requests, ledger.unsettled)
        try:
            Spare(folder / "spare", 1 << 20)
        except ResourceError as error:
            print("no room", (folder / "spare").exists())
        """
    done = run_on_small_disk(script, tmp_path, "256k")
    assert done.stdout.splitlines()[-2:] == ["20000 1 {}", "no room False"] and "full" in done.stdout, done.stderr


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds


def test_starts_are_spaced_and_a_pause_holds_everybody():
    clock, starts = Clock(), []
    pace = Pace(30, clock.now, clock.sleep)
    for _ in range(5):
        pace.wait()
        starts.append(clock.time)
    assert starts == [100, 102, 104, 106, 108]
    clock.time += 60  # an idle minute gives no credit
    pace.wait()
    pace.wait()
    assert clock.time == 170
    pace.pause(25)
    pace.wait()
    assert clock.time == 195
    free = Pace(0, clock.now, clock.sleep)
    for _ in range(100):
        free.wait()
    assert clock.time == 195


def test_a_pause_holds_who_already_waits():
    clock = Clock()
    pace = Pace(60, clock.now, lambda s: (clock.sleep(s), pace.pause(10) if clock.time < 102 else None))
    pace.wait()
    pace.wait()
    assert clock.time == 111


def test_backoff_grows_has_jitter_and_obeys_the_server():
    assert [backoff(a, None, 0.5) for a in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff(2, None, 0.0) == 1 and backoff(2, None, 0.99) == pytest.approx(2.98)
    assert backoff(0, 7, 0.25) == 7.25 and backoff(0, 1e9, 0) == 600


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("2", 2), ("0.5", 0.5), ("-3", 0), ("soon", None), ("inf", None), ("nan", None),
     ("Thu, 01 Jan 1970 00:01:40 GMT", 40), ("Thu, 01 Jan 1970 00:00:10 GMT", 0)],
)  # fmt: skip
def test_retry_after(header, seconds):
    assert retry_after(header, now=60.0) == seconds
