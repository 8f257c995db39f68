"""The robustness report: what was measured on the deployed function, by which attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ducat_serve.threat_model import format_size

NOT_MEASURED = "robustness not measured"
MASKING = "gradient masking suspected"
UNCHECKED = "gradient masking not checked"
SCREENING = "screening, not a worst case"
# The name of the doubt about test images that were drawn here, from among images that a model of others may know.
HELD_OUT = "test images of our choice"
# What the standard suite, now and in older versions, runs on every model and the quick one does not.
# AutoAttack has the like inside.
_SEARCHED_FURTHER = ({"closest-first"}, {"targeted", "square-warm"}, {"autoattack"})
# Of attacks by scores alone, for each image: as many as AutoAttack's squares.
_ENOUGH_QUERIES = 5000
FLOOR_CHECK = "the floor lies below the worst case"
# Of attacks in reports from before these said it themselves.
_KNEW_PAIRS = {"apgd-lse", "pair-margin-0", "pair-margin-1", "pair-margin-4", "targeted", "square-warm"}

Artefact = Literal["checkpoint", "onnx", "server"]
ExportPrecision = Literal["float32", "float16", "int8"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Fraction, Fraction]


class _WithLaterFields(BaseModel):
    """A part of the report that has gained fields: an older report is written as it was read, without them.

    So a checkpoint that was measured by an older version is exported to the same bytes as before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    later_fields: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_what_was_not_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        return {k: v for k, v in written.items() if k not in self.later_fields or v is not None}


class AttackResult(_WithLaterFields):
    """One attack: what it ran on, and the accuracy that is left after it and all before it.

    ``accuracy`` is over all ``examples`` that it attacked; ``worst_case_accuracy`` is the running worst
    case over all evaluated images. Fractions in [0, 1]. ``gradient_steps`` and ``forward_passes`` (those
    without a gradient) are counted per image, as they were really made. ``settings`` are the hyperparameters;
    ``knows_pairs`` is whether it knows the fold and the pairs of classes and dummies, None in older reports.
    """

    later_fields = ("knows_pairs",)

    name: str
    settings: dict[str, int | float | str]
    examples: int = Field(ge=0)
    accuracy: Fraction
    worst_case_accuracy: Fraction
    gradient_steps: int = Field(default=0, ge=0)
    forward_passes: int = Field(default=0, ge=0)
    knows_pairs: bool | None = None
    seconds: float = Field(ge=0)


class ClassResult(BaseModel):
    """Accuracy on the images of one class; None where there was none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    examples: int = Field(ge=0)
    clean_accuracy: Fraction | None
    worst_case_accuracy: Fraction | None


class DummyMass(BaseModel):
    """Dummy mass as a detector of adversarial images: a signal, not a defence.

    Means over the images that were right when clean, and over the images that the attacks made of them and
    that fool the model. ``auroc`` is the probability that one of the latter has more dummy mass than one of
    the former; 0.5 tells nothing. ``auroc_adaptive`` is the same where the attack also lowers dummy mass:
    the number that counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clean_mean: Fraction
    adversarial_mean: Fraction
    auroc: Fraction
    auroc_adaptive: Fraction | None = None


class Rejection(BaseModel):
    """Flagging images by a score instead of answering.

    An image is flagged where its dummy mass is above, or its confidence below, ``threshold``: the value that
    flags ``flagged_val`` of clean val images. ``correct_or_flagged`` is under an attack that counts only if
    the answer is wrong AND unflagged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: Literal["dummy_mass", "confidence"]
    flagged_val: Fraction
    threshold: Fraction
    examples: int = Field(gt=0)
    flagged_clean: Fraction
    correct_or_flagged_clean: Fraction
    correct_or_flagged: Fraction


class SanityCheck(BaseModel):
    """One sign of attacks that fail for a bad reason; a failed one says "gradient masking suspected"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    expectation: str
    passed: bool
    figures: dict[str, float]


