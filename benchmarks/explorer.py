"""How fast the explorer filters: 5,000 users in one page, in a real Chromium, from the input event to the laid-out list.

    python benchmarks/explorer.py [--users 5000] [--rounds 3]

Twenty filters, searches of one word and of several, states, answers and orders, each set and then taken back, in turn; the time
is the browser's own clock, style and layout included, painting not. There is no peer; the goal is 100 ms, below which an answer is
felt as immediate (Miller 1968; Card et al. 1991).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from scaletot_jax.report.explorer import render
from scaletot_jax.report.explorer_data import Users, explorer_data

GOAL = 100.0  # ms
WORDS = ("north", "south", "young", "old", "weekly", "monthly")
FILTERS = [
    *(("query", text) for text in ("y", "yo", "young", "young 1", "row 4", "row 41", "south 7 old", "north weekly 3", "field 7: old", "nothing like it")),
    *(("state", value) for value in ("reasoned", "rejected", "unreasoned")),
    *(("split", value) for value in ("teacher", "head")), *(("answer", value) for value in ("0", "1")),
    *(("order", value) for value in ("doubt", "expected")), ("refined", "on"),
]  # fmt: skip
MEASURE = """(filters) => {
  const set = (id, value) => {
    const control = document.getElementById(id);
    if (control.type === "checkbox") control.checked = value !== "";
    else control.value = value;
    control.dispatchEvent(new Event("input"));
    document.body.offsetHeight; // style and layout
  };
  return filters.map(([id, value]) => {
    const begin = performance.now();
    set(id, value);
    const took = performance.now() - begin;
    const shown = document.getElementById("status").textContent;
    set(id, id === "order" ? "row" : "");
    return [took, shown];
  });
}"""


def page(count: int) -> str:
    """The explorer of ``count`` made-up users with twelve fields each, every other one with a chain and a tree of six nodes."""
    rng = np.random.default_rng(0)
    keys = [f"{i:064x}" for i in range(count)]
    lines = [[f"field {f}: {WORDS[rng.integers(6)]} {rng.integers(50)}" for f in range(12)] for _ in range(count)]
    split = ["teacher" if i % 4 else "head" for i in range(count)]
    expected = rng.gamma(2.0, 1.0, count)
    users = Users(
        np.arange(count), keys, split, lines, expected=expected, z=rng.normal(size=(count, 8)).astype(np.float32)
    )  # fmt: skip
    nodes = {
        key: [_node(d, 2 * d + i, max(2 * d - 1, 0), refined=not k % 3) for d in range(1, 4) for i in range(2)]
        for k, key in enumerate(keys[::2])
    }
    chains = [
        {"exact_key": key, "values": ["weekly", "old", "south"], "accepted": i % 9 > 0, "reason": "", "answer": [[0.3, 0.7], [0.7, 0.3]][i % 2]}
        for i, key in enumerate(keys[::2])
    ]  # fmt: skip
    return render(explorer_data(users, chains, nodes, {}, None, total=count, label="days"))


def _node(depth: int, number: int, parent: int, *, refined: bool) -> dict[str, Any]:
    measures = {"probability": 0.5, "entropy": 0.6, "disagreement": 0.1, "uncertainty": 0.35, "threshold": 0.4}
    flags = {"refined": refined, "refinement_accepted": False, "kept": True, "reason": ""}
    return {"depth": depth, "node": number, "parent": parent, "segment": "s", "values": ["old"], **measures, **flags}


def main() -> None:
    """Measures and prints."""
    from harness import machine
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit(
            "explorer.py: chromium is not on the PATH, and only a browser can say how fast a page is; install chromium"
        )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "explorer.html"
        file.write_text(page(options.users), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page(viewport={"width": 1280, "height": 900})
        opened.goto(file.as_uri())
        opened.evaluate(MEASURE, FILTERS)  # warm: the script is compiled by then
        rounds = [opened.evaluate(MEASURE, FILTERS) for _ in range(options.rounds)]
        size, version = file.stat().st_size, browser.version
        browser.close()
    print(f"{'filter':28}{'users left':>24}{'ms, median of rounds':>24}")
    by_filter = [statistics.median(one[i][0] for one in rounds) for i in range(len(FILTERS))]
    for (name, value), took, (_, shown) in zip(FILTERS, by_filter, rounds[0]):
        print(f"{name + ' ' + value:28}{shown:>24}{took:>24.1f}")
    every = [took for one in rounds for took, _ in one]
    record = {
        "benchmark": "explorer", "users": options.users, "filters": len(FILTERS), "rounds": options.rounds, "bytes": size,
        "median_ms": round(statistics.median(every), 1), "worst_ms": round(max(every), 1), "goal_ms": GOAL, "chromium": version,
        "load": round(os.getloadavg()[0], 1), "machine": machine(),
    }  # fmt: skip
    print(json.dumps(record))


if __name__ == "__main__":
    main()
