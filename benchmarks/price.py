"""The price of robustness: clean accuracy against worst case, one objective beside another, at one training budget.

    export OMP_NUM_THREADS=1   # the number of threads changes the order of sums, and so the run
    python benchmarks/price.py --dataset digits
    python benchmarks/price.py --dataset cifar10 --data-dir ../shared/data --rows pgd-at trades-6 guided-10 --seeds 0

Every row is one run of `ducat train` and one of `ducat evaluate --suite standard`, by the functions behind those
commands. Schedule, ramp, averaging, network and batch size are the same in all of them; only the objective differs.

The budget is counted in network passes for each training image, because seconds depend on what else a machine does. A
pass is one forward pass, or one backward pass that yields gradients of either activations or weights. A step of an
attack takes 2 of them and an update 3 for each half of the batch that it learns from: 13 for PGD-AT with 5 steps,
16 with clean images beside the adversarial ones, 8.5 for guided training. A row trains for as many epochs as the
budget pays for, with the dummy phase of `--ducat folded` in its last fifth. Validation is not counted. A guided run
that falls back to PGD takes more than its budget; its row says so.

The last weights are measured, not those that were best on val: the rate ends at 0 and the weights are averaged, and
choosing would favour rows with more epochs.

Interrupted, it goes on where it was: a run that trained is resumed or left alone, an evaluation goes on after its
last attack, and a row that results/price-DATASET.json has is not run again. That file, .md, .png and .svg are written
anew after each row, with all rows that were ever measured; seeds come one after another, so that there is soon a whole
picture with one of them. A row of
digits takes about 90 s on one free core; one of CIFAR-10 about 40 minutes of one core with AVX-512-BF16.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from one_thread import require_one_thread
from price_report import write
from price_rows import Row
from worst_case import measured

from ducat_serve.checkpoint import read_checkpoint
from ducat_serve.errors import DucatError, InterruptedRun, UsageError
from ducat_serve.output import Output
from training.config import TrainConfig
from training.objectives import objective_class
from training.run.folder import RunFolder
from training.run.start import Run, new_config, opened, train
from training.run.state import load_state

MODES = ("off", "folded")
RAMP = 1 / 6  # of the epochs: over which eps grows from 0
_REFERENCE = {"trades": 1.0, "guided": 0.5}  # passes of the attack to see the clean images' logits


@dataclass(frozen=True)
class Setting:
    """What all rows of a data set have in common, as options of `ducat train`; and what they may cost."""

    train: dict[str, Any]
    budget: float  # network passes for each training image
    samples: int  # test images


_SCHEDULE: dict[str, Any] = {"schedule": "one-cycle", "ema_warmup": True}
SETTINGS = {
    # The recipe's ball, and few epochs: with more, PGD-AT is at 99 % clean and has nothing left to gain.
    "digits": Setting(
        {
            **_SCHEDULE,
            "network": "resnet-small",
            "batch_size": 128,
            "eps": 0.2,
            "attack_steps": 5,
            "ema_decay": 0.99,
        },
        budget=260,
        samples=359,
    ),
    "cifar10": Setting(
        # Two steps: with ten the baselines would see each image a third as often as what they are compared with.
        {
            **_SCHEDULE,
            "network": "resnet14",
            "attack_steps": 2,
            "step_size": 5 / 255,
            "ema_decay": 0.9995,
        },
        budget=100,
        samples=1000,
    ),
}

# A row's name without mode and seed, and its objective. The ends of the sweeps come last.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "pgd-at": {"method": "pgd-at"},
    "half": {"method": "pgd-at", "clean_share": 0.5},
    "trades-6": {"method": "trades", "beta": 6.0},
    "guided-10": {"method": "guided", "beta": 10.0},
    "pairing-0.5": {"method": "pairing", "beta": 0.5},
    "trades-1": {"method": "trades", "beta": 1.0},
    "guided-2.5": {"method": "guided", "beta": 2.5},
    "guided-20": {"method": "guided", "beta": 20.0},
    "trades-3": {"method": "trades", "beta": 3.0},
    "guided-5": {"method": "guided", "beta": 5.0},
    "pairing-0.25": {"method": "pairing", "beta": 0.25},
    "pairing-1": {"method": "pairing", "beta": 1.0},
    "pairing-2": {"method": "pairing", "beta": 2.0},
}


def passes_per_image(config: TrainConfig, *, dummies: bool) -> float:
    """Network passes that an epoch spends on each of its images, in the dummy phase or before it."""
    steps = 1 if objective_class(config.method).attacks_in_one_step else config.attack_steps
    adversarial_alone = config.method == "pgd-at" and not dummies and not config.clean_share
    return 2 * steps + _REFERENCE.get(config.method, 0.0) + (3 if adversarial_alone else 6)


def passes_of_run(config: TrainConfig) -> float:
    """Network passes for each training image over all epochs."""
    epochs = range(1, config.epochs + 1)
    return sum(passes_per_image(config, dummies=config.is_dummy_phase(epoch)) for epoch in epochs)


@dataclass(frozen=True)
class Planned:
    """One run: an objective in one mode, with one seed, at a budget."""

    dataset: str
    objective: str  # a key of OBJECTIVES
    mode: str
    seed: int
    budget: float
    samples: int

    @property
    def name(self) -> str:
        return f"{self.objective}-{self.mode}-{self.seed}"

    def config(self) -> TrainConfig:
        """The longest run within the budget. Raises UsageError where that does not pay for one epoch."""
        longest = None
        epochs = 1
        while passes_of_run(config := self._resolved(epochs)) <= self.budget:
            longest, epochs = config, epochs + 1
        if longest is None:
            raise UsageError(f"--budget {self.budget:g} does not pay for an epoch of {self.name}.")
        return longest

    def options(self, epochs: int) -> dict[str, Any]:
        """What `ducat train` is given."""
        return {
            "dataset": self.dataset,
            **SETTINGS[self.dataset].train,
            **OBJECTIVES[self.objective],
            "ducat": self.mode,
            "epochs": epochs,
            "eps_ramp": max(1, round(RAMP * epochs)),
            "seed": self.seed,
        }

    def _resolved(self, epochs: int) -> TrainConfig:
        given = {"precision": None, **self.options(epochs)}
        return new_config(given, None, None, torch.device("cpu"))

    @property
    def command(self) -> str:
        """The same as commands of `ducat`."""
        words = ["ducat", "train"]
        for name, value in self.options(self.config().epochs).items():
            option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, f"{value}"]
        samples = f"--suite standard --max-examples {self.samples}"
        return f"{shlex.join(words)} --out RUN && ducat evaluate RUN/last.safetensors {samples}"


def trained(planned: Planned, folder: RunFolder, data_dir: Path | None, output: Output) -> TrainConfig:
    """Train as far as that was not done."""
    config = planned.config()
    resumed = folder.config.exists()
    if resumed and folder.read()[0] != config:
        raise UsageError(
            f"{folder.path} holds a run with other settings.", "delete it, or give another --runs"
        )
    if not (resumed and folder.curves.exists()):
        run = Run(config, folder, data_dir, offline=True, resumed=resumed)
        with opened(run, torch.device("cpu"), output) as trainer:
            train(trainer, run)
    return config


def run(planned: Planned, runs: Path, data_dir: Path | None, output: Output) -> Row:
    """Train, evaluate; what is found is a row of the results."""
    folder = RunFolder(runs / planned.name)
    config = trained(planned, folder, data_dir, output)
    spec, _ = read_checkpoint(folder.last)
    report = measured(folder.last, planned.samples, data_dir, output)
    return Row(
        objective=planned.objective,
        mode=planned.mode,
        seed=planned.seed,
        command=planned.command,
        epochs=config.epochs,
        passes=passes_of_run(config),
        fell_back=load_state(folder.state).fell_back,
        train_seconds=round(sum(row.seconds for row in folder.read_metrics()), 1),
        evaluate_seconds=round(report.seconds, 1),
        clean=report.clean_accuracy,
        clean_interval=report.clean_interval or (0.0, 1.0),
        worst_case=report.worst_case_accuracy,
        worst_case_interval=report.worst_case_interval,
        failed_checks=tuple(check.name for check in report.failed_checks),
        data=f"{report.dataset}, {report.examples} test images",
        threat_model=str(config.threat_model),
        network=config.network,
        precision=config.precision,
        weights_digest=report.weights_digest,
        data_digest=str(spec.training["data_digest"]),
    )


def recorded(file: Path, dataset: str, budget: float, samples: int) -> dict[str, Row]:
    """Rows that were measured before, whichever are asked for now. Raises UsageError for those of another study."""
    stored = json.loads(file.read_text()) if file.exists() else {}
    rows = {name: Row.read(document) for name, document in stored.items()}
    for row in rows.values():
        planned = Planned(dataset, row.objective, row.mode, row.seed, budget, samples)
        if planned.command != row.command:
            raise UsageError(
                f"{file} has {row.name} of another budget, other images or other settings.",
                "give another --results, or delete that row to measure it again",
            )
    return rows


def command_of(rows: Sequence[Row], dataset: str, samples: int, budget: float) -> str:
    """The one command that asks for all of these rows."""
    objectives = [name for name in OBJECTIVES if any(row.objective == name for row in rows)]
    modes = [mode for mode in MODES if any(row.mode == mode for row in rows)]
    seeds = sorted({row.seed for row in rows})
    command = f"python benchmarks/price.py --dataset {dataset} --rows {' '.join(objectives)}"
    command += "" if modes == list(MODES) else f" --modes {' '.join(modes)}"
    return command + f" --seeds {' '.join(map(str, seeds))} --samples {samples} --budget {budget:g}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", choices=SETTINGS, required=True)
    parser.add_argument("--rows", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of the dummies")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, help="test images  [default: 359; cifar10 1,000]")
    parser.add_argument("--budget", type=float, help="network passes for each training image")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the run folders go")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--only-write", action="store_true", help="run nothing; write what was measured")
    given = parser.parse_args()
    require_one_thread()
    setting = SETTINGS[given.dataset]
    samples, budget = given.samples or setting.samples, given.budget or setting.budget
    planned = [
        Planned(given.dataset, objective, mode, seed, budget, samples)
        for seed in given.seeds
        for objective in given.rows
        for mode in given.modes
    ]
    results = given.results / f"price-{given.dataset}"
    done = recorded(results.with_suffix(".json"), given.dataset, budget, samples)

    def write_all() -> None:
        """Also what earlier calls measured."""
        rows = sorted(
            done.values(), key=lambda row: (row.seed, list(OBJECTIVES).index(row.objective), row.mode)
        )
        write(results, rows, command_of(rows, given.dataset, samples, budget))

    output = Output()
    for number, row in enumerate(planned, 1):
        if row.name not in done and not given.only_write:
            output.say(f"{number} of {len(planned)}: {row.name}")
            try:
                done[row.name] = run(row, given.runs / f"price-{given.dataset}", given.data_dir, output)
            except InterruptedRun:
                raise
            except DucatError as error:  # a run that diverges is told, and ends nothing
                output.warn(f"{row.name}: {error.cause}")
                continue
            write_all()
    if done:
        write_all()


if __name__ == "__main__":
    main()
