"""The training loop: step, validate, keep the best, and stop only where nothing is lost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.deployed import Classifier, Deployed, build_classifier, load_weights, numpy_weights
from ducat_serve.errors import DataError, DucatError, InterruptedRun, UsageError
from ducat_serve.output import Output
from training.average import WeightAverage
from training.batches import DeviceSplit, TrainingBatches
from training.config import TrainConfig
from training.data import Dataset
from training.device import LAYOUT, exact_float32
from training.distributed.processes import World
from training.initial import InitialWeights
from training.initial_spec import initial_spec
from training.overfitting import OVERFITTING_EPOCHS, is_catastrophic, is_overfitting, is_spike
from training.run.folder import RunFolder, kept_row
from training.run.metrics import MetricsLog, make_row
from training.run.state import RunState, load_state, save_state
from training.signals import StopSignal
from training.step import TrainingStep
from training.validation import ValidationResult, validate

# Long epochs are saved on the way as well; a state costs a second or two at most.
_SAVE_EVERY_SECONDS = 600
# Losses are fetched from a GPU in bundles: reading each one would stop it at every step.
_GPU_BUNDLE = 16


class Trainer:
    """One run: its model, data and place. `run` goes on from wherever the place is."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        folder: RunFolder,
        device: torch.device,
        output: Output,
        *,
        initial: InitialWeights | None = None,
        world: World | None = None,
    ) -> None:
        self.config, self.dataset, self.folder, self.device = config, dataset, folder, device
        self.output, self.world = output, world or World()
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
        if config.batch_size < 2 * self.world.size:
            raise UsageError(
                f"--batch-size {config.batch_size} is shared by {self.world.size} processes: "
                "BatchNorm needs 2 images in each.",
                "a larger --batch-size, or fewer --devices",
            )
        self.val = DeviceSplit.of(dataset.val, device)
        self.spec = initial_spec(config, dataset, initial)
        self.classifier = self._build(initial)
        self.step = TrainingStep(config, self.classifier, self.batches, device, self.world)
        self.average = WeightAverage(self.classifier, config.ema_decay) if config.ema_decay else None
        self.log = MetricsLog(folder)
        self.bundle = _GPU_BUNDLE if device.type == "cuda" else 1
        self._pending: list[Tensor] = []
        self._started = (time.monotonic(), 0)
        self.state = RunState()

    def _build(self, initial: InitialWeights | None) -> Classifier:
        torch.manual_seed(self.config.seed)  # weight initialisation only; all else draws from `stream`
        classifier = build_classifier(self.spec)
        if initial is not None:
            load_weights(classifier, initial.tensors(self.spec), str(initial.path))
        if self.world.size > 1 and self.device.type == "cuda":
            convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            classifier.network = convert(classifier.network)  # type: ignore[no-untyped-call]
        return classifier.to(self.device).to(memory_format=LAYOUT)

    @property
    def kept(self) -> Classifier:
        """What is validated and saved: the averaged weights where there are any."""
        return self.average.classifier if self.average else self.classifier

    def resume(self) -> None:
        """Take up the state that the run folder holds. Raises DataError where it does not fit."""
        self.folder.require_data(self.dataset.digest)
        if not self.folder.state.exists():
            if self.config.initial_weights is not None:
                raise DataError(
                    f"The run in {self.folder.path} was stopped before its first state was saved.",
                    "start it again in another folder, with --initial-checkpoint",
                )
            return  # killed before the first save: the run starts over, and comes out the same
        self.state = load_state(self.folder.state)
        try:
            self.classifier.network.load_state_dict(self.state.weights)
            self.step.optimizer.load_state_dict(self.state.optimizer)
            if self.average:
                self.average.load_state_dict(self.state.average)
        except (RuntimeError, ValueError, KeyError) as error:
            raise DataError(f"{self.folder.state} does not fit this run: {error}.") from error
        if self.world.is_first:
            self.folder.write_metrics(self.state.rows)

    def run(self, stop: StopSignal) -> dict[str, Any]:
        """Train to the last epoch; returns the summary of the run.

        Raises:
            InterruptedRun: a signal came; the state is saved.
            DucatError: the loss became NaN, infinite or a multiple of what it was; the last good state is kept.
        """
        exact_float32()
        if self.config.initial_weights is not None and not self.folder.state.exists():
            self._save()  # so that no resumption needs the initial checkpoint
        self.step.between = lambda: self._stop_at_once(stop)
        self._started = (time.monotonic(), len(self.state.rows))
        try:
            while self.state.epoch <= self.config.epochs:
                self._train_epoch(stop)
                self._finish_epoch(stop)
        except RuntimeError as error:
            if not self.world.was_lost(error):
                raise
            raise DucatError(
                f"Another process of this run is gone; the last saved state is kept in {self.folder.path}.",
                f"ducat train --resume {self.folder.path}",
            ) from error
        finally:
            self.log.close()
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
        for group in self.step.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(epoch)
        order = self.batches.order(epoch)
        self.classifier.train()
        saved = time.monotonic()
        with self.output.progress(f"epoch {epoch}/{self.config.epochs}", self.batches.steps) as advance:
            advance(state.step)
            while state.step < self.batches.steps:
                started = time.monotonic()
                self._pending.append(self.train_step(order, epoch, state.step))
                state.step += 1
                due = time.monotonic() - saved > _SAVE_EVERY_SECONDS
                asked = self.world.agree(stop.received or 0)
                if len(self._pending) == self.bundle or state.step == self.batches.steps:
                    self._read_losses()
                state.seconds += time.monotonic() - started
                note = f"loss {state.losses[-1]:.3f}, " if state.losses else ""
                advance(note=f"{note}{self._images_per_second():,.0f} images/s")
                if asked:
                    raise self._interrupted(asked)
                if due:
                    self._save()
                    saved = time.monotonic()

    def train_step(self, order: Tensor, epoch: int, step: int) -> Tensor:
        """Craft, update, average; returns the loss. ``order`` is that of the epoch."""
        loss = self.step(order, epoch, step, one_step_attack=self._is_one_step(epoch))
        if self.average:
            self.average.update(self.classifier)
        return loss

    def _is_one_step(self, epoch: int) -> bool:
        chosen = self.config.inner_attack == "n-fgsm" and not self.state.fell_back
        return chosen and not self.config.is_dummy_phase(epoch)

    def _read_losses(self) -> None:
        """Move losses of steps that were done to the state; stop the run at one that is not sound."""
        if not self._pending:
            return
        first = self.state.step - len(self._pending)
        for step, loss in enumerate(torch.stack(self._pending).tolist(), first):
            if not math.isfinite(loss) or is_spike(loss, self.state.losses, self.spec.num_logits):
                self.state.step = step
                raise self._diverged(f"{loss:.4g}")
            self.state.losses.append(loss)
        self._pending.clear()

    def _finish_epoch(self, stop: StopSignal) -> None:
        state, epoch = self.state, self.state.epoch
        self._require_finite_weights()
        # The paper chooses its checkpoint by the legacy accuracy, so a faithful `paper` does too.
        by_legacy = self.config.ducat == "paper" and self.config.is_dummy_phase(epoch)
        one_step = self._is_one_step(epoch)
        result = validate(
            Deployed(self.kept, self.spec.fold),
            self.val,
            self.config,
            legacy=by_legacy,
            one_step=one_step,
            between_batches=lambda: self._stop_at_once(stop),
            world=self.world,
        )
        row = self._row(result)
        rows = [*state.rows, row]
        kept = kept_row(rows, self.config)
        fell_back = one_step and is_catastrophic(rows)
        if self.world.is_first:
            self._write_models(epoch, is_best=kept is row)
        state.rows, state.fell_back = rows, state.fell_back or fell_back
        state.epoch, state.step, state.losses, state.seconds = epoch + 1, 0, [], 0.0
        self._save()
        if self.world.is_first:
            self.folder.write_metrics(state.rows)
            self.log.add(row)
        self._report(row, kept, fell_back)

    def _write_models(self, epoch: int, *, is_best: bool) -> None:
        if is_best:
            self._write_model(self.folder.model)
        if epoch + 1 == self.config.ducat_start:
            self._write_model(self.folder.pre_dummy)
        if self.config.save_every and epoch % self.config.save_every == 0:
            self._write_model(self.folder.of_epoch(epoch))
        self._write_model(self.folder.last)

    def _row(self, result: ValidationResult) -> dict[str, Any]:
        state = self.state
        return make_row(
            self.config,
            state.epoch,
            result,
            loss=sum(state.losses) / len(state.losses),
            images_per_second=self._images_per_second(),
            seconds=state.seconds,
        )

    def _report(self, row: dict[str, Any], kept: Mapping[str, Any] | None, fell_back: bool) -> None:
        assert kept is not None
        left = self._seconds_left()
        line = f"{self.log.line(row, self.config.epochs)}  {timedelta(seconds=left)} left"
        self.output.event("epoch", line, **row, seconds_left=left)
        if fell_back:
            self.output.warn(
                "catastrophic overfitting: PGD val accuracy collapsed while accuracy under one-step attacks did not. "
                f"From epoch {row['epoch'] + 1} on the inner attack is PGD-{self.config.attack_steps}."
            )
        if is_overfitting([r["val_pgd_accuracy"] for r in self.state.rows]):
            self.output.warn(
                f"robust overfitting: PGD val accuracy fell for {OVERFITTING_EPOCHS} epochs; "
                f"{self.folder.model.name} keeps epoch {kept['epoch']}."
            )

    def _seconds_left(self) -> int:
        """As long as the remaining epochs take at the pace of this process, validation included."""
        started, before = self._started
        pace = (time.monotonic() - started) / (len(self.state.rows) - before)
        return round(pace * (self.config.epochs - len(self.state.rows)))

    def _images_per_second(self) -> float:
        return self.state.step * self.config.batch_size / max(self.state.seconds, 1e-9)

    def _write_model(self, path: Path) -> None:
        tensors = numpy_weights(self.kept)
        spec = self.spec.model_copy(update={"weights_digest": weights_digest(tensors)})
        write_checkpoint(path, tensors, spec)

    def _require_finite_weights(self) -> None:
        """A finite loss may be followed by an update that is not; such weights are never saved."""
        if not all(torch.isfinite(tensor).all() for tensor in self.classifier.network.state_dict().values()):
            raise self._diverged("followed by weights that are not finite")

    def _save(self) -> None:
        self._read_losses()
        if not self.world.is_first:
            return
        self._require_finite_weights()
        self.state.weights = self.classifier.network.state_dict()
        self.state.optimizer = self.step.optimizer.state_dict()
        self.state.average = self.average.state_dict() if self.average else {}
        save_state(self.folder.state, self.state)

    def _stop_at_once(self, stop: StopSignal) -> None:
        """Inside an attack or a validation, whose work is then done again; several processes stop after a step."""
        if stop.received is not None and self.world.size == 1:
            raise self._interrupted(stop.received)

    def _interrupted(self, signal_number: int) -> InterruptedRun:
        self._save()
        place = f"epoch {self.state.epoch}, step {self.state.step}"
        return InterruptedRun(
            signal_number, f"Interrupted; saved at {place}.", f"ducat train --resume {self.folder.path}"
        )

    def _diverged(self, loss: str) -> DucatError:
        kept = "The last good state is kept in" if self.folder.state.exists() else "No state was saved yet in"
        return DucatError(
            f"The loss is {loss} at epoch {self.state.epoch}, step {self.state.step}. {kept} {self.folder.path}.",
            "train again with a smaller --lr, or with --precision float32",
        )
