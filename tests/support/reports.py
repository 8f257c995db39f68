"""Reports that nobody measured."""

from __future__ import annotations

from ducat_serve.report import CorruptionReport

CORRUPTIONS = CorruptionReport(
    source="generated",
    generated_by="torchvision",
    artefact="checkpoint",
    examples=10,
    seed=0,
    clean_accuracy=0.9,
    accuracy=0.5,
    by_severity=(0.5,),
    families=(),
)
