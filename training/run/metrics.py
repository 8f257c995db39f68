"""One row per epoch: what it holds, how it reads on a terminal, and TensorBoard's copy of it."""

from __future__ import annotations

from typing import Any

from tensorboardX import SummaryWriter

from training.config import TrainConfig
from training.run.folder import RunFolder
from training.validation import ValidationResult


def make_row(
    config: TrainConfig,
    epoch: int,
    result: ValidationResult,
    *,
    loss: float,
    images_per_second: float,
    seconds: float,
) -> dict[str, Any]:
    """A row of metrics.csv; what was not measured is an empty string."""
    return {
        "epoch": epoch,
        "phase": "dummy" if config.is_dummy_phase(epoch) else "adversarial",
        "learning_rate": round(config.learning_rate(epoch), 10),
        "loss": round(loss, 6),
        "val_clean_accuracy": round(result.clean_accuracy, 6),
        "val_pgd_accuracy": round(result.pgd_accuracy, 6),
        "val_legacy_accuracy": _rounded(result.legacy_accuracy),
        "val_fgsm_accuracy": _rounded(result.fgsm_accuracy),
        "dummy_share_clean": _rounded(result.dummy_share_clean),
        "dummy_share_adversarial": _rounded(result.dummy_share_adversarial),
        "images_per_second": round(images_per_second, 1),
        "seconds": round(seconds, 2),
    }


class MetricsLog:
    """Prints rows and keeps them for TensorBoard, in `tensorboard/` of the run folder."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Add an epoch; the first one after a resumption replaces whatever came after it."""
        if self._writer is None:
            self._writer = SummaryWriter(str(self.folder.tensorboard), purge_step=row["epoch"])
        for name, value in row.items():
            if name not in ("epoch", "phase") and value != "":
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @staticmethod
    def line(row: dict[str, Any], epochs: int) -> str:
        """An epoch for people."""
        extra = ""
        if row["val_legacy_accuracy"] != "":
            extra = f" (legacy {row['val_legacy_accuracy']:.1%})"
        if row["val_fgsm_accuracy"] != "":
            extra = f" (FGSM {row['val_fgsm_accuracy']:.1%})"
        if row["dummy_share_clean"] != "":
            extra += f"  dummy share {row['dummy_share_clean']:.2f} / {row['dummy_share_adversarial']:.2f}"
        return (
            f"epoch {row['epoch']:>3}/{epochs} {row['phase']:<11} loss {row['loss']:.4f}  "
            f"val clean {row['val_clean_accuracy']:.1%}  val PGD {row['val_pgd_accuracy']:.1%}{extra}  "
            f"{row['images_per_second']:,.0f} images/s"
        )


def _rounded(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)
