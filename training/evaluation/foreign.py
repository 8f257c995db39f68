"""Somebody else's model: any `torch.nn.Module` from images in [0, 1] to logits, measured as our own are.

Nothing of it is stored, and its report is bound to a digest of its state_dict. What would make a figure meaningless is
refused, and what makes one doubtful is said by name before an attack runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ducat_serve.checkpoint import weights_digest
from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError
from ducat_serve.networks import own
from ducat_serve.output import Output
from ducat_serve.report import Artefact, RobustnessReport
from ducat_serve.spec import Fold
from ducat_serve.threat_model import ThreatModel
from training.attacks.base import Attack, TargetModel
from training.batches import DeviceSplit, to_pixels
from training.device import exact_float32
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.stages import attack_named, on_doubt, score_attacks
from training.evaluation.stages import suite as attacks_of

_SAMPLE = 8  # images that a model is tried on before it is attacked
_TWIN_SAMPLE = 64
_ALIKE = 0.9  # share of equal answers from which nothing is said of a twin
_SAME = 1e-4  # relative: what float32 arithmetic in another order may change


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


@dataclass(frozen=True)
class Doubt:
    """Something about a model that makes its figures doubtful."""

    name: str
    explanation: str


def evaluate_model(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    suite: str = "standard",
    attacks: Sequence[str] = (),
    fold: Fold = "none",
    class_names: Sequence[str] | None = None,
    dataset: str = "images",
    batch_size: int = 256,
    seed: int = 0,
    output: Output | None = None,
) -> RobustnessReport:
    """Clean and robust accuracy of any classifier, by the attacks that measure ours.

    Args:
        model: in eval mode; float32 images [N, channels, H, W] in [0, 1] to logits [N, C].
        images: uint8, or float32 in [0, 1], [N, channels, H, W]; on the device of the model.
        labels: int64 [N], from 0 to C - 1.
        threat_model: norm and eps, in pixels of [0, 1].
        suite: `quick`, `standard` or `full`; ``attacks`` names single ones in its place.
        fold: of a model with dummy classes that returns [N, 2C], the dummy of class i in column i + C: `max` or `lse`.
        class_names: of the C classes; their numbers unless given.

    Returns the report of `ducat evaluate`; ``weights_digest`` is that of the model's state_dict.

    Raises:
        UsageError: the model is in train mode, changes while it answers, returns anything but logits of the right
            width, or the images or labels do not fit.
        VerificationError: it answers NaN to clean images.

    Example:
        >>> report = evaluate_model(model, images, labels, ThreatModel(norm="linf", eps=8 / 255))
        >>> report.clean_accuracy, report.worst_case_accuracy
    """
    output = output or Output()
    subject, plan = prepare_model(
        model,
        DeviceSplit(images, labels),
        threat_model,
        suite=suite,
        attacks=attacks,
        fold=fold,
        class_names=class_names,
        dataset=dataset,
        batch_size=batch_size,
        seed=seed,
        output=output,
        origin=Origin(state_digest(model)),
    )
    return evaluate(subject, plan, output)


@exact_float32()
def prepare_model(
    model: nn.Module,
    data: DeviceSplit,
    threat_model: ThreatModel,
    *,
    suite: str,
    attacks: Sequence[str],
    fold: Fold,
    class_names: Sequence[str] | None,
    dataset: str,
    batch_size: int,
    seed: int,
    output: Output,
    origin: Origin,
    split: Literal["val", "test"] = "test",
) -> tuple[Subject, Plan]:
    """What `evaluate` needs to measure the model; doubts are said. Arguments and errors as for `evaluate_model`."""
    if any(module.training for module in model.modules()):
        raise UsageError("The model is in train mode; what is deployed is in eval mode.", "call model.eval()")
    classes = _classes(model, data, fold)
    for doubt in doubts(model, to_pixels(data.images[:_SAMPLE])):
        output.warn(f"{doubt.name}: {doubt.explanation}.")
    names = tuple(class_names) if class_names is not None else tuple(str(i) for i in range(classes))
    _require_width(classes, names, fold)
    deployed, artefact = Deployed(model, fold).eval(), origin.artefact
    subject = Subject(deployed, data, names, origin.digest, dataset=dataset, split=split, artefact=artefact)
    differentiable = artefact == "checkpoint" and has_gradient(model, to_pixels(data.images[:1]))
    if artefact == "checkpoint" and not differentiable:
        output.warn(
            "no gradient: the model's answers do not depend differentiably on its images. Only attacks by scores are "
            "run, which find less than attacks on a differentiable copy would."
        )
    twin = None if origin.twin is None else _twin(origin.twin, model, data, classes, output)
    target = TargetModel(fold, classes, twin)
    if artefact == "checkpoint" and not differentiable:  # what was said above goes on with the others
        attacks = [name for name in attacks if not attack_named(name, target).needs_gradient]
    chosen = _attacks(suite, attacks, target, differentiable=differentiable)
    slow = () if attacks or not differentiable else tuple(on_doubt(suite, target))
    plan = Plan(threat_model, tuple(chosen), slow, seed, batch_size, sanity=differentiable)
    return subject, plan


def _attacks(suite: str, names: Sequence[str], target: TargetModel, *, differentiable: bool) -> list[Attack]:
    if "transfer" in names and target.surrogate is None:
        raise UsageError(
            "The transfer attack needs a model to make images on.",
            "name one of the same classes that has gradients: --twin package.module:callable",
        )
    if not differentiable:
        return score_attacks(suite, names, target, "measure a differentiable copy")
    return [attack_named(name, target) for name in names] or attacks_of(suite, target)


@torch.no_grad()
def _twin(twin: nn.Module, model: nn.Module, data: DeviceSplit, classes: int, output: Output) -> Deployed:
    """The twin, ready to be attacked; says where it often answers otherwise, since its images then transfer badly.

    Raises UsageError where it tells other classes apart.
    """
    if (width := _classes(twin, data, "none")) != classes:
        raise UsageError(f"--twin returns {width} logits, and the model {classes}.")
    images = to_pixels(data.images[:_TWIN_SAMPLE])
    agreement = (twin(images).argmax(dim=1) == model(images).argmax(dim=1)).double().mean().item()
    if agreement < _ALIKE:
        output.warn(
            f"the twin answers as the model does on only {agreement:.0%} of {len(images)} clean images; images made on "
            "it may transfer badly."
        )
    return Deployed(twin, "none").eval()


def has_gradient(model: nn.Module, images: Tensor) -> bool:
    """Whether logits have a gradient for ``images`` (float [N, channels, H, W]), be it 0."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        answers: Tensor = model(images)
    if not answers.requires_grad:
        return False
    return torch.autograd.grad(answers.sum(), images, allow_unused=True)[0] is not None


