"""Train and evaluate every row of a study, then write its table and plot. Long: hours on two cores.

    export OMP_NUM_THREADS=1   # the number of threads changes the order of sums, and so the run
    python benchmarks/study.py digits

Interrupted, it goes on where it was when started again: a run that trained is resumed or left alone, one that
carries a report is not evaluated again. Runs go to runs/STUDY/; results/study-STUDY.md and .png are written anew
after each of them.
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

from matplotlib.figure import Figure

from ducat_serve.checkpoint import read_spec
from ducat_serve.pixels import format_size
from ducat_serve.report import RobustnessReport

Groups = dict[tuple[str, ...], list[RobustnessReport]]

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
    # A smaller ball and learning rate than the recipe's: with those, MART learns nothing in so few epochs.
    common = ("--dataset", "digits", "--eps", "0.1", "--lr", "0.03", "--epochs", "20")
    rows = [
        Row((method, mode), seed, (*common, "--method", method, "--ducat", mode))
        for seed in range(3)
        for method in METHODS
        for mode in MODES
    ]
    return Study(("method", "ducat"), (), tuple(rows), ("--suite", "standard", "--max-examples", "200"))


def from_one_base(
    recipe: str,
    epochs: int,
    branches: dict[tuple[str, ...], tuple[str, ...]],
    branch: tuple[str, ...],
    examples: int,
) -> Study:
    """PGD-AT by N-FGSM for ``epochs``, and from its last weights every branch: only the last epochs differ."""
    data = ("--recipe", recipe, "--data-dir", "../shared/data")
    base = Row(("base",), 0, (*data, "--ducat", "off", "--epochs", str(epochs)))
    rows = [Row(group, 0, (*data, *flags, *branch), base.name) for group, flags in branches.items()]
    evaluate = ("--suite", "standard", "--data-dir", "../shared/data", "--max-examples", str(examples))
    return Study(("ducat", "split weight"), (base,), tuple(rows), evaluate)


def cifar10() -> Study:
    branches = {
        ("off", ""): ("--ducat", "off"),
        ("paper", ""): ("--ducat", "paper", "--ducat-start", "1"),
        **{
            ("folded", weight): ("--ducat", "folded", "--split-weight", weight, "--ducat-start", "1")
            for weight in ("0.1", "0", "1")
        },
    }
    branch = ("--inner-attack", "pgd", "--epochs", "1", "--lr", "0.01", "--lr-milestones", "1")
    return from_one_base("cifar10-small", 6, branches, branch, examples=200)


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
    return from_one_base("tiny-imagenet-small", 16, branches, branch, examples=300)


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


def table(study: Study, groups: Groups) -> str:
    """Markdown: mean and standard deviation over seeds, in per cent."""
    head = (*study.columns, "seeds", "clean", "worst case", "legacy 2C*")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group, found in groups.items():
        cells = (
            *(f"`{name}`" if name else "" for name in group),
            str(len(found)),
            spread([r.clean_accuracy for r in found]),
            spread([r.worst_case_accuracy for r in found]),
            spread([r.legacy_2c_accuracy for r in found if r.legacy_2c_accuracy is not None]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


def plot(groups: Groups, path: Path) -> None:
    """One line per group: every seed's worst case, their mean, and the legacy accuracy beside it."""
    figure = Figure(figsize=(7.5, 1.2 + 0.32 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    for line, found in enumerate(groups.values()):
        worst = [100 * r.worst_case_accuracy for r in found]
        legacy = [100 * r.legacy_2c_accuracy for r in found if r.legacy_2c_accuracy is not None]
        first = line == 0
        axes.plot(
            worst,
            [line] * len(worst),
            "o",
            color="tab:blue",
            label="worst case, each seed" if first else None,
        )
        axes.plot(
            statistics.fmean(worst), line, "|", color="black", markersize=16, label="mean" if first else None
        )
        axes.plot(
            legacy or [float("nan")],
            [line] * max(1, len(legacy)),
            "o",
            color="tab:orange",
            fillstyle="none",
            label="legacy 2C (non-adaptive, no claim)" if first else None,
        )
    axes.set_yticks(range(len(groups)), [" ".join(filter(None, group)) for group in groups])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy under attack, %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.45 / len(groups) + 0.06), ncols=3, fontsize="small"
    )
    figure.savefig(path, dpi=120)


def write(name: str, study: Study, folder: Path, results: Path) -> None:
    """The study as it stands: table, plot, and every command."""
    groups: Groups = defaultdict(list)
    for row, report in reports(study, folder):
        groups[row.group].append(report)
    if not groups:
        return
    one = next(iter(groups.values()))[0]
    done = sum(len(found) for found in groups.values())
    commands = [f"ducat train {' '.join(row.train)} ..." for row in (*study.bases, study.rows[0])]
    results.mkdir(exist_ok=True)
    plot(groups, results / f"study-{name}.png")
    text = f"""# Study: {name}

Written by the command below; what it means is said in docs/method.md. {done} of {len(study.rows)} rows.
Data: {one.dataset}, {one.examples} test images. Threat model: {one.norm} {format_size(one.eps)}. Standard suite,
float32, on the deployed function. In per cent; mean ± standard deviation over seeds where there are several.

    export OMP_NUM_THREADS=1
    python benchmarks/study.py {name}

{table(study, groups)}

\\* non-adaptive, not a robustness claim.

![Worst case of every row](study-{name}.png)

The first of its commands: `{"`, `".join(commands)}`.
"""
    (results / f"study-{name}.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--only-write", action="store_true", help="train nothing")
    given = parser.parse_args()
    study, folder = STUDIES[given.study](), given.runs / given.study
    for row in () if given.only_write else (*study.bases, *study.rows):
        run(row, study, folder)
        write(given.study, study, folder, given.results)
    write(given.study, study, folder, given.results)


if __name__ == "__main__":
    assert os.environ.get("OMP_NUM_THREADS") == "1", "set OMP_NUM_THREADS=1: see the top of this file"
    main()
