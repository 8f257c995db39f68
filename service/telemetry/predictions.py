"""What a model answers, as series: how often each class, and how sure it was. Beside them what it answered at export.

Answers drift where the inputs do, or where the model is attacked. They are counted once for each batch, in the thread
that inferred it; the text that Prometheus reads is made when it asks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ducat_serve.predictor import Predictions
from ducat_serve.reference import BOUNDS, Reference


class Answers:
    """Counts of what one version of a model answered."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.classes = np.zeros(len(labels), np.int64)
        self.buckets = np.zeros(len(BOUNDS) + 1, np.int64)
        self.sum = 0.0
        # A version that is replaced answers its last requests beside the new one.
        self._lock = threading.Lock()

    def count(self, predictions: Predictions) -> None:
        """Add the answers of a batch, but for those that are no numbers, which no client gets."""
        finite = predictions.is_finite
        answers = Predictions(
            predictions.logits[finite], predictions.label[finite], predictions.dummy_mass[finite]
        )
        confidence = answers.confidence
        buckets = np.searchsorted(BOUNDS, confidence)
        with self._lock:
            np.add.at(self.classes, answers.label, 1)
            np.add.at(self.buckets, buckets, 1)
            self.sum += float(confidence.sum())


@dataclass(frozen=True)
class Expected:
    """The reference of a version that is served."""

    model: str
    version: str
    labels: Sequence[str]
    reference: Reference


class AnswersCollector(Collector):
    """The answers of every version since the server started, and the references of those that are served now."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str], Answers] = {}
        self._expected: list[Expected] = []

    def of(self, name: str, version: str, labels: Sequence[str]) -> Answers:
        """Where answers of this version are counted.

        It goes on counting when its file is replaced by one of the same classes.
        """
        found = self._answers.get((name, version))
        if found is None or found.labels != labels:
            found = self._answers[name, version] = Answers(labels)
        return found

    def expect(self, expected: Iterable[Expected]) -> None:
        """These are served from now on."""
        self._expected = list(expected)

    def collect(self) -> Iterator[Metric]:
        """The series, as prometheus_client asks for them."""
        version = ("model", "version")
        classes = CounterMetricFamily("ducat_predictions", "Answers by class.", labels=(*version, "class"))
        confidence = HistogramMetricFamily(
            "ducat_confidence", "Confidence of answers: the probability of the best class.", labels=version
        )
        for name, answers in list(self._answers.items()):
            for label, count in _by_label(answers.labels, answers.classes.tolist()):
                classes.add_metric((*name, label), count)
            confidence.add_metric(name, _cumulative(answers.buckets.tolist()), answers.sum)
        yield classes
        yield confidence
        shares = GaugeMetricFamily(
            "ducat_reference_class_share",
            "The part of its answers to val images that was this class when the model was exported.",
            labels=(*version, "class"),
        )
        sure = GaugeMetricFamily(
            "ducat_reference_confidence_share",
            "The part of these answers whose confidence was at most `at_most`.",
            labels=(*version, "at_most"),  # `le` is for histograms alone
        )
        for one in self._expected:
            images = one.reference.images
            for label, count in _by_label(one.labels, one.reference.classes):
                shares.add_metric((one.model, one.version, label), count / images)
            for bound, count in _cumulative(one.reference.confidence):
                sure.add_metric((one.model, one.version, bound), count / images)
        yield shares
        yield sure


def _by_label(labels: Sequence[str], counts: Iterable[int]) -> Iterable[tuple[str, int]]:
    """Classes may share a name, as ImageNet's two cranes do; Prometheus refuses two series of the same labels."""
    found: dict[str, int] = {}
    for label, count in zip(labels, counts, strict=True):
        found[label] = found.get(label, 0) + count
    return found.items()


def _cumulative(buckets: Sequence[int]) -> list[tuple[str, int]]:
    total, found = 0, []
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), buckets, strict=True):
        total += count
        found.append((bound, total))
    return found
