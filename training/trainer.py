"""The training loop: craft, update, validate, keep the best, and stop only where nothing is lost."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.deployed import Deployed, build_classifier, numpy_weights
from ducat_serve.errors import DataError, DucatError, InterruptedRun, UsageError
from ducat_serve.output import Output
from training.attacks.ball import Ball
from training.attacks.frozen import frozen
from training.attacks.pgd import ascend_loss
from training.batches import DeviceSplit, TrainingBatches
from training.config import TrainConfig
from training.data import Dataset
from training.device import exact_float32, fastest_layout
from training.initial_spec import initial_spec
from training.objectives import create_objective
from training.objectives.ducat import Ducat
from training.objectives.objective import in_float
from training.randomness import stream
from training.run_folder import RunFolder, kept_row
from training.signals import StopSignal
from training.state import RunState, load_state, save_state
from training.validation import ValidationResult, validate

# Long epochs are saved on the way as well; a state costs a second or two at most.
_SAVE_EVERY_SECONDS = 600
OVERFITTING_EPOCHS = 5


class Trainer:
    """One run: its model, data, optimizer and place. `run` goes on from wherever the place is."""

    def __init__(
        self, config: TrainConfig, dataset: Dataset, folder: RunFolder, device: torch.device, output: Output
    ) -> None:
        self.config, self.dataset, self.folder, self.device, self.output = (
            config,
            dataset,
            folder,
            device,
            output,
        )
        self.batches = TrainingBatches(
            DeviceSplit.of(dataset.train, device),
            config.batch_size,
            config.seed,
            config.crop_padding,
            config.flip,
        )
        if self.batches.steps == 0:
            raise UsageError(
                f"--batch-size {config.batch_size} is more than the {len(dataset.train)} training images."
            )
        self.val = DeviceSplit.of(dataset.val, device)
        self.spec = initial_spec(config, dataset)
        torch.manual_seed(config.seed)  # weight initialisation only; all else draws from `stream`
        self.layout = fastest_layout(config.network)
        self.classifier = build_classifier(self.spec).to(device).to(memory_format=self.layout)
        self.deployed = Deployed(self.classifier, self.spec.fold)
        ducat = Ducat(config.ducat, config.split_weight)
        self.objective = create_objective(config.method, ducat, config.beta)
        self.ball = Ball(config.norm, config.eps)
        self.optimizer = torch.optim.SGD(
            self.classifier.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.state = RunState()

    def resume(self) -> None:
        """Take up the state that the run folder holds. Raises DataError where it does not fit."""
        self.folder.require_data(self.dataset.digest)
        if not self.folder.state.exists():
            return  # killed before the first save: the run starts over, and comes out the same
        self.state = load_state(self.folder.state)
        try:
            self.classifier.network.load_state_dict(self.state.weights)
            self.optimizer.load_state_dict(self.state.optimizer)
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(f"{self.folder.state} does not fit this run: {error}.") from error
        self.folder.write_metrics(self.state.rows)

    def run(self, stop: StopSignal) -> dict[str, Any]:
        """Train to the last epoch; returns the summary of the run.

        Raises:
            InterruptedRun: a signal came; the state is saved.
            DucatError: the loss became NaN or infinite; the last good state is kept.
        """
        exact_float32()
        while self.state.epoch <= self.config.epochs:
            self._train_epoch(stop)
            self._finish_epoch(stop)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """What a finished run has to show."""
        best = kept_row(self.state.rows, self.config)
        assert best is not None
        return {
            "model": str(self.folder.model),
            "dataset": self.dataset.title,
            "epochs": len(self.state.rows),
            "best_epoch": best["epoch"],
            "best_val_clean_accuracy": best["val_clean_accuracy"],
            "best_val_pgd_accuracy": best["val_pgd_accuracy"],
            "pre_dummy_val_pgd_accuracy": self._pre_dummy_pgd_accuracy(),
        }

    def _pre_dummy_pgd_accuracy(self) -> float | None:
        start = self.config.ducat_start
        accuracy: float | None = (
            self.state.rows[start - 2]["val_pgd_accuracy"] if start and start > 1 else None
        )
        return accuracy

    def _train_epoch(self, stop: StopSignal) -> None:
        state, epoch = self.state, self.state.epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(epoch)
        order = self.batches.order(epoch)
        self.classifier.train()
        saved = time.monotonic()
        with self.output.progress(f"epoch {epoch}/{self.config.epochs}", self.batches.steps) as advance:
            advance(state.step)
            while state.step < self.batches.steps:
                started = time.monotonic()
                loss = self.train_step(order, epoch, state.step)
                state.seconds += time.monotonic() - started
                if not math.isfinite(loss):
                    raise self._diverged(loss)
                state.losses.append(loss)
                state.step += 1
                advance(note=f"loss {loss:.3f}, {self._images_per_second():,.0f} images/s")
                self._stop_if_asked(stop)
                if time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                    self._save()
                    saved = time.monotonic()

    def train_step(self, order: Tensor, epoch: int, step: int) -> float:
        """Craft, update; returns the loss. ``order`` is that of the epoch."""
        images, labels = self.batches.batch(order, epoch, step, self.objective.views)
        dummy_phase = self.config.is_dummy_phase(epoch)
        images = images.contiguous(memory_format=self.layout)
        adversarial = self.craft(images, labels, epoch, step, dummy_phase=dummy_phase)
        with self._autocast():
            loss = self.objective.loss(self.classifier, images, adversarial, labels, dummy_phase)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def craft(self, images: Tensor, labels: Tensor, epoch: int, step: int, *, dummy_phase: bool) -> Tensor:
        """The inner attack, in eval mode and without weight gradients."""
        generator = stream(self.config.seed, "attack", epoch, step, device=self.device)
        with frozen(self.classifier), self._autocast():
            reference = self.objective.reference(self.classifier, images)
            return ascend_loss(
                lambda x: self.objective.attack_loss(
                    in_float(self.classifier(x)), labels, reference, dummy_phase
                ),
                images,
                self.ball,
                start=self.objective.start(images, self.ball, generator),
                steps=self.config.attack_steps,
                step_size=self.config.step_size,
            )

    def _autocast(self) -> torch.autocast:
        """Perturbations and weights stay float32; only the network's arithmetic is bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _finish_epoch(self, stop: StopSignal) -> None:
        state, epoch = self.state, self.state.epoch
        self._require_finite_weights()
        # The paper chooses its checkpoint by the legacy accuracy, so a faithful `paper` does too.
        by_legacy = self.config.ducat == "paper" and self.config.is_dummy_phase(epoch)
        result = validate(
            self.deployed,
            self.val,
            self.config,
            legacy=by_legacy,
            between_batches=lambda: self._stop_if_asked(stop),
        )
        row = self._row(result)
        kept = kept_row([*state.rows, row], self.config)
        assert kept is not None
        if kept is row:
            self._write_model(self.folder.model)
        if epoch + 1 == self.config.ducat_start:
            self._write_model(self.folder.pre_dummy)
        self._write_model(self.folder.last)
        state.rows.append(row)
        state.epoch, state.step, state.losses, state.seconds = epoch + 1, 0, [], 0.0
        self._save()
        self.folder.write_metrics(state.rows)
        self._say(row)
        if is_overfitting([r["val_pgd_accuracy"] for r in state.rows]):
            self.output.warn(
                f"robust overfitting: PGD val accuracy fell for {OVERFITTING_EPOCHS} epochs; "
                f"{self.folder.model.name} keeps epoch {kept['epoch']}."
            )

    def _row(self, result: ValidationResult) -> dict[str, Any]:
        state = self.state
        return {
            "epoch": state.epoch,
            "phase": "dummy" if self.config.is_dummy_phase(state.epoch) else "adversarial",
            "learning_rate": round(self.config.learning_rate(state.epoch), 10),
            "loss": round(sum(state.losses) / len(state.losses), 6),
            "val_clean_accuracy": round(result.clean_accuracy, 6),
            "val_pgd_accuracy": round(result.pgd_accuracy, 6),
            "val_legacy_accuracy": _rounded(result.legacy_accuracy),
            "dummy_share_clean": _rounded(result.dummy_share_clean),
            "dummy_share_adversarial": _rounded(result.dummy_share_adversarial),
            "images_per_second": round(self._images_per_second(), 1),
            "seconds": round(state.seconds, 2),
        }

    def _say(self, row: dict[str, Any]) -> None:
        share = ""
        if row["val_legacy_accuracy"] != "":
            share = f" (legacy {row['val_legacy_accuracy']:.1%})"
        if row["dummy_share_clean"] != "":
            share += f"  dummy share {row['dummy_share_clean']:.2f} / {row['dummy_share_adversarial']:.2f}"
        self.output.say(
            f"epoch {row['epoch']:>3}/{self.config.epochs} {row['phase']:<11} loss {row['loss']:.4f}  "
            f"val clean {row['val_clean_accuracy']:.1%}  val PGD {row['val_pgd_accuracy']:.1%}{share}  "
            f"{row['images_per_second']:,.0f} images/s"
        )

    def _images_per_second(self) -> float:
        return len(self.state.losses) * self.config.batch_size / max(self.state.seconds, 1e-9)

    def _write_model(self, path: Path) -> None:
        tensors = numpy_weights(self.classifier)
        spec = self.spec.model_copy(update={"weights_digest": weights_digest(tensors)})
        write_checkpoint(path, tensors, spec)

    def _require_finite_weights(self) -> None:
        """A finite loss may be followed by an update that is not; such weights are never saved."""
        if not all(torch.isfinite(tensor).all() for tensor in self.classifier.network.state_dict().values()):
            raise self._diverged("followed by weights that are not finite")

    def _save(self) -> None:
        self._require_finite_weights()
        self.state.weights = self.classifier.network.state_dict()
        self.state.optimizer = self.optimizer.state_dict()
        save_state(self.folder.state, self.state)

    def _stop_if_asked(self, stop: StopSignal) -> None:
        if stop.received is not None:
            self._save()
            raise self._interrupted(stop.received)

    def _interrupted(self, signal_number: int) -> InterruptedRun:
        place = f"epoch {self.state.epoch}, step {self.state.step}"
        return InterruptedRun(
            signal_number, f"Interrupted; saved at {place}.", f"ducat train --resume {self.folder.path}"
        )

    def _diverged(self, loss: float | str) -> DucatError:
        kept = "The last good state is kept in" if self.folder.state.exists() else "No state was saved yet in"
        return DucatError(
            f"The loss is {loss} at epoch {self.state.epoch}, step {self.state.step}. {kept} {self.folder.path}.",
            "train again with a smaller --lr, or with --precision float32",
        )


def is_overfitting(accuracies: list[float]) -> bool:
    """Whether robust accuracy has just fallen for the ``OVERFITTING_EPOCHS``-th epoch in a row."""
    falls = [later < earlier for earlier, later in itertools.pairwise(accuracies)]
    recent = falls[-OVERFITTING_EPOCHS - 1 :]
    return (
        len(recent) >= OVERFITTING_EPOCHS
        and all(recent[-OVERFITTING_EPOCHS:])
        and (len(recent) == OVERFITTING_EPOCHS or not recent[0])
    )


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)
