"""What a run holds, as objects that show themselves in a notebook: profiles, chains with their trees, the evaluation.

    from scaletot_jax.report.notebook import chains, evaluation, profiles

    profiles("runs/mine", config)  # as the teacher reads them
    chains("runs/mine", config)[0].tree
    evaluation("runs/mine", config)

They hold no identifier and, unless it is asked for, no free text, so neither does a notebook that is saved with its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from scaletot_jax.chains.spec import spec_of_run
from scaletot_jax.files import read_json, read_table
from scaletot_jax.profiles.render import Renderer
from scaletot_jax.report import inline
from scaletot_jax.report.examples import example_cards, short_hash
from scaletot_jax.run import Run


class Profile(NamedTuple):
    """One distinct profile.

    Attributes:
      profile: the first digits of its content hash.
      lines: (label, value) as the prompt says them.
      hidden: labels of fields of free text that say something here and are withheld.
    """

    profile: str
    lines: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        return inline.profile(self)


class Evaluation(NamedTuple):
    """The comparison of a finished run; ``record`` is ``evaluate/metrics.json``."""

    record: Mapping[str, Any]

    @property
    def word(self) -> str:
        """*helped*, *hurt* or *cannot be told at this size*."""
        return str(self.record["verdict"]["word"])

    def __repr__(self) -> str:
        return f"Evaluation({self.record['verdict']['sentence']})"

    def _repr_html_(self) -> str:
        return inline.evaluation(self.record)


class Several(tuple[Any, ...]):
    """Some of these objects, shown one below the other."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return "".join(item._repr_html_() for item in self)


def profiles(workdir: str | Path, config: Any, count: int = 3, *, show_text: bool = False) -> Several:
    """The first ``count`` distinct profiles in the order of their content hash, which says nothing of the users' order.

    Args:
      workdir: of a run whose stage ``prepare`` has finished.
      config: of the run (``ConfigDict`` or mapping).
      show_text: whether what people typed is shown.

    Raises:
      StaleRunError: the stage has not finished, or belongs to another configuration.
    """
    stage = _run(workdir, config).finished("prepare")
    renderer = Renderer.from_dict(read_json(stage.path("renderer.json")))
    names = [field.name for field in renderer.fields]
    table = read_table(stage.path("population.parquet"), columns=["exact_key", *names])
    first = {key: row for row, key in reversed(list(enumerate(table["exact_key"].to_pylist())))}
    keys = sorted(first)[:count]
    records = table.take(pa.array([first[key] for key in keys], pa.int64())).to_pylist()
    found = []
    for key, record in zip(keys, records):
        pairs = renderer.pairs(record)
        open_ = [(field.label, text) for field, text in pairs if show_text or field.kind != "text"]
        hidden = [field.label for field, _ in pairs if field.kind == "text" and not show_text]
        found.append(Profile(short_hash(key), tuple(open_), tuple(hidden)))
    return Several(found)


def chains(workdir: str | Path, config: Any, count: int = 3, *, show_text: bool = False) -> Several:
    """Chains of the teacher as cards (:class:`scaletot_jax.report.cards.Card`), those whose tree was refined first.

    Args, errors: as of :func:`profiles`, of the stages ``prepare`` and ``teach``; ``show_text`` also of what the teacher wrote.
    Without the chain specification, which says what is free text, nothing is shown: ConfigError.
    """
    run = _run(workdir, config)
    prepared, taught = run.finished("prepare"), run.finished("teach")
    table, nodes = (read_table(taught.path(f"{name}.parquet")) for name in ("chains", "nodes"))
    population, renderer = prepared.path("population.parquet"), read_json(prepared.path("renderer.json"))
    return Several(example_cards(table, nodes, population, renderer, spec_of_run(run.config), count, show_text))


def evaluation(workdir: str | Path, config: Any) -> Evaluation:
    """The comparison and its verdict; errors as of :func:`profiles`, of the stage ``evaluate``."""
    return Evaluation(read_json(_run(workdir, config).finished("evaluate").path("metrics.json")))


def _run(workdir: str | Path, config: Any) -> Run:
    return Run(workdir, config.to_dict() if hasattr(config, "to_dict") else config, lock=False)
