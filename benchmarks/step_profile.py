"""Where the time of a training step goes, and what other ways of computing its attack would take.

    export OMP_NUM_THREADS=1
    python benchmarks/step_profile.py --network resnet14
    python benchmarks/step_profile.py --network resnet14 --compile

For one step of guided adversarial training (random images, 32x32, bfloat16): the operators of attack and update by
their share of the time (torch.profiler), the rates of the convolutions beside that of a bfloat16 matrix product, and
the attack's gradient computed in other ways. All ways are measured in turn in one process, by CPU time, which other
work on the machine disturbs less than wall-clock. docs/performance/training.md says what came of each.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from one_thread import require_one_thread
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ducat_serve.output import Output
from training.attacks.frozen import frozen
from training.device import LAYOUT
from training.fused_classifier import FusedClassifier
from training.objectives.objective import Batch
from training.resolve import resolve
from training.run.folder import RunFolder
from training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).parent))
from train_step import synthetic

SIZE, BATCH = 32, 128
BATCHES = (16, 32, 64, 128, 256)
ROUNDS = 5
_OPERATORS = 8  # that are printed; the others are small

Work = Callable[[], object]


def trainer(network: str, *, compiled: bool = False) -> Trainer:
    settings = {"network": network, "method": "guided", "batch_size": BATCH, "epochs": 2, "ducat": "off"}
    config = resolve("cifar10", {**settings, "precision": "bfloat16", "compile": compiled})
    folder = RunFolder(Path(tempfile.mkdtemp()))
    made = Trainer(config, synthetic(SIZE, max(BATCHES)), folder, torch.device("cpu"), Output())
    made.classifier.train()
    return made


def attack_and_update(made: Trainer) -> tuple[Work, Work]:
    """The two halves of a step, of a batch that the attack compares with nothing."""
    step = made.step
    images, labels = made.batches.batch(made.batches.order(1), 1, 0)
    images = images.contiguous(memory_format=LAYOUT)
    batch, objective = Batch(images, labels, 1, 0), step.objective_of(1)
    attack = step.attack_of(1, 0, one_step=True)

    def update() -> None:
        step.backward([step.loss_of(objective, batch, images)])
        step.optimizer.step()

    def craft() -> None:
        step.fused.refresh()
        step.craft(objective, batch, attack, images)

    return craft, update


def medians(works: dict[str, Work]) -> dict[str, float]:
    """CPU seconds of each, measured in turn; the first round warms up."""
    taken: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(ROUNDS + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if number:
                taken[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


def print_operators(name: str, work: Work) -> None:
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    shares = (f"{event.key} {event.self_cpu_time_total / whole:.1%}" for event in events[:_OPERATORS])
    print(f"{name} by operator: {', '.join(shares)}", flush=True)


def print_convolutions(network: nn.Module) -> None:
    """Rates of all convolutions of a network for one batch: forwards, towards their inputs, towards their weights."""
    calls: list[tuple[nn.Conv2d, torch.Size]] = []
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [
        module.register_forward_hook(lambda module, given, _: calls.append((module, given[0].shape)))
        for module in convolutions
    ]
    with torch.no_grad():
        network(torch.rand(BATCH, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    a, b = (torch.randn(1024, 1024, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * 1024**3 / medians({"product": lambda: a @ b})["product"] / 1e9
    seconds: defaultdict[str, float] = defaultdict(float)
    operations = 0.0
    for module, shape in calls:
        x = torch.randn(shape).bfloat16().contiguous(memory_format=LAYOUT)
        weight = module.weight.detach().bfloat16()
        stride, padding = module.stride, module.padding
        out = torch.ops.aten.convolution(x, weight, None, stride, padding, (1, 1), False, (0, 0), 1)
        backward = partial(
            torch.ops.aten.convolution_backward,
            *(out, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1),
        )
        forward = partial(torch.ops.aten.convolution, x, weight, None, stride, padding)
        works: dict[str, Work] = {
            "forwards": partial(forward, (1, 1), False, (0, 0), 1),
            "to inputs": partial(backward, [True, False, False]),
            "to weights": partial(backward, [False, True, False]),
        }
        flops = 2 * out.numel() * weight[0].numel()
        operations += flops
        for name, value in medians(works).items():
            seconds[name] += value
    rates = (f"{name} {operations / value / 1e9:.0f}" for name, value in seconds.items())
    print(f"convolutions, GFLOP/s: {', '.join(rates)}; a matrix product {peak:.0f}", flush=True)


def ways(made: Trainer) -> Iterator[tuple[str, Work]]:
    """Ways to compute the attack's gradient for as many images as the largest batch has."""
    images = torch.rand(max(BATCHES), 3, SIZE, SIZE).contiguous(memory_format=LAYOUT)
    labels = torch.randint(10, (len(images),))

    def gradient(model: nn.Module, given: Tensor, size: int, *, low: bool = True) -> None:
        for x, y in zip(torch.split(given, size), torch.split(labels, size), strict=True):
            x = x.detach().requires_grad_(True)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                torch.autograd.grad(F.cross_entropy(model(x).float(), y, reduction="sum"), x)

    fused, plain = made.step.attack_model, made.classifier
    nchw = FusedClassifier(copy.deepcopy(plain).to(memory_format=torch.contiguous_format)).model
    yield "as it is", partial(gradient, fused, images, BATCH)
    for size in BATCHES:
        if size != BATCH:
            yield f"batches of {size}", partial(gradient, fused, images, size)
    yield "NCHW", partial(gradient, nchw, images.contiguous(), BATCH)
    yield "BatchNorm not folded", partial(gradient, plain, images, BATCH)
    yield "float32", partial(gradient, fused, images, BATCH, low=False)
    yield "float32, not folded", partial(gradient, plain, images, BATCH, low=False)


def print_compiled(network: str) -> None:
    """Both halves under torch.compile beside themselves, and what compiling costs, the C++ compiler included."""
    eager, compiled = (attack_and_update(trainer(network, compiled=flag)) for flag in (False, True))
    for name, one, other in zip(("attack", "update"), eager, compiled, strict=True):
        before = _cpu_with_children()
        other()
        cost = _cpu_with_children() - before
        found = medians({"eager": one, "compiled": other})
        print(
            f"{name} compiled: {found['compiled'] / found['eager']:.3f}, after {cost:.0f} s of compiling",
            flush=True,
        )


def _cpu_with_children() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet14")
    parser.add_argument("--compile", action="store_true", help="time torch.compile instead; minutes")
    arguments = parser.parse_args()
    require_one_thread()
    if arguments.compile:
        print_compiled(arguments.network)
        return
    made = trainer(arguments.network)
    attack, update = attack_and_update(made)
    halves = medians({"attack": attack, "update": update})
    print(
        f"attack {1000 * halves['attack']:.0f} ms, update {1000 * halves['update']:.0f} ms of CPU", flush=True
    )
    for name, work in (("attack", attack), ("update", update)):
        print_operators(name, work)
    with frozen(made.classifier):
        print_convolutions(made.classifier.network)
        found = medians(dict(ways(made)))
    for name, value in found.items():
        print(f"  attack's gradient, {name}: {value / found['as it is']:.2f}")


if __name__ == "__main__":
    main()
