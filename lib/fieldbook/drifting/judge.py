"""Features of small images from a frozen classifier trained here, and what measures rest on them.

The Fréchet distance in these features is called FD-digits (FD-mnist, ..), never FID: its scale is
its own. The classifier is never the encoder that a generator is trained with.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fieldbook.drifting import distances, frechet
from fieldbook.drifting.images import Images
from fieldbook.nn import training
from fieldbook.nn.checkpoints import cpu_copy
from fieldbook.nn.checks import numbers, require
from fieldbook.nn.functional import batched
from fieldbook.nn.layers import seeded
from fieldbook.nn.recipe import Recipe
from fieldbook.nn.seeds import stream


class Classifier(nn.Module):
    """Three convolutions, a layer of 64 features, logits; of images of a shape (c, h, w)."""

    def __init__(self, shape: tuple[int, int, int], classes: int, seed: int):
        super().__init__()
        c, h, w = shape
        side = -(-h // 4) * -(-w // 4)
        with seeded(seed):
            self.features = nn.Sequential(
                nn.Conv2d(c, 32, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64 * side, 64),
                nn.ReLU(),
            )
            self.logits = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, classes)."""
        return self.logits(self.features(x))


@dataclass(frozen=True)
class Judge:
    """A frozen classifier with the features of real images, which measures generated ones.

    Attributes:
        images: the real ones; `train`, `test`: their features (n, 64); `digest`: of the weights,
            for a manifest.
        accuracy: of the classifier on the held-out images.
    """

    network: Classifier
    images: Images
    train: Tensor
    test: Tensor
    accuracy: float
    digest: str

    def measure(self, x: Tensor, label: Tensor, seed: int = 0) -> dict[str, float]:
        """All measures of generated images (n, c, h, w) in [-1, 1], asked for with labels (n,).

        Class frequencies should be those of the held-out images: `balanced_labels` makes them so.

        Returns:
            `fd_train`, `fd_heldout`, `kid` (to the held-out images); `precision`, `recall`,
            `density`, `coverage` among them; class `accuracy`; `energy` distance of pixels to them;
            and `nearest`, the mean distance in pixels to the nearest training image over that of
            the held-out images.
        """
        test, train = self.images.test, self.images.train
        x = numbers(x, "x", shape=(None, *train.shape[1:]))
        require(label.shape == (len(x),), "shape of label", tuple(label.shape), f"({len(x)},)")
        layer = self.network.logits
        found = batched(self.network.features, x, size=1024, device=layer.weight.device).cpu()
        generator = torch.Generator().manual_seed(stream("kid", seed))
        right = layer(found.to(layer.weight.device)).argmax(1).cpu() == label.cpu()
        usual = distances.nearest(test, train).mean()
        require(usual > 0, "nearest of held-out images", 0.0, "others than those of training")
        return {
            "fd_train": frechet.frechet(found, self.train),
            "fd_heldout": frechet.frechet(found, self.test),
            "kid": frechet.kid(found, self.test, generator),
            **frechet.coverage(self.test, found),
            "accuracy": float(right.double().mean()),
            "energy": float(distances.energy_distance(x.flatten(1).cpu(), test.flatten(1))),
            "nearest": float(distances.nearest(x.cpu(), train).mean() / usual),
        }

    def floor(self, repeats: int = 20) -> list[float]:
        """FD to the held-out images of training images of the same classes: a perfect sampler's."""
        label = self.images.train_label
        wanted = self.images.test_label.bincount()
        found = []
        for repeat in range(repeats):
            generator = torch.Generator().manual_seed(stream("floor", repeat))
            order = torch.randperm(len(label), generator=generator)
            chosen = [order[label[order] == c][:n] for c, n in enumerate(wanted.tolist())]
            found.append(frechet.frechet(self.train[torch.cat(chosen)], self.test))
        return found


def judge(images: Images, seed: int = 1_000, steps: int = 600, folder: Path | None = None) -> Judge:
    """Train the classifier on the training images, with noise on the pixels, and freeze it.

    Args:
        folder: of its checkpoint: one that has been trained there is not trained again.
    """
    network = Classifier(tuple(images.train.shape[1:]), images.classes, seed)

    def loss(model: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        x = images.train[index]
        noisy = x + 0.3 * torch.randn(x.shape, generator=generator)
        return nn.functional.cross_entropy(model(noisy), images.train_label[index])

    recipe = Recipe(
        steps=steps, batch_size=64, lr=2e-3, weight_decay=0.05, schedule="cosine", seed=seed
    )
    training.fit(network, loss, len(images.train), recipe, checkpoint=folder, progress=False)
    network.eval().requires_grad_(False)
    weights = cpu_copy(network)
    content = b"".join(weights[name].numpy().tobytes() for name in sorted(weights))
    parts = (images.train, images.test)
    train, test = (batched(network.features, x, size=1024) for x in parts)
    accuracy = float((network.logits(test).argmax(1) == images.test_label).double().mean())
    return Judge(network, images, train, test, accuracy, hashlib.sha256(content).hexdigest()[:16])
