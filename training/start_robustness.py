"""Whether start weights are robust already, and so whether eps has to grow slowly.

Robust fine-tuning of weights that are accurate and not robust collapses in one run of five unless eps grows from 0
(arXiv 2509.23325); robust weights do better without that.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from training.config import TrainConfig
from training.data import Dataset
from training.device import exact_float32
from training.distributed.processes import ProcessGroup
from training.initial import StartWeights
from training.run.folder import RunFolder
from training.trainer import Trainer
from training.validation import ValidationResult

# Plain weights keep next to nothing of their accuracy under attack, robust ones about half.
ROBUST_SHARE = 0.25
# What an epoch of the head on clean images leaves at its default: all that is about attacks, dummies and averages.
_LEFT_OUT = {"beta", "clean_share", "awp_gamma", "ducat_start", "split_weight", "inner_attack", "eps_ramp",
             "measure_start", "warmup", "ema_decay", "ema_warmup"}  # fmt: skip


def with_measured_ramp(
    config: TrainConfig,
    dataset: Dataset,
    device: torch.device,
    output: Output,
    initial: StartWeights | None,
    processes: ProcessGroup,
) -> TrainConfig:
    """The run with the ramp of eps that its start weights need; that of ``config`` unless they are robust.

    They are asked by an epoch of the head alone on clean images, and PGD on val at the eps of the run. Fresh weights
    need not be asked.
    """
    decided = config.model_copy(update={"measure_start": False})
    if initial is None:
        return decided
    output.say("Are the start weights robust? One epoch of the head alone says so; --eps-ramp saves it.")
    result = head_alone(config, dataset, device, output, initial, processes)
    robust = is_robust(result)
    if robust:
        decided = decided.model_copy(update={"eps_ramp": 1})
    output.event(
        "start-robustness",
        f"Start weights: {result.clean_accuracy:.1%} clean and {result.pgd_accuracy:.1%} PGD on val with a head of one "
        f"epoch: {'robust' if robust else 'not robust'}. eps grows over {decided.eps_ramp} epochs.",
        clean_accuracy=result.clean_accuracy,
        pgd_accuracy=result.pgd_accuracy,
        robust=robust,
        eps_ramp=decided.eps_ramp,
    )
    return decided


def is_robust(result: ValidationResult) -> bool:
    """Whether a quarter of the accuracy is left under attack; not where always naming one class is as accurate."""
    most_common = max(result.class_sizes) / sum(result.class_sizes)
    return result.clean_accuracy > most_common and result.pgd_accuracy >= ROBUST_SHARE * result.clean_accuracy


def settings_of_the_head(config: TrainConfig) -> TrainConfig:
    """One epoch of the head on clean images; images, rate and the sizes of the attack on val are those of the run."""
    kept = config.model_dump(exclude=_LEFT_OUT)
    short = {"method": "standard", "ducat": "off", "epochs": 1, "schedule": "cosine", "lr_milestones": ()}
    return TrainConfig.model_validate({**kept, **short, "backbone_lr": 0.0})


@exact_float32()
def head_alone(
    config: TrainConfig,
    dataset: Dataset,
    device: torch.device,
    output: Output,
    initial: StartWeights,
    processes: ProcessGroup,
) -> ValidationResult:
    """Accuracies on val after one epoch of the head on clean images, everything below it as it came."""
    with tempfile.TemporaryDirectory() as folder:  # an epoch of many minutes saves its state on the way
        run = RunFolder(Path(folder))
        trainer = Trainer(
            settings_of_the_head(config), dataset, run, device, output, initial=initial, processes=processes
        )
        trainer.train_epoch()
        return trainer.validation(Deployed(trainer.kept, trainer.spec.fold), legacy=False)
