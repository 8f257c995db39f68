"""Our standard suite beside the reference AutoAttack, on a zoo of models: what is left, by how many passes, how soon.

    export OMP_NUM_THREADS=1
    python benchmarks/attacks.py                            # the zoo of digits; trains what is missing
    python benchmarks/attacks.py --zoo cifar10 --data-dir ../shared/data
    python benchmarks/attacks.py --only paper folded --raw

Both attack the deployed function in float32, on the same images, in batches of the same size, one after the other in
one process. Ours is all of `ducat evaluate --suite standard` that decides the worst case: clean images, attacks, sanity
checks, and the slow attacks where one of those fails. A pass is one image through the network, forward or backward; a
step of a gradient attack is one of each. Passes do not depend on how busy the machine is. Seconds are those of the CPU,
which depend on it less than those of a clock.

The models are those of benchmarks/zoo.py. Two of each zoo mask their gradients on purpose: `saturated` multiplies its
logits by 1,000, so that float32 has no cross entropy left, and `quantised` rounds its images to 5 levels, so that
gradients are 0 everywhere. A model in results/attacks-ZOO.json is not run again; that file and the .md are written anew
after each. `--ours` measures our suite again, beside what AutoAttack left and asked: that stays the same, but its
seconds are left out, since they were measured at another time.

`--raw` also runs AutoAttack on raw 2C logits, with the paper's recovery applied to what it found: the measure that does
not know the pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from zoo import ZOOS, Zoo

from ducat_serve import atomic
from ducat_serve.deployed import Deployed, load
from ducat_serve.output import Output
from ducat_serve.pairs import recover
from ducat_serve.threat_model import ThreatModel
from training.attacks.autoattack import AutoAttack
from training.attacks.ball import Ball
from training.attacks.base import TargetModel, Task
from training.attacks.criteria import misclassified, right
from training.batches import DeviceSplit, to_pixels
from training.data.cache import Split
from training.device import LAYOUT, exact_float32
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.runner import Cost, counted
from training.evaluation.stages import on_doubt, suite
from training.evaluation.wilson import wilson
from training.fused_classifier import fold_norms
from training.randomness import stream
from training.run.dataset import load_training_data


@dataclass(frozen=True)
class Row:
    """What one suite left of one model's images, and what it took."""

    model: str
    suite: str
    images: int
    clean: int
    left: int
    forward: int
    backward: int
    # Of the CPU; None of a row that was measured at another time than the one beside it.
    seconds: float | None
    remark: str = ""

    @property
    def passes(self) -> int:
        return self.forward + self.backward


def ours(
    model: Deployed, split: DeviceSplit, threat_model: ThreatModel, classes: int, batch: int
) -> tuple[int, str]:
    """How many images are left by the standard suite, and what it noticed."""
    target = TargetModel(model.fold, classes)
    names = tuple(str(i) for i in range(classes))
    subject = Subject(model, split, names, "benchmark", "benchmark", "test")
    plan = Plan(
        threat_model,
        tuple(suite("standard", target)),
        tuple(on_doubt("standard", target)),
        batch_size=batch,
        legacy_attacks=(),
    )
    report = evaluate(subject, plan, Output())
    noticed = "; ".join(f"not so that {check.name}" for check in report.failed_checks)
    return round(report.worst_case_accuracy * len(split)), noticed


def by_autoattack(
    model: Deployed, classes: int, images: Tensor, labels: Tensor, ball: Ball, batch: int
) -> Tensor:
    """What AutoAttack standard found: images."""
    attack = AutoAttack().fitted(TargetModel(model.fold, classes))
    found = [
        attack(Task(model, part, own, ball, misclassified("none"), stream(0, "reference")))
        for part, own in zip(torch.split(images, batch), torch.split(labels, batch), strict=True)
    ]
    return torch.cat(found)


def timed(
    name: str, what: str, model: Deployed, split: DeviceSplit, work: Callable[[], tuple[int, str]]
) -> Row:
    """Run ``work``, which returns how many images are left and a remark, and count what it asks of the model."""
    clean = int(right(model(to_pixels(split.images)), split.labels).sum())
    started = time.process_time()
    with counted(model.classifier) as cost:
        left, remark = work()
    seconds = time.process_time() - started
    forward, backward = _passes(cost)
    return Row(name, what, len(split), clean, left, forward, backward, round(seconds, 1), remark)


def _passes(cost: Cost) -> tuple[int, int]:
    return cost.gradient_steps + cost.forward_passes, cost.gradient_steps


