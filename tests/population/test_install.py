"""One served model in the place of another: whole, or the one before, or refused."""

import os
import shutil
import stat

import pytest

from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.export.interface import FILE, PROGRAMS
from scaletot_jax.population import install
from scaletot_jax.population.install import CARD, replaces
from scaletot_jax.population.model import load_model, seal_model
from scaletot_jax.population.pretrained import save_pretrained
from scaletot_jax.population.probe import write_probe


@pytest.fixture
def other(served, tmp_path):
    """Another model, with a probe."""
    shutil.copytree(served.directory, tmp_path / "other")
    return seal_model(tmp_path / "other", add=[write_probe], reference={"rows": 3})


@pytest.fixture
def place(served, tmp_path):
    """A directory with a model, its programs, its card, and a file of somebody else's."""
    directory = save_pretrained(served, tmp_path / "place")
    for name in (FILE, *PROGRAMS.values(), "chains.json", "mine.txt"):
        (directory / name).write_text("earlier")
    return directory


def copy(model, folder):
    for name in (*model.record["files"], "model.json"):
        shutil.copyfile(model.directory / name, folder / name)


def test_nothing_of_the_earlier_model_is_left_and_nothing_else_is_touched(other, place):
    with replaces(place, "") as aside:
        copy(other, aside)
    assert load_model(place).fingerprint == other.fingerprint
    assert {path.name for path in place.iterdir()} == {*other.record["files"], "model.json", "mine.txt"}


def test_a_model_saved_over_an_export_leaves_no_program_of_it(other, place):
    save_pretrained(other, place)
    assert {path.name for path in place.iterdir()} == {*other.record["files"], "model.json", "mine.txt", CARD}
    assert other.fingerprint in (place / CARD).read_text()


@pytest.mark.parametrize("fault", [DataError("no"), KeyboardInterrupt()])
def test_what_fails_while_it_is_built_leaves_the_earlier_model(served, other, place, fault):
    with pytest.raises(type(fault)), replaces(place, "") as aside:
        copy(other, aside)
        raise fault
    assert load_model(place).fingerprint == served.fingerprint
    assert (place / FILE).read_text() == "earlier" and not list(place.glob(".new*"))


@pytest.mark.parametrize("moves", [0, 1, 5])
def test_a_kill_within_the_moves_leaves_no_model_and_the_next_attempt_mends_it(other, place, moves, monkeypatch):
    honest, left = install.os.replace, [moves]

    def killed(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise SystemExit
        honest(source, target)

    monkeypatch.setattr(install.os, "replace", killed)
    monkeypatch.setattr(install.shutil, "rmtree", lambda *args, **kwargs: None)  # a kill clears nothing away
    with pytest.raises(SystemExit), replaces(place, "") as aside:
        copy(other, aside)
    monkeypatch.undo()
    with pytest.raises(DataError, match="no served model"):
        load_model(place)
    assert list(place.glob(".new*"))
    save_pretrained(other, place)
    assert load_model(place).fingerprint == other.fingerprint and not list(place.glob(".new*"))


def test_every_file_is_on_the_disk_before_it_is_moved_in_and_the_record_last(other, tmp_path, monkeypatch):
    """What a loss of power may undo is what was not synced: here nothing, at any moment."""
    place = tmp_path / "new"
    synced, moved = set(), []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor):
        found = os.fstat(descriptor)
        synced.add((found.st_dev, found.st_ino))
        if stat.S_ISDIR(found.st_mode):
            moved.append(("synced", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def move(source, target):
        found = os.stat(source)
        assert (found.st_dev, found.st_ino) in synced, f"{target} is not on the disk yet"
        moved.append(("moved", os.fspath(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    save_pretrained(other, place)
    last = moved.index(("moved", str(place / "model.json")))
    assert moved[last - 1] == moved[last + 1] == ("synced", str(place))
    assert moved[-1] == ("synced", str(tmp_path)) and load_model(place).fingerprint == other.fingerprint


def test_a_folder_of_other_things_is_refused(other, tmp_path):
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "schema.json").write_text("{}")
    with pytest.raises(StaleRunError, match="other things"):
        save_pretrained(other, folder)
    assert [path.name for path in folder.iterdir()] == ["schema.json"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.json", '{"model": "somebody else\'s"}'),
        ("model.json", "[1]"),
        ("model.json", "\x00"),
        ("encoder.json", "{}"),
    ],
)
def test_a_file_of_a_models_name_makes_no_model(other, tmp_path, name, content):
    """Such as another tool's model, or the folder of a stage: its README.md would be deleted, its encoder replaced."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / name).write_text(content)
    (folder / CARD).write_text("mine")
    (folder / "weights.bin").write_text("mine")
    with pytest.raises(StaleRunError, match="other things"):
        save_pretrained(other, folder)
    assert {path.name for path in folder.iterdir()} == {name, CARD, "weights.bin"}


@pytest.mark.parametrize("gone", ["model.json", "heads.json"])
def test_a_model_that_lacks_a_file_is_replaced(other, place, gone):
    (place / gone).unlink()
    save_pretrained(other, place)
    assert load_model(place).fingerprint == other.fingerprint and (place / "mine.txt").exists()
