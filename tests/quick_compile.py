"""Programs that are compiled in half the time, and once for all runs and processes that share a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

_DEFAULTS: dict[str, object] = {
    "jax_disable_most_optimizations": False,
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


def _settings(folder: Path) -> dict[str, object]:
    values = (True, str(folder), 0.1)
    return dict(zip(_DEFAULTS, values))


@contextlib.contextmanager
def here(folder: Path) -> Iterator[None]:
    """In this process, while the context lasts."""
    _update(_settings(folder))
    try:
        yield
    finally:
        _update(_DEFAULTS)


@contextlib.contextmanager
def never() -> Iterator[None]:
    """For numbers that must be the same to the last bit whether or not :func:`here` is in force around them."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)


def _update(settings: dict[str, object]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def environment(folder: Path) -> dict[str, str]:
    """The same for another process, on as many devices, whose programs are then the same, too."""
    settings = {name.upper(): str(value) for name, value in _settings(folder).items()}
    return settings | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(len(jax.devices()))}
