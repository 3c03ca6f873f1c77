"""Functions of many rows, some at a time."""

import pytest
import torch

from fieldbook.nn.functional import batched


def test_parts_are_the_whole():
    x, y = torch.randn(10, 3), torch.arange(10)
    sizes = []

    def product(part, index):
        sizes.append(len(part))
        return part * index[:, None], index + 1

    found, after = batched(product, x, y, size=4, device="cpu")
    assert sizes == [4, 4, 2]
    torch.testing.assert_close(found, x * y[:, None])
    assert torch.equal(after, y + 1)


def test_parts_keep_no_graph():
    assert not batched(torch.nn.Linear(3, 2), torch.randn(5, 3)).requires_grad


def test_rows_must_belong_together():
    with pytest.raises(ValueError, match=r"lengths of tensors = \[5, 4\]"):
        batched(torch.add, torch.zeros(5), torch.zeros(4))
