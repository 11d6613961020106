"""A served model handed over: ``save_pretrained`` and ``from_pretrained``, with a card that says what it is.

The directory is that of ``scaletot export``: safetensors and JSON, readable by ``scaletot score --model`` and ``scaletot serve``,
with a README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaletot_jax.errors import StaleRunError
from scaletot_jax.files import disk_errors, write_bytes
from scaletot_jax.population.forward import LEVELS
from scaletot_jax.population.model import ServedModel, copy_parts, load_model
from scaletot_jax.profiles.fields import Field

CARD = "README.md"


def save_pretrained(model: ServedModel, directory: str | Path) -> Path:
    """Copies the model's files and writes its card; ``model.json`` last, so that a part of a model is none.

    Args:
      model: as loaded; its own directory must still be there.
      directory: a new one, or one of an earlier model, which is replaced.

    Raises:
      StaleRunError: the directory holds other things.
    """
    directory = Path(directory)
    if directory.resolve() == model.directory.resolve():
        write_bytes(directory / CARD, card(model).encode())
        return directory
    if directory.is_dir() and any(directory.iterdir()) and not (directory / "model.json").exists():
        raise StaleRunError("the directory holds other things", where=str(directory), do="choose another one")
    names = list(model.record["files"])
    with disk_errors(directory):
        copy_parts({name: model.directory / name for name in names}, directory)
        write_bytes(directory / CARD, card(model).encode())
        write_bytes(directory / "model.json", (model.directory / "model.json").read_bytes())
    return directory


def from_pretrained(directory: str | Path) -> ServedModel:
    """Reads and checks what :func:`save_pretrained` or ``scaletot export`` wrote; errors as of ``load_model``."""
    return load_model(directory)


def card(model: ServedModel) -> str:
    """The model in Markdown: what it reads, what it says, where it came from, what it is not for."""
    spec, schema = model.spec.encoder, model.schema
    quantiles = ", ".join(f"{level:g}" for level in LEVELS)
    labels = [
        f"| `{target.column}` | {'active days in ' + str(target.horizon) if target.kind == 'days' else 'value, capped at ' + format(target.cap, 'g')} "
        f"| expectation, P(> 0), quantiles {quantiles} |"
        for target in model.spec.targets
    ]
    parts = [
        f"# {schema.title or schema.name}: a ScaleToT profile encoder",
        f"An embedding of {spec.dim} numbers for each profile, and LTV heads on profile and embedding. Model `{model.fingerprint}`, "
        f"scaletot_jax {model.record['versions']['scaletot_jax']}.",
        "## What it reads",
        "\n".join(["| column | kind | role |", "|---|---|---|", *_field_rows(model.fields)]),
        "Null where a value is not known. No identifier is read.",
        "## What it says",
        "\n".join(["| label | meaning | given |", "|---|---|---|", *labels]) if labels else "The embedding alone.",
        f"The embedding carries the targets: {', '.join(f'`{name}`' for name in spec.segments)}.",
        "## Use",
        "```python\nfrom scaletot_jax import ScaleToTEncoder\n\nencoder = ScaleToTEncoder.from_pretrained(directory)\n"
        "z, days = encoder.transform(table), encoder.predict(table)\n```",
        "`scaletot score --model DIR` scores a table of any size, `scaletot serve --model DIR` answers requests.",
        "## Limits",
        "It was fitted on one population and one period; `scaletot watch` says when a table has drifted from it. Whether the "
        "embedding helps was judged where it was trained (the verdict of the run), not by this file.",
    ]
    return "\n\n".join(parts) + "\n"


def _field_rows(fields: Sequence[Field]) -> list[str]:
    return [f"| `{field.source}` | {field.kind} | {field.role} |" for field in fields]
