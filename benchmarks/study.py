"""Train and evaluate every row of a study, then write its table and plot. Long: hours on two cores.

    export OMP_NUM_THREADS=1   # the number of threads changes the order of sums, and so the run
    python benchmarks/study.py digits

Interrupted, it goes on where it was when started again: a run that trained is resumed or left alone, one that
carries a report is not evaluated again. Runs go to runs/STUDY/, the table to results/STUDY.md and STUDY.png.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ducat_serve.checkpoint import read_spec
from ducat_serve.report import RobustnessReport

METHODS = ("pgd-at", "trades", "mart", "consistency")
MODES = ("off", "paper", "folded")


@dataclass(frozen=True)
class Row:
    """One run: ``group`` is its line in the table, over all seeds."""

    group: tuple[str, ...]
    seed: int
    train: tuple[str, ...]
    base: str | None = None  # the row whose last weights it starts from

    @property
    def name(self) -> str:
        return "-".join((*filter(None, self.group), str(self.seed)))


@dataclass(frozen=True)
class Study:
    """Rows with the same data and the same evaluation."""

    columns: tuple[str, ...]
    bases: tuple[Row, ...]  # trained, and not in the table
    rows: tuple[Row, ...]
    evaluate: tuple[str, ...]


def digits() -> Study:
    rows = [
        Row(
            (method, mode),
            seed,
            ("--dataset", "digits", "--epochs", "40", "--method", method, "--ducat", mode),
        )
        for seed in range(3)
        for method in METHODS
        for mode in MODES
    ]
    return Study(("method", "ducat"), (), tuple(rows), ("--suite", "standard"))


def from_one_base(
    recipe: str, epochs: int, branches: dict[tuple[str, ...], tuple[str, ...]], branch: tuple[str, ...]
) -> Study:
    """PGD-AT by N-FGSM for ``epochs``, and from its last weights every branch: only the last epochs differ."""
    data = ("--recipe", recipe, "--data-dir", "../shared/data")
    base = Row(("base",), 0, (*data, "--ducat", "off", "--epochs", str(epochs)))
    rows = [Row(group, 0, (*data, *flags, *branch), base.name) for group, flags in branches.items()]
    evaluate = ("--suite", "standard", "--data-dir", "../shared/data", "--max-examples", "300")
    return Study(("ducat", "split weight"), (base,), tuple(rows), evaluate)


def cifar10() -> Study:
    branches = {
        ("off", ""): ("--ducat", "off"),
        ("paper", ""): ("--ducat", "paper", "--ducat-start", "1"),
        **{
            ("folded", weight): ("--ducat", "folded", "--split-weight", weight, "--ducat-start", "1")
            for weight in ("0", "0.1", "1")
        },
    }
    branch = ("--inner-attack", "pgd", "--epochs", "1", "--lr", "0.01", "--lr-milestones", "1")
    return from_one_base("cifar10-small", 6, branches, branch)


def tiny_imagenet() -> Study:
    branches = {
        ("off", ""): ("--ducat", "off"),
        ("folded", "0.1"): ("--ducat", "folded", "--ducat-start", "1"),
    }
    branch = (
        "--inner-attack",
        "pgd",
        "--attack-steps",
        "10",
        "--epochs",
        "4",
        "--lr",
        "0.01",
        "--lr-milestones",
        "4",
    )
    return from_one_base("tiny-imagenet-small", 16, branches, branch)


STUDIES = {"digits": digits, "cifar10": cifar10, "tiny-imagenet": tiny_imagenet}


def ducat(*arguments: str) -> None:
    """Run one command of the CLI; a failure ends the study."""
    print("ducat", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "ducat_serve", *arguments], check=True, stdout=sys.stderr)


def run(row: Row, study: Study, folder: Path) -> None:
    """Train and evaluate, as far as that was not done."""
    path = folder / row.name
    if not (path / "config.json").exists():
        start = ("--initial-checkpoint", str(folder / row.base / "last.safetensors")) if row.base else ()
        ducat("train", *row.train, *start, "--seed", str(row.seed), "--out", str(path))
    elif not (path / "curves.png").exists():
        ducat("train", "--resume", str(path))
    if row not in study.bases and read_spec(path / "model.safetensors").robustness is None:
        ducat("evaluate", str(path), *study.evaluate)


def reports(study: Study, folder: Path) -> Iterator[tuple[Row, RobustnessReport]]:
    for row in study.rows:
        model = folder / row.name / "model.safetensors"
        report = read_spec(model).robustness if model.exists() else None
        if report is not None:
            yield row, report


def table(study: Study, folder: Path) -> str:
    """Markdown: mean and standard deviation over seeds, in per cent."""
    groups: dict[tuple[str, ...], list[RobustnessReport]] = defaultdict(list)
    for row, report in reports(study, folder):
        groups[row.group].append(report)
    head = (*study.columns, "seeds", "clean", "worst case", "legacy 2C*")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group, found in groups.items():
        legacy = [r.legacy_2c_accuracy for r in found if r.legacy_2c_accuracy is not None]
        cells = (
            *(f"`{name}`" for name in group),
            str(len(found)),
            spread([r.clean_accuracy for r in found]),
            spread([r.worst_case_accuracy for r in found]),
            spread(legacy),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    study, folder = STUDIES[given.study](), given.runs / given.study
    for row in (*study.bases, *study.rows):
        run(row, study, folder)
    print(table(study, folder))


if __name__ == "__main__":
    assert os.environ.get("OMP_NUM_THREADS") == "1", "set OMP_NUM_THREADS=1: see the top of this file"
    main()
