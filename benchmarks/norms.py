"""APGD and Square in l2 and l1 beside the reference implementation, at equal budgets: what each of them leaves.

    python benchmarks/norms.py --runs runs/zoo        # the zoo of digits of benchmarks/zoo.py

Both see the deployed function, the same images and the same eps, from one random start: APGD on cross entropy with 100
steps (in l1 30, 30 and 40 of them in balls of 3, 2 and 1 times eps), Square on the margin with 500 queries. Linear
models, whose distances are known, are in the tests. Writes results/norms.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from attacks import joined
from pyautoattack.autopgd_base import APGDAttack
from pyautoattack.square import SquareAttack
from torch import Tensor
from zoo import digits

from ducat_serve import atomic
from ducat_serve.deployed import Deployed, load
from ducat_serve.output import Output
from ducat_serve.threat_model import Norm
from training.attacks.apgd_ce import APGDCrossEntropy
from training.attacks.ball import Ball, distance
from training.attacks.base import Task
from training.attacks.criteria import misclassified, right
from training.attacks.square import Square
from training.batches import DeviceSplit, to_pixels
from training.device import LAYOUT, exact_float32
from training.randomness import stream
from training.run.dataset import load_training_data

STEPS, QUERIES = 100, 500
SIZES: dict[Norm, float] = {"l2": 1.0, "l1": 6.0}


def ours(attack: str, model: Deployed, images: Tensor, labels: Tensor, ball: Ball) -> Tensor:
    chosen = APGDCrossEntropy(steps=STEPS) if attack == "APGD-CE" else Square(QUERIES)
    generator = stream(0, "norms", attack)
    return chosen(Task(model, images, labels, ball, misclassified(model.fold), generator))


def theirs(attack: str, model: Deployed, images: Tensor, labels: Tensor, ball: Ball) -> Tensor:
    norm = ball.norm.upper()
    if attack == "APGD-CE":
        search = APGDAttack(
            model, n_iter=STEPS, norm=norm, eps=ball.eps, loss="ce", use_largereps=ball.norm == "l1"
        )
    else:
        search = SquareAttack(model, n_queries=QUERIES, norm=norm, eps=ball.eps, p_init=0.8)
    found: Tensor = search.perturb(images.contiguous(), labels)
    return found


def measure(name: str, path: Path, attacks: list[str], count: int) -> list[str]:
    """The rows of one model."""
    model = load(path)
    data = load_training_data(
        path, model.spec, dataset="digits", data_dir=None, offline=True, output=Output(silent=True)
    )
    split = DeviceSplit.of(joined([data.test, data.val], count), torch.device("cpu"))
    model = model.to(memory_format=LAYOUT).eval().requires_grad_(False)
    images, labels = to_pixels(split.images), split.labels
    rows = []
    for attack in attacks:
        for norm, eps in SIZES.items():
            ball = Ball(norm, eps)
            figures = []
            for search in (ours, theirs):
                found = search(attack, model, images, labels, ball)
                farthest = float(distance(images, found, norm).max())
                if farthest > eps * (1 + 1e-4):
                    raise SystemExit(f"{attack} left the {norm} ball: {farthest}")
                figures.append(int(right(model(found), labels).sum()))
            clean = int(right(model(images), labels).sum())
            rows.append(f"| {name} | {attack} | {norm} {eps:g} | {clean} | {figures[0]} | {figures[1]} |")
            print(rows[-1], flush=True)
    return rows


@exact_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--apgd", nargs="*", default=["plain", "half", "folded"])
    parser.add_argument("--square", nargs="*", default=["plain"])
    parser.add_argument("--max-examples", type=int, default=150)
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--out", type=Path, default=Path("results/norms.md"))
    arguments = parser.parse_args()
    zoo, rows = digits(None, arguments.runs), []
    for name in dict.fromkeys([*arguments.apgd, *arguments.square]):
        attacks = [
            a for a, names in (("APGD-CE", arguments.apgd), ("Square", arguments.square)) if name in names
        ]
        file = zoo.file(name)
        with torch.no_grad():
            rows += measure(name, file, attacks, arguments.max_examples)
    lines = [
        "# APGD and Square in l2 and l1, ours and the reference at equal budgets",
        "",
        "Written by `python benchmarks/norms.py`, which says what is counted. Of "
        f"{arguments.max_examples} images of digits; `pyautoattack` is",
        "the reference. Fewer left is stronger; from one random start, one or two images are chance.",
        "",
        "| model | attack | threat model | right when clean | left, ours | left, reference |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    atomic.write_text(arguments.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
