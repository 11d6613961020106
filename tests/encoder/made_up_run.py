"""A run directory whose language-model stages are made up: states with a known mean, noise and best layer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scaletot_jax.config import default_config
from scaletot_jax.files import write_table
from scaletot_jax.profiles.prepare import open_population, prepare
from scaletot_jax.run import Run
from scaletot_jax.student.states import ReasoningStates

WIDTH, SEGMENTS, LAYERS, BEST_LAYER = 24, ("context", "outlook"), 4, 3


def config(rows: int = 600, **overrides):
    made = default_config()
    made.data.name = "synthetic"
    made.data.limit = rows
    made.distill.num_profiles = 120
    made.distill.chains = 3
    made.distill.dim = 8
    made.distill.whiten_dim = 6
    made.distill.width = 32
    made.distill.steps = 150
    made.distill.batch_size = 32
    made.distill.checkpoint_every = 50
    made.distill.learning_rate = 3e-3
    made.score.batch_size = 64
    made.score.shard_rows = 150
    made.distill.placebos = ("labels",)
    made.distill.pool = 60
    made.head.seeds = 2
    made.head.steps = 100
    made.head.penalties = (1e-2,)
    made.head.width = 8
    made.evaluate.bootstrap = 100
    for key, value in overrides.items():
        section, name = key.split("__")
        made[section][name] = value
    return made


def open_run(workdir: Path, **overrides) -> Run:
    """A run with ``prepare`` done and stand-ins for teach, sft and osipo."""
    run = Run(workdir, config(**overrides).to_dict())
    prepare(run)
    table = open_population(run).table
    teachers = table.filter(pc.equal(table["split"], "teacher"))
    taught = teachers["exact_key"].to_pylist()[:60]
    stage = run.stage("teach", sections=("seed",), needs=("prepare",))
    write_table(stage.path("chains.parquet"), pa.table({"exact_key": taught, "rank": [0] * len(taught)}))
    write_table(stage.path("profiles.parquet"), teachers.slice(0, 60).select(["exact_key", "row", "group"]))
    stage.finish(["chains.parquet", "profiles.parquet"])
    run.stage("sft", sections=("seed",), needs=("prepare", "teach")).finish([])
    stage = run.stage("osipo", sections=("seed",), needs=("prepare", "sft"))
    write_table(stage.path("users.parquet"), teachers.select(["row", "group"]))
    stage.finish(["users.parquet"])
    return run


def latent(table: pa.Table) -> np.ndarray:
    """[U, 3] what a reasoner would see in a profile: a smooth function of its fields."""
    visits = np.log1p(table["visits_30"].cast(pa.float64()).to_numpy())
    gap = np.log1p(pc.fill_null(table["days_since_last_visit"].cast(pa.float64()), 10.0).to_numpy())
    paid = pc.equal(table["plan"], "free").to_numpy().astype(float)
    return np.stack([visits - 1, (gap - 2) * 0.5, paid - 0.5 + 0.3 * visits], axis=1)


class MadeUpStudent:
    """Stands in for the student: chain states = common mean + a fixed map of the latent + noise of each chain."""

    def __init__(self, run: Run, noise: float = 0.5):
        table = open_population(run).table
        ids = [int(key[:6], 16) for key in table["exact_key"].to_pylist()]
        self.latent = dict(zip(ids, latent(table)))
        self.noise = noise
        self.calls = 0
        rng = np.random.default_rng(7)
        self.maps = {n: rng.normal(size=(len(SEGMENTS), 3, WIDTH)) for n in range(1, LAYERS + 1)}
        self.student = SimpleNamespace(
            config=SimpleNamespace(num_layers=LAYERS),
            spec=SimpleNamespace(
                segments=[SimpleNamespace(name=n) for n in SEGMENTS], slots=[SimpleNamespace(name="mood")]
            ),
        )

    def load(self, run: Run, which: str):
        assert which in ("osipo", "sft")
        self.which = which
        return self.student

    def states(self, student, texts, *, chains, seed, layers, ids):
        assert len(texts) == len(ids) and all(text.endswith("\n") for text in texts)
        self.calls += 1
        z = np.stack([self.latent[i] for i in ids])
        out = {}
        for layer in layers:
            noise = np.stack(
                [np.random.default_rng([seed, i, layer]).normal(size=(chains, len(SEGMENTS), WIDTH)) for i in ids]
            )
            scale = self.noise * (1 if layer == BEST_LAYER else 8)
            mean = 50 + np.einsum("uq,kqd->ukd", z, self.maps[layer])
            out[layer] = (mean[:, None] + scale * noise).astype(np.float32)
        ends = {layer: value[:, 0, 0] for layer, value in out.items()}
        said = np.repeat((z[:, None, :1] > 0).astype(np.int32), chains, axis=1)  # one slot a chain
        return ReasoningStates(out, out, ends, np.full((len(ids), chains, 7), 1 / 7, np.float32), said)

    def install(self, monkeypatch) -> MadeUpStudent:
        from scaletot_jax.encoder import collect, distill

        monkeypatch.setattr(distill, "identity_of_model", lambda config: {"weights": "made up"})
        monkeypatch.setattr(distill, "load_student", self.load)
        monkeypatch.setattr(collect, "reasoning_states", self.states)
        return self


def files(folder: Path) -> dict[str, bytes]:
    """Every file that must be reproduced, by relative path."""
    skipped = ("checkpoint", "timing")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(skipped) for part in path.relative_to(folder).parts)
    }
