"""A student written and read: its weights with the adapter merged or beside them, its chains, and damage."""

import json
import os

import jax
import numpy as np
import pytest
import quick_compile
from student import toy

from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.lm import lora
from scaletot_jax.student import pretrained
from scaletot_jax.student.pretrained import ADAPTER, RECORD, from_pretrained, save_pretrained


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    with quick_compile.here(tmp_path_factory.mktemp("programs")):
        yield


@pytest.fixture(scope="module")
def student(quick):
    """With an adapter that changes something."""
    made = toy.student()
    rng = np.random.default_rng(0)
    adapter = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in made.lora.items()}
    return made.with_lora(adapter)


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), dict(a), dict(b))


@pytest.mark.parametrize("merge", [True, False])
def test_it_comes_back_as_it_was(student, tmp_path, merge):
    again = from_pretrained(save_pretrained(student, tmp_path / "student", merge=merge))
    assert again.spec == student.spec and again.chain_length == student.chain_length
    assert (again.max_profile_tokens, again.lora_scale) == (student.max_profile_tokens, student.lora_scale)
    if merge:
        want = lora.merge(student.params, student.lora, student.lora_scale)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), again.params, want)
        assert all(not np.asarray(value).any() for name, value in again.lora.items() if name.endswith("_b"))
        assert not (tmp_path / "student" / ADAPTER).exists()
    else:
        same(again.params, student.params)
        same(again.lora, student.lora)
    text = (tmp_path / "student" / "README.md").read_text()
    assert (
        "| Habit | rhythm | scored | rare, weekly, weekly evening, daily, unknown |" in text
        and "transformers" not in text
    )


def test_the_exit_map_of_a_shorter_student_lies_beside(student, tmp_path):
    width = student.config.hidden_size
    exit_map = {"weight": np.eye(width, dtype=np.float32), "bias": np.arange(width, dtype=np.float32)}
    short = student.with_params({**student.params, "exit": exit_map})
    again = from_pretrained(save_pretrained(short, tmp_path))
    same(again.params["exit"], exit_map)
    assert "exit.safetensors" in (tmp_path / "README.md").read_text()
    save_pretrained(student, tmp_path)
    assert "exit" not in from_pretrained(tmp_path).params  # nothing of the earlier one is left


def test_what_is_no_student_is_not_touched(student, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("somebody's model")
    with pytest.raises(StaleRunError, match="other things"):
        save_pretrained(student, tmp_path)
    assert (tmp_path / "README.md").read_text() == "somebody's model" and len(list(tmp_path.iterdir())) == 2


def test_a_save_that_fails_leaves_the_earlier_student_and_one_within_the_exchange_none(student, tmp_path, monkeypatch):
    save_pretrained(student, tmp_path, merge=False)
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(pretrained, "card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_pretrained(student, tmp_path)
    same(from_pretrained(tmp_path).lora, student.lora)
    monkeypatch.undo()
    real, moved = os.replace, []

    def replace(source, target):
        moved.append(target)
        if ".new." in str(source) and len([name for name in moved if name.parent == tmp_path]) == 2:
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(pretrained.os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(student, tmp_path)
    with pytest.raises(DataError, match="missing"):
        from_pretrained(tmp_path)
    assert from_pretrained(save_pretrained(student, tmp_path)).spec == student.spec
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / ADAPTER).exists()


def test_damage_is_refused(student, tmp_path):
    save_pretrained(student, tmp_path, merge=False)
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | {"format": 9}))
    with pytest.raises(DataError, match="another format"):
        from_pretrained(tmp_path)
    (tmp_path / RECORD).write_text(json.dumps(record))
    data = bytearray((tmp_path / ADAPTER).read_bytes())
    data[-1] ^= 1
    (tmp_path / ADAPTER).write_bytes(data)
    with pytest.raises(DataError, match="missing or was changed"):
        from_pretrained(tmp_path)
    (tmp_path / RECORD).unlink()
    with pytest.raises(DataError, match="missing"):
        from_pretrained(tmp_path)
