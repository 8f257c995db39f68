"""Somebody else's model: any `torch.nn.Module` from images in [0, 1] to logits, measured as our own are.

Nothing of it is stored, and its report is bound to a digest of its state_dict. What would make a figure meaningless is
refused, and what makes one doubtful is said by name before an attack runs.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.errors import DucatError, UsageError
from ducat_serve.networks import own
from ducat_serve.output import Output
from ducat_serve.report import Artefact
from ducat_serve.spec import Fold, Normalisation
from ducat_serve.threat_model import ThreatModel
from training.attacks.base import Attack, TargetModel
from training.attacks.own import AttackFunction
from training.batches import DeviceSplit, to_pixels
from training.device import exact_float32
from training.evaluation.doubts import (
    Doubt,
    doubts,
    gradient_doubt,
    guessing,
    infinite_gradients,
    repeated_images,
)
from training.evaluation.evaluate import Plan, Subject
from training.evaluation.stages import attack_named, on_doubt, score_attacks
from training.evaluation.stages import suite as attacks_of
from training.memory import is_out_of_memory

_SAMPLE = 8  # images that a model is tried on before it is attacked
_TWIN_SAMPLE = 64
_GUESSING_SAMPLE = 256
_ALIKE = 0.9  # share of equal answers from which nothing is said of a twin
_FOR_FLOAT32 = "call model.float(), or cast its images inside a wrapper: they come as float32"
_NO_STATE = Doubt(
    "weights elsewhere",
    "the state_dict is empty, so that the digest in the report is that of every such model",
)


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, and how it is attacked.

    Args:
        digest: SHA-256 of what answers: of the state_dict, or of the file.
        artefact: anything but "checkpoint" is attacked by its scores alone.
        twin: a model of the same classes that has gradients, to make images on that are then shown to the other.
    """

    digest: str
    artefact: Artefact = "checkpoint"
    twin: nn.Module | None = None


@exact_float32()
def prepare_model(
    model: nn.Module,
    data: DeviceSplit,
    threat_model: ThreatModel,
    *,
    suite: str,
    attacks: Sequence[str | AttackFunction],
    fold: Fold,
    class_names: Sequence[str] | None,
    dataset: str,
    batch_size: int,
    seed: int,
    output: Output,
    origin: Origin,
    split: Literal["val", "test"] = "test",
) -> tuple[Subject, Plan]:
    """What `evaluate` needs to measure the model; doubts are said.

    Arguments and errors as for `ducat_serve.evaluate_model`.
    """
    if any(module.training for module in model.modules()):
        raise UsageError(
            "The model is in train mode; what is deployed is in eval mode.",
            "call model.eval(); of a program of torch.export measure the module that it was made of",
        )
    answers = _answers(model, data)
    model = _OnCopies(model).eval()
    classes = _classes(answers, fold)
    sample = to_pixels(data.images[:_SAMPLE])
    found = [
        *doubts(model, sample),
        *_other_arithmetic(answers),
        *repeated_images(data.images),
    ]
    names = tuple(class_names) if class_names is not None else tuple(str(i) for i in range(classes))
    _require_width(classes, names, fold)
    has_code = origin.artefact == "checkpoint"
    no_gradient = gradient_doubt(model, sample[:1]) if has_code else None
    differentiable = has_code and no_gradient is None
    if no_gradient is not None:
        found.append(no_gradient)
    elif has_code:
        found += infinite_gradients(model, sample)
    if has_code and not model.state_dict():
        found.append(_NO_STATE)
    if origin.artefact != "server":  # of which every answer is dear
        found += _guessing(Deployed(model, fold), data, classes)
    twin = None
    if origin.twin is not None:
        twin, unlike = _twin(origin.twin, model, data, classes)
        found += unlike
    for doubt in found:
        output.warn(f"{doubt}.")
    subject = Subject(
        Deployed(model, fold).eval(),
        data,
        names,
        origin.digest,
        dataset=dataset,
        split=split,
        artefact=origin.artefact,
        gradients="none" if has_code and not differentiable else None,
        doubts=tuple(str(doubt) for doubt in found),
    )
    target = TargetModel(fold, classes, twin)
    if has_code and not differentiable:  # what was said above goes on with the others
        attacks = [name for name in attacks if not attack_named(name, target).needs_gradient]
    chosen = _attacks(suite, attacks, target, differentiable=differentiable)
    slow = () if attacks or not differentiable else tuple(on_doubt(suite, target))
    plan = Plan(threat_model, tuple(chosen), slow, seed, batch_size, sanity=differentiable)
    return subject, plan


def _attacks(
    suite: str, names: Sequence[str | AttackFunction], target: TargetModel, *, differentiable: bool
) -> list[Attack]:
    if "transfer" in names and target.surrogate is None:
        raise UsageError(
            "The transfer attack needs a model to make images on.",
            "name one of the same classes that has gradients: --twin package.module:callable",
        )
    if not differentiable:
        return score_attacks(suite, names, target, "measure a differentiable copy")
    return [attack_named(name, target) for name in names] or attacks_of(suite, target)


@torch.no_grad()
def _guessing(model: Deployed, data: DeviceSplit, classes: int) -> list[Doubt]:
    images, labels = data.images[:_GUESSING_SAMPLE], data.labels[:_GUESSING_SAMPLE]
    return guessing(model, to_pixels(images), labels, classes)


