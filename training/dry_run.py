"""What a run would cost: one step of each phase, timed, and nothing written."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from ducat_serve.deployed import Deployed
from ducat_serve.spec import Fold
from training.attacks.criteria import Criterion, never
from training.trainer import Trainer
from training.validation import Validation

_WARM_UP = 1
_TIMED = 2


class _OfResistingImages(Validation):
    """Validation whose attack takes all of its steps, as on a trained model: fresh weights give in to the first."""

    def success(self, _fold: Fold) -> Criterion:
        return never


def dry_run(trainer: Trainer) -> dict[str, Any]:
    """Run a few steps of each phase that is left on the real data, and part of a validation.

    Returns parameters, peak memory in bytes, seconds per step and epoch of each phase, seconds of validation, how many
    epochs are left (the one that was begun is one of them), and an estimate of what they take in seconds. The trainer
    is of no further use: its weights have moved.
    """
    config, steps, begun = trainer.config, trainer.batches.steps, trainer.state
    epochs: dict[str, list[int]] = {}
    for epoch in range(begun.epoch, config.epochs + 1):
        epochs.setdefault(config.phase(epoch), []).append(epoch)
    seconds = {phase: _seconds_per_step(trainer, those[0]) for phase, those in epochs.items()}
    validation = _seconds_of_validation(trainer)
    left = sum(map(len, epochs.values()))
    whole = sum(len(epochs[phase]) * steps * value for phase, value in seconds.items()) + left * validation
    if left:
        whole -= begun.step * seconds[config.phase(begun.epoch)]
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.classifier.parameters()),
        "peak_memory_bytes": _peak_memory(trainer.device),
        "steps_per_epoch": steps,
        "seconds_per_step": {name: round(value, 4) for name, value in seconds.items()},
        "seconds_per_epoch": {name: round(value * steps + validation, 1) for name, value in seconds.items()},
        "seconds_of_validation": round(validation, 1),
        "epochs_left": left,
        "estimated_seconds": round(whole, 1),
    }


def _seconds_per_step(trainer: Trainer, epoch: int) -> float:
    trainer.train_mode()
    order = trainer.batches.order(epoch)
    started = _now(trainer.device)
    for step in range(_WARM_UP + _TIMED):
        if step == _WARM_UP:
            started = _now(trainer.device)
        trainer.train_step(order, epoch, step % trainer.batches.steps)
    return (_now(trainer.device) - started) / _TIMED


def _seconds_of_validation(trainer: Trainer) -> float:
    val = trainer.validation.val
    count = min(trainer.validation.batch_size, len(val))
    validation = _OfResistingImages(val.first(count), trainer.config)
    one_step = trainer.step.is_one_step(trainer.state.epoch)
    started = _now(trainer.device)
    validation(Deployed(trainer.kept, trainer.spec.fold), legacy=False, one_step=one_step)
    return (_now(trainer.device) - started) * len(val) / count


def _now(device: torch.device) -> float:
    """Seconds, once all that a GPU was given to do is done: it takes work faster than it does it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
