"""Train a small network and save it: `python data_parallel.py FILE`, or on several ranks under
`torchrun`."""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from fieldbook.nn import training
from fieldbook.nn.checkpoints import save_weights
from fieldbook.nn.recipe import Recipe

rank = int(os.environ.get("LOCAL_RANK", "0"))
device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
torch.set_num_threads(1)
x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
y = x.square().sum(1, keepdim=True)
torch.manual_seed(1 + rank)  # rank 0's weights count
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1)).to(device)


def loss(network: nn.Module, index: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return nn.functional.mse_loss(network(x[index].to(device)), y[index].to(device))


recipe = Recipe(steps=300, batch_size=32, lr=1e-2, eval_every=30, seed=0, precision="fp32")
losses = [
    row["train_loss"]
    for row in training.fit(model, loss, len(x), recipe, progress=False).history[1:]
]
assert losses[-1] < 0.1 * losses[0], losses
print(
    f"rank {rank} of {os.environ.get('WORLD_SIZE', '1')}\n", end="", flush=True
)  # one write, ranks do not mix
if rank == 0:
    save_weights(model, Path(sys.argv[1]))
