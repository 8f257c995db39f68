"""What `ducat predict` prints on stdout: a table on a terminal, lines for other programs elsewhere, or CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence

from ducat_serve.output import Output, visible
from ducat_serve.prediction import Choice, Prediction

Named = tuple[str, Prediction]


def print_predictions(title: str, predictions: Sequence[Named], top_k: int, output: Output) -> None:
    """A table on a terminal. Into a pipe, a line per image, its fields apart by tabs, and no name cut."""
    rows = [
        (
            name,
            prediction.label,
            f"{prediction.confidence:.1%}",
            f"{prediction.dummy_mass:.3f}",
            _others(prediction, top_k),
        )
        for name, prediction in predictions
    ]
    if output.on_terminal:
        output.table(title, ("image", "label", "confidence", "dummy mass", "then"), rows)
        return
    for row in rows:
        output.text("\t".join(map(visible, row)).rstrip("\t"))


class CsvOutput:
    """CSV on stdout, a row per image, as soon as it is predicted.

    Columns: image, label, class_id, confidence, dummy_mass, then label_2, confidence_2 and so on up to ``top_k``.
    """

    def __init__(self, top_k: int, classes: int) -> None:
        self._top_k = min(top_k, classes)
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        further = [f"{column}_{k}" for k in range(2, self._top_k + 1) for column in ("label", "confidence")]
        self._writer.writerow(["image", "label", "class_id", "confidence", "dummy_mass", *further])

    def write(self, predictions: Sequence[Named]) -> None:
        for name, prediction in predictions:
            further = [
                field
                for choice in _after_the_label(prediction, self._top_k)
                for field in (choice.label, f"{choice.confidence:.6f}")
            ]
            own = (prediction.label, prediction.class_id, f"{prediction.confidence:.6f}")
            self._writer.writerow([name, *own, f"{prediction.dummy_mass:.6f}", *further])
        sys.stdout.flush()


def _others(prediction: Prediction, top_k: int) -> str:
    return ", ".join(
        f"{choice.label} {choice.confidence:.1%}" for choice in _after_the_label(prediction, top_k)
    )


def _after_the_label(prediction: Prediction, top_k: int) -> Iterator[Choice]:
    return (choice for choice in prediction.top(top_k) if choice.class_id != prediction.class_id)
