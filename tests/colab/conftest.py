"""One folder of compiled programs for all notebooks."""

import pytest


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook-programs")
