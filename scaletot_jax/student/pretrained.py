"""The student handed over: a Hugging Face directory with its chain specification, the adapter merged in or beside it.

    config.json, model*.safetensors, tokenizer.json    the language model, which transformers loads, too
    adapter.safetensors    where it was not merged: low-rank factors by projection, see :mod:`scaletot_jax.lm.lora`
    exit.safetensors       of a student with fewer layers than its model: the affine map before the final norm
    README.md              the card
    student.json           written last: chain specification, adapter's factor, longest profile, SHA-256 of the files

Without ``student.json`` it is a language model and no student. transformers knows neither exit map nor separate adapter.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import numpy as np

from scaletot_jax import __version__
from scaletot_jax.chains.reserved import compile_for
from scaletot_jax.chains.spec import parse_spec
from scaletot_jax.errors import DataError, StaleRunError
from scaletot_jax.files import (
    disk_errors,
    read_arrays,
    read_json,
    sha256_file,
    sync_directory,
    write_arrays,
    write_bytes,
    write_json,
)
from scaletot_jax.lm import lora as lora_module
from scaletot_jax.lm.attend import choose
from scaletot_jax.lm.load import load_model
from scaletot_jax.lm.save import save_directory
from scaletot_jax.student.adapter import load_adapter, save_adapter
from scaletot_jax.student.constrained import grammar_arrays
from scaletot_jax.student.policy import Student

FORMAT, RECORD, CARD = 1, "student.json", "README.md"
ADAPTER, EXIT = "adapter.safetensors", "exit.safetensors"
_ASIDE = ".new."


def save_pretrained(student: Student, directory: str | Path, *, merge: bool = True) -> Path:
    """Writes a student aside, then moves it in with its record last; an earlier one in the directory is replaced, file by file.

    Args:
      student: from :func:`scaletot_jax.student.policy.load_student`.
      directory: a new one, an empty one, or one of an earlier student.
      merge: whether the adapter is added into the weights, W + scale · A B; else it lies beside them.

    Raises:
      DataError: the model cannot be said in its family's format.
      StaleRunError: the directory holds other things, which might be somebody's model.
      ResourceError: the disk is full; an earlier student is still there.
    """
    directory = Path(directory)
    earlier = _earlier(directory)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(f"{_ASIDE}*"):  # of a killed save
            shutil.rmtree(left, ignore_errors=True)
        aside = directory / f"{_ASIDE}{os.getpid()}"
        aside.mkdir()
        try:
            _write(student, aside, merge=merge)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        # Broken off, it leaves the folder aside: what is there is a save to be repeated.
        _move_in(aside, directory, earlier)
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def _earlier(directory: Path) -> set[str]:
    """Files of the student that is there; StaleRunError where there is something else."""
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    try:
        record = read_json(directory / RECORD) if RECORD in names else {}
        if "chain" in record and names >= set(record["files"]):
            return {RECORD, CARD, *record["files"]}
    except (DataError, UnicodeError, TypeError, KeyError):
        pass
    if names and not any(name.startswith(_ASIDE) for name in names):  # those are of a save that was killed
        raise StaleRunError("the directory holds other things", where=str(directory), do="choose another one")
    return {name for name in names if name.endswith((".safetensors", ".json"))}


def _write(student: Student, folder: Path, *, merge: bool) -> None:
    params = {name: value for name, value in student.params.items() if name != "exit"}
    adapter = {"lora": student.lora, "lora_scale": student.lora_scale} if merge else {}
    save_directory(folder, student.config, params, tokenizer=student.tokenizer, **adapter)  # type: ignore[arg-type]
    if not merge:
        save_adapter(folder / ADAPTER, student.lora)
    if "exit" in student.params:
        write_arrays(folder / EXIT, {name: np.asarray(value) for name, value in student.params["exit"].items()})
    write_bytes(folder / CARD, card(student, merge=merge).encode())
    files = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    record = {
        "format": FORMAT,
        "version": __version__,
        "merged": merge,
        "lora_scale": student.lora_scale,
        "max_profile_tokens": student.max_profile_tokens,
        "chain": student.spec.model_dump(mode="json"),
        "files": {name: sha256_file(folder / name) for name in files},
    }
    write_json(folder / RECORD, record)


def _move_in(aside: Path, directory: Path, earlier: set[str]) -> None:
    (directory / RECORD).unlink(missing_ok=True)
    sync_directory(directory)  # the old record is gone before a file of the new student is there
    for name in earlier - {RECORD}:
        (directory / name).unlink(missing_ok=True)
    for name in sorted((path.name for path in aside.iterdir()), key=lambda name: name == RECORD):
        if name == RECORD:
            sync_directory(directory)
        os.replace(aside / name, directory / name)
    sync_directory(directory)


def from_pretrained(directory: str | Path) -> Student:
    """Reads a student; a merged one gets an adapter of rank 1 that changes nothing.

    Raises:
      DataError: a file is missing, was changed or has another format.
    """
    directory = Path(directory)
    record = read_json(directory / RECORD)
    if record.get("format") != FORMAT:
        raise DataError(
            "the student has another format", where=str(directory / RECORD), why=f"{record.get('format')!r}"
        )
    for name, known in record["files"].items():
        path = directory / Path(name).name
        if not path.is_file() or sha256_file(path) != known:
            raise DataError("a file of the student is missing or was changed", where=str(path), do="copy it again")
    loaded = load_model(directory)
    config = dataclasses.replace(loaded.config, attention=choose("auto"))  # type: ignore[arg-type]
    params = dict(loaded.params)
    if EXIT in record["files"]:
        params["exit"] = {name: jax.numpy.asarray(value) for name, value in read_arrays(directory / EXIT).items()}
    chain = compile_for(parse_spec(record["chain"], where=str(directory / RECORD)), loaded.tokenizer, config.vocab_size)
    lora = lora_module.init(config, jax.random.key(0), 1) if record["merged"] else load_adapter(directory / ADAPTER)
    return Student(
        config, params, lora, record["lora_scale"], loaded.tokenizer, chain, grammar_arrays(chain), record["max_profile_tokens"]
    )  # fmt: skip


def card(student: Student, *, merge: bool) -> str:
    """The student in Markdown."""
    config, spec = student.config, student.spec
    slots = [
        f"| {spec.segments[k].title} | {slot.name} | {slot.source} | {', '.join(slot.values) or 'free text'} |"
        for k, slot in zip(spec.segment_of_slot, spec.slots)
    ]
    exit_map = f" Its {config.num_layers} layers end in `{EXIT}`, which transformers does not know." if "exit" in student.params else ""  # fmt: skip
    parts = [
        f"# {spec.name}: a ScaleToT student",
        f"A {config.family} language model of {config.num_layers} layers that writes typed user-state chains from a profile. "
        f"The adapter is {'merged into the weights' if merge else f'in `{ADAPTER}`'}.{exit_map}",
        "## Chains",
        "\n".join(["| segment | slot | source | values |", "|---|---|---|---|", *slots]),
        f"The answer is one of {spec.num_buckets} buckets of days.",
        "## Use",
        "```python\nfrom scaletot_jax.student.pretrained import from_pretrained\n\nstudent = from_pretrained(directory)\n```",
        "## Limits",
        "It reproduces a teacher's judgements about one population; they are no facts about a person. The licence is that of "
        "the base model.",
    ]
    return "\n\n".join(parts) + "\n"
