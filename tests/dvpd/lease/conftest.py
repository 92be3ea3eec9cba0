import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for lease_parts


@pytest.fixture(scope="session")
def lease_data(tmp_path_factory):
    from lease_parts import write_data

    return write_data(tmp_path_factory.mktemp("lease") / "data")
