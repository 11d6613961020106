"""``explorer.html``: the users of a run, their chains and the trees behind them, in one page that needs no server.

The page is a shell of HTML with the data as JSON beside it (:mod:`scaletot_jax.report.explorer_data`); ``explorer.js`` builds
what is seen. Its security policy allows that one script and the style sheets, by hash, and no request at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scaletot_jax.chains.spec import ChainSpec
from scaletot_jax.errors import ScaleToTError
from scaletot_jax.files import read_json, read_table
from scaletot_jax.profiles.render import Renderer
from scaletot_jax.report.explorer_data import Users, choose, explorer_data
from scaletot_jax.report.page import Markup, document, el
from scaletot_jax.run import Run, Stage

TITLE = "ScaleToT explorer"


def explorer(run: Run, stages: Mapping[str, Stage], spec: ChainSpec | None) -> str | None:
    """The page of a run; None before there is a population.

    Args:
      run: for its configuration.
      stages: finished stages by name, their artifacts checked.
      spec: the chain specification, or None.
    """
    prepare = stages.get("prepare")
    if prepare is None:
        return None
    return render(collect(run.config, stages, prepare, spec))


def collect(
    config: Mapping[str, Any], stages: Mapping[str, Stage], prepare: Stage, spec: ChainSpec | None
) -> dict[str, Any]:
    """The explorer's data from the artifacts of the finished stages."""
    settings, teach = config["report"], stages.get("teach")
    chains, nodes, texts = _tables(teach)
    selected = chains.filter(pc.equal(chains["rank"], 0)).to_pylist() if chains is not None else []
    reasoned = {row["exact_key"] for row in selected}
    path = prepare.path("population.parquet")
    keys = read_table(path, columns=["exact_key"])["exact_key"].to_pylist()
    places = choose(keys, reasoned, settings["users"])
    users, label = _users(stages, path, places, settings)
    shown = pa.array(sorted(set(users.keys)), pa.string())
    piece = _pieces(config) if settings["show_text"] and texts is not None and texts.num_rows else None
    return explorer_data(
        users,
        selected,
        _by_key(nodes, shown),
        _by_key(texts.filter(pc.equal(texts["rank"], 0)) if texts is not None else None, shown),
        spec,
        total=len(keys),
        label=label,
        show_text=settings["show_text"],
        piece=piece,
    )


def render(data: Mapping[str, Any]) -> str:
    """The page as HTML. Pure."""
    hidden = data["redacted"]
    said = [
        f"{len(data['users']):,} of {data['total']:,} rows, {len(data['chains']):,} reasoned profiles. ",
        "Identifiers are absent" if hidden["ids"] else "Identifiers are shown",
        " and free text is hidden. " if hidden["text"] else " and free text is shown. ",
        el("a", "The report", href="report.html"),
    ]

    def choice(identifier: str, name: str, *options: tuple[str, str]) -> Markup:
        listed = [el("option", text, value=value) for value, text in options]
        return el("label", name, el("select", listed, id=identifier))

    states = [
        ("", "all"),
        ("reasoned", "reasoned about"),
        ("rejected", "rejected"),
        ("unreasoned", "not reasoned about"),
    ]
    orders = [("row", "row"), ("doubt", "the teacher's doubt"), ("expected", f"expected {data['label']}")]
    filters = el(
        "div",
        el(
            "label", "Search profiles, chains and rows ( / )",
            el("input", id="query", type="search", autocomplete="off", spellcheck="false"), class_="wide",
        ),
        choice("state", "State", *states),
        choice("split", "Split", ("", "all")),
        choice("answer", "Most likely answer", ("", "any")),
        choice("order", "Order by", *orders),
        el("label", el("input", type="checkbox", id="refined"), "asked again", class_="check"),
        class_="filters", role="search",
    )  # fmt: skip
    panel = el(
        "div",
        el("h1", "Users and chains"),
        el("p", said, class_="soft"),
        filters,
        el("p", "", id="status", role="status"),
        el("ul", id="list", aria_label="Users"),
        el("button", "Show more", id="more", type="button", hidden=True),
        class_="panel",
    )
    detail = el("article", id="detail", aria_label="The chosen user")
    needs = el("noscript", el("p", "The explorer is built by a script, which this browser does not run."))
    body = [needs, panel, detail]
    return document(
        TITLE, [], *body, kind="explorer", styles=("report.css", "explorer.css"), scripts=("explorer.js", "print.js"), data=_json(data)
    )  # fmt: skip


