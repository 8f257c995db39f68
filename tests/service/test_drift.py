"""Series of what a model answers, beside what it answered at export; and of the process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from ducat_serve.errors import VerificationError
from ducat_serve.output import Output
from ducat_serve.predictor import Predictions, Predictor
from ducat_serve.reference import BOUNDS, REFERENCE_KEY, Reference
from ducat_serve.sealed import SEAL_KEY, read_sealed, seal
from service.telemetry.predictions import AnswersCollector, Expected
from tests.support.application import metrics, serving
from tests.support.http_client import DIGITS, encode, predictions, send
from training.run.dataset import load_training_data


def test_answers_are_counted_by_class_and_confidence(predictor: Predictor) -> None:
    with serving(predictor) as client:
        answers = predictions(send(client, *map(encode, DIGITS[:20])))
        seen = metrics(client)
    for label in predictor.spec.labels:
        found = seen["ducat_predictions_total", label, "model", "1"]
        assert found == sum(answer["label"] == label for answer in answers)
    for bound in BOUNDS:
        found = seen["ducat_confidence_bucket", str(bound), "model", "1"]
        assert found == sum(answer["confidence"] <= bound for answer in answers)
    assert seen["ducat_confidence_count", "model", "1"] == 20
    total = sum(answer["confidence"] for answer in answers)
    assert seen["ducat_confidence_sum", "model", "1"] == pytest.approx(total, rel=1e-5)


def test_the_reference_is_what_was_answered_to_val_images(predictor: Predictor, checkpoint: Path) -> None:
    data = load_training_data(
        checkpoint, predictor.spec, dataset=None, data_dir=None, offline=True, output=Output(silent=True)
    )
    images = data.val.images[:1000]
    answers = predictor(images)
    reference = predictor.reference
    assert reference is not None
    assert reference.images == len(images)
    assert reference.classes == tuple(np.bincount(answers.label, minlength=10))
    below = (answers.confidence.round(3) <= 0.5).mean()
    with serving(predictor) as client:
        seen, text = metrics(client), client.get("/metrics").text
    share = seen["ducat_reference_confidence_share", "0.5", "model", "1"]
    assert share == pytest.approx(below)
    assert seen["ducat_reference_confidence_share", "+Inf", "model", "1"] == 1
    assert 'ducat_reference_confidence_share{at_most="0.5"' in text, "`le` is for histograms alone"
    shares = [seen["ducat_reference_class_share", label, "model", "1"] for label in predictor.spec.labels]
    assert sum(shares) == pytest.approx(1)


def test_classes_of_one_name_are_one_series() -> None:
    collector = AnswersCollector()
    labels = ("crane", "crane", "kite")
    reference = Reference(images=4, classes=(1, 2, 1), confidence=(4,) + (0,) * len(BOUNDS))
    collector.expect([Expected("birds", "1", labels, reference)])
    answers = np.array([0, 1, 1, 2])
    logits = np.eye(3, dtype=np.float32)[answers]
    collector.of("birds", "1", labels).count(Predictions(logits, answers, np.zeros(4, np.float32)))
    found = [
        (sample.name, sample.labels["class"], sample.value)
        for metric in collector.collect()
        for sample in metric.samples
        if "class" in sample.labels
    ]
    assert found == [
        ("ducat_predictions_total", "crane", 3),
        ("ducat_predictions_total", "kite", 1),
        ("ducat_reference_class_share", "crane", 0.75),
        ("ducat_reference_class_share", "kite", 0.25),
    ]


def test_the_process_is_seen(predictor: Predictor) -> None:
    with serving(predictor) as client:
        seen = metrics(client)
    assert seen[("process_resident_memory_bytes",)] > 1e7
    assert seen[("process_open_fds",)] > 0


def with_reference(model: Path, target: Path, text: str | None) -> Path:
    proto = onnx.load_from_string(read_sealed(model))
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    entries.pop(SEAL_KEY)
    entries.pop(REFERENCE_KEY)
    if text is not None:
        entries[REFERENCE_KEY] = text
    del proto.metadata_props[:]
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)
    target.write_bytes(seal(proto.SerializeToString(deterministic=True)))
    return target


def test_older_files_have_none_and_go_on_being_served(onnx_model: Path, tmp_path: Path) -> None:
    old = Predictor(with_reference(onnx_model, tmp_path / "model.onnx", None))
    assert old.reference is None
    with serving(old) as client:
        predictions(send(client, encode(DIGITS[0])))
        assert not [key for key in metrics(client) if key[0].startswith("ducat_reference")]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "invalid reference"),
        ('{"images": 2, "classes": [1], "confidence": [0,0,0,0,0,0,0,0,0,0,0,0,1]}', "do not add up"),
        (
            '{"images": 1, "classes": [1], "confidence": [0,0,0,0,0,0,0,0,0,0,0,0,1]}',
            "1 classes, the model 10",
        ),
    ],
)
def test_a_reference_of_something_else_is_refused(
    text: str, why: str, onnx_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(VerificationError, match=why):
        Predictor(with_reference(onnx_model, tmp_path / "model.onnx", text))


def test_counts_of_no_image_are_no_reference() -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        Reference(images=0, classes=(), confidence=(0,) * 13)
