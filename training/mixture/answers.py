"""What two towers say of val images, clean and attacked: all that a switch is fitted on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from ducat_serve import __version__
from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from ducat_serve.threat_model import ThreatModel
from training.attacks.apgd import APGD
from training.attacks.ball import Ball
from training.attacks.criteria import never
from training.attacks.frozen import frozen
from training.attacks.losses import cross_entropy, label_logit, margin, standardised_margin
from training.batches import DeviceSplit
from training.device import exact_float32
from training.evaluation.runner import Batches, Runner
from training.mixture.kept import KeptAnswers

_STEPS = 100
# As hard as the quick suite attacks, and each to the end: a threshold is to be found at any margin.
SEARCHES = {
    "apgd-ce": APGD(cross_entropy, _STEPS),
    "apgd-margin": APGD(margin, _STEPS),
    "apgd-standardised-margin": APGD(standardised_margin, _STEPS),
    "apgd-label-logit": APGD(label_logit, _STEPS),
}


@dataclass(frozen=True)
class Answers:
    """Logits of both towers on N val images.

    Args:
        labels: int64 [N].
        standard, robust: of the clean images, float32 [N, C].
        attacked: of the robust tower, [A, N, C]: first of the clean images, then of what A - 1 attacks on that tower
            alone made of them.
    """

    labels: Tensor
    standard: Tensor
    robust: Tensor
    attacked: Tensor

    @property
    def robust_clean(self) -> float:
        """Clean accuracy of the robust tower alone."""
        return (self.robust.argmax(dim=1) == self.labels).double().mean().item()

    @property
    def standard_clean(self) -> float:
        """Clean accuracy of the standard tower alone."""
        return (self.standard.argmax(dim=1) == self.labels).double().mean().item()

    @property
    def robust_worst_case(self) -> float:
        """Share of the images that the robust tower alone gets right under all of the attacks."""
        right = (self.attacked.argmax(dim=2) == self.labels).all(dim=0)
        return right.double().mean().item()


@dataclass(frozen=True)
class Question:
    """Both towers, and everything else that decides what they answer. ``images`` are val images."""

    standard: Deployed
    robust: Deployed
    images: DeviceSplit
    threat_model: ThreatModel
    seed: int
    batch_size: int

    @property
    def key(self) -> dict[str, JsonValue]:
        """What tells this question from others, for `KeptAnswers`; a state of an evaluation asks for the like."""
        pixels = hashlib.sha256(self.images.images.cpu().numpy().tobytes())
        pixels.update(self.images.labels.cpu().numpy().tobytes())
        return {
            "version": __version__,
            "standard tower": self.standard.spec.function_digest(),
            "robust tower": self.robust.spec.function_digest(),
            "images": pixels.hexdigest(),
            "threat model": str(self.threat_model),
            "attacks": {name: search.steps for name, search in SEARCHES.items()},
            "seed": self.seed,
            "batch size": self.batch_size,  # random numbers belong to a batch
        }


@exact_float32()
def answers_of(asked: Question, file: Path, output: Output) -> Answers:
    """Ask both towers, and attack the robust one in the ball of the threat model; float32 images in eval mode.

    Every answer is kept in ``file`` as soon as it is known, so that neither an interruption nor another setting of the
    switch repeats an attack.
    """
    kept = KeptAnswers(file, asked.key)
    known = kept.read(output)
    ball = Ball.of(asked.threat_model)
    batches = Batches(asked.batch_size, output)
    images = asked.images
    # What the other half of the model sees of a tower are its deployed logits, be its own fold what it may.
    towers = [Deployed(tower, "none").eval() for tower in (asked.standard, asked.robust)]
    with frozen(towers[0]), frozen(towers[1]):
        runners = [Runner(tower, images, ball, asked.seed, batches, output) for tower in towers]
        if not known:
            known = {"standard": runners[0].clean_logits.cpu(), "robust": runners[1].clean_logits.cpu()}
        index = torch.arange(len(images), device=images.labels.device)
        for name, search in SEARCHES.items():
            if name in known:
                continue
            # No success stops a search: margins are wanted as low as they get.
            known[name] = runners[1].attack(f"fit {name}", search, index, never).cpu()
            kept.write(known)
    attacked = torch.stack([known["robust"], *(known[name] for name in SEARCHES)])
    return Answers(images.labels.cpu(), known["standard"], known["robust"], attacked)