def measure(name: str, zoo: Zoo, arguments: argparse.Namespace) -> list[Row]:
    """Both suites on one model."""
    model = zoo.model(name)
    folded = fold_norms(zoo.model(name))  # as `ducat evaluate` does; AutoAttack gets what its users have
    spec = load(zoo.file(name)).spec
    data = load_training_data(
        zoo.file(name),
        spec,
        dataset=zoo.dataset,
        data_dir=arguments.data_dir,
        offline=True,
        output=Output(),
    )
    both = [data.test, data.val] if zoo.dataset == "digits" else [data.test]  # digits has too few of either
    split = DeviceSplit.of(joined(both, arguments.max_examples), torch.device("cpu"))
    model, folded = (m.to(memory_format=LAYOUT) for m in (model, folded))
    images, labels = to_pixels(split.images), split.labels
    ball, batch, classes = Ball.of(spec.threat_model), arguments.batch_size, spec.num_classes

    def own() -> tuple[int, str]:
        return ours(folded, split, spec.threat_model, classes, batch)

    def reference() -> tuple[int, str]:
        found = by_autoattack(model, classes, images, labels, ball, batch)
        return int(right(model(found), labels).sum()), ""

    rows = [timed(name, "ours", folded, split, own)]
    if arguments.ours:
        return rows
    rows.append(timed(name, "autoattack", model, split, reference))
    if arguments.raw and model.fold != "none":
        raw = Deployed(model.classifier, "none").eval()

        def recovered() -> tuple[int, str]:
            found = by_autoattack(raw, spec.num_logits, images, labels, ball, batch)
            return int((recover(raw(found)) == labels).sum()), ""

        rows.append(timed(name, "autoattack on raw logits, then recovery", model, split, recovered))
    return rows


def joined(splits: list[Split], count: int) -> Split:
    images = np.concatenate([s.images for s in splits])
    labels = np.concatenate([s.labels for s in splits])
    order = torch.randperm(len(images), generator=stream(0, "subset"))[:count].sort().values.numpy()
    return Split(images[order], labels[order])


_LEGEND = (
    "The models are made by benchmarks/zoo.py. Those called `-small` come with the package. `plain`, `trades`,",
    "`guided`, `half` (of clean images), `paper` and `folded` (dummies) are named after what trained them, and",
    "`under-trained` had an epoch or two. `standard` was trained without attacks; `mixed` is that and a robust one",
    "behind a switch. `saturated` and `quantised` hide their gradients on purpose: logits times 1,000, and images",
    "rounded to 5 levels.",
)


def write(rows: list[Row], stem: Path, command: str) -> None:
    """The rows as JSON, and as a table with one line for each model."""
    atomic.write_text(stem.with_suffix(".json"), json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    lines = [
        f"# Our standard suite and the reference AutoAttack: {stem.name}",
        "",
        f"Written by `{command}`, which says what is counted. `pyautoattack`, standard; float32; one",
        "after the other in one process. Left: images that are still right, in per cent, with its 95 % interval.",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, no GPU used. "
        "Faster: in seconds of the CPU.",
        "",
        *_LEGEND,
        "",
        "| model | images | clean | left, ours | left, AutoAttack | passes an image, ours | AutoAttack | fewer | "
        "faster | noticed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    by = {(row.model, row.suite): row for row in rows}
    for mine in (row for row in rows if row.suite == "ours"):
        reference = by[mine.model, "autoattack"]
        lines.append(
            f"| {mine.model} | {mine.images} | {mine.clean / mine.images:.1%} | {_left(mine)} | {_left(reference)} | "
            f"{mine.passes / mine.images:.0f} | {reference.passes / mine.images:.0f} | "
            f"{reference.passes / mine.passes:.1f} | {_faster(mine, reference)} | {mine.remark} |"
        )
    for row in rows:
        if row.suite not in ("ours", "autoattack"):
            lines += ["", f"{row.model}, {row.suite}: {_left(row)} left."]
    atomic.write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


def _faster(mine: Row, reference: Row) -> str:
    if mine.seconds is None or reference.seconds is None:
        return "not measured together"
    return f"{reference.seconds / mine.seconds:.1f}"


def _left(row: Row) -> str:
    low, high = wilson(row.left, row.images)
    return f"{row.left / row.images:.1%} ({low:.1%} to {high:.1%})"


@exact_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zoo", choices=ZOOS, default="digits")
    parser.add_argument("--only", nargs="+", help="some of its models")
    parser.add_argument("--max-examples", type=int, default=504)
    parser.add_argument("--batch-size", type=int, default=252)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument(
        "--ours", action="store_true", help="measure ours again where AutoAttack's rows are known"
    )
    parser.add_argument("--raw", action="store_true", help="also AutoAttack on raw 2C logits with recovery")
    arguments = parser.parse_args()
    stem = arguments.results / f"attacks-{arguments.zoo}"
    known = stem.with_suffix(".json")
    rows = [Row(**row) for row in json.loads(known.read_text())] if known.is_file() else []
    zoo = ZOOS[arguments.zoo](arguments.data_dir, arguments.runs)
    for name in arguments.only or zoo.entries:
        if (name in {row.model for row in rows}) != arguments.ours:
            continue
        zoo.file(name)  # makes what is missing, for which autograd is needed
        with torch.no_grad():
            found = measure(name, zoo, arguments)
        for row in found:
            print(row, flush=True)
        rows = _with(rows, found)
        command = (
            f"python benchmarks/attacks.py --zoo {arguments.zoo} --max-examples {arguments.max_examples}"
            + (" --data-dir DIR" if arguments.data_dir else "")
        )
        write(rows, stem, command)


def _with(rows: list[Row], found: list[Row]) -> list[Row]:
    """The rows with those found, in the place of older ones; what stands beside these has no time to compare with."""
    new = {(row.model, row.suite): row for row in found}
    models = {row.model for row in found}
    kept = [
        new.pop((row.model, row.suite), replace(row, seconds=None) if row.model in models else row)
        for row in rows
    ]
    return [*kept, *new.values()]


if __name__ == "__main__":
    main()