@torch.no_grad()
def doubts(model: nn.Module, images: Tensor) -> list[Doubt]:
    """What about the model's answers to ``images`` (float [N, channels, H, W]) makes figures doubtful.

    Raises UsageError where its state_dict changes while it answers: what is measured would be another model each time.
    """
    before = state_digest(model)
    answers = model(images).nan_to_num()  # NaN equals nothing, not even itself; it is refused later
    found = []
    again = model(images).nan_to_num()
    if state_digest(model) != before:
        raise UsageError(
            "The model changes its own state_dict while it answers, even in eval mode.",
            "stop what is updated there (running statistics, counters), or measure a frozen copy",
        )
    if not torch.equal(answers, again):
        found.append(
            Doubt(
                "random answers",
                "the same images get other logits each time. Attacks here take one answer for the truth; an attack on "
                "the expectation would find more",
            )
        )
    elif not _close(torch.cat([model(image.unsqueeze(0)) for image in images]).nan_to_num(), answers):
        found.append(
            Doubt(
                "answers that depend on the batch", "an image alone gets other logits than among other images"
            )
        )
    sums = answers.sum(dim=1)
    if answers.min() >= 0 and answers.max() <= 1 and _close(sums, torch.ones_like(sums)):
        found.append(
            Doubt(
                "probabilities in the place of logits",
                "they saturate, and gradients vanish where the model is sure; return what goes into its softmax",
            )
        )
    return found


def state_digest(model: nn.Module) -> str:
    """SHA-256 of the state_dict, in hexadecimal; bfloat16 counts as float32."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().cpu()
        tensors[name] = (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
    return weights_digest(tensors)


def import_model(name: str, import_from: Path | None = None, *, output: Output) -> nn.Module:
    """The model that a callable without arguments makes, in eval mode; where it was not, that is said.

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
    return model.eval()


def _classes(model: nn.Module, data: DeviceSplit, fold: Fold) -> int:
    """How many classes the model tells apart. Raises UsageError where it returns anything but logits."""
    if len(data) == 0:
        raise UsageError("There are no images to measure on.")
    try:
        with torch.no_grad():
            answers = model(to_pixels(data.images[:_SAMPLE]))
    except (RuntimeError, TypeError, ValueError) as error:
        size = " x ".join(str(n) for n in data.images.shape[1:])
        raise UsageError(f"The model does not take images of {size}: {error}.") from error
    if not isinstance(answers, Tensor) or answers.ndim != 2 or not answers.is_floating_point():
        kind = f"a tensor of {list(answers.shape)}" if isinstance(answers, Tensor) else type(answers).__name__
        raise UsageError(f"The model returns {kind}, not logits [N, C].", "wrap it so that it returns logits")
    width = answers.shape[1]
    if fold == "none":
        return width
    if width % 2:
        raise UsageError(
            f"The model returns {width} logits: no dummy for every class, so --fold {fold} is wrong."
        )
    return width // 2


def _close(a: Tensor, b: Tensor) -> bool:
    scale = b.abs().max().clamp_min(1e-12)
    return bool(((a - b).abs().max() / scale) <= _SAME)


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
