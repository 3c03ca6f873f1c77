"""What needs a GPU is skipped without one: `make test-gpu`, and `tests/pretend.py` for machines
that have none."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: run `make test-gpu` on a machine that has one")
    return torch.device("cuda")
