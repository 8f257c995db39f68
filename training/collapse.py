"""Signs that a run has collapsed: what is warned of after an epoch, and what ends the run.

Of 1,440 published runs of robust fine-tuning one in five collapsed without a word (arXiv 2509.23325): at chance, or
accurate and not robust at all. A sign is written into the row of its epoch. It ends the run once it has lasted for
``PATIENCE`` epochs, since single epochs at a high learning rate come back. A run on one-step attacks that is not
robust for as long goes on with PGD instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ducat_serve.errors import DucatError, command_line
from training.chance import Chance
from training.config import TrainConfig
from training.run.folder import RunFolder
from training.run.metrics import AT_CHANCE, COLLAPSED, LASTING, EpochRow, kept_row, kind_of, sign_of
from training.validation import ValidationResult

NOT_ROBUST, LOST_CLASS = "not-robust", "lost-class"
PATIENCE = {AT_CHANCE: 3, NOT_ROBUST: 3, LOST_CLASS: 5}
# Epochs at chance, or not robust, of a run that never was better: fresh weights and a hard attack may take their time.
PATIENCE_OF_FRESH_WEIGHTS = 10
_USUAL_OF_FRESH_WEIGHTS = 2  # nobody is warned of so many

LEAST_ROBUST = 0.01
_KNOWN_EPOCHS = 3
_LAGS = 3  # time constants of the averaged weights, after which they are those of the run


@dataclass(frozen=True)
class CollapseGuard:
    """Looks at each finished epoch of a run of ``steps`` steps per epoch."""

    config: TrainConfig
    steps: int

    @property
    def first_epoch(self) -> int:
        """The first epoch that is judged: eps has reached its size, and averaged weights have forgotten the first."""
        config = self.config
        lag = 0
        if config.ema_decay is not None and not config.ema_warmup:
            lag = math.ceil(_LAGS / (1 - config.ema_decay) / self.steps)
        return 1 + max(config.eps_ramp or 0, lag)

    def warning(self, rows: Sequence[EpochRow], row: EpochRow, result: ValidationResult) -> str:
        """The sign to write into ``row``, the next of ``rows``, maybe behind `COLLAPSED` or `LASTING`; or nothing."""
        chance = Chance(result.class_sizes)
        better = [other for other in rows if chance.is_exceeded_by(other)]
        judged = row.epoch >= self.first_epoch or row.epoch == self.config.epochs
        sign = ""
        if not chance.is_exceeded_by(row):
            sign = AT_CHANCE if judged or better else ""
        elif judged:
            sign = self._sign_above_chance(rows, row, result)
        if not sign:
            return ""
        kind, is_fresh = kind_of(sign), self.config.initial_weights is None
        if kind == NOT_ROBUST:
            alike = [other for other in rows if other.is_of_one_step == row.is_of_one_step]
            # PGD may begin with weights that one-step attacks left, and averages remember those for a while.
            is_fresh = is_fresh or len(alike) < len(rows)
            rows = alike
            better = [other for other in rows if other in better and not self._is_not_robust(other, result)]
        if kind == LOST_CLASS:
            return COLLAPSED + sign if self._is_lost_for_good(rows, replace(row, warning=sign)) else sign
        is_patient = is_fresh and not better
        if 1 + _trailing(rows, kind) < (PATIENCE_OF_FRESH_WEIGHTS if is_patient else PATIENCE[kind]):
            return sign
        return (LASTING if kind == NOT_ROBUST and row.is_of_one_step else COLLAPSED) + sign

    def _sign_above_chance(self, rows: Sequence[EpochRow], row: EpochRow, result: ValidationResult) -> str:
        if self.config.is_adversarial and self._is_not_robust(row, result):
            return NOT_ROBUST
        lost = [index for index in result.lost_classes if _was_known(rows, index)]
        return f"{LOST_CLASS} {' '.join(map(str, lost))}" if lost else ""

    def _is_lost_for_good(self, rows: Sequence[EpochRow], row: EpochRow) -> bool:
        """Whether one and the same class has been lost for as long as patience lasts, and no epoch since was the best.

        A young run loses other classes in each epoch, and of a hard class no image may be right for a while: as long
        as such a run gets better it goes on.
        """
        rows = [*rows, row]
        kept = kept_row(rows, self.config)
        for index in lost_classes(row):
            lasted = next(
                (n for n, other in enumerate(reversed(rows)) if index not in lost_classes(other)), len(rows)
            )
            if lasted >= PATIENCE[LOST_CLASS] and (kept is None or kept.epoch <= row.epoch - lasted):
                return True
        return False

    def _is_not_robust(self, row: EpochRow, result: ValidationResult) -> bool:
        return row.val_pgd_accuracy < min(LEAST_ROBUST, 1 / len(result.class_sizes))


def _was_known(rows: Sequence[EpochRow], index: int) -> bool:
    """Whether some images of a class were right in several epochs: a class that was never learnt is not lost."""
    return sum(str(index) not in row.val_lost_classes.split() for row in rows) >= _KNOWN_EPOCHS


def has_collapsed(rows: Sequence[EpochRow]) -> bool:
    """Whether the last epoch ended the run."""
    return bool(rows) and rows[-1].warning.startswith(COLLAPSED)


def has_lost_one_step(rows: Sequence[EpochRow]) -> bool:
    """Whether one-step attacks have protected against nothing else for so long that PGD takes their place."""
    return bool(rows) and rows[-1].warning.startswith(LASTING)


def is_to_be_said(rows: Sequence[EpochRow], config: TrainConfig) -> bool:
    """Whether to warn of the last epoch's sign: when it appears, and not again while it lasts.

    Fresh weights are often at chance after an epoch or two, so then only the epoch after these is worth a warning, or
    the last one of the run.
    """
    last = rows[-1]
    if not last.warning:
        return False
    if _trailing(rows, AT_CHANCE) == len(rows) and config.initial_weights is None:
        return len(rows) == 1 + _USUAL_OF_FRESH_WEIGHTS or last.epoch == config.epochs
    return len(rows) == 1 or kind_of(rows[-2].warning) != kind_of(last.warning)


def lost_classes(row: EpochRow) -> list[int]:
    """Indices of the classes that an epoch had lost."""
    text = sign_of(row.warning)
    return [int(word) for word in text.split()[1:]] if kind_of(text) == LOST_CLASS else []


def sentence(row: EpochRow, labels: Sequence[str]) -> str:
    """What the sign in a row says, for people."""
    kind = kind_of(row.warning)
    if kind == AT_CHANCE:
        return f"accuracy on val is that of chance ({row.val_clean_accuracy:.1%} clean)"
    if kind == NOT_ROBUST:
        clean, pgd = f"{row.val_clean_accuracy:.1%}", f"{row.val_pgd_accuracy:.1%}"
        return f"accurate on val ({clean} clean), and not robust at all ({pgd} PGD)"
    names = ", ".join(f"'{labels[index]}'" for index in lost_classes(row))
    return f"no image of {names} in val is classified right any more"


def collapsed(
    row: EpochRow, kept: EpochRow, config: TrainConfig, folder: RunFolder, labels: Sequence[str]
) -> DucatError:
    """The error that ends a run: why, which epoch is kept, and which settings to change."""
    kind = kind_of(row.warning)
    if kind_of(kept.warning) in (AT_CHANCE, NOT_ROBUST):
        back = "No epoch before was any better."
    else:
        back = (
            f"{folder.model.name} keeps epoch {kept.epoch} ({kept.val_clean_accuracy:.1%} clean, "
            f"{kept.val_pgd_accuracy:.1%} PGD)."
        )
    return DucatError(
        f"The run has collapsed by epoch {row.epoch}: {sentence(row, labels)}. {back}",
        f"train again in another folder with {_change(kind, config)}"
        + (
            ""
            if back.startswith("No")
            else f"; {command_line('ducat', 'evaluate', folder.model)} measures what is kept"
        ),
    )


def _change(kind: str, config: TrainConfig) -> str:
    lower = f"--lr {config.lr / 10:g}"
    if config.backbone_lr == 0:
        return "--backbone-lr 0.1: the layers below the head are frozen, and what they see is not robust"
    if kind == LOST_CLASS and not config.balanced:
        return f"--balanced, if the class is rare, or {lower}"
    longer = max(1, config.epochs // 5)
    if config.is_adversarial and config.eps_ramp is None:
        ramp = f"--eps-ramp {longer}"
        return f"{ramp}, and if that is not enough {lower}" if kind == NOT_ROBUST else f"{lower}, or {ramp}"
    if kind == NOT_ROBUST and config.eps_ramp is not None:
        longer = min(config.epochs, 2 * config.eps_ramp)
        return f"--eps-ramp {longer}, or {lower}"
    return lower


def _trailing(rows: Sequence[EpochRow], kind: str) -> int:
    """For how many epochs in a row, up to the last one, the sign has been there."""
    count = 0
    for row in reversed(rows):
        if kind_of(row.warning) != kind:
            break
        count += 1
    return count
