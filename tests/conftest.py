"""No test run reuses results: notebooks under nbval write to a fresh folder, which their kernels inherit."""

import os
import shutil
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the folder
        config.fresh_results = tempfile.mkdtemp(prefix="fieldbook-")
        os.environ["FIELDBOOK_RESULTS"] = config.fresh_results


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "fresh_results"):
        shutil.rmtree(config.fresh_results, ignore_errors=True)
