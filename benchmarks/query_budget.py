"""What a budget of queries is worth: how many images an attacker who sees only scores breaks, query by query.

    ducat train --dataset digits --ducat off --eps 0.1 --lr 0.03 --epochs 20 --seed 1 --out runs/robust
    ducat export runs/robust --onnx
    python benchmarks/query_budget.py runs/robust --queries 5000 --max-examples 200

Square attack (scores only) on the exported file, 8-bit images, on test images that it classifies correctly; each image
is attacked until it is broken or given up. A budget is priced at the cheapest point to give up, since attackers may
choose their images. It is one attack, not the best: a cleverer one needs fewer queries, and somebody with the weights
none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor
from training.attacks.ball import Ball
from training.attacks.base import Task
from training.attacks.criteria import misclassified, right
from training.attacks.square import Square
from training.batches import DeviceSplit, to_pixels
from training.evaluation.loading import exported_model
from training.randomness import stream
from training.run.dataset import load_training_data

MARKS = (1, 10, 100, 300, 1000, 3000, 10_000, 30_000)
BUDGETS = (100, 1000, 5000, 20_000, 100_000)  # images per day


class Counted(nn.Module):
    """How many images were still attacked at each query: an attack asks only for those it has not broken."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.asked = model, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        answer: Tensor = self.model(images)
        return answer


def queries_needed(model: Deployed, images: Tensor, labels: Tensor, ball: Ball, most: int) -> list[int]:
    """Queries that each broken image cost, in order."""
    counted = Counted(model.classifier)
    found = Square(queries=most)(
        Task(
            Deployed(counted, "none").eval(),
            images,
            labels,
            ball,
            misclassified("none"),
            stream(0, "budget", 0),
        )
    )
    broken = int((~right(model(found), labels)).sum())
    left = [*counted.asked, len(images) - broken]
    costs = [query for query in range(1, len(left)) for _ in range(left[query - 1] - left[query])]
    assert len(costs) == broken
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder with model.onnx")
    parser.add_argument("--queries", type=int, default=5000)
    parser.add_argument("--max-examples", type=int, default=200)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    predictor = Predictor(given.run / "model.onnx", "cpu")
    spec = predictor.spec
    data = load_training_data(
        given.run / "model.onnx",
        spec,
        dataset=None,
        data_dir=given.data_dir,
        offline=True,
        output=Output(),
    )
    split = DeviceSplit.of(data.test, torch.device("cpu"))
    model = exported_model(predictor)
    index = torch.randperm(len(split.labels), generator=stream(0, "subset"))[: given.max_examples]
    images, labels = to_pixels(split.images[index]), split.labels[index]
    correct = right(model(images), labels)
    images, labels = images[correct], labels[correct]
    ball = Ball.of(spec.threat_model)
    costs = queries_needed(model, images, labels, ball, given.queries)
    print(f"{data.title}, {spec.threat_model}, {len(images)} images that are right without an attack")
    cheapest = float("inf")
    for mark in (m for m in MARKS if m <= given.queries):
        broken = sum(cost <= mark for cost in costs)
        spent = sum(min(cost, mark) for cost in costs) + (len(images) - len(costs)) * mark
        each = spent / broken if broken else float("inf")
        cheapest = min(cheapest, each)
        print(
            f"  giving up after {mark:>6,} queries: {broken:4d} broken ({broken / len(images):5.1%}), "
            f"{each:9,.0f} queries for each of them"
        )
    for budget in BUDGETS:
        print(f"  a budget of {budget:>7,} a day: at most about {budget / cheapest:.1f} images broken a day")


if __name__ == "__main__":
    main()
