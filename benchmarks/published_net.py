"""A published robust network, written anew from its paper's description, for `ducat evaluate published_net:madry`.

    export OMP_NUM_THREADS=1
    python benchmarks/published_net.py --epochs 19     # trains it: runs/published/madry.safetensors
    ducat evaluate published_net:madry --import-from benchmarks --dataset digits --eps 0.2 --suite standard

Madry et al. 2018 (arXiv 1706.06083), section 5, MNIST: two convolutions of 32 and 64 filters of 5 x 5, each followed by
ReLU and max pooling by 2, and a fully connected layer of 1,024; trained on the images that PGD finds in 40 steps of
0.01 from a random point of the ball, in batches of 50, by Adam with a rate of 1e-4. Nothing of it is ours but three
changes that another data set needs: the 8 x 8 images of digits are enlarged to MNIST's 28 x 28 inside the network, the
ball has a radius of 0.2 instead of 0.3, and an epoch is one pass through 1,293 images. No code of this project is used
but its loader of the images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from one_thread import require_one_thread
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from training.data import load_dataset

EPS, STEP, STEPS, BATCH, RATE = 0.2, 0.01, 40, 50, 1e-4
WEIGHTS = Path("runs/published/madry.safetensors")


class Madry(nn.Module):
    """The network of the paper's section on MNIST."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.full = nn.Linear(7 * 7 * 64, 1024)
        self.head = nn.Linear(1024, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Grey images of digits as float [N, 3, 8, 8] in [0, 1] to logits [N, 10]."""
        large = F.interpolate(images[:, :1], size=(28, 28), mode="bilinear", align_corners=False)
        features = F.max_pool2d(F.relu(self.conv1(large)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)
        logits: Tensor = self.head(F.relu(self.full(features.flatten(1))))
        return logits


def madry() -> nn.Module:
    """The trained network."""
    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"{WEIGHTS} is not there: run python benchmarks/published_net.py first")
    model = Madry()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


def attacked(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """PGD as the paper has it."""
    found = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    for _ in range(STEPS):
        found.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), labels), found)
        found = (found.detach() + STEP * gradient.sign()).clamp(images - EPS, images + EPS).clamp(0, 1)
    return found.detach()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=19)
    epochs = parser.parse_args().epochs
    require_one_thread()
    torch.manual_seed(0)
    train = load_dataset("digits").train
    images = torch.from_numpy(train.images).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(train.labels)
    model = Madry()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            hard = attacked(model, images[batch], labels[batch])
            loss = F.cross_entropy(model(hard), labels[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        save_file(model.state_dict(), WEIGHTS)
        seconds = time.monotonic() - started
        print(f"epoch {epoch}/{epochs}: loss {sum(losses) / len(losses):.3f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
