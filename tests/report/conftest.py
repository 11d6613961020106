"""One made-up run with both pages, for all tests of the report."""

import pytest
from report.report_run import add_coverage, make_run

from scaletot_jax.report.report import report


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    with make_run(tmp_path_factory.mktemp("report") / "run", report__chains=6) as run:
        add_coverage(run)
        report(run)
        yield run
