"""Checks of a training step on a device: what it computes, its two halves in every arithmetic, memory and speed."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ducat_serve.library.device_proof.items import Check, Figures, Skipped, require
from ducat_serve.library.device_proof.runtime import median_seconds
from ducat_serve.output import Output
from training.data import Dataset
from training.data.cache import Split
from training.device import LAYOUT, exact_float32, fastest_precision
from training.objectives.objective import Batch
from training.resolve import resolve
from training.run.folder import RunFolder
from training.textbook import Textbook
from training.trainer import Trainer

_CLASSES = 10
# Two correct implementations differ by the order of their sums; the sign of a gradient near zero may flip.
_RELATIVE, _SAME_PIXELS = 1e-3, 0.99


@dataclass(frozen=True)
class Case:
    """What is trained: a network, and how many images of which size are in a batch."""

    network: str = "resnet18"
    size: int = 32
    batch: int = 128
    repeats: int = 5


def training_checks(device: torch.device, case: Case) -> list[Check]:
    """Checks of training on a device."""
    return [
        Check("torch-parity", partial(parity, device, case)),
        Check("step-float32", partial(halves, device, case, "float32", compiled=False)),
        Check("step-bfloat16", partial(halves, device, case, "bfloat16", compiled=False)),
        Check("step-bfloat16-compiled", partial(halves, device, case, "bfloat16", compiled=True)),
        Check("step-beside-textbook", partial(beside_textbook, device, case)),
    ]


def parity(device: torch.device, case: Case) -> Figures:
    """In float32 an attack and an update find on the device what they find on the CPU."""
    with (
        _trainer(torch.device("cpu"), case, "float32") as plain,
        _trainer(device, case, "float32") as subject,
    ):
        attacked, logits, losses = [], [], []
        for trainer in (plain, subject):
            images, labels = trainer.batches.batch(trainer.batches.order(1), 1, 0)
            with torch.no_grad():
                logits.append(trainer.classifier.eval()(images).cpu())
            trainer.classifier.train()
            attack, update = _halves(trainer, images, labels)
            attacked.append(attack().cpu())
            losses.append(float(update(attacked[0].to(trainer.device))))  # both learn from the same images
        weights = [
            torch.cat([p.detach().cpu().flatten() for p in t.classifier.parameters()])
            for t in (plain, subject)
        ]
    same = float(((attacked[0] - attacked[1]).abs() < 1e-6).float().mean())
    found = {
        "logits, relative": _relative(*logits),
        "loss, relative": abs(losses[0] - losses[1]) / losses[0],
        "weights after an update, relative": _relative(*weights),
        "same pixels after an attack": same,
    }
    require(same >= _SAME_PIXELS, f"only {same:.2%} of the attacked pixels are the same as on the CPU")
    for name, value in found.items():
        require("relative" not in name or value <= _RELATIVE, f"{name}: {value:.2g} from the CPU's")
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def halves(device: torch.device, case: Case, precision: str, *, compiled: bool) -> Figures:
    """Attack and update in channels_last: finite, still in that layout, with their speed and the peak of memory."""
    if precision == "bfloat16" and device.type == "cuda" and fastest_precision(device) != "bfloat16":
        raise Skipped("this GPU has no bfloat16 of its own")
    with _trainer(device, case, precision, compiled=compiled) as trainer:
        images, labels = trainer.batches.batch(trainer.batches.order(1), 1, 0)
        images = images.contiguous(memory_format=LAYOUT)
        attack, update = _halves(trainer, images, labels)
        trainer.classifier.train()
        _forget_peak(device)
        adversarial = attack()
        loss = float(update(adversarial))
        require(bool(torch.isfinite(adversarial).all()) and np.isfinite(loss), "the step is not finite")
        moved = float((adversarial - images).abs().max())
        require(0 < moved <= trainer.config.eps + 1e-6, f"the attack moved pixels by {moved:.4f}")
        require(adversarial.is_contiguous(memory_format=LAYOUT), "the attack left channels_last")
        attacking = median_seconds(partial(_finished, device, attack), case.repeats)
        updating = median_seconds(partial(_finished, device, partial(update, adversarial)), case.repeats)
        return {
            "attack, image steps/s": round(case.batch * trainer.config.attack_steps / attacking, 1),
            "update, images/s": round(case.batch / updating, 1),
            **_peak(device),
        }


def beside_textbook(device: torch.device, case: Case) -> Figures:
    """Whole steps with dummies, ours as `ducat train` would choose its arithmetic, and a textbook's in float32."""
    with _trainer(device, case, fastest_precision(device), dummies=True) as trainer:
        textbook = Textbook(trainer.classifier)
        order = trainer.batches.order(2)
        images, labels = trainer.batches.batch(order, 2, 0)
        trainer.classifier.train()
        ways: dict[str, Callable[[], object]] = {
            "ours": partial(trainer.train_step, order, 2, 0),
            "textbook": partial(textbook.step, images, labels, True),
        }
        figures, seconds = Figures(), {}
        for name, step in ways.items():
            _forget_peak(device)
            seconds[name] = median_seconds(partial(_finished, device, step), case.repeats)
            figures[f"{name}, images/s"] = round(case.batch / seconds[name], 1)
            figures.update({f"{name}, {peak}": value for peak, value in _peak(device).items()})
        figures["times the textbook's speed"] = round(seconds["textbook"] / seconds["ours"], 2)
        return figures


@contextlib.contextmanager
def _trainer(
    device: torch.device, case: Case, precision: str, *, compiled: bool = False, dummies: bool = False
) -> Iterator[Trainer]:
    """A trainer on random images, whose weights depend on nothing but its seed."""
    settings = {"network": case.network, "batch_size": case.batch, "epochs": 2, "precision": precision}
    method = {"ducat": "paper", "ducat_start": 2} if dummies else {"ducat": "off"}
    config = resolve("cifar10", {**settings, **method, "compile": compiled})
    # A run computes its steps in this arithmetic, too.
    with exact_float32(), tempfile.TemporaryDirectory(prefix="ducat-proof-") as folder:
        yield Trainer(config, _random_images(case), RunFolder(Path(folder)), device, Output(silent=True))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # so that the next check has the whole memory


def _random_images(case: Case) -> Dataset:
    generator = np.random.default_rng(0)
    shape = (2 * case.batch, case.size, case.size, 3)
    split = Split(
        generator.integers(0, 256, shape, dtype=np.uint8), generator.integers(0, _CLASSES, shape[0])
    )
    return Dataset("random", tuple(map(str, range(_CLASSES))), split, split, split, "random")


def _halves(
    trainer: Trainer, images: Tensor, labels: Tensor
) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
    """The attack from the images themselves, without noise, and the update on what it found."""
    step = trainer.step
    objective, attack = step.objective_of(1), step.attack_of(1, 0, one_step=False)
    batch = Batch(images, labels, epoch=1, step=0)

    def update(adversarial: Tensor) -> Tensor:
        value = step.backward([step.loss_of(objective, batch, adversarial)])
        step.optimizer.step()
        return value

    return partial(step.craft, objective, batch, attack, images), update


def _relative(expected: Tensor, found: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _finished(device: torch.device, call: Callable[[], object]) -> None:
    """A GPU is asked and answers later: wait, so that the time is that of the work."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> Figures:
    """Peak of the memory that torch took on a GPU; nothing for a CPU, whose memory is the whole process's."""
    if device.type != "cuda":
        return {}
    return {"peak memory, MiB": round(torch.cuda.max_memory_allocated(device) / 2**20)}