def _json(data: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the element it stands in."""
    content = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True)
    safe = content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    safe = safe.encode("utf-8", "replace").decode("utf-8")
    return Markup(f'<script type="application/json" id="data">{safe}</script>')


# -- files --------------------------------------------------------------------------------------------------------------


def _tables(teach: Stage | None) -> tuple[Any, Any, Any]:
    """chains, nodes and texts of the teacher, or None."""
    if teach is None:
        return None, None, None
    names = ("chains.parquet", "nodes.parquet", "texts.parquet")
    return tuple(read_table(teach.path(n)) if teach.path(n).exists() else None for n in names)  # type: ignore[return-value]


def _by_key(table: pa.Table | None, keys: pa.Array) -> dict[str, list[dict[str, Any]]]:
    out: dict[str, list[dict[str, Any]]] = {}
    if table is not None:
        for row in table.filter(pc.is_in(table["exact_key"], value_set=keys)).to_pylist():
            out.setdefault(row["exact_key"], []).append(row)
    return out


def _users(
    stages: Mapping[str, Stage], path: Path, places: np.ndarray, settings: Mapping[str, Any]
) -> tuple[Users, str]:
    """The chosen rows of the population, and the name of their days label."""
    prepare = stages["prepare"]
    renderer = Renderer.from_dict(read_json(prepare.path("renderer.json")))
    if not settings["show_text"]:
        renderer = Renderer(tuple(field for field in renderer.fields if field.kind != "text"), renderer.cuts)
    label = next(iter(prepare.summary().get("labels") or {}), "")
    names = ["row", "exact_key", "split", *(field.name for field in renderer.fields)]
    names += ["user_id"] if settings["show_ids"] else []
    known = pq.ParquetFile(path).schema_arrow.names
    table = read_table(path, columns=[*dict.fromkeys([*names, *([label] if label in known else [])])])
    table = table.take(pa.array(places))
    records = table.select([field.name for field in renderer.fields]).to_pylist()
    users = Users(
        row=table["row"].to_numpy(),
        keys=table["exact_key"].to_pylist(),
        split=table["split"].to_pylist(),
        lines=[renderer.text(record).splitlines() for record in records],
        ids=[str(value) for value in table["user_id"].to_pylist()] if settings["show_ids"] else None,
        observed=table[label].cast(pa.float64()).to_numpy() if label in known else None,
        z=_embeddings(stages.get("score"), places),
    )
    return _with_predictions(users, stages.get("evaluate"), label, places), label


def _with_predictions(users: Users, evaluate: Stage | None, label: str, places: np.ndarray) -> Users:
    path = evaluate.path("population.parquet") if evaluate is not None else None
    if path is None or not path.exists():
        return users
    names = {"expected": f"expected_{label}", "positive": f"p_positive_{label}"}
    known = pq.ParquetFile(path).schema_arrow.names
    found = {key: name for key, name in names.items() if name in known}
    table = read_table(path, columns=["row", *found.values()])
    if len(table) <= int(places.max(initial=0)):
        return users
    table = table.take(pa.array(places))
    if table["row"].to_pylist() != users.row.tolist():  # not of this population
        return users
    return users._replace(**{key: table[name].cast(pa.float64()).to_numpy() for key, name in found.items()})


def _embeddings(score: Stage | None, places: np.ndarray) -> np.ndarray | None:
    """ẑ of the chosen rows, from the shards that the manifest records."""
    shards = read_json(score.path("manifest.json"))["shards"] if score is not None else []
    files = [score.path(entry["file"]) for entry in shards] if score is not None else []
    if not files or not all(file.exists() for file in files):
        return None
    parts = []
    begin = 0
    for file, entry in zip(files, shards):
        inside = places[(places >= begin) & (places < begin + entry["rows"])] - begin
        column = read_table(file, columns=["embedding"])["embedding"].combine_chunks()
        width = len(column.flatten()) // max(len(column), 1)
        parts.append(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)[inside].astype(np.float32))
        begin += entry["rows"]
    z = np.concatenate(parts)
    return z if len(z) == len(places) else None


def _pieces(config: Mapping[str, Any]) -> Any:
    """Token id → text, by the run's own tokenizer; None where it is not at hand."""
    from scaletot_jax.lm.load import load_tokenizer

    try:
        tokenizer = load_tokenizer(config["lm"]["weights"])
    except (ScaleToTError, OSError):
        return None
    return lambda token: tokenizer.decode([token])
