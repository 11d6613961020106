"""What the configuration says about a served teacher, and what of it decides the answers."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from scaletot_jax.errors import ConfigError

# What a request asks for. The rest (address, key, pace, limits) may change between a run and its continuation.
DECISIVE = ("model", "api", "top_k", "samples")
_WHERE = "teacher.served"


def stage_sections(teacher: Mapping[str, Any]) -> list[str]:
    """The configuration keys that the chains depend on: all of the teacher's, and of a served one the decisive ones.

    A raised budget or a server that moved must not make finished work stale; another model must.
    """
    keys = [f"teacher.{key}" for key in teacher if key != "served"]
    return [*keys, *(f"{_WHERE}.{key}" for key in DECISIVE), "seed"] if teacher["backend"] == "served" else keys


def check(served: Mapping[str, Any], *, scoring: str) -> None:
    """Refuses what no served teacher can do.

    Args:
      served: the configuration's section ``teacher.served``.
      scoring: ``teacher.scoring``.

    Raises:
      ConfigError: names the key.
    """
    if scoring == "full":
        raise ConfigError(
            "a served teacher has no sums over the vocabulary",
            where="teacher.scoring",
            why="its API gives the log-probabilities of the top k tokens alone",
            do="set teacher.scoring to auto or trie",
        )
    url = urllib.parse.urlsplit(served["base_url"])
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            "a served teacher needs the address of its API",
            where=f"{_WHERE}.base_url",
            why="it is empty or not an http or https address",
            do="set it to what the server prints at its start, with its path, such as http://127.0.0.1:8000/v1",
        )
    if url.username or url.password or url.query:
        raise ConfigError(
            "an address must not hold a key, because the configuration is written down",
            where=f"{_WHERE}.base_url",
            do=f"put the key into an environment variable and its name into {_WHERE}.api_key_env",
        )
    if served["api_key_env"] and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", served["api_key_env"]):
        raise ConfigError(
            "the key's environment variable has no possible name",  # not shown: it may be the key itself
            where=f"{_WHERE}.api_key_env",
            do="export the key, e.g. as TEACHER_KEY, and set this to TEACHER_KEY",
        )
    if served["max_usd"] > 0 and not (served["usd_per_million_input"] or served["usd_per_million_output"]):
        raise ConfigError(
            "a limit in money needs prices",
            where=f"{_WHERE}.max_usd",
            do=f"set {_WHERE}.usd_per_million_input and usd_per_million_output, or limit max_total_tokens instead",
        )


def api_key(served: Mapping[str, Any]) -> str:
    """The key from the environment, or "" where none is wanted. It is written nowhere.

    Raises:
      ConfigError: the variable is not set.
    """
    name = served["api_key_env"]
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            "the key of the served teacher is not set",
            where=f"{_WHERE}.api_key_env",
            why=f"the environment has no variable {name}",
            do=f"run: export {name}=... in the same shell",
        )
    return key
