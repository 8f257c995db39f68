"""Detectors put to the test: dummy mass as a signal, and flagging instead of answering.

Thresholds come from clean val images; the share of images that are answered correctly or flagged is measured under
an attack that knows the score and its threshold, and must be wrong AND unflagged. Dummy mass and softmax confidence
side by side, so that nobody need believe that the dummies detect anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ducat_serve.report import DummyMass, Rejection
from training.attacks.base import Attack
from training.attacks.criteria import misclassified
from training.attacks.diversified_search import Diversified
from training.batches import DeviceSplit
from training.evaluation.detectors import Detector
from training.evaluation.examples import Examples
from training.evaluation.runner import Runner

FLAGGED = (0.01, 0.05, 0.10)  # of clean val images
MAX_EXAMPLES = 500
ADAPTIVE_EXAMPLES = 500
_RESTARTS = 2  # from random points of the ball
_DIVERSIFIED_RESTARTS = 2  # and then from where random combinations of logits lead


def dummy_mass(runner: Runner, examples: Examples, *, adaptive: bool) -> DummyMass | None:
    """Dummy mass as a detector; None without dummies or where nothing fooled the model.

    ``adaptive`` also runs an attack that lowers dummy mass, on at most ``ADAPTIVE_EXAMPLES`` of them.
    """
    detector = next((detector for detector in examples.detectors if detector.name == "dummy_mass"), None)
    if detector is None:
        return None
    fooling = examples.fooling_scores["dummy_mass"]
    # An image that makes the model answer NaN fools it, but has no dummy mass to speak of.
    fooled = examples.clean & ~examples.right & fooling.isfinite()
    clean = examples.clean_scores["dummy_mass"][examples.clean]
    auroc = _auroc(clean, fooling[fooled])
    if auroc is None:
        return None
    return DummyMass(
        clean_mean=clean.sigmoid().mean().item(),
        adversarial_mean=fooling[fooled].sigmoid().mean().item(),
        auroc=auroc,
        auroc_adaptive=_auroc(clean, _lowered(runner, examples, detector, fooled)) if adaptive else None,
    )


def _lowered(runner: Runner, examples: Examples, detector: Detector, fooled: Tensor) -> Tensor:
    """The scores of fooling images after an attack that lowers them as well, for a sample."""
    index = runner.sample("hide", fooled, ADAPTIVE_EXAMPLES)
    criterion = misclassified(runner.model.fold)
    raw = runner.attack("hide dummy mass", detector.attack, index, criterion)
    before = examples.fooling_scores[detector.name][index]
    still_fooled = criterion(raw, examples.labels[index])
    return torch.where(still_fooled, torch.minimum(before, detector.score(raw)), before)


def _auroc(clean: Tensor, adversarial: Tensor) -> float | None:
    clean, adversarial = clean[clean.isfinite()], adversarial[adversarial.isfinite()]
    if len(clean) == 0 or len(adversarial) == 0:
        return None
    from sklearn.metrics import roc_auc_score  # a second, which models without dummies need not spend

    truth = torch.cat([torch.zeros_like(clean), torch.ones_like(adversarial)])
    return float(roc_auc_score(truth.cpu().numpy(), torch.cat([clean, adversarial]).cpu().numpy()))


def rejection(runner: Runner, examples: Examples, val: DeviceSplit) -> tuple[Rejection, ...]:
    """Correct-or-flagged shares, for every detector and every share of flagged val images.

    One attack serves all shares: it goes on until an image is wrong and unflagged at the strictest threshold, and the
    lowest score at which it was wrong decides at the others.
    """
    index = runner.sample("rejection", torch.ones_like(examples.clean), MAX_EXAMPLES)
    raw = runner.raw_logits(val)
    results: list[Rejection] = []
    for detector in examples.detectors:
        clean_val = detector.score(raw)
        thresholds = {share: _threshold(clean_val, share) for share in FLAGGED}
        lowest = _lowest_wrong_score(runner, examples, detector, min(thresholds.values()), index)
        for share in sorted(FLAGGED, reverse=True):
            threshold = thresholds[share]
            flagged = examples.clean_scores[detector.name][index] > threshold
            results.append(
                Rejection(
                    score=detector.name,
                    flagged_val=share,
                    threshold=detector.probability(threshold),
                    examples=len(index),
                    flagged_clean=flagged.double().mean().item(),
                    correct_or_flagged_clean=(examples.clean[index] | flagged).double().mean().item(),
                    correct_or_flagged=(lowest > threshold).double().mean().item(),
                )
            )
    return tuple(results)


def _lowest_wrong_score(
    runner: Runner, examples: Examples, detector: Detector, strictest: float, index: Tensor
) -> Tensor:
    """The lowest score of a wrong answer to each of the examples ``index``: clean, or to what attacks found."""
    wrong = misclassified(runner.model.fold)
    criterion = detector.criterion(runner.model.fold, strictest)
    never = torch.full_like(examples.clean_scores[detector.name], torch.inf)
    as_it_is = torch.where(examples.clean, never, examples.clean_scores[detector.name])
    lowest = torch.fmin(as_it_is, examples.fooling_scores[detector.name])[index]
    starts: list[tuple[str, Attack]] = [
        *((f"{number}", detector.attack) for number in range(_RESTARTS)),
        *((f"diversified {number}", Diversified(detector.attack)) for number in range(_DIVERSIFIED_RESTARTS)),
    ]
    for tag, attack in starts:
        rows = (lowest > strictest).nonzero().squeeze(1)
        name = f"unflagged by {detector.name} {tag}"
        found = examples.check(runner, name, attack, index[rows], criterion)
        score = detector.score(found).nan_to_num(nan=-torch.inf)  # NaN is wrong, and nowhere flagged
        score = torch.where(wrong(found, runner.data.labels[index[rows]]), score, torch.inf)
        lowest[rows] = torch.fmin(lowest[rows], score)
    return lowest


def _threshold(scores: Tensor, share: float) -> float:
    """The value that at most ``share`` of the clean images lie above."""
    ordered = scores.sort().values
    return ordered[len(ordered) - 1 - int(share * len(ordered))].item()
