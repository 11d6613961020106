"""The store gives back what was written, or says that it cannot."""

import os
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from scaletot_jax.errors import DataError
from scaletot_jax.teacher.store import Store, content_key, pack_json, pack_scores, unpack_scores


def test_entries_survive_and_keep_their_first_content(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        store.put({"a": b"1", "b": pack_json({"x": [1.5]})})
        store.put({"a": b"2"})
    with Store(tmp_path / "store.sqlite") as store:
        assert store.get("a") == b"1" and store.get_json("b") == {"x": [1.5]} and store.get("c") is None
        assert len(store) == 2


def test_keys_depend_on_every_part():
    base = ("model", 1, [1, 2], ("stem",), (" a", " b"))
    keys = {content_key(*base), content_key(*base[:-1], (" b", " a")), content_key(*base[:2], [1, 3], *base[3:])}
    assert len(keys) == 3 and content_key(*base) == content_key("model", 1, (1, 2), ["stem"], [" a", " b"])


def test_scores_come_back_to_the_last_bit():
    full, local = np.float32([-1.1, -np.pi]), np.float32([0, -1e-7])
    a, b = unpack_scores(pack_scores(full, local))
    np.testing.assert_array_equal(a, full)
    np.testing.assert_array_equal(b, local)


@pytest.mark.parametrize("damage", ["garbage", "torn", "flipped"])
def test_a_damaged_file_is_set_aside_and_said_so(tmp_path, capsys, damage):
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        store.put({f"key{i}": bytes([65 + i % 20]) * 500 for i in range(200)})
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        path.write_bytes(b"not a database" * 100)
    elif damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    else:
        at = content.index(b"C" * 400)  # inside the content of an entry: SQLite alone would not notice
        content[at + 10] ^= 1
        path.write_bytes(content)
    with Store(path) as store:
        assert len(store) == 0
        store.put({"new": b"1"})
    assert (tmp_path / "store.sqlite.damaged0").exists()
    assert "damaged" in capsys.readouterr().err


def test_damage_while_open_is_an_error_not_a_wrong_score(tmp_path):
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        store.put({"a": b"right"})
        other = sqlite3.connect(path)
        other.execute("UPDATE entries SET content = x'00'")
        other.commit()
        other.close()
        with pytest.raises(DataError, match="damaged"):
            store.get("a")


def test_a_zero_byte_file_is_an_empty_store(tmp_path):
    path = tmp_path / "store.sqlite"
    path.touch()
    with Store(path) as store:
        assert len(store) == 0


def test_a_kill_leaves_whole_batches(tmp_path):
    """A process is killed while it writes batches of ten: every batch is there whole or not at all."""
    path = tmp_path / "store.sqlite"
    code = (
        "import sys; from scaletot_jax.teacher.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "for b in range(10**6):\n"
        "    store.put({f'{b}:{i}': b'x' * 5000 for i in range(10)})\n"
        "    print(b, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, env=dict(os.environ))
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Store(path) as store:
        assert len(store) >= 50 and len(store) % 10 == 0
    assert not (tmp_path / "store.sqlite.damaged0").exists()
