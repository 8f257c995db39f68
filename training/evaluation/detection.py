"""Flagging instead of answering, against an attack that must be wrong AND unflagged.

Thresholds come from clean val images; the share of images that are answered correctly or flagged is measured under
an attack that knows the score and its threshold. Dummy mass and softmax confidence side by side, so that nobody
need believe that the dummies detect anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ducat_serve.report import Rejection
from training.attacks.criteria import misclassified_unflagged
from training.batches import DeviceSplit
from training.evaluation.detectors import Score
from training.evaluation.examples import Examples
from training.evaluation.runner import Runner

FLAGGED = (0.01, 0.05, 0.10)  # of clean val images
MAX_EXAMPLES = 500
_RESTARTS = 2


def rejection(runner: Runner, examples: Examples, val: DeviceSplit) -> tuple[Rejection, ...]:
    """Correct-or-flagged shares, for every score and every share of flagged val images."""
    index = runner.sample("rejection", torch.ones_like(examples.clean), MAX_EXAMPLES)
    raw = runner.raw_logits(val)
    results: list[Rejection] = []
    for score in examples.scores:
        clean_val = score.suspicion(raw)
        # The strictest threshold first: what passes it unflagged passes the others as well.
        open_ = index
        for share in sorted(FLAGGED, reverse=True):
            threshold = _threshold(clean_val, share)
            open_ = open_[~_already_passed(examples, score, threshold)[open_]]
            for restart in range(_RESTARTS):
                open_ = _attack(runner, score, threshold, open_, f"{share:.0%} {restart}")
            flagged = examples.clean_suspicion[score.name][index] > threshold
            results.append(
                Rejection(
                    score=score.name,
                    flagged_val=share,
                    threshold=score.probability(threshold),
                    examples=len(index),
                    flagged_clean=flagged.double().mean().item(),
                    correct_or_flagged_clean=(examples.clean[index] | flagged).double().mean().item(),
                    correct_or_flagged=len(open_) / len(index),
                )
            )
    return tuple(results)


def _threshold(suspicion: Tensor, share: float) -> float:
    """The value that at most ``share`` of the clean images lie above."""
    ordered = suspicion.sort().values
    return ordered[len(ordered) - 1 - int(share * len(ordered))].item()


def _already_passed(examples: Examples, score: Score, threshold: float) -> Tensor:
    """Wrong and unflagged as they are, or by an image that another attack found."""
    as_it_is = ~examples.clean & (examples.clean_suspicion[score.name] <= threshold)
    return as_it_is | (examples.fooling_suspicion[score.name] <= threshold)


def _attack(runner: Runner, score: Score, threshold: float, index: Tensor, tag: str) -> Tensor:
    """Attack the examples ``index``; returns those that are still correct or flagged."""
    fold = runner.model.fold
    criterion = misclassified_unflagged(fold, score.suspicion, threshold)
    passed = torch.zeros(len(runner.data), dtype=torch.bool, device=index.device)

    @torch.no_grad()
    def saw(batch: Tensor, found: Tensor) -> None:
        passed[batch] = criterion(runner.model.classifier(found), runner.data.labels[batch])

    runner.attack(f"unflagged by {score.name} {tag}", score.hiding, index, criterion, saw)
    return index[~passed[index]]
