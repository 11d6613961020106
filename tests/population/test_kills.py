"""Kills at every place, damage of every kind, full disks, workers that overtake each other: the same bytes in the end."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from population import toy_job
from population.toy_job import ROWS, SHARD_ROWS, files
from small_disk import needs_root, run_on_small_disk

from scaletot_jax.datasets.synthetic import build_table
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.files import write_json
from scaletot_jax.population.commit import Ledger, plan_shards, read_manifest
from scaletot_jax.profiles.features import FeatureSpace
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import validate

SOAK = bool(os.environ.get("SCALETOT_SOAK"))
KILLED, DONE = -9, 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The table, the feature space, and the undisturbed result in ``whole``."""
    folder = tmp_path_factory.mktemp("kills")
    schema = load_schema("synthetic")
    table = build_table(ROWS, seed=2)
    space = FeatureSpace.fit(validate(table, schema), schema, schema.profile_fields())
    pq.write_table(table, folder / "table.parquet", row_group_size=90)
    write_json(folder / "features.json", space.to_dict())
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """Sends a command to the process that forks; see toy_job."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, toy_job.__file__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )

    def ask(**command):
        process.stdin.write(json.dumps(command) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    assert process.wait(timeout=20) == 0


@pytest.fixture(scope="module")
def whole(folder, server):
    assert server(out=str(folder / "whole"), steps=[[-1]]) == [[DONE]]
    found = files(folder / "whole")
    assert sum(pq.read_table(folder / "whole" / name).num_rows for name in found if name.startswith("part")) == ROWS
    return found


@pytest.fixture(scope="module")
def pieces(folder, server, whole):
    """A function, so that a failing example is not shown with all bytes."""
    return lambda: (folder, server, whole)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def assert_recorded_rows_are_right(out):
    """What a reader may see at any moment: no id twice, each of its own shard, files that are what their records say."""
    ids = Counter()
    for path in (out / "records").glob("*.json") if out.exists() else ():
        record = json.loads(path.read_text())
        rows = pq.read_table(out / record["file"])["row"].to_pylist()
        assert rows == list(range(record["first_row"], record["last_row"] + 1)) and len(rows) == record["rows"]
        ids.update(rows)
    assert not ids or max(ids.values()) == 1


PLACES = [
    ("before write_table", "", "before the first write"),
    ("after write_table", "", "in the middle of a shard"),
    ("before fsync", "", "before the first sync"),
    ("before replace", "job.json", "before the job has a name"),
    ("before replace", "part-00002.parquet", "after the temporary file"),
    ("after replace", "part-00002.parquet", "after the rename, before the record"),
    ("before replace", "part-00002.json", "before the record's rename"),
    ("after replace", "part-00002.json", "after the record"),
    ("after replace", "part-00005.json", "after the last record, before the manifest"),
    ("before replace", "manifest.json", "before the manifest's rename"),
    ("after replace", "manifest.json", "after the manifest"),
]


@pytest.mark.parametrize(("name", "place", "what"), PLACES, ids=[what for *_, what in PLACES])
def test_a_kill_at_a_named_place(server, whole, out, name, place, what):
    assert server(out=str(out), at=[name, place]) == [[KILLED]], what
    assert_recorded_rows_are_right(out)
    assert server(out=str(out), steps=[[-1]]) == [[DONE]]
    assert files(out) == whole


def test_a_kill_during_the_resume(server, whole, out):
    server(out=str(out), at=["after replace", "part-00003.json"])
    assert server(out=str(out), at=["before sha256_file", "part-00001.parquet"]) == [[KILLED]]
    assert_recorded_rows_are_right(out)
    assert server(out=str(out), steps=[[-1], [-1]]) == [[DONE], [DONE]]
    assert files(out) == whole


@settings(max_examples=2000 if SOAK else 10)
@given(st.lists(st.lists(st.integers(0, 75), min_size=1, max_size=3), min_size=1, max_size=3))
def test_any_schedule_of_kills_and_workers_ends_in_the_same_bytes(pieces, steps):
    """Steps one after the other, of up to three processes at once that all want every shard, each killed at some event."""
    folder, server, whole = pieces()
    out = folder / "random"
    shutil.rmtree(out, ignore_errors=True)
    for step in steps:
        (codes,) = server(out=str(out), steps=[step])
        assert set(codes) <= {KILLED, DONE}
        assert_recorded_rows_are_right(out)
    assert server(out=str(out), steps=[[-1]]) == [[DONE]]
    assert files(out) == whole


def test_workers_that_overtake_each_other_converge(server, whole, out):
    assert server(out=str(out), steps=[[-1] * 4, [-1]]) == [[DONE] * 4, [DONE]]
    assert files(out) == whole


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)


HARM = {
    "a torn manifest": lambda out: _cut(out / "manifest.json"),
    "no manifest": lambda out: (out / "manifest.json").unlink(),
    "a torn record": lambda out: _cut(out / "records" / "part-00001.json"),
    "an empty record": lambda out: (out / "records" / "part-00001.json").write_bytes(b""),
    "a record of bytes": lambda out: (out / "records" / "part-00001.json").write_bytes(b"\xff\xfe{"),
    "a record that is a list": lambda out: (out / "records" / "part-00001.json").write_text("[1]"),
    "a lost record": lambda out: (out / "records" / "part-00004.json").unlink(),
    "a record of another shard": lambda out: shutil.copy(
        out / "records" / "part-00000.json", out / "records" / "part-00001.json"
    ),
    "a corrupted shard": lambda out: _flip(out / "part-00002.parquet"),
    "a torn shard": lambda out: _cut(out / "part-00002.parquet"),
    "a lost shard": lambda out: (out / "part-00000.parquet").unlink(),
    "an empty shard": lambda out: (out / "part-00003.parquet").write_bytes(b""),
    "a torn job": lambda out: _cut(out / "job.json"),
    "no job": lambda out: (out / "job.json").unlink(),
    "records and manifest lost": lambda out: [
        (out / "manifest.json").unlink(),
        *[path.unlink() for path in (out / "records").iterdir()],
    ],
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
def test_any_harm_is_repaired_to_the_same_bytes(folder, server, whole, out, harm):
    shutil.copytree(folder / "whole", out)
    harm(out)
    (out / ".part-00002.parquet.0123.tmp").write_bytes(b"left over")
    assert server(out=str(out), steps=[[-1], [-1]]) == [[DONE], [DONE]]
    assert files(out) == whole


@pytest.mark.parametrize("name", ["a corrupted shard", "a lost shard", "no manifest"])
def test_readers_refuse_what_is_not_recorded(folder, whole, out, name):
    shutil.copytree(folder / "whole", out)
    read_manifest(out)
    HARM[name](out)
    with pytest.raises(DataError, match=r"part-0000|not scored completely"):
        read_manifest(out)


def test_another_jobs_shards_are_refused(folder, whole, out):
    """By the job's name, and where that was lost by the records."""
    shutil.copytree(folder / "whole", out)

    def other():
        return Ledger(out, {"toy": 2, "rows": ROWS}, plan_shards(ROWS, SHARD_ROWS), facts={}, stated={})

    with pytest.raises(StaleRunError, match="toy: 1 -> 2"):
        other()
    (out / "job.json").unlink()
    with pytest.raises(StaleRunError, match=r"part-00000\.json"):
        other().recorded(plan_shards(ROWS, SHARD_ROWS))


