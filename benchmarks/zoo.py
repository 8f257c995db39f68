"""The models that attacks are measured on: a zoo for each data set, made by `ducat` where it is missing.

The zoo of digits takes a minute or two for each network. A network of that of CIFAR-10 (JPEG) is trained for one to
four epochs with two attack steps: an epoch is 2 to 3 minutes of one core with bfloat16, and 10 without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ducat_serve.bundled import model_path
from ducat_serve.cli.main import run as ducat
from ducat_serve.deployed import Deployed, load


class Saturated(nn.Module):
    """The same decisions; where an image is decided clearly, its cross entropy is exactly 0."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 1000 * self.classifier(images)
        return logits


class Quantised(nn.Module):
    """Sees its images in 5 levels; rounding has gradient 0."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier((4 * images).round() / 4)
        return logits


@dataclass(frozen=True)
class Trained:
    """Trained here, with these options of `ducat train` beside those of the zoo."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """Weights that this repository has."""

    file: Path


@dataclass(frozen=True)
class Mixed:
    """Two models of the zoo as two towers."""

    standard: str
    robust: str


@dataclass(frozen=True)
class Wrapped:
    """A model of the zoo inside a module that masks its gradients."""

    of: str
    wrap: Callable[[nn.Module], nn.Module]


_RESULTS = Path(__file__).parents[1] / "results"

Entry = Trained | Stored | Mixed | Wrapped


@dataclass(frozen=True)
class Zoo:
    """Models by name. ``train`` is what all networks that are trained for it have in common."""

    dataset: str
    train: tuple[str, ...]
    entries: dict[str, Entry]
    data_dir: Path | None
    runs: Path

    def file(self, name: str) -> Path:
        """Where the model's weights are; it is made where it is missing.

        Raises:
            SystemExit: `ducat` has failed, and has said why.
        """
        entry = self.entries[name]
        if isinstance(entry, Stored):
            return entry.file
        if isinstance(entry, Wrapped):
            return self.file(entry.of)
        file = self.runs / name / "model.safetensors"
        if not file.is_file():
            data = [] if self.data_dir is None else ["--data-dir", str(self.data_dir)]
            if ducat(["--quiet", *self._command(entry, file), *data]) != 0:
                raise SystemExit(1)
        return file

    def model(self, name: str) -> Deployed:
        """The deployed function, in evaluation mode."""
        model, entry = load(self.file(name)), self.entries[name]
        return (
            Deployed(entry.wrap(model.classifier), model.fold).eval() if isinstance(entry, Wrapped) else model
        )

    def _command(self, entry: Trained | Mixed, file: Path) -> list[str]:
        if isinstance(entry, Mixed):
            towers = [str(self.file(tower)) for tower in (entry.standard, entry.robust)]
            return ["mix", *towers, "--out", str(file)]
        return ["train", "--dataset", self.dataset, *self.train, *entry.options, "--out", str(file.parent)]


def digits(data_dir: Path | None, runs: Path) -> Zoo:
    """Digits, linf 0.2."""
    off = ("--ducat", "off", "--epochs", "20")
    entries: dict[str, Entry] = {
        "plain": Trained(off),
        # Without the ramp TRADES ends at chance on some CPUs.
        "trades": Trained(("--method", "trades", "--eps-ramp", "5", *off)),
        "guided": Trained(("--method", "guided", *off)),
        "half": Trained(("--clean-share", "0.5", *off)),
        "paper": Trained(("--ducat", "paper", "--epochs", "20")),
        "folded": Trained(("--ducat", "folded", "--epochs", "20")),
        "under-trained": Trained(("--ducat", "off", "--epochs", "2")),
        "saturated": Wrapped("plain", Saturated),
        "quantised": Wrapped("plain", Quantised),
        "digits-small": Stored(model_path("digits-small", "safetensors")),
    }
    return Zoo("digits", ("--network", "resnet-small"), entries, data_dir, runs / "digits")


def cifar10(data_dir: Path | None, runs: Path) -> Zoo:
    """CIFAR-10 (JPEG), linf 8/255: the bundled network, what is made of it, and networks that are trained briefly."""
    short = (
        *("--network", "resnet14", "--epochs", "2", "--attack-steps", "2", "--step-size", "5/255"),
        *("--schedule", "one-cycle", "--ema-decay", "0.9995", "--ema-warmup"),
    )
    entries: dict[str, Entry] = {
        "cifar10-small": Stored(model_path("cifar10-small", "safetensors")),
        "standard": Stored(_RESULTS / "standard-resnet14.safetensors"),
        "mixed": Mixed("standard", "cifar10-small"),
        "saturated": Wrapped("cifar10-small", Saturated),
        "quantised": Wrapped("cifar10-small", Quantised),
        "plain": Trained(("--ducat", "off", "--epochs", "4")),
        "trades": Trained(("--method", "trades", "--ducat", "off")),
        "guided": Trained(("--method", "guided", "--ducat", "off")),
        "half": Trained(("--clean-share", "0.5", "--ducat", "off")),
        "paper": Trained(("--ducat", "paper")),
        "folded": Trained(("--ducat", "folded")),
        "under-trained": Trained(("--ducat", "off", "--epochs", "1")),
    }
    return Zoo("cifar10", short, entries, data_dir, runs / "cifar10")


ZOOS = {"digits": digits, "cifar10": cifar10}
