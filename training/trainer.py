"""The training loop: step, validate, keep the best, and stop only where nothing is lost."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ducat_serve.checkpoint import read_spec, weights_digest, write_checkpoint
from ducat_serve.deployed import Classifier, Deployed, build_classifier, load_weights, numpy_weights
from ducat_serve.errors import DataError, DucatError, InterruptedRun, UsageError, command_line
from ducat_serve.networks.allowed import options_for
from ducat_serve.networks.head import head_of
from ducat_serve.output import Output
from ducat_serve.spec import ModelSpec
from training.attacks.ball import require_size
from training.average import WeightAverage
from training.batches import TrainingBatches
from training.chance import Chance
from training.collapse import (
    CollapseGuard,
    collapsed,
    has_collapsed,
    has_lost_one_step,
    is_to_be_said,
    sentence,
)
from training.config import TrainConfig
from training.core_watch import CoreWatch
from training.data import Dataset
from training.data.splits import fitting_batch_size
from training.device import LAYOUT, exact_float32
from training.distributed.processes import ProcessGroup
from training.initial import StartWeights, initial_spec, normalised_as
from training.optimizer import parameters_of
from training.overfitting import (
    fallback_warning,
    is_catastrophic,
    is_overfitting,
    is_sound,
    overfitting_warning,
)
from training.provenance import Provenance
from training.run.folder import RunFolder
from training.run.metrics import EpochRow, RunSummary, TensorBoardLog, kept_row, measured_alike
from training.run.state import RunState, load_state, require_fit, save_state
from training.signals import Stopped, StopSignal
from training.step import TrainingStep
from training.streamed import StreamedSplit
from training.validation import Validation

# Long epochs are saved on the way as well; a state costs a second or two at most.
_SAVE_EVERY_SECONDS = 600
# Losses are fetched from a GPU in bundles: reading each one would stop it at every step.
_GPU_BUNDLE = 16


class Trainer:
    """One run: its model, data and place. `run` goes on from wherever the place is; ``stop`` ends it early."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        folder: RunFolder,
        device: torch.device,
        output: Output,
        *,
        initial: StartWeights | None = None,
        processes: ProcessGroup | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self.config, self.dataset, self.folder, self.device = config, dataset, folder, device
        self.output, self.processes, self.stop = output, processes or ProcessGroup(), stop or StopSignal()
        self.batches = TrainingBatches(
            StreamedSplit(dataset.train, device),
            config.batch_size,
            config.seed,
            config.crop_padding,
            config.flip,
            config.balanced,
        )
        self._require_enough_images()
        pixels = math.prod(dataset.train.shape[1:])
        require_size("--eps", config.eps, config.norm, pixels)
        require_size("--step-size", config.step_size, config.norm, pixels)
        self.classifier = self._build(initial_spec(config, dataset), initial)
        self.spec, config = self.classifier.spec, self.config
        # Work is given up halfway by a run of one process alone; several stop together, after a step.
        inner_stop = self.stop if self.processes.size == 1 else StopSignal()
        self.step = TrainingStep(config, self.classifier, self.batches, device, self.processes, inner_stop)
        val = StreamedSplit(dataset.val, device)
        self.chance = Chance(torch.bincount(val.labels, minlength=self.spec.num_classes).tolist())
        self.validation = Validation(val, config, self.processes, inner_stop)
        self.average: WeightAverage | None = None
        if config.ema_decay:
            self.average = WeightAverage(self.classifier, config.ema_decay, warmup=config.ema_warmup)
        self.tensorboard = TensorBoardLog(folder.tensorboard)
        self.bundle = _GPU_BUNDLE if device.type == "cuda" else 1
        self._unread: list[Tensor] = []
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._cores = CoreWatch(threads, self._command_to_resume())
        self._started = (time.monotonic(), 0)
        self.state = RunState()

    def _require_enough_images(self) -> None:
        size = self.config.batch_size
        if self.batches.steps == 0:
            count = len(self.dataset.train)
            raise UsageError(
                f"--batch-size {size} is more than the {count} training images.",
                f"give --batch-size {fitting_batch_size(count)} or fewer, or more images",
            )
        if size < 2 * self.processes.size * self.config.portions:
            portions = f", in {self.config.portions} portions" if self.config.accumulate else ""
            raise UsageError(
                f"--batch-size {size} is shared by {self.processes.size} processes{portions}: "
                "BatchNorm needs 2 images in each.",
                "a larger --batch-size, or fewer --devices",
            )

    def _build(self, spec: ModelSpec, start: StartWeights | None) -> Classifier:
        torch.manual_seed(self.config.seed)  # weight initialisation only; all else draws from `stream`
        classifier = build_classifier(spec)
        if start is not None:
            self.config, classifier = normalised_as(start, classifier, self.config)
            load_weights(classifier, start.tensors(classifier), start.source)
            if notes := start.notes(classifier):
                self.output.event("start-weights", f"Start weights: {'; '.join(notes)}.", notes=list(notes))
        if self.processes.size > 1 and self.device.type == "cuda":
            convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
            classifier.network = convert(classifier.network)  # type: ignore[no-untyped-call]
        return classifier.to(self.device).to(memory_format=LAYOUT)

    @property
    def kept(self) -> Classifier:
        """What is validated and saved: the averaged weights where there are any."""
        return self.average.classifier if self.average else self.classifier

    def record(self, provenance: Provenance) -> None:
        """Say in every checkpoint from now on where this run comes from."""
        training = {**self.spec.training, **provenance.document()}
        self.spec = self.spec.model_copy(update={"training": training})

    def resume(self) -> None:
        """Take up the state that the run folder holds, and let metrics.csv say the same. Raises as `take_up`."""
        self.take_up()
        if self.processes.is_first and self.folder.state.exists():
            self.folder.write_metrics(self.state.rows)

    def take_up(self) -> None:
        """Take up the state that the run folder holds; nothing is written. Raises DataError where it does not fit."""
        self.folder.require_data(self.dataset.digest)
        if not self.folder.state.exists():
            if self.config.initial_weights is not None:
                raise DataError(
                    f"The run in {self.folder.path} was stopped before its first state was saved.",
                    "start it again in another folder, with --initial-checkpoint or --pretrained",
                )
            return  # killed before the first save: the run starts over, and comes out the same
        self.state = load_state(self.folder.state)
        try:
            require_fit(
                self.state,
                self.classifier.network.state_dict(),
                self.average.state_dict() if self.average else None,
                parameters_of(self.step.optimizer),
            )
            self.classifier.network.load_state_dict(self.state.weights)
            self.step.optimizer.load_state_dict(self.state.optimizer)
            if self.average:
                self.average.load_state_dict(self.state.average)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"{self.folder.state} does not fit this run: {error}.") from error

    @exact_float32()
    def run(self) -> RunSummary:
        """Train to the last epoch.

        Raises:
            InterruptedRun: a signal came; the state is saved.
            DucatError: the loss became NaN, infinite or a multiple of what it was, or the run has collapsed
                (`collapse.py`); the last good state and the best weights are kept.
        """
        if self.config.initial_weights is not None and not self.folder.state.exists():
            self._save()  # so that no resumption needs the initial checkpoint
        if self._has_lost_models():  # others may have a report by now, and stay
            self._write_models()
        self._started = (time.monotonic(), len(self.state.rows))
        try:
            while self.state.epoch <= self.config.epochs:
                self.train_epoch()
                self.finish_epoch()
        except Stopped as stopped:
            raise self._interrupted(stopped.signal_number) from None
        except RuntimeError as error:
            if not self.processes.was_lost(error):
                raise
            raise DucatError(
                f"Another process of this run is gone; the last saved state is kept in {self.folder.path}.",
                self._command_to_resume(),
            ) from error
        finally:
            self.tensorboard.close()
        return RunSummary.of(self.state.rows, self.config, self.folder.model, self.dataset.title)

    def train_epoch(self) -> None:
        """The steps of the epoch that are not done yet."""
        state, epoch = self.state, self.state.epoch
        order = self.batches.order(epoch)
        self.train_mode()
        saved = time.monotonic()
        with self.output.progress(f"epoch {epoch}/{self.config.epochs}", self.batches.steps) as advance:
            advance(state.step)
            while state.step < self.batches.steps:
                started = time.monotonic()
                self._unread.append(self.train_step(order, epoch, state.step))
                state.step += 1
                due = time.monotonic() - saved > _SAVE_EVERY_SECONDS
                stopped = 0
                if state.step % self.bundle == 0 or state.step == self.batches.steps:
                    self._read_losses()
                    # Here and not after each step, since processes that agree wait for their GPUs.
                    stopped = self.processes.agree(self.stop.received or 0)
                state.seconds += time.monotonic() - started
                note = f"loss {state.losses[-1]:.3f}, " if state.losses else ""
                advance(note=f"{note}{self._images_per_second():,.0f} images/s")
                if (doubt := self._cores.doubt()) is not None:
                    self.output.warn(doubt)
                if stopped:
                    raise Stopped(stopped)
                if due:
                    self._save()
                    saved = time.monotonic()

    def train_mode(self) -> None:
        """Put the classifier into train mode; where the head alone is trained, BatchNorm below it into eval mode.

        Else its statistics would move, and with them what the head is given.
        """
        self.classifier.train()
        if self.config.backbone_lr == 0:
            head = set(head_of(self.classifier.network).modules())
            for module in self.classifier.modules():
                if isinstance(module, _BatchNorm) and module not in head:
                    module.eval()

    def train_step(self, order: Tensor, epoch: int, step: int) -> Tensor:
        """Craft, update, average; returns the loss. ``order`` is that of the epoch."""
        attack = self.step.attack_of(epoch, step, one_step=self._is_one_step(epoch))
        loss = self.step(order, epoch, step, attack)
        if self.average:
            self.average.update(self.classifier)
        return loss

    def finish_epoch(self) -> None:
        """Validate, keep the weights if they are the best, save, report; the next epoch begins."""
        state, epoch = self.state, self.state.epoch
        self._require_finite_weights()
        one_step = self._is_one_step(epoch)
        row = self._validate(one_step)
        rows = [*state.rows, row]
        kept = kept_row(rows, self.config)
        assert kept is not None
        comparable = measured_alike(rows)
        catastrophic = one_step and is_catastrophic(comparable, self.chance)
        fell_back = catastrophic or has_lost_one_step(rows)
        state.rows, state.fell_back = rows, state.fell_back or fell_back
        state.epoch, state.step, state.losses, state.seconds = epoch + 1, 0, [], 0.0
        self._save()  # first, so that there is no model that no row tells of
        self._write_models()
        if self.processes.is_first:
            self.folder.write_metrics(state.rows)
            self.tensorboard.add(row)
        self._report(row)
        if has_collapsed(rows):
            raise collapsed(row, kept, self.config, self.folder, self.spec.labels)
        if is_to_be_said(rows, self.config):
            self.output.warn(f"epoch {epoch}: {sentence(row, self.spec.labels)}.")
        if fell_back:
            self.output.warn(fallback_warning(row, self.config.attack_steps, catastrophic=catastrophic))
        if self.config.is_adversarial and is_overfitting(comparable, self.chance):
            self.output.warn(overfitting_warning(kept, self.folder.model.name))

    def _is_one_step(self, epoch: int) -> bool:
        return self.step.is_one_step(epoch) and not self.state.fell_back

    def _validate(self, one_step: bool) -> EpochRow:
        state = self.state
        # The paper chooses its checkpoint by the legacy accuracy, so a faithful `paper` does too.
        legacy = self.config.ducat == "paper" and self.config.is_dummy_phase(state.epoch)
        result = self.validation(Deployed(self.kept, self.spec.fold), legacy=legacy, one_step=one_step)
        row = EpochRow.of(
            self.config,
            state.epoch,
            result,
            loss=sum(state.losses) / len(state.losses),
            images_per_second=self._images_per_second(),
            seconds=state.seconds,
        )
        guard = CollapseGuard(self.config, self.batches.steps)
        return replace(row, warning=guard.warning(state.rows, row, result))

    def _report(self, row: EpochRow) -> None:
        """The epoch for people and machines, with the time that the others take at the pace of this process."""
        started, before = self._started
        done, epochs = len(self.state.rows), self.config.epochs
        left = round((time.monotonic() - started) / (done - before) * (epochs - done))
        self.output.event("epoch", row.line(epochs, left), **row.cells(), seconds_left=left)

    def _images_per_second(self) -> float:
        return self.state.step * self.config.batch_size / max(self.state.seconds, 1e-9)

    def _read_losses(self) -> None:
        """Move losses of steps that were done to the state; stop the run at one that is not sound."""
        if not self._unread:
            return
        first = self.state.step - len(self._unread)
        for step, loss in enumerate(torch.stack(self._unread).tolist(), first):
            if not is_sound(loss, self.state.recent_losses, self.spec.num_logits):
                self.state.step = step
                raise self._diverged(f"{loss:.4g}")
            self.state.losses.append(loss)
        self._unread.clear()

    def _write_models(self) -> None:
        """Write the checkpoints of the epoch that was finished last."""
        rows, config = self.state.rows, self.config
        if not self.processes.is_first:
            return
        tensors = numpy_weights(self.kept)
        spec = self.spec.model_copy(update={"weights_digest": weights_digest(tensors)})
        is_best = kept_row(rows, config) is rows[-1]
        for path in self.folder.models_of(rows[-1].epoch, config, is_best=is_best):
            write_checkpoint(path, tensors, spec)

    def _has_lost_models(self) -> bool:
        """Whether the run was killed between the state of the epoch where it stands and its last checkpoint."""
        if not self.processes.is_first or not self.state.rows or self.state.step > 0:
            return False
        try:
            found = read_spec(self.folder.last).weights_digest  # which is written last
        except DucatError:
            return True
        return found != weights_digest(numpy_weights(self.kept))

    def _save(self) -> None:
        self._read_losses()
        if not self.processes.is_first:
            return
        self._require_finite_weights()
        self.state.weights = self.classifier.network.state_dict()
        self.state.optimizer = self.step.optimizer.state_dict()
        self.state.average = self.average.state_dict() if self.average else {}
        save_state(self.folder.state, self.state)

    def _require_finite_weights(self) -> None:
        """A finite loss may be followed by an update that is not; such weights are never saved."""
        if not all(torch.isfinite(tensor).all() for tensor in self.classifier.network.state_dict().values()):
            raise self._diverged("followed by weights that are not finite")

    def _interrupted(self, signal_number: int) -> InterruptedRun:
        self._save()
        place = f"epoch {self.state.epoch}, step {self.state.step}"
        return InterruptedRun(
            signal_number,
            f"Interrupted; saved at {place}.",
            self._command_to_resume(),
        )

    def _command_to_resume(self) -> str:
        return command_line("ducat", "train", "--resume", self.folder.path, *options_for(self.config.network))

    def _diverged(self, loss: str) -> DucatError:
        kept = "The last good state is kept in" if self.folder.state.exists() else "No state was saved yet in"
        return DucatError(
            f"The loss is {loss} at epoch {self.state.epoch}, step {self.state.step}. {kept} {self.folder.path}.",
            "train again with a smaller --lr"
            + ("" if self.config.precision == "float32" else ", or with --precision float32"),
        )
