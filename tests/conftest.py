"""Shared test settings: eight emulated CPU devices, no network, small deterministic examples."""

import os

import jax
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.hookimpl(tryfirst=True)  # before xdist, which writes the groups into the names
def pytest_collection_modifyitems(items):
    """A file's tests stay in one worker: what its fixtures train and compile is made once. Groups of their own stand."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


def pytest_terminal_summary(terminalreporter):
    """What tests report as properties: ``counted``, a line; ``fuzzed``, executions of one target of fuzzing."""
    ended = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [pair for report in ended if getattr(report, "when", "") == "call" for pair in report.user_properties]
    for name, value in told:
        if name == "counted":
            terminalreporter.write_line(f"counted: {value}")
    fuzzed = [value for name, value in told if name == "fuzzed"]
    if fuzzed:
        terminalreporter.write_line(f"counted: {sum(fuzzed)} executions of fuzzing over {len(fuzzed)} targets")


settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
