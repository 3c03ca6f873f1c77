"""One private copy of the checkout for each test module."""

from pathlib import Path

import pytest
from private_checkout import copy_checkout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))
