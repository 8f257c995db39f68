"""What is asked of an evaluation, whichever model it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ducat_serve.predictor import Device
from ducat_serve.threat_model import Norm
from training.attacks.own import AttackFunction
from training.batches import at_a_time
from training.data import Dataset
from training.data.cache import Split
from training.data.splits import choose_images
from training.evaluation.runner import BATCH


@dataclass(frozen=True)
class EvaluationSettings:
    """The options of `ducat evaluate` that hold for every model, and say what each field means."""

    split: Literal["val", "test"] = "test"
    norm: Norm | None = None  # None: as trained, of others linf
    eps: tuple[float, ...] = ()  # several give a curve
    eight_bit: bool = False
    suite: str = "quick"
    attacks: tuple[str | AttackFunction, ...] = ()
    max_examples: int | None = None
    batch_size: int | None = None  # None: 256, and fewer images where they are large
    seed: int = 0
    data_dir: Path | None = None
    offline: bool = False
    device: Device = "auto"

    @property
    def has_own_attacks(self) -> bool:
        """Whether an attack is a function of the user's own."""
        return any(not isinstance(attack, str) for attack in self.attacks)

    def choose(self, data: Dataset) -> tuple[Split, tuple[int, ...]]:
        """The images to measure on, and their places in the split."""
        images = data.val if self.split == "val" else data.test
        return choose_images(images, self.max_examples, self.seed)

    def at_a_time(self, images: Split) -> int:
        """The batch size for these images."""
        return self.batch_size or at_a_time(BATCH, *images.shape[1:3])
