"""No test run reuses results: notebooks under nbval write to a fresh folder, which their kernels
inherit.

Every process of a test run computes with one thread, as workers of a sweep do: the order of a sum,
hence its last bits, depends on the number of threads.
"""

import multiprocessing
import os
import shutil
import tempfile

import pytest
from hypothesis import settings

os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}

# What the processes that tests start have in memory from the beginning; there is one server of
# processes for all tests.
IMPORTS = [
    "torch._dynamo",
    "fieldbook.grokking.experiment",
    "fieldbook.scaling.runs",
    "fieldbook.spectra.spectroscopy",
]
multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTS)

settings.register_profile(
    "ci", derandomize=True
)  # a failure there must be the change's, not the dice's
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit the folder
        config.fresh_results = tempfile.mkdtemp(prefix="fieldbook-")
        os.environ["FIELDBOOK_RESULTS"] = config.fresh_results
        os.environ.pop("FIELDBOOK_FROZEN", None)


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "fresh_results"):
        shutil.rmtree(config.fresh_results, ignore_errors=True)
