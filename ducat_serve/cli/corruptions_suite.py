"""`ducat evaluate --suite corruptions`: no attack runs, so options of attacks are refused."""

from __future__ import annotations

from ducat_serve.errors import UsageError
from ducat_serve.output import Output
from ducat_serve.report import CorruptionReport
from ducat_serve.report_text import corrupted_images, corruptions_in_words

SUITE = "corruptions"


def refuse_options_of_attacks(given: dict[str, object]) -> None:
    """Raise UsageError for options that say nothing where nothing is attacked."""
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise UsageError(
            f"{', '.join(wrong)}: --suite {SUITE} runs no attack.",
            "leave it out, or measure attacks in a run of their own",
        )


def show_corruptions(found: CorruptionReport, output: Output) -> None:
    """Print accuracy by family and severity, and the mean."""
    severities = range(1, len(found.by_severity) + 1)
    rows = [
        (family.name, f"{family.accuracy:.1%}", *(f"{accuracy:.1%}" for accuracy in family.by_severity))
        for family in found.families
    ]
    mean = ("mean", f"{found.accuracy:.1%}", *(f"{accuracy:.1%}" for accuracy in found.by_severity))
    output.table(
        f"{corrupted_images(found)}, {found.examples} images each",
        ("accuracy under corruption", "mean", *(f"severity {severity}" for severity in severities)),
        [*rows, mean],
    )
    for sentence in corruptions_in_words(found):
        output.text(sentence)
