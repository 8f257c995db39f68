"""One row per epoch: what it holds, which of them was kept, how it reads, and TensorBoard's copy of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # `ducat runs` reads rows where there is no torch
    from tensorboardX import SummaryWriter

    from training.config import TrainConfig
    from training.validation import ValidationResult


@dataclass(frozen=True)
class EpochRow:
    """What a finished epoch has to show. Accuracies and shares in [0, 1]; None is what was not measured."""

    epoch: int  # counted from 1
    phase: str  # "adversarial", then "dummy"; "standard" in a run without adversarial images
    learning_rate: float  # in the middle of the epoch
    loss: float  # the mean over the epoch's steps
    val_clean_accuracy: float
    val_pgd_accuracy: float
    val_legacy_accuracy: float | None
    val_fgsm_accuracy: float | None
    dummy_share_clean: float | None
    dummy_share_adversarial: float | None
    images_per_second: float
    seconds: float
    val_balanced_accuracy: float | None = None  # the mean over classes of the share that is right, clean
    val_lost_classes: str = ""  # indices of classes of which no image in val is classified right, with blanks
    warning: str = ""  # a sign of collapse (`training/collapse.py`)
    val_attack: str = ""  # what measured robust accuracy, e.g. pgd-10; unknown in runs of older versions

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        epoch: int,
        result: ValidationResult,
        *,
        loss: float,
        images_per_second: float,
        seconds: float,
    ) -> EpochRow:
        """A row of measurements, rounded as they are written down."""
        return cls(
            epoch=epoch,
            phase=config.phase(epoch),
            learning_rate=round(config.rate_of_epoch(epoch), 10),
            loss=round(loss, 6),
            val_clean_accuracy=round(result.clean_accuracy, 6),
            val_pgd_accuracy=round(result.pgd_accuracy, 6),
            val_legacy_accuracy=_rounded(result.legacy_accuracy),
            val_fgsm_accuracy=_rounded(result.fgsm_accuracy),
            dummy_share_clean=_rounded(result.dummy_share_clean),
            dummy_share_adversarial=_rounded(result.dummy_share_adversarial),
            images_per_second=round(images_per_second, 1),
            seconds=round(seconds, 2),
            val_balanced_accuracy=_rounded(result.balanced_accuracy),
            val_lost_classes=" ".join(map(str, result.lost_classes)),
            val_attack=result.attack,
        )

    @classmethod
    def read(cls, cells: Mapping[str, Any]) -> EpochRow:
        """The row that `cells` wrote, from metrics.csv or last.pt.

        Columns that a run of an older version does not have count as not measured. Raises KeyError, TypeError or
        ValueError for anything else that is not a row.
        """

        def optional(name: str) -> float | None:
            return None if cells.get(name, "") == "" else float(cells[name])

        return cls(
            epoch=int(cells["epoch"]),
            phase=str(cells["phase"]),
            learning_rate=float(cells["learning_rate"]),
            loss=float(cells["loss"]),
            val_clean_accuracy=float(cells["val_clean_accuracy"]),
            val_pgd_accuracy=float(cells["val_pgd_accuracy"]),
            val_legacy_accuracy=optional("val_legacy_accuracy"),
            val_fgsm_accuracy=optional("val_fgsm_accuracy"),
            dummy_share_clean=optional("dummy_share_clean"),
            dummy_share_adversarial=optional("dummy_share_adversarial"),
            images_per_second=float(cells["images_per_second"]),
            seconds=float(cells["seconds"]),
            val_balanced_accuracy=optional("val_balanced_accuracy"),
            val_lost_classes=str(cells.get("val_lost_classes", "")),
            warning=str(cells.get("warning", "")),
            val_attack=str(cells.get("val_attack", "")),
        )

    @property
    def is_of_one_step(self) -> bool:
        """Whether its adversarial images took one step: then accuracy under FGSM was measured."""
        return self.val_fgsm_accuracy is not None

    def cells(self) -> dict[str, Any]:
        """By column, as metrics.csv, last.pt and `--json` events have it: what was not measured is empty."""
        return {name: "" if value is None else value for name, value in dataclasses.asdict(self).items()}

    def line(self, epochs: int, seconds_left: float) -> str:
        """For people, in 100 characters; ``epochs`` are those of the whole run. metrics.csv has all of it."""
        extra = ""
        if self.val_legacy_accuracy is not None:
            extra = f"  legacy {self.val_legacy_accuracy:.1%}"
        if self.val_fgsm_accuracy is not None:
            extra = f"  FGSM {self.val_fgsm_accuracy:.1%}"
        return (
            f"epoch {self.epoch:>{len(str(epochs))}}/{epochs}  {self.phase}  loss {self.loss:.2f}  "
            f"clean {self.val_clean_accuracy:.1%}  PGD {self.val_pgd_accuracy:.1%}{extra}  "
            f"{self.images_per_second:,.0f} img/s  {_duration(seconds_left)} left"
        )


COLLAPSED = "collapsed "  # before the warning of the epoch that ended a run
LASTING = "lasting "  # before that of the epoch after which PGD takes the place of one-step attacks
AT_CHANCE = "at-chance"  # the sign of an epoch that is no more accurate than guessing
COLUMNS = tuple(field.name for field in dataclasses.fields(EpochRow))


class Phases(Protocol):
    """What decides which epochs compete: a `TrainConfig`, or what is recorded of one."""

    @property
    def ducat_start(self) -> int | None: ...

    @property
    def is_adversarial(self) -> bool: ...


def kept_row(rows: Sequence[EpochRow], config: Phases) -> EpochRow | None:
    """The row whose weights are in `model.safetensors`; None where there are no rows.

    The most robust epoch, by the legacy accuracy where it was measured (see docs/architecture.md), then the most
    accurate, then the first. Once dummies are trained, earlier epochs no longer count. Without adversarial training the
    most accurate one: its robust accuracy is that of chance, and best where it has learnt least. Epochs at chance count
    only where there are no others: on imbalanced data, always naming the most common class is accurate and very robust.
    Robust accuracies are compared only where the attack of the newest epoch measured them.
    """
    if not config.is_adversarial:
        return max(_above_chance(rows), key=lambda row: row.val_clean_accuracy, default=None)
    with_dummies = [row for row in rows if row.epoch >= (config.ducat_start or 0)]
    return max(_above_chance(measured_alike(with_dummies or rows)), key=_selection_score, default=None)


def measured_alike(rows: Sequence[EpochRow]) -> list[EpochRow]:
    """Those whose robust accuracy was measured by the attack of the last one.

    A run that another version resumes may have rows of several attacks, and the weaker attack would look like the
    better weights.
    """
    return [row for row in rows if row.val_attack == rows[-1].val_attack]


def kind_of(warning: str) -> str:
    """The sign alone, without its classes."""
    return sign_of(warning).partition(" ")[0]


def sign_of(warning: str) -> str:
    """The sign and its classes, without what came of it."""
    return warning.removeprefix(COLLAPSED).removeprefix(LASTING)


def _above_chance(rows: Sequence[EpochRow]) -> Sequence[EpochRow]:
    return [row for row in rows if kind_of(row.warning) != AT_CHANCE] or rows


def _selection_score(row: EpochRow) -> tuple[float, float]:
    robust = row.val_pgd_accuracy if row.val_legacy_accuracy is None else row.val_legacy_accuracy
    return robust, row.val_clean_accuracy


@dataclass(frozen=True)
class RunSummary:
    """What a finished run has to show; accuracies on val, in [0, 1]."""

    model: str
    dataset: str
    epochs: int
    best_epoch: int
    best_val_clean_accuracy: float
    best_val_pgd_accuracy: float
    # Of the last epoch before the dummy phase, where there is one that the same attack measured.
    pre_dummy_val_pgd_accuracy: float | None

    @classmethod
    def of(cls, rows: Sequence[EpochRow], config: TrainConfig, model: Path, dataset: str) -> RunSummary:
        """Of a run with at least one finished epoch."""
        kept = kept_row(rows, config)
        assert kept is not None
        start = config.ducat_start or 1
        before = rows[start - 2] if start > 1 else None
        return cls(
            model=str(model),
            dataset=dataset,
            epochs=len(rows),
            best_epoch=kept.epoch,
            best_val_clean_accuracy=kept.val_clean_accuracy,
            best_val_pgd_accuracy=kept.val_pgd_accuracy,
            pre_dummy_val_pgd_accuracy=before.val_pgd_accuracy if before in measured_alike(rows) else None,
        )


class TensorBoardLog:
    """Rows for TensorBoard, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, row: EpochRow) -> None:
        """Add an epoch; the first one after a resumption replaces whatever came after it."""
        if self._writer is None:
            # A second and a half, which `ducat runs` need not wait for.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=row.epoch)
        for name, value in row.cells().items():
            if name not in ("epoch", "phase", "val_lost_classes", "warning", "val_attack") and value != "":
                self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
