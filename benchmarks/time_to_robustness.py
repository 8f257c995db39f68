"""Wall-clock until a network is as accurate and robust as one asks for: our recommended recipe beside a textbook loop.

    export OMP_NUM_THREADS=1
    python benchmarks/time_to_robustness.py --data-dir ../shared/data

Ours is `ducat train --recipe cifar10-hours`, with its validation and its saved states, both of which it pays for. The
textbook loop is that of training/textbook.py: PGD-10, float32, NCHW, a rate that drops to a tenth after 75 and 90 % of
its steps. Network, first weights, images and their order are the same. They take turns, so that both see the same
machine: an epoch of ours, then as many seconds of the other. After each epoch of either one its deployed function is
measured, clean and under PGD-20 on val images, and nobody is charged for that. Each stops at the first epoch that
reaches both.

Days on two cores. Interrupted, it goes on where it was when started again with the same options; what it knows is
written to results/time-to-robustness.json and .md after each turn.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from one_thread import require_one_thread
from race import Measurement, Progress, page, summary, take_turns
from torch import nn

from ducat_serve import atomic
from ducat_serve.deployed import Deployed
from ducat_serve.output import Output
from training.batches import TrainingBatches
from training.config import TrainConfig
from training.data import load_dataset
from training.device import exact_float32
from training.provenance import Provenance, git_revision
from training.run.folder import RunFolder
from training.run.start import new_config
from training.streamed import StreamedSplit
from training.textbook import Textbook
from training.trainer import Trainer
from training.validation import Validation

MEASURING_STEPS = 20
_DROPS = (0.75, 0.9)  # of the textbook's steps


class Measure:
    """Clean and PGD-20 accuracy of a deployed function on val images."""

    def __init__(self, val: StreamedSplit, config: TrainConfig) -> None:
        self._validation = Validation(val, config.model_copy(update={"attack_steps": MEASURING_STEPS}))

    def __call__(self, model: nn.Module, epoch: int, seconds: float) -> Measurement:
        result = self._validation(Deployed(model, "none"), legacy=False)
        return Measurement(epoch, round(seconds, 2), result.clean_accuracy, result.pgd_accuracy)


class Ours:
    """A run by our trainer, one epoch at a time."""

    def __init__(self, trainer: Trainer, measure: Measure, progress: Progress) -> None:
        self.trainer, self.measure, self.progress = trainer, measure, progress

    def take_up(self) -> None:
        """Go on where the run folder is; an epoch that was finished but not measured is measured now."""
        self.trainer.resume()
        for row in self.trainer.state.rows[len(self.progress.measurements) :]:
            self._add(row.seconds)

    def epoch(self) -> None:
        self.trainer.train_epoch()
        started = time.monotonic()
        self.trainer.finish_epoch()
        self._add(self.trainer.state.rows[-1].seconds + time.monotonic() - started)

    def _add(self, seconds: float) -> None:
        progress, batches = self.progress, self.trainer.batches
        progress.seconds += seconds
        progress.images += batches.steps * batches.batch_size
        epoch = len(progress.measurements) + 1
        progress.measurements.append(self.measure(self.trainer.kept, epoch, progress.seconds))


class TextbookRun:
    """A run by the textbook loop; its place, weights and progress are one file."""

    def __init__(
        self, textbook: Textbook, batches: TrainingBatches, measure: Measure, progress: Progress, file: Path
    ) -> None:
        self.textbook, self.batches, self.measure = textbook, batches, measure
        self.progress, self.file = progress, file
        self.step = 0  # of the epoch, counted from 0

    def take_up(self) -> None:
        if not self.file.exists():
            return
        stored = torch.load(self.file, weights_only=True)
        self.textbook.model.load_state_dict(stored["model"])
        self.textbook.optimizer.load_state_dict(stored["optimizer"])
        self.step, self.progress = stored["step"], Progress.read(stored["progress"])

    def until(self, seconds: float) -> None:
        """Train until it has had so many seconds, or to the end of the epoch, which is then measured."""
        progress, epoch = self.progress, len(self.progress.measurements) + 1
        order = self.batches.order(epoch)
        while self.step < self.batches.steps and progress.seconds < seconds:
            started = time.monotonic()
            self.textbook.optimizer.param_groups[0]["lr"] = self._rate(epoch)
            torch.manual_seed(epoch * self.batches.steps + self.step)  # a resumed run draws the same noise
            images, labels = self.batches.batch(order, epoch, self.step)
            self.textbook.step(images, labels, dummies=False)
            progress.seconds += time.monotonic() - started
            progress.images += len(images)
            self.step += 1
        if self.step == self.batches.steps:
            progress.measurements.append(self.measure(self.textbook.model, epoch, progress.seconds))
            self.step = 0
        self._save()

    def _rate(self, epoch: int) -> float:
        """Dropped at a step and not at the end of an epoch, of which a short run has too few."""
        done = (epoch - 1 + self.step / self.batches.steps) / self.progress.epochs
        return float(0.1 * 0.1 ** sum(done >= share for share in _DROPS))

    def _save(self) -> None:
        buffer = io.BytesIO()
        stored = {
            "model": self.textbook.model.state_dict(),
            "optimizer": self.textbook.optimizer.state_dict(),
            "step": self.step,
            "progress": asdict(self.progress),
        }
        torch.save(stored, buffer)
        atomic.write_bytes(self.file, buffer.getvalue())


@exact_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--recipe", default="cifar10-hours")
    parser.add_argument("--network", help="of both  [default: the recipe's]")
    parser.add_argument("--clean", type=float, default=0.65, help="clean accuracy to reach  [default: 0.65]")
    parser.add_argument("--pgd", type=float, default=0.42, help="accuracy under PGD-20  [default: 0.42]")
    parser.add_argument("--epochs", type=int, help="of ours  [default: the recipe's]")
    parser.add_argument("--textbook-epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    require_one_thread()
    device, output = torch.device("cpu"), Output()
    options = {"network": given.network, "precision": None, "epochs": given.epochs, "seed": given.seed}
    config = new_config({"dataset": given.dataset, **options}, given.recipe, None, device)
    data = load_dataset(
        config.dataset, data_dir=given.data_dir, offline=True, seed=config.seed, output=output
    )
    measure = Measure(StreamedSplit(data.val, device), config)
    folder = RunFolder(given.runs / "time-to-robustness")
    trainer = Trainer(config, data, folder, device, output)
    # Before anything is taken up, so that both begin with the same weights.
    plain = Textbook(trainer.classifier, config.eps, config.eps / 4)
    file = given.results / "time-to-robustness.json"
    textbook = TextbookRun(
        plain, trainer.batches, measure, Progress(given.textbook_epochs), folder.path / "textbook.pt"
    )
    ours = Ours(trainer, measure, Progress(config.epochs))
    with folder.locked():
        if folder.config.exists():
            if folder.read()[0] != config:
                raise SystemExit(f"{folder.path} holds a run with other options: delete it, or give --runs")
            if file.exists():
                ours.progress = Progress.read(json.loads(file.read_text())["ours"])
            ours.take_up()
            textbook.take_up()
        else:
            folder.create(config, given.data_dir, data.digest, Provenance(git_revision=git_revision()))

        command = (
            f"python benchmarks/time_to_robustness.py --data-dir DIR --dataset {given.dataset} --recipe {given.recipe} "
            f"--network {config.network} --clean {given.clean} --pgd {given.pgd} --epochs {config.epochs} "
            f"--textbook-epochs {given.textbook_epochs} --seed {given.seed}"
        )
        machine = f"a CPU with {torch.backends.cpu.get_cpu_capability()}, {config.precision} for ours"

        def write() -> None:
            found = summary(ours.progress, textbook.progress, given.clean, given.pgd)
            about = {"command": command, "network": config.network, "data": data.title, "machine": machine}
            document = {**about, **found}
            given.results.mkdir(parents=True, exist_ok=True)
            atomic.write_text(file, json.dumps(document, indent=1) + "\n")
            atomic.write_text(file.with_suffix(".md"), page(document))

        take_turns(
            ours.progress,
            textbook.progress,
            given.clean,
            given.pgd,
            epoch_of_ours=ours.epoch,
            textbook_until=textbook.until,
            after_each=write,
        )
        write()


if __name__ == "__main__":
    main()
