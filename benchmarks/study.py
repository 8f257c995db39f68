"""Train and evaluate every row of a study, then write its table and plot. Long: hours on two cores.

    export OMP_NUM_THREADS=1   # the number of threads changes the order of sums, and so the run
    python benchmarks/study.py digits

Interrupted, it goes on where it was when started again: a run that trained is resumed or left alone, one that
carries a report is not evaluated again, one whose numbers are in results/study-STUDY.json is not run at all. Runs go to
runs/STUDY/; results/study-STUDY.json, .md and .png are written anew after each of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from one_thread import require_one_thread

from ducat_serve.checkpoint import read_spec
from ducat_serve.threat_model import format_size

Numbers = dict[str, Any]  # of one row, as they are in the JSON file
Groups = dict[tuple[str, ...], list[Numbers]]

# Those of the study: a method that is added to the package changes no results that were written before.
METHODS = ("pgd-at", "trades", "mart", "consistency")
MODES = ("off", "paper", "folded")
_FIRST_SUITE = (
    "the suite of 23 November 2026 (`pgd`, `apgd-ce`, `apgd-dlr`, `apgd-lse`, the pair margins, `targeted`, `transfer` "
    "and `square-warm`, where they apply)"
)


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
    branches: dict[tuple[str, ...], tuple[str, ...]] = {
        ("off", ""): ("--ducat", "off"),
        ("paper", ""): ("--ducat", "paper", "--ducat-start", "1"),
        **{
            ("folded", weight): ("--ducat", "folded", "--split-weight", weight, "--ducat-start", "1")
            for weight in ("0.1", "0", "1")
        },
    }
    branch = ("--inner-attack", "pgd", "--epochs", "1", "--lr", "0.01", "--lr-milestones", "1")
    return from_one_base("cifar10-quick", 6, branches, branch, examples=200)


def tiny_imagenet() -> Study:
    branches: dict[tuple[str, ...], tuple[str, ...]] = {
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
    return from_one_base("tiny-imagenet-quick", 16, branches, branch, examples=300)


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
        ducat("evaluate", str(path), *study.evaluate, "--resume")


def numbers(row: Row, study: Study, folder: Path) -> Numbers:
    """What the report of a row's model says, and how it came about."""
    spec = read_spec(folder / row.name / "model.safetensors")
    report = spec.robustness
    assert report is not None
    return {
        "group": list(row.group),
        "seed": row.seed,
        "train": list(row.train),
        "evaluate": list(study.evaluate),
        "clean": report.clean_accuracy,
        "worst_case": report.worst_case_accuracy,
        "worst_case_interval": list(report.worst_case_interval),
        "attacks": [attack.name for attack in report.attacks],
        "legacy": report.legacy_2c_accuracy,
        "failed_checks": list(report.failed_checks),
        "data": f"{report.dataset}, {report.examples} test images",
        "threat_model": f"{report.norm} {format_size(report.eps)}",
        "weights_digest": spec.weights_digest,
    }


