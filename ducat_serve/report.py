"""The robustness report: what was measured on the deployed function, by which attacks."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ducat_serve.pixels import format_size

NOT_MEASURED = "robustness not measured"


class AttackResult(BaseModel):
    """One attack: what it ran on, and the accuracy that is left after it and all before it.

    ``accuracy`` is over all ``examples`` that it attacked; ``worst_case_accuracy`` is the running worst
    case over all evaluated images. Fractions in [0, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    settings: dict[str, int | float | str]
    examples: int = Field(ge=0)
    accuracy: float = Field(ge=0, le=1)
    worst_case_accuracy: float = Field(ge=0, le=1)
    seconds: float = Field(ge=0)


class ClassResult(BaseModel):
    """Accuracy on the images of one class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    examples: int = Field(ge=0)
    clean_accuracy: float = Field(ge=0, le=1)
    worst_case_accuracy: float = Field(ge=0, le=1)


class DummyMass(BaseModel):
    """Dummy mass as a detector of adversarial images: a signal, not a defence.

    Means over the images that were right when clean, as they are and after the last attack that ran on each.
    ``auroc`` is the probability that an adversarial image has more dummy mass than a clean one; 0.5 tells
    nothing. The attacks did not try to hide from this detector, so one that does will lower it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clean_mean: float = Field(ge=0, le=1)
    adversarial_mean: float = Field(ge=0, le=1)
    auroc: float = Field(ge=0, le=1)


class RobustnessReport(BaseModel):
    """Accuracy of the deployed function, clean and under attack, bound to one set of weights.

    ``worst_case_accuracy`` counts an image only if it is right on the clean image and under every attack.
    ``legacy_2c_accuracy`` is the measure of arXiv 2410.12671: the attack sees the raw 2C logits and recovery
    is applied afterwards. Non-adaptive, not a robustness claim; None for a model without dummies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    report_version: Literal[1] = 1
    weights_digest: str
    dataset: str
    split: Literal["val", "test"]
    examples: int = Field(gt=0)
    norm: str
    eps: float
    seed: int
    clean_accuracy: float = Field(ge=0, le=1)
    worst_case_accuracy: float = Field(ge=0, le=1)
    worst_case_interval: tuple[float, float]
    legacy_2c_accuracy: float | None = Field(default=None, ge=0, le=1)
    dummy_mass: DummyMass | None = None
    per_class: tuple[ClassResult, ...]
    attacks: tuple[AttackResult, ...]
    versions: dict[str, str]

    def summary(self) -> str:
        """One line for people."""
        attacks = ", ".join(attack.name for attack in self.attacks)
        return (
            f"{self.clean_accuracy:.1%} clean, {self.worst_case_accuracy:.1%} under {attacks} "
            f"at {self.norm} {format_size(self.eps)} ({self.examples} {self.split} images of {self.dataset})"
        )
