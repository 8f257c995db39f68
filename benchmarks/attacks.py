"""Our standard suite and the reference AutoAttack on one model, one after the other in one run.

    python benchmarks/attacks.py runs/off --max-examples 500
    python benchmarks/attacks.py runs/paper --max-examples 500 --raw

Both attack the deployed function, in float32, on the same images, in batches of the same size. `--raw` runs AutoAttack
on raw 2C logits as well, with the paper's recovery applied to what it found: the measure that does not know the
pairs. Counts of gradient steps and forward passes per image do not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from ducat_serve.checkpoint import checkpoint_path
from ducat_serve.deployed import Deployed, load
from ducat_serve.output import Output
from ducat_serve.pairs import recover
from training.attacks.autoattack import AutoAttack
from training.attacks.ball import Ball, distance
from training.attacks.base import TargetModel
from training.attacks.criteria import misclassified, right
from training.batches import DeviceSplit, to_pixels
from training.device import exact_float32
from training.evaluation.evaluate import wilson
from training.evaluation.runner import Cost, counted
from training.evaluation.stages import suite
from training.randomness import stream
from training.run.dataset import load_training_data


def ours(model: Deployed, images: Tensor, labels: Tensor, ball: Ball, batch: int) -> Tensor:
    """Accuracy per image under the standard suite."""
    classes = model(images[:1]).shape[1]
    left = right(model(images), labels)
    for attack in suite("standard", TargetModel(model.fold, classes)):
        survivors = left.nonzero().squeeze(1)
        for start in range(0, len(survivors), batch):
            index = survivors[start : start + batch]
            found = attack(
                model,
                images[index],
                labels[index],
                ball,
                misclassified(model.fold),
                generator=stream(0, attack.name, int(index[0])),
            )
            assert (distance(images[index], found, ball.norm) <= ball.eps).all()
            left[index] = right(model(found), labels[index])
    return left


def by_autoattack(
    model: Deployed, classes: int, images: Tensor, labels: Tensor, ball: Ball, batch: int
) -> Tensor:
    """What AutoAttack standard leaves: its images."""
    found = images.clone()
    attack = AutoAttack().fitted(TargetModel(model.fold, classes))
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        found[part] = attack(
            model, images[part], labels[part], ball, misclassified("none"), generator=stream(0, "reference")
        )
    return found


def show(name: str, accuracy: Tensor, seconds: float, cost: Cost) -> None:
    count, survivors = len(accuracy), int(accuracy.sum())
    low, high = wilson(survivors, count)
    print(
        f"{name:<34} {survivors / count:7.2%}  ({low:.1%} to {high:.1%})  {seconds:7.1f} s  "
        f"{count / seconds:7.2f} images/s  {cost.gradient_steps / count:6.0f} gradients/image  "
        f"{cost.forward_passes / count:6.0f} forwards/image",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--max-examples", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--raw", action="store_true", help="also AutoAttack on raw 2C logits with recovery")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    exact_float32()

    path = checkpoint_path(arguments.model)
    model = load(path)
    spec = model.spec
    data = load_training_data(
        path, spec, dataset=None, data_dir=arguments.data_dir, offline=True, output=Output()
    )
    order = torch.randperm(len(data.test), generator=stream(0, "subset"))[: arguments.max_examples]
    split = DeviceSplit.of(data.test, torch.device("cpu"))
    index = order.sort().values
    images, labels = to_pixels(split.images[index]).contiguous(), split.labels[index]
    ball, batch = Ball.of(spec.threat_model), arguments.batch_size
    print(
        f"{data.title}, {len(images)} test images, {spec.threat_model}, {spec.network}, fold {spec.fold}, "
        f"{torch.get_num_threads()} threads, clean {right(model(images), labels).double().mean():.2%}"
    )

    started = time.monotonic()
    with counted(model.classifier) as cost:
        accuracy = ours(model, images, labels, ball, batch)
    our_seconds = time.monotonic() - started
    show("ours, standard suite", accuracy, our_seconds, cost)

    started = time.monotonic()
    with counted(model.classifier) as cost:
        found = by_autoattack(model, spec.num_classes, images, labels, ball, batch)
        accuracy = right(model(found), labels)
    seconds = time.monotonic() - started
    show("pyautoattack, standard", accuracy, seconds, cost)
    print(f"ours is {seconds / our_seconds:.2f} times as fast")

    if arguments.raw and model.fold != "none":
        raw = Deployed(model.classifier, "none").eval()
        started = time.monotonic()
        with counted(model.classifier) as cost:
            accuracy = (
                recover(raw(by_autoattack(raw, spec.num_logits, images, labels, ball, batch))) == labels
            )
        show("pyautoattack on raw 2C + recovery", accuracy, time.monotonic() - started, cost)


if __name__ == "__main__":
    with torch.no_grad():
        main()
