"""Files: whole or not at all, a full disk, equal bytes."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import formats
from small_disk import needs_root, run_on_small_disk

from scaletot_jax import files
from scaletot_jax.errors import DataError, ResourceError
from scaletot_jax.files import atomic_path, read_arrays, read_json, seal, sealed, write_arrays, write_json, write_table


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError, match="killed"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_a_large_table_can_be_read_in_parts(tmp_path):
    table = pa.table({"row": np.arange(150_000)})
    write_table(tmp_path / "large.parquet", table)
    described = pq.ParquetFile(tmp_path / "large.parquet").metadata
    assert max(described.row_group(i).num_rows for i in range(described.num_row_groups)) <= 1 << 16
    assert pq.read_table(tmp_path / "large.parquet").equals(table)


@needs_root
def test_a_full_disk_is_named_and_nothing_old_is_lost(tmp_path):
    """Runs in a private mount namespace with a 64 KiB tmpfs as the run directory."""
    script = """
        import sys
        from pathlib import Path
        from scaletot_jax.errors import ResourceError
        from scaletot_jax.files import write_bytes
        folder = Path(sys.argv[1])
        write_bytes(folder / "kept", b"kept")
        try:
            write_bytes(folder / "big", bytes(1 << 20))
        except ResourceError as error:
            assert "disk is full" in str(error) and error.exit_code == 5
            assert (folder / "kept").read_bytes() == b"kept"
            assert sorted(p.name for p in folder.iterdir()) == ["kept"]
            print("named")
        """
    done = run_on_small_disk(script, tmp_path, "64k")
    assert done.stdout == "named\n", done.stderr


def test_enospc_becomes_a_resource_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ResourceError, match="disk is full"):
        write_json(tmp_path / "value.json", 1)
    assert os.listdir(tmp_path) == []


def test_arrays_round_trip_with_equal_bytes(tmp_path):
    arrays = {"b": np.arange(6.0, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], np.int32)}
    write_arrays(tmp_path / "one", arrays)
    write_arrays(tmp_path / "two", dict(reversed(arrays.items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = read_arrays(tmp_path / "one")
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)
    (tmp_path / "one").write_bytes((tmp_path / "one").read_bytes()[:-3])
    with pytest.raises(DataError, match="one"):
        read_arrays(tmp_path / "one")


def test_an_array_that_numpy_cannot_have_is_refused(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [0, 2**63 - 1], "data_offsets": [0, 0]}}
    (tmp_path / "a.safetensors").write_bytes(formats.safetensors(header, b""))
    with pytest.raises(DataError, match=r"a\.safetensors"):
        read_arrays(tmp_path / "a.safetensors")


def test_json_is_sorted_and_plain(tmp_path):
    write_json(tmp_path / "x.json", {"b": np.float32(0.5), "a": np.arange(2)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [0, 1], "b": 0.5}


@pytest.mark.parametrize("damage", [b"", b'{"a": 2}\n', b'{"a": 1'])
def test_a_sealed_file_is_trusted_as_long_as_it_is_what_was_written(tmp_path, capsys, damage):
    path = tmp_path / "unit.json"
    assert not sealed(path)
    write_json(path, {"a": 1})
    assert not sealed(path) and capsys.readouterr().err == ""  # killed before it was sealed
    seal(path)
    assert sealed(path) and capsys.readouterr().err == ""
    path.write_bytes(damage)
    assert not sealed(path) and str(path) in capsys.readouterr().err
    write_json(path, {"a": 1})
    assert sealed(path)
    path.unlink()
    assert not sealed(path)
