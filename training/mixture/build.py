"""From two towers and a switch to one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from ducat_serve.checkpoint import weights_digest, write_checkpoint
from ducat_serve.deployed import Classifier, Deployed, numpy_weights
from ducat_serve.errors import UsageError
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.spec import ModelSpec, Normalisation
from training.mixture.dial import Setting

NETWORK = "two-towers"
FEWEST_CLASSES = 3


def require_towers(standard: ModelSpec, robust: ModelSpec) -> None:
    """Raise UsageError for two models that cannot be the towers of one."""
    for name, spec in (("standard", standard), ("robust", robust)):
        if spec.towers is not None:
            raise UsageError(
                f"The {name} tower is a two-tower model itself; a switch has two sides.",
                "give the checkpoints that it was mixed from",
            )
        if spec.precision != "float32":
            raise UsageError(f"The {name} tower is in {spec.precision}.", "give a float32 checkpoint")
    if set(standard.labels) == set(robust.labels) and standard.labels != robust.labels:
        raise UsageError(
            f"The towers have the same classes in another order ({_start(standard)} and {_start(robust)}).",
            "train one of them again on the data set of the other",
        )
    if standard.labels != robust.labels:
        raise UsageError(
            f"The towers have other classes: {standard.num_classes} ({_start(standard)}) and {robust.num_classes} "
            f"({_start(robust)}).",
            "train both on the same data set",
        )
    if (standard.image_size, standard.channels) != (robust.image_size, robust.channels):
        raise UsageError(
            f"The towers take other images: {_images(standard)} and {_images(robust)}.",
            "train one of them again with the --image-size of the other",
        )
    if robust.num_classes < FEWEST_CLASSES:
        raise UsageError(
            "Two classes are too few for a switch: with their mean and variance taken away, two logits only tell which "
            "one is larger.",
            "deploy the robust tower alone",
        )


def _start(spec: ModelSpec) -> str:
    return ", ".join(spec.labels[:3]) + (", ..." if spec.num_classes > 3 else "")


def _images(spec: ModelSpec) -> str:
    return f"{spec.image_size[0]}x{spec.image_size[1]} with {spec.channels} channels"


@dataclass(frozen=True)
class Fitted:
    """A switch and what it was fitted on, as the ModelSpec records it; shares in [0, 1]."""

    setting: Setting
    asked: str  # `--give-up 2`, say
    val_images: int
    robust_clean: float
    robust_worst_case: float
    standard_clean: float
    command: str | None

    def recorded(self) -> dict[str, JsonValue]:
        """For the ModelSpec, which holds no path."""
        return {
            "asked": self.asked,
            "val_images": self.val_images,
            "val_clean": self.setting.clean,
            "val_floor": self.setting.floor,
            "robust_tower_val_clean": self.robust_clean,
            "robust_tower_val_worst_case": self.robust_worst_case,
            "standard_tower_val_clean": self.standard_clean,
        }


def write_mixture(standard: Deployed, robust: Deployed, fitted: Fitted, target: Path) -> ModelSpec:
    """Write both towers and the switch as one checkpoint, atomically; returns its spec.

    Each tower keeps its spec, with the digest of its weights. Data set, split and threat model are the robust tower's.
    """
    towers = tuple(model.spec.model_copy(update={"robustness": None}) for model in (standard, robust))
    base = robust.spec
    training: dict[str, JsonValue] = {
        key: base.training[key] for key in ("recipe", "data", "data_digest") if key in base.training
    }
    training["mixture"] = fitted.recorded()
    if fitted.command is not None:
        training["command"] = fitted.command
    spec = ModelSpec(
        network=NETWORK,
        num_classes=base.num_classes,
        labels=base.labels,
        channels=base.channels,
        image_size=base.image_size,
        # Each tower has its own.
        normalisation=Normalisation(mean=(0.0,) * base.channels, std=(1.0,) * base.channels),
        fold=fitted.setting.switch,
        threat_model=base.threat_model,
        training=training,
        weights_digest="",
        towers=(towers[0], towers[1]),
    )
    tensors = numpy_weights(Classifier(TwoTowers(standard, robust), spec))
    spec = spec.model_copy(update={"weights_digest": weights_digest(tensors)})
    write_checkpoint(target, tensors, spec)
    return spec
