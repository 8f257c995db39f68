"""Our APGD beside those of other packages at equal budgets: what each leaves, by how many passes, how soon.

    python -m venv --system-site-packages others
    echo 'setuptools<81' > old.txt    # what visdom, which adv-lib brings, is built with
    PIP_CONSTRAINT=old.txt others/bin/pip install foolbox==3.3.4 adv-lib==0.2.8
    OMP_NUM_THREADS=1 others/bin/python benchmarks/apgd.py digits-small
    OMP_NUM_THREADS=1 others/bin/python benchmarks/apgd.py cifar10-small --max-examples 200 --data-dir DATA

Packages that nothing else here needs, so they belong in an environment of their own. All attack the deployed function
in linf at the model's eps, in float32, in one batch, on the images that are right when clean. Untargeted attacks take
100 steps from one random start, targeted ones 50 steps at each of the 9 best other classes (the fold's C logits: a
package that does not know pairs cannot aim at dummies). foolbox 3.3 has no APGD: its PGD with 100 steps stands in for
it. A pass is one image through the network, forward or backward. Seconds are those of the CPU. Prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import foolbox
import torch
from adv_lib.attacks.auto_pgd import apgd, apgd_targeted
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor

from ducat_serve.bundled import model_path
from ducat_serve.deployed import Deployed, load
from ducat_serve.output import Output
from training.attacks.apgd_ce import APGDCrossEntropy
from training.attacks.apgd_dlr import APGDDLR
from training.attacks.ball import Ball, distance
from training.attacks.base import Attack, Task
from training.attacks.criteria import misclassified, right
from training.attacks.frozen import frozen
from training.attacks.targeted_apgd import TargetedAPGD
from training.batches import DeviceSplit, to_pixels
from training.device import LAYOUT, exact_float32
from training.evaluation.runner import counted
from training.randomness import stream
from training.run.dataset import load_training_data

STEPS, TARGETED_STEPS, TARGETS = 100, 50, 9
ROUNDING = 1e-5  # how far outside of the ball float32 may put an image


@dataclass(frozen=True)
class Attacked:
    """A model and the images, float32 [N, channels, H, W] in [0, 1], that it is attacked on."""

    model: Deployed
    images: Tensor
    labels: Tensor
    eps: float


Search = Callable[[Attacked], Tensor]  # to images of the same shape


def ours(attack: Attack) -> Search:
    def search(at: Attacked) -> Tensor:
        ball, criterion = Ball("linf", at.eps), misclassified(at.model.fold)
        generator = stream(0, "apgd", attack.name)
        return attack(Task(at.model, at.images, at.labels, ball, criterion, generator))

    return search


def reference(loss: str) -> Search:
    def search(at: Attacked) -> Tensor:
        attack = APGDAttack(at.model, n_iter=STEPS, norm="Linf", eps=at.eps, loss=loss, seed=0)
        found: Tensor = attack.perturb(at.images, at.labels)
        return found

    return search


def reference_targeted(at: Attacked) -> Tensor:
    attack = APGDAttack_targeted(
        at.model, n_iter=TARGETED_STEPS, norm="Linf", eps=at.eps, n_target_classes=TARGETS, seed=0
    )
    found: Tensor = attack.perturb(at.images, at.labels)
    return found


def adv_lib(loss: str) -> Search:
    def search(at: Attacked) -> Tensor:
        norm = float("inf")
        found: Tensor = apgd(at.model, at.images, at.labels, at.eps, norm, n_iter=STEPS, loss_function=loss)
        return found

    return search


def adv_lib_targeted(at: Attacked) -> Tensor:
    norm = float("inf")
    found: Tensor = apgd_targeted(
        at.model, at.images, at.labels, at.eps, norm, n_iter=TARGETED_STEPS, num_targets=TARGETS
    )
    return found


def foolbox_pgd(at: Attacked) -> Tensor:
    model = foolbox.PyTorchModel(at.model, bounds=(0, 1), device="cpu")
    _, found, _ = foolbox.attacks.LinfPGD(steps=STEPS)(model, at.images, at.labels, epsilons=at.eps)
    clipped: Tensor = found
    return clipped


def rows() -> Iterator[tuple[str, str, Search]]:
    """Attack, package and search."""
    here = f"ducat-serve {version('ducat-serve')}"
    theirs, advlib = f"pyautoattack {version('pyautoattack')}", f"adv-lib {version('adv-lib')}"
    yield "APGD-CE", here, ours(APGDCrossEntropy(steps=STEPS))
    yield "APGD-CE", theirs, reference("ce")
    yield "APGD-CE", advlib, adv_lib("ce")
    yield "PGD, cross entropy", f"foolbox {version('foolbox')}", foolbox_pgd
    yield "APGD-DLR", here, ours(APGDDLR(steps=STEPS))
    yield "APGD-DLR", theirs, reference("dlr")
    yield "APGD-DLR", advlib, adv_lib("dlr")
    yield "targeted APGD-DLR", here, ours(TargetedAPGD(steps=TARGETED_STEPS, targets=TARGETS))
    yield "targeted APGD-DLR", theirs, reference_targeted
    yield "targeted APGD-DLR", advlib, adv_lib_targeted


def measure(search: Search, at: Attacked) -> str:
    """Images left, passes an image, seconds: cells of the table. Raises SystemExit where it left the ball."""
    torch.manual_seed(0)  # what packages without a generator of their own draw from
    started = time.process_time()
    with frozen(at.model), counted(at.model.classifier) as cost:
        found = search(at).detach()
    seconds = time.process_time() - started
    farthest = float(distance(at.images, found, "linf").max())
    if farthest > at.eps + ROUNDING or not bool(((found >= 0) & (found <= 1)).all()):
        raise SystemExit(f"an image left the ball: {farthest}")
    with torch.no_grad():
        left = int(right(at.model(found), at.labels).sum())
    passes = 2 * cost.gradient_steps + cost.forward_passes
    return f"{left} of {len(at.labels)} | {passes / len(at.labels):.0f} | {seconds:.0f}"


@exact_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a bundled model, a run folder or a .safetensors")
    parser.add_argument("--max-examples", type=int, default=1000)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    path = model_path(arguments.model, "safetensors")
    model = load(path)
    data = load_training_data(
        path, model.spec, dataset=None, data_dir=arguments.data_dir, offline=True, output=Output(silent=True)
    )
    split = DeviceSplit.of(data.test, torch.device("cpu"))
    model = model.to(memory_format=LAYOUT).eval()
    images, labels = to_pixels(split.images)[: arguments.max_examples], split.labels[: arguments.max_examples]
    with torch.no_grad():
        clean = right(model(images), labels)
    # pyautoattack's `view` calls need contiguous images.
    at = Attacked(model, images[clean].contiguous(), labels[clean], model.spec.threat_model.eps)
    print("| attack | package | left of those right when clean | passes an image | seconds |")
    print("|---|---|---|---|---|")
    for attack, package, search in rows():
        print(f"| {attack} | {package} | {measure(search, at)} |", flush=True)


if __name__ == "__main__":
    main()
