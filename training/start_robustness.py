"""Whether start weights are robust already, and so whether eps has to grow slowly.

Robust fine-tuning of weights that are accurate and not robust collapses in one run of five unless eps grows from 0
(arXiv 2509.23325); robust weights do better without that.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from ducat_serve.deployed import Deployed
from ducat_serve.networks.head import head_of
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


def head_alone(
    config: TrainConfig,
    dataset: Dataset,
    device: torch.device,
    output: Output,
    initial: StartWeights,
    processes: ProcessGroup,
) -> ValidationResult:
    """Accuracies on val after one epoch of the head on clean images, everything below it as it came."""
    asked = config.model_copy(
        update={
            **{"method": "standard", "ducat": "off", "ducat_start": None, "split_weight": 1.0, "epochs": 1},
            **{"clean_share": None, "eps_ramp": None, "inner_attack": "pgd", "awp_gamma": None},
            **{"backbone_lr": 0.0, "warmup": None, "schedule": "cosine", "lr_milestones": ()},
            **{"ema_decay": None, "ema_warmup": False, "measure_start": False},
        }
    )
    exact_float32()
    with tempfile.TemporaryDirectory() as folder:  # an epoch of many minutes saves its state on the way
        run = RunFolder(Path(folder))
        trainer = Trainer(asked, dataset, run, device, output, initial=initial, processes=processes)
        head = {id(parameter) for parameter in head_of(trainer.classifier.network).parameters()}
        for parameter in trainer.classifier.parameters():
            parameter.requires_grad_(id(parameter) in head)
        trainer.train_epoch()
        return trainer.validation(Deployed(trainer.kept, trainer.spec.fold), legacy=False)
