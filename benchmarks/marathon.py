"""What a far stronger attack still breaks of what `standard` leaves right: a check of the suite from outside.

    python benchmarks/marathon.py digits-small --max-examples 120 --state marathon.npz

Every image that the suite leaves right gets 3,000 gradient steps (cross entropy and margin from several random starts,
and the margin towards every other class) and 4,000 queries of random squares. The attack is written out here and shares
no attack code with the package, so that a mistake there does not hide itself. Models in linf only. After every run of
steps and every 2,000 queries what is known is kept in STATE; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import checkpoint_path
from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from training.batches import to_pixels
from training.distributed.processes import ProcessGroup
from training.evaluation.evaluate import measure
from training.evaluation.prepare import Request, prepare
from training.evaluation.settings import EvaluationSettings
from training.randomness import stream

STEPS_PER_RUN = 200
UNTARGETED_STEPS = 1200
TARGETED_STEPS = 1800
QUERIES = 4000
QUERIES_PER_RUN = 2000  # from one start

# Deployed logits [N, C] and labels [N] to [N], to be maximised.
Objective = Callable[[Tensor, Tensor], Tensor]


class Run(Protocol):
    """A part of the marathon: which of the images became wrong, bool [N]."""

    def __call__(self, subject: Attacked, *, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Attacked:
    """A model and the images that it is attacked on, float32 [N, channels, H, W] in [0, 1]."""

    model: Deployed
    images: Tensor
    labels: Tensor
    eps: float

    def only(self, index: Tensor) -> Attacked:
        return replace(self, images=self.images[index], labels=self.labels[index])

    def is_wrong(self, images: Tensor) -> Tensor:
        """Whether the deployed decision is not the label, bool [N]; NaN is wrong."""
        with torch.no_grad():
            logits: Tensor = self.model(images)
        wrong: Tensor = (logits.argmax(dim=1) != self.labels) | logits.isnan().any(dim=1)
        return wrong


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    own: Tensor = logits.gather(1, labels[:, None]).squeeze(1)
    others: Tensor = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return others - own


def towards(rank: int, classes: int) -> Objective:
    """The margin of one other class, the ``rank``-th after the label."""

    def objective(logits: Tensor, labels: Tensor) -> Tensor:
        target = (labels + rank) % classes
        return (logits.gather(1, target[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)

    return objective


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def runs(classes: int) -> Iterator[tuple[str, Objective, int]]:
    """Name, objective and steps of every run of gradient steps: 3,000 steps in all."""
    count = UNTARGETED_STEPS // STEPS_PER_RUN
    for number in range(count):
        name, objective = (("cross entropy", cross_entropy), ("margin", margin))[number % 2]
        yield f"{name} {number // 2}", objective, STEPS_PER_RUN
    for rank in range(1, classes):
        yield f"towards class +{rank}", towards(rank, classes), TARGETED_STEPS // (classes - 1)


def steepest(subject: Attacked, *, objective: Objective, steps: int, generator: torch.Generator) -> Tensor:
    """Signed gradient steps that shrink as a cosine, from a random point; which images were ever wrong, bool [N]."""
    noise = torch.rand(subject.images.shape, generator=generator) * 2 - 1
    current = (subject.images + subject.eps * noise).clamp(0, 1)
    wrong = subject.is_wrong(current)
    for step in range(steps):
        current.requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(subject.model(current), subject.labels).sum(), current)
        size = subject.eps * (1 + math.cos(math.pi * step / steps)) / 2
        moved = current.detach() + size * gradient.nan_to_num().sign()
        low, high = (subject.images - subject.eps).clamp(0, 1), (subject.images + subject.eps).clamp(0, 1)
        current = torch.minimum(torch.maximum(moved, low), high)
        wrong |= subject.is_wrong(current)
    return wrong


def squares(subject: Attacked, *, queries: int, generator: torch.Generator) -> Tensor:
    """Random squares at a corner of the ball, kept where the margin grows; which images became wrong, bool [N]."""
    count, channels, height, width = subject.images.shape
    signs = torch.randint(2, (count, channels, 1, width), generator=generator) * 2 - 1
    best = (subject.images + subject.eps * signs).clamp(0, 1)
    value = margin(subject.model(best), subject.labels)
    for query in range(queries):
        side = max(1, round(min(height, width) * math.sqrt(0.3) * 0.5 ** (5 * query / queries)))
        candidate = best.clone()
        for row in range(count):
            top = int(torch.randint(height - side + 1, (), generator=generator))
            left = int(torch.randint(width - side + 1, (), generator=generator))
            bump = subject.eps * (torch.randint(2, (channels, 1, 1), generator=generator) * 2 - 1)
            area = (slice(None), slice(top, top + side), slice(left, left + side))
            candidate[row][area] = (subject.images[row][area] + bump).clamp(0, 1)
        found = margin(subject.model(candidate), subject.labels).nan_to_num(nan=torch.inf)
        better = found > value
        best[better], value[better] = candidate[better], found[better]
    return subject.is_wrong(best)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a bundled model, a run folder or a .safetensors")
    parser.add_argument("--max-examples", type=int)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--state", type=Path, default=Path("marathon.npz"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = checkpoint_path(model_path(arguments.model, "safetensors"))
    output = Output()
    settings = EvaluationSettings(
        suite=arguments.suite,
        max_examples=arguments.max_examples,
        data_dir=arguments.data_dir,
        device="cpu",
    )
    prepared = prepare(Request(path, settings), output, ProcessGroup(), torch.device("cpu"))
    subject, plan = prepared.subject, replace(prepared.plan, sanity=False, legacy_attacks=(), val=None)
    if plan.threat_model.norm != "linf":
        raise SystemExit("models in linf only")
    model = subject.model.eval().requires_grad_(False)
    attacked = Attacked(model, to_pixels(subject.data.images), subject.data.labels, plan.threat_model.eps)
    # What decides the result: a state of anything else is not gone on with.
    about = f"{subject.weights_digest} {arguments.suite} {len(attacked.labels)} {plan.threat_model}"

    if arguments.state.exists():
        with np.load(arguments.state, allow_pickle=False) as stored:
            if str(stored["about"]) != about:
                raise SystemExit(
                    f"{arguments.state} is of another model, suite or number of images; name another."
                )
            standard, left = torch.from_numpy(stored["standard"]), torch.from_numpy(stored["left"])
            done = int(stored["done"])
        output.say(f"Going on after {done} runs.")
    else:
        standard = measure(subject, plan, output).examples.right
        left, done = standard.clone(), 0

    classes = len(subject.labels)
    every: list[tuple[str, Run]] = [
        (name, partial(steepest, objective=objective, steps=steps))
        for name, objective, steps in runs(classes)
    ]
    every += [
        (f"squares {number}", partial(squares, queries=QUERIES_PER_RUN))
        for number in range(QUERIES // QUERIES_PER_RUN)
    ]
    total = len(attacked.labels)
    for number, (name, run) in enumerate(every):
        if number < done:
            continue
        started = time.monotonic()
        index = left.nonzero().squeeze(1)
        if len(index):
            left[index] = ~run(attacked.only(index), generator=stream(1, "marathon", name))
        np.savez(arguments.state, about=about, standard=standard.numpy(), left=left.numpy(), done=number + 1)
        print(
            f"{name:<18} {int(left.sum()):>5} of {total} left  ({time.monotonic() - started:.0f} s)",
            flush=True,
        )
    lost = int(standard.sum()) - int(left.sum())
    print(
        f"{subject.dataset}, {total} {subject.split} images, {plan.threat_model}, {arguments.model}: {arguments.suite} "
        f"left {int(standard.sum())} right, the marathon {int(left.sum())} ({100 * lost / total:.2f} points fewer)"
    )


if __name__ == "__main__":
    main()
