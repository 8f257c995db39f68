"""The report in plain words says what was measured: no more than that, and every doubt."""

from __future__ import annotations

from typing import Any

import pytest

from ducat_serve.predictor import Predictor
from ducat_serve.report import AttackResult, ClassResult, DummyMass, RobustnessReport, SanityCheck
from ducat_serve.report_text import report_in_words
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import ThreatModel

FAILED = SanityCheck(name="steps", expectation="more steps leave no more", passed=False, figures={"a": 0.5})
PASSED = SanityCheck(name="ball", expectation="a ball of all images leaves nothing", passed=True, figures={})


def words(
    spec: ModelSpec, fold: str = "max", attack: str = "pair-margin-1", **changes: Any
) -> dict[str, Any]:
    """The words for a report of this attack and those of a whole suite, with these changes."""

    def result(name: str) -> AttackResult:
        return AttackResult(
            name=name,
            settings={"queries": 5000},
            examples=197,
            accuracy=0.78,
            worst_case_accuracy=0.77,
            seconds=1,
        )

    fields: dict[str, Any] = {
        "weights_digest": spec.weights_digest,
        "dataset": "digits",
        "split": "test",
        "examples": 200,
        "norm": "linf",
        "eps": 0.2,
        "seed": 0,
        "clean_accuracy": 0.986,
        "worst_case_accuracy": 0.77,
        "worst_case_interval": (0.707, 0.823),
        "per_class": (ClassResult(label="0", examples=0, clean_accuracy=None, worst_case_accuracy=None),),
        "attacks": (result(attack), result("autoattack")),
        "sanity": (PASSED,),
        "versions": {},
        **changes,
    }
    measured = {
        "robustness": RobustnessReport(**fields),
        "fold": fold,
        "threat_model": ThreatModel(norm="linf", eps=0.2),
    }
    return report_in_words(spec.model_copy(update=measured))


@pytest.fixture(scope="module")
def spec(predictor: Predictor) -> ModelSpec:
    return predictor.spec


def test_a_report_without_doubts(spec: ModelSpec) -> None:
    said = words(spec)
    assert said["warnings"] == []
    assert said["dummy_mass"] is None
    assert " ".join(said["sentences"]).replace("\u00a0", " ") == (
        "Of 200 test images of digits, 98.6 % were classified correctly. "
        "77.0 % (95 % interval 70.7 % to 82.3 %) stayed correct under every attack that was run. An attacker was "
        "allowed any change of at most 0.2 per pixel and colour, where black is 0 and white is 1. "
        "Measured on the deployed function, in float32, by attacks that know its weights and the dummy classes "
        "(pair-margin-1, autoattack). It is a measurement, not a guarantee: a better attack may break more."
    )


def test_attacks_are_not_said_to_know_what_they_do_not(spec: ModelSpec) -> None:
    for said in (words(spec, attack="pgd"), words(spec, fold="none")):
        assert "know its weights (" in said["sentences"][2]
    scores = words(spec, attack="square", artefact="onnx", sanity=())
    assert (
        "see only its scores (square, autoattack). Attacks that know the weights are stronger"
        in scores["sentences"][2]
    )
    assert scores["warnings"] == []


@pytest.mark.parametrize(
    ("norm", "eps", "text"),
    [
        ("linf", 8 / 255, "any change of at most 8/255 per pixel and colour"),
        ("l2", 0.5, "at most 0.5 in Euclidean length over the whole image"),
        ("l1", 12, "adds up to at most 12 over all pixels"),
    ],
)
def test_every_norm_and_another_one_than_in_training(
    spec: ModelSpec, norm: str, eps: float, text: str
) -> None:
    said = words(spec, norm=norm, eps=eps)["sentences"]
    assert text in said[1]
    # Others may have trained it, or nobody against attacks: how it was trained is not in its threat model.
    assert said[3].startswith("It is meant to withstand changes of linf 0.2, and was measured under " + norm)


def test_every_doubt_is_a_warning(spec: ModelSpec) -> None:
    (nothing,) = report_in_words(spec.model_copy(update={"robustness": None}))["warnings"]
    assert nothing.startswith("Nobody measured the robustness of this model.")
    (failed,) = words(spec, sanity=(PASSED, FAILED))["warnings"]
    assert "It expects: more steps leave no more. That was not so." in failed
    assert "gradient masking suspected" in failed
    (unchecked,) = words(spec, sanity=())["warnings"]
    assert "not checked" in unchecked
    (val,) = words(spec, split="val")["warnings"]
    assert "had a say in training" in val


def test_dummy_mass(spec: ModelSpec) -> None:
    mass = DummyMass(clean_mean=0.1, adversarial_mean=0.25, auroc=0.81, auroc_adaptive=0.6)
    said = words(spec, dummy_mass=mass)["dummy_mass"].replace("\u00a0", " ")
    assert "10.0 % on average for unchanged images, and 25.0 % for changed ones" in said
    assert "AUROC of 0.81, and with 0.60 where the attack also lowered it" in said


def test_a_screening_is_not_called_a_worst_case(spec: ModelSpec) -> None:
    few = AttackResult(name="pgd", settings={}, examples=9, accuracy=0.8, worst_case_accuracy=0.7, seconds=1)
    (screening,) = words(spec, attacks=(few,))["warnings"]
    assert screening.startswith("This is a screening")
    assert "not a worst case" in words(spec, attacks=(few,))["worst_case"]
    assert words(spec)["worst_case"] == "still right under every attack that was run"
    assert report_in_words(spec.model_copy(update={"robustness": None}))["worst_case"] is None
