"""Fixed maps against scikit-learn and the definition."""

import pytest
import torch
from sklearn.decomposition import PCA

from fieldbook.spectra.preprocess import Affine, principal_components, standardise


def examples(n=80, features=12, rank=12):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(n, rank, generator=generator) @ torch.randn(rank, features, generator=generator)
        + 3
    )


def test_standardise():
    x = examples()
    x[:, 4] = 0.1
    y = standardise(x)(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(12), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        y.std(0), torch.ones(12).index_fill(0, torch.tensor([4]), 0), atol=1e-5, rtol=0
    )


def test_principal_components_are_white_and_those_of_scikit_learn():
    x = examples()
    y = principal_components(x, 5)(x)
    torch.testing.assert_close(torch.cov(y.T), torch.eye(5), atol=1e-4, rtol=0)
    peer = torch.from_numpy(PCA(5, whiten=True).fit_transform(x.double().numpy())).float()
    torch.testing.assert_close(y * (y * peer).sum(0).sign(), peer, atol=1e-4, rtol=0)


def test_more_components_than_there_are():
    with pytest.raises(ValueError, match=r"components = 4.*at most 3"):
        principal_components(examples(rank=3), 4)


def test_nothing_to_train_and_everything_to_store():
    x = examples()
    one, two = principal_components(x, 5), Affine(torch.zeros(12), torch.zeros(12, 5))
    assert not list(one.parameters())
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))
