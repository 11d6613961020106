"""What every stage that runs the language model depends on beside its configuration: the files behind the names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaletot_jax.chains.spec import spec_of_run
from scaletot_jax.lm.load import fingerprint


def identity_of_model(config: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the weights and of the chain specification that a run's configuration names.

    They enter the stage's fingerprint: an overwritten weights file or an edited specification is another run.
    """
    return {"chain_spec": spec_of_run(config).fingerprint, "weights": fingerprint(config["lm"]["weights"])}