@torch.no_grad()
def _twin(twin: nn.Module, model: nn.Module, data: DeviceSplit, classes: int) -> tuple[Deployed, list[Doubt]]:
    """The twin, ready to be attacked, and whether it often answers otherwise: its images then transfer badly.

    Raises UsageError where it tells other classes apart.
    """
    answers = _answers(twin, data)
    if (width := _classes(answers, "none")) != classes:
        raise UsageError(f"--twin returns {width} logits, and the model {classes}.")
    twin = _OnCopies(twin).eval()
    images = to_pixels(data.images[:_TWIN_SAMPLE])
    agreement = (twin(images).argmax(dim=1) == model(images).argmax(dim=1)).double().mean().item()
    unlike = Doubt(
        "another twin",
        f"the twin answers as the model does on only {agreement:.0%} of {len(images)} clean images; images made on it "
        "may transfer badly",
    )
    return Deployed(twin, "none").eval(), [unlike] if agreement < _ALIKE else []


def import_model(name: str, import_from: Path | None = None, *, output: Output) -> nn.Module:
    """The model that a callable without arguments makes, in eval mode; where it was not, that is said.

    An attribute ``normalisation`` of it, (mean, std), is applied to the images.

    Fresh torch modules are in train mode, and the callable may have no other purpose than to make one. Who hands a
    model to `evaluate_model` can call eval() on it, and is refused.

    Args:
        name: `package.module:callable`.
        import_from: a folder to import from beside the installed packages; nothing is imported from the working
            directory unless it is asked for here.

    Raises:
        UsageError: no such module or callable, it fails, or what it returns is no `torch.nn.Module`.
    """
    model = own.call(name, own.import_callable(name, import_from))
    if any(module.training for module in model.modules()):
        output.say(
            f"{name} returns a model in train mode; it is measured in eval mode, as what is deployed is."
        )
    return _normalising(name, model, output).eval()


def _normalising(name: str, model: nn.Module, output: Output) -> nn.Module:
    """The model with the normalisation that it declares before it, as `ducat train` and `import` read it."""
    declared = getattr(model, "normalisation", None)
    if declared is None and isinstance(getattr(model, "normalization", None), list | tuple):
        output.warn(
            f"{name} has an attribute normalization, which is left to the model; it would be put before it if it were "
            "called normalisation."
        )
    if declared is None or isinstance(declared, nn.Module):  # a layer of its own normalises by itself
        return model
    channels = len(declared[0]) if isinstance(declared, Sequence) and isinstance(declared[0], Sized) else 0
    found = own.normalisation(model, channels)
    output.say(
        f"{name} declares its normalisation, which is put before it: mean {found.mean}, deviation {found.std}."
    )
    return _Normalised(model, found)


class _Normalised(nn.Module):
    """Images in [0, 1] to what a model answers to normalised ones."""

    def __init__(self, model: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.model = model
        for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model((images - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits


class _OnCopies(nn.Module):
    """A model that gets images of its own, over which it may write, and whose logits are made float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.clone())
        return logits.float()


def _other_arithmetic(answers: Tensor) -> list[Doubt]:
    """Whether logits are not float32; of a model in float64 nothing is lost."""
    if answers.dtype in (torch.float32, torch.float64):
        return []
    kind = str(answers.dtype).removeprefix("torch.")
    return [
        Doubt(
            f"logits in {kind}",
            "they are so coarse that they tie, and gradients mislead attacks. A float32 copy would be attacked better",
        )
    ]


def _answers(model: nn.Module, data: DeviceSplit) -> Tensor:
    """What the model says of the first images. Raises UsageError where that is anything but logits."""
    if len(data) == 0:
        raise UsageError("There are no images to measure on.")
    try:
        with torch.no_grad():
            answers = model(to_pixels(data.images[:_SAMPLE]))
    except DucatError:  # of a server or a file, which say themselves what is wrong
        raise
    except Exception as error:  # it is somebody else's code, and may raise anything
        if is_out_of_memory(error):
            raise
        size = " x ".join(str(n) for n in data.images.shape[1:])
        raise UsageError(
            f"The model does not take images of {size}: {type(error).__name__}: {error}.",
            _FOR_FLOAT32
            if _has_other_weights(model)
            else "wrap it so that it takes float32 images in [0, 1] of this size",
        ) from error
    if not isinstance(answers, Tensor) or answers.ndim != 2 or not answers.is_floating_point():
        kind = f"a tensor of {list(answers.shape)}" if isinstance(answers, Tensor) else type(answers).__name__
        raise UsageError(f"The model returns {kind}, not logits [N, C].", "wrap it so that it returns logits")
    return answers


def _has_other_weights(model: nn.Module) -> bool:
    return any(p.is_floating_point() and p.dtype != torch.float32 for p in model.parameters())


def _classes(answers: Tensor, fold: Fold) -> int:
    """How many classes a model tells apart. Raises UsageError where there is no dummy for every class."""
    width = answers.shape[1]
    if fold == "none":
        return width
    if width % 2:
        raise UsageError(
            f"The model returns {width} logits: no dummy for every class, so --fold {fold} is wrong."
        )
    return width // 2


def _require_width(classes: int, names: tuple[str, ...], fold: Fold) -> None:
    """Raise UsageError where the data set has other classes than the model tells apart."""
    if classes == len(names):
        return
    declared = f" and their dummies (--fold {fold})" if fold != "none" else ""
    has_pairs = fold == "none" and classes == 2 * len(names)
    raise UsageError(
        f"The model tells {classes} classes apart{declared}, and the data set has {len(names)}.",
        "declare its dummy classes: --fold max or --fold lse"
        if has_pairs
        else "measure it on its own data set",
    )