@needs_root
def test_a_full_disk_leaves_whole_shards_and_no_remains(folder, whole, tmp_path):
    script = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from population import toy_job
        from scaletot_jax.errors import ResourceError

        place = Path(sys.argv[1])
        args = ({str(folder / "table.parquet")!r}, {str(folder / "features.json")!r}, str(place / "out"))
        (place / "ballast").write_bytes(b"0" * (300 << 10))
        try:
            toy_job.run(*args)
        except ResourceError as error:
            print("FULL", error.exit_code, "free some space" in str(error))
        left = [path.name for path in (place / "out").rglob("*") if path.is_file()]
        print("LEFT", sorted(left))
        (place / "ballast").unlink()
        print("DONE", toy_job.run(*args))
        import hashlib
        for name, data in toy_job.files(place / "out").items():
            print("FILE", name, hashlib.sha256(data).hexdigest())
    """
    sizes = sum(len(data) for data in whole.values())
    done = run_on_small_disk(script, tmp_path, f"{300 + sizes // 2048 + 8 * 4}k")
    assert "FULL 5 True" in done.stdout, done.stdout + done.stderr
    assert ".tmp" not in done.stdout and "DONE True" in done.stdout
    import hashlib

    found = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FILE"))
    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}


@given(st.integers(1, 500), st.integers(1, 200))
def test_the_plan_covers_every_row_once(rows, shard_rows):
    shards = plan_shards(rows, shard_rows)
    assert [row for shard in shards for row in range(shard.begin, shard.end)] == list(range(rows))
    assert len({shard.file for shard in shards}) == len(shards)
