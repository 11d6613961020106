"""A served model handed over: ``save_pretrained`` and ``from_pretrained``, with a card that says what it is.

The directory is that of ``scaletot export``: safetensors and JSON, readable by ``scaletot score --model`` and ``scaletot serve``,
with a README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scaletot_jax.files import write_bytes
from scaletot_jax.population.forward import LEVELS
from scaletot_jax.population.install import CARD, replaces
from scaletot_jax.population.model import ServedModel, copy_parts, load_model
from scaletot_jax.profiles.fields import Field


def save_pretrained(model: ServedModel, directory: str | Path) -> Path:
    """Copies the model's files and writes its card; an earlier model in the directory is replaced, programs and chains with it.

    Args:
      model: as loaded; its own directory must still be there.
      directory: as in :func:`scaletot_jax.population.install.replaces`.

    Raises:
      StaleRunError: the directory holds other things.
      ResourceError: the disk is full; an earlier model is still there.
    """
    directory = Path(directory)
    if directory.resolve() == model.directory.resolve():
        write_bytes(directory / CARD, card(model).encode())
        return directory
    with replaces(directory, "choose another one") as aside:
        copy_parts({name: model.directory / name for name in (*model.record["files"], "model.json")}, aside)
        write_bytes(aside / CARD, card(model).encode())
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