class Floor(BaseModel):
    """Of a two-tower model, the share of images that its robust tower carries alone, with its 95 % interval.

    An image counts only if the robust tower's mapped margin stays at or above the threshold under attacks on that tower
    alone: then the answer is right whatever the standard tower says, so that no gradient through the switch need be
    trusted. ``found_by_others`` is the share that only attacks on both towers brought below the threshold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    accuracy: Fraction
    interval: Interval
    attacks: tuple[AttackResult, ...]
    found_by_others: Fraction


class ServerAccess(BaseModel):
    """What was asked of a running server, in images, and for how many classes its answers told a confidence.

    ``classes_told`` is the fewest of any answer. Where it is less than the model's classes, attacks took the others to
    share the rest of the probability evenly.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    queries: int = Field(ge=0)
    query_budget: int = Field(gt=0)
    classes_told: int = Field(gt=0)


class CurvePoint(BaseModel):
    """The worst case at one radius of several that were measured in one evaluation, with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    eps: float = Field(gt=0)
    worst_case_accuracy: Fraction
    worst_case_interval: Interval


class CorruptionFamily(BaseModel):
    """Accuracy under one kind of corruption, at severity 1 to 5."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    accuracy: Fraction
    by_severity: tuple[Fraction, ...]


class CorruptionReport(BaseModel):
    """Accuracy on corrupted images, which nobody chose against the model: no worst case, and beside it.

    ``source`` names the images; ``generated_by`` is None where they are those that their authors published, else the
    library that made them. ``examples`` is the number of images of each family and severity, ``clean_accuracy`` that of
    ``clean_examples`` images of the data set as they are (None in older reports). Means are over families and
    severities, all of which count alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    generated_by: str | None
    artefact: Literal["checkpoint", "onnx"]
    examples: int = Field(gt=0)
    clean_examples: int | None = None
    seed: int
    clean_accuracy: Fraction
    accuracy: Fraction
    by_severity: tuple[Fraction, ...]
    families: tuple[CorruptionFamily, ...]


class RobustnessReport(_WithLaterFields):
    """Accuracy of the deployed function, clean and under attack, bound to one set of weights.

    ``worst_case_accuracy`` counts an image only if it is right on the clean image and under every attack.
    ``legacy_2c_accuracy`` is the measure of arXiv 2410.12671: the attack sees the raw 2C logits and recovery is
    applied afterwards. Non-adaptive, not a robustness claim; None for a model without dummies. ``artefact`` is what
    was attacked: the checkpoint in torch, or an exported file or a running server, by their scores alone.
    ``weights_digest`` is that of the weights; of an ONNX file of others it is the SHA-256 of the file. A report holds
    for one ``precision``: the same weights in another one are another function. Intervals are 95 % Wilson;
    ``clean_interval`` is None in older reports. ``lattice`` is "8bit" where the attacks could only make images of 8
    bits, as those on an exported file always do (whose older reports do not say so). ``curve`` has the worst case at
    every eps, smallest first, where several were asked for; an image that is broken at one of them counts as broken at
    all larger ones. ``server`` is there where a running server was measured. ``corruptions`` is what a run of its own
    measured on the same weights. ``floor`` is that of a two-tower model. ``gradients`` is "copy" where an exported
    file was attacked with the gradients of a differentiable copy of its graph, and not by its scores alone, and "none"
    where a torch module has none. ``doubts`` are those about a model of others and its images, or one whose network is
    code of the user's own, each with its name; None for a model of ours. ``takes`` is what images a model of others
    was said to take, None for one of ours. ``data_digest`` is the SHA-256 of the images and labels; None in older
    reports. ``broken_by_checks`` is the number of images that the attacks left and sanity checks or studies broke,
    which count as broken; None for none. ``fold`` is how logits of dummies were folded; None without dummies and in
    older reports.
    """

    later_fields = (
        "clean_interval",
        "lattice",
        "curve",
        "corruptions",
        "server",
        "floor",
        "gradients",
        "broken_by_checks",
        "fold",
        "doubts",
        "takes",
        "data_digest",
    )

    report_version: Literal[1, 2, 3] = 3
    weights_digest: str
    dataset: str
    split: Literal["val", "test"]
    examples: int = Field(gt=0)
    norm: str
    eps: float
    seed: int
    clean_accuracy: Fraction
    clean_interval: Interval | None = None
    worst_case_accuracy: Fraction
    worst_case_interval: Interval
    legacy_2c_accuracy: Fraction | None = None
    legacy_attacks: tuple[str, ...] = ()
    dummy_mass: DummyMass | None = None
    per_class: tuple[ClassResult, ...]
    attacks: tuple[AttackResult, ...]
    sanity: tuple[SanityCheck, ...] = ()
    rejection: tuple[Rejection, ...] = ()
    artefact: Artefact = "checkpoint"
    precision: ExportPrecision = "float32"
    lattice: Literal["8bit"] | None = None
    curve: tuple[CurvePoint, ...] | None = None
    corruptions: CorruptionReport | None = None
    server: ServerAccess | None = None
    floor: Floor | None = None
    gradients: Literal["copy", "none"] | None = None
    broken_by_checks: int | None = None
    fold: Literal["max", "lse", "switch"] | None = None
    doubts: tuple[str, ...] | None = None
    takes: str | None = None
    data_digest: str | None = None
    seconds: float = Field(default=0, ge=0)
    versions: dict[str, str]

    @model_validator(mode="after")
    def _counts_only_what_is_right_when_clean(self) -> Self:
        if self.worst_case_accuracy > self.clean_accuracy:
            raise ValueError("more images are right under every attack than on their clean images")
        return self

    @property
    def failed_checks(self) -> tuple[SanityCheck, ...]:
        """Sanity checks that failed."""
        return tuple(check for check in self.sanity if not check.passed)

    @property
    def is_unchecked(self) -> bool:
        """Whether gradients were followed and no sanity check was made of them, mostly for want of images."""
        return not self.scores_only and all(check.name == FLOOR_CHECK for check in self.sanity)

    @property
    def is_screening(self) -> bool:
        """Whether the attacks were few, or asked few queries: longer ones, as in the standard suite, break more."""
        if self.scores_only:
            asked = (attack.settings.get("queries", 0) for attack in self.attacks)
            return not any(isinstance(queries, int) and queries >= _ENOUGH_QUERIES for queries in asked)
        return only_screen(attack.name for attack in self.attacks)

    @property
    def scores_only(self) -> bool:
        """Whether the attacks saw only the scores that were answered, and no gradient."""
        return self.gradients == "none" or (self.artefact != "checkpoint" and self.gradients is None)

    def is_of(self, weights_digest: str, takes: str | None) -> bool:
        """Whether this was measured: these weights, given these images. Older reports do not say what was given."""
        return self.weights_digest == weights_digest and (self.takes == takes or None in (self.takes, takes))

    @property
    def is_within_8_bits(self) -> bool:
        """Whether attacks could only make images of 8 bits. Of exported files of ours older reports do not say so."""
        return self.lattice == "8bit" or (self.artefact == "onnx" and not self.is_of_others)

    @property
    def is_of_others(self) -> bool:
        """Whether the model is none of ours, so that nobody here knows how it decides."""
        return self.doubts is not None

    @property
    def knows_pairs(self) -> bool:
        """Whether an attack was run that knows the fold and the pairs of classes and dummies."""
        return any(
            attack.name in _KNEW_PAIRS if attack.knows_pairs is None else attack.knows_pairs
            for attack in self.attacks
        )

    def summary(self) -> str:
        """One line for people."""
        attacks = ", ".join(attack.name for attack in self.attacks)
        attacks += " (scores only)" if self.scores_only else ""
        attacks += " (gradients of a copy)" if self.gradients == "copy" else ""
        attacks += " (8-bit images only)" if self.lattice == "8bit" else ""
        doubt = f"; {SCREENING}" if self.is_screening else ""
        doubt += f"; {MASKING}" if self.failed_checks else ""
        doubt += f"; {UNCHECKED}" if self.is_unchecked else ""
        return (
            f"{self.clean_accuracy:.1%} clean, {self.worst_case_accuracy:.1%} under {attacks} "
            f"at {self.norm} {format_size(self.eps)} ({self.examples} {self.split} images of {self.dataset}){doubt}"
        )


def only_screen(attacks: Iterable[str]) -> bool:
    """Whether attacks of these names are too few for a worst case."""
    names = set(attacks)
    return not any(needed <= names for needed in _SEARCHED_FURTHER)


# From the report that a file holds, if any, to the one that it gets.
MergeReport = Callable[[RobustnessReport | None], RobustnessReport]