def table(study: Study, groups: Groups) -> str:
    """Markdown, in per cent: mean and standard deviation over seeds, or one seed and its 95 % interval."""
    head = (*study.columns, "seeds", "clean", "worst case", "legacy 2C*")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for group, found in groups.items():
        low, high = (100 * end for end in found[0]["worst_case_interval"])
        interval = f" ({low:.1f} to {high:.1f})" if len(found) == 1 else ""
        cells = (
            *(f"`{name}`" if name else "" for name in group),
            str(len(found)),
            spread([n["clean"] for n in found]),
            spread([n["worst_case"] for n in found]) + interval,
            spread([n["legacy"] for n in found if n["legacy"] is not None]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    if not values:
        return ""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{deviation}"


def plot(groups: Groups, path: Path) -> None:
    """One line per group: every seed's worst case with its 95 % interval, and the legacy accuracy beside it."""
    figure = Figure(figsize=(7.5, 1.6 + 0.42 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    for line, found in enumerate(groups.values()):
        for place, n in enumerate(found):
            height = line + 0.18 * (place - (len(found) - 1) / 2)
            worst, (low, high) = 100 * n["worst_case"], (100 * end for end in n["worst_case_interval"])
            label = "worst case, each seed, 95 % interval" if (line, place) == (0, 0) else None
            spread_of_one = [[worst - low], [high - worst]]
            axes.errorbar([worst], [height], xerr=spread_of_one, fmt="o", ms=4, color="tab:blue", label=label)
            if n["legacy"] is not None:
                axes.plot(100 * n["legacy"], height, "x", ms=5, color="tab:orange")
    axes.plot([], [], "x", color="tab:orange", label="legacy 2C (non-adaptive, not a robustness claim)")
    axes.set_yticks(range(len(groups)), [" ".join(filter(None, group)) for group in groups])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy under attack, %")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    figure.savefig(path, dpi=120)


def attacks_of(rows: dict[str, Numbers]) -> str:
    """The attacks by name; rows from before they were recorded are all of one suite."""
    found = {", ".join(row["attacks"]) if "attacks" in row else _FIRST_SUITE for row in rows.values()}
    return "; or ".join(sorted(found))


def write(name: str, study: Study, done: dict[str, Numbers], results: Path) -> None:
    """The study as it stands: every row's numbers, a table, a plot, and the command."""
    results.mkdir(exist_ok=True)
    ordered = {row.name: done[row.name] for row in study.rows if row.name in done}
    (results / f"study-{name}.json").write_text(json.dumps(ordered, indent=1, sort_keys=True) + "\n")
    groups: Groups = defaultdict(list)
    for row in study.rows:
        if row.name in done:
            groups[row.group].append(done[row.name])
    if not groups:
        return
    plot(groups, results / f"study-{name}.png")
    one = next(iter(ordered.values()))
    commands = [f"ducat train {' '.join(row.train)} ..." for row in (*study.bases, study.rows[0])]
    text = f"""# Study: {name}

Written by the command below; what it means is said in docs/method.md. {len(ordered)} of {len(study.rows)} rows.
Data: {one["data"]}. Threat model: {one["threat_model"]}. Standard suite, float32, on the deployed function:
{attacks_of(ordered)}.
In per cent; mean ± standard deviation over seeds, or one seed and its 95 % interval. Machine: 2 x86-64 cores with
AMX or AVX-512-BF16, no GPU.

    export OMP_NUM_THREADS=1
    python benchmarks/study.py {name}

{table(study, groups)}

\\* non-adaptive, not a robustness claim.

A row is the epoch that its run kept: the best on val by PGD, but with `paper` the best of the dummy epochs by the
paper's own measure, as published. Part of what `paper` loses may be that choice.

![Worst case of every row](study-{name}.png)

Every row's numbers, commands and weights digest: study-{name}.json. The first of its commands:
`{"`, `".join(commands)}`.
"""
    (results / f"study-{name}.md").write_text(text)


def recorded(name: str, study: Study, results: Path) -> dict[str, Numbers]:
    """Rows that were measured before, by these very commands."""
    file = results / f"study-{name}.json"
    found: dict[str, Numbers] = json.loads(file.read_text()) if file.exists() else {}
    commands = {row.name: (list(row.train), list(study.evaluate)) for row in study.rows}
    return {key: n for key, n in found.items() if commands.get(key) == (n["train"], n["evaluate"])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument(
        "--only-write", action="store_true", help="train nothing; take the runs that are there"
    )
    given = parser.parse_args()
    require_one_thread()
    study, folder = STUDIES[given.study](), given.runs / given.study
    done = recorded(given.study, study, given.results)
    missing = [row for row in study.rows if row.name not in done]
    write(given.study, study, done, given.results)
    for row in (*study.bases, *missing) if missing else ():
        if not given.only_write:
            run(row, study, folder)
        model = folder / row.name / "model.safetensors"
        if row not in study.bases and model.exists() and read_spec(model).robustness is not None:
            done[row.name] = numbers(row, study, folder)
            write(given.study, study, done, given.results)


if __name__ == "__main__":
    main()
