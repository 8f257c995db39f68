"""One row per image of an evaluation, as CSV: what was right, what broke it, and how sure the model was."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ducat_serve import atomic
from training.evaluation.evaluate import Measured
from training.evaluation.examples import BY_CHECK, UNBROKEN

COLUMNS = ("index", "label", "clean_prediction", "clean_margin", "broken_by", "prediction")


def write_per_image(path: Path, measured: Measured, index: Sequence[int]) -> None:
    """Write a row for each image; the same bytes every time. Raises DucatError where ``path`` is not writable.

    ``label``, ``clean_prediction`` and ``prediction`` are numbers of classes, from 0. ``clean_margin`` is the
    label's logit less the largest other one. ``broken_by`` is the first attack that broke the image, "check" where only
    a sanity check or a study did, and empty where none did or where the clean image is wrong already; ``prediction`` is
    the answer to the image that it found.

    Args:
        index: of each image in its split.
    """
    examples = measured.examples
    names = {UNBROKEN: "", BY_CHECK: "check"}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for number, label, clean, margin, broken_by, prediction in zip(
        index,
        examples.labels.tolist(),
        examples.clean_prediction.tolist(),
        examples.clean_margin.tolist(),
        examples.broken_by.tolist(),
        examples.prediction.tolist(),
        strict=True,
    ):
        name = names[broken_by] if broken_by in names else measured.attacks[broken_by]
        rows.writerow([number, label, clean, f"{margin:.6g}", name, prediction])
    atomic.write_text(path, text.getvalue())
