"""Shared test settings: eight emulated CPU devices, no network, small deterministic examples."""

import collections
import os

import jax
import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


# Few tests, but long: begun last, they would leave the other workers idle in the end.
LONG = (
    "pipeline",
    "notebooks",
    "tests/teacher/test_smollm2.py",
    "tests/evaluation/test_controls.py",
    "tests/lm/test_smollm2.py",
)


@pytest.hookimpl(tryfirst=True)  # before xdist, which writes the groups into the names
def pytest_collection_modifyitems(items):
    """A file's tests stay in one worker: what its fixtures train and compile is made once. Groups of their own stand.

    The long groups come first, then those with many tests.
    """
    group = {}
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
        marker = item.get_closest_marker("xdist_group")
        group[item] = marker.args[0] if marker.args else marker.kwargs["name"]
    count = collections.Counter(group.values())
    items.sort(key=lambda item: (group[item] not in LONG, -count[group[item]], group[item]))


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
