"""The way around torchvision's missing operators, in fresh processes: failures leave traces."""

import subprocess
import sys

import pytest
import torch

SHRINK = """
import torch, torchvision
print(torchvision.transforms.functional.resize(torch.zeros(1, 4, 4), [2, 2]).shape)
"""


def fresh(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_torchvision_imports_on_this_torch():
    twice = "from fieldbook.drifting.compat import importable_torchvision as go; go(); go(); "
    found = fresh(twice + SHRINK)
    assert found.returncode == 0, found.stderr
    assert "[1, 2, 2]" in found.stdout


def test_it_is_still_needed_where_torchvision_is_built_for_cuda():
    found = fresh(SHRINK)
    if found.returncode == 0:
        pytest.skip("torch and torchvision are of one build")
    assert "torchvision::nms" in found.stderr and torch.version.cuda is None
