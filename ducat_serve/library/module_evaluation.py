"""`ducat_serve.evaluate_model`: measure any torch module, as files of ours are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ducat_serve.errors import UsageError
from ducat_serve.library.arguments import Attacks, attacks_asked_for, require_one_of, require_whole
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import Fold, Switch
from ducat_serve.threat_model import ThreatModel
from training.batches import DeviceSplit
from training.evaluation.evaluate import measure
from training.evaluation.foreign import Origin, prepare_model
from training.evaluation.outputs import Outputs
from training.evaluation.stages import require_suite
from training.evaluation.state_digest import state_digest

_LEVEL_ROUNDING = 1e-3  # of a grey level: how far a whole one may be off in float32


@torch.inference_mode(False)  # in which nothing has a gradient; under a caller's no_grad attacks have theirs
def evaluate_model(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    suite: str = "standard",
    attacks: Attacks = None,
    fold: Fold = "none",
    class_names: Sequence[str] | None = None,
    lattice: Literal["8bit"] | None = None,
    dataset: str = "images",
    batch_size: int = 256,
    seed: int = 0,
    save_adversarial: str | Path | None = None,
    per_image: str | Path | None = None,
    output: Output | None = None,
) -> RobustnessReport:
    """Clean and robust accuracy of any classifier, by the attacks that measure ours.

    Args:
        model: in eval mode; float32 images [N, channels, H, W] in [0, 1] to logits [N, C].
        images: uint8, or float32 in [0, 1], [N, channels, H, W]; on the device of the model.
        labels: int64 [N], from 0 to C - 1; on that device, too.
        threat_model: norm and eps, in pixels of [0, 1].
        suite: `quick`, `standard` or `full`. attacks: a name or several, instead of a suite, or functions of one's
            own: of (model, images, labels, threat_model) to images in the ball.
        fold: of a model with dummy classes that returns [N, 2C], the dummy of class i in column i + C: `max` or `lse`.
        class_names: of the C classes; their numbers unless given.
        lattice: "8bit" lets attacks make only images of 8 bits, as the given ones must be.
        dataset: what the report calls the images.
        batch_size: halved when memory runs out.
        save_adversarial: a new folder for the images that break the model. per_image: a CSV file with a row for each.
        output: where to say what happens; None prints on stderr as the command does, `Output(silent=True)` nothing.

    Returns the report of `ducat evaluate`; ``weights_digest`` is that of the model's state_dict.

    Raises:
        UsageError: the model is in train mode, changes while it answers, returns anything but logits of the right
            width, or was made under `torch.inference_mode`; or another argument does not fit.
        VerificationError: it answers NaN to clean images.

    Example:
        >>> report = evaluate_model(model, images, labels, ThreatModel(norm="linf", eps=8 / 255))
        >>> report.clean_accuracy, report.worst_case_accuracy
    """
    output = output or Output()
    _require_module(model)
    origin = Origin(state_digest(model))
    _require_gradients_possible(model)
    _require_tensors(images, labels)
    if not isinstance(threat_model, ThreatModel):
        raise UsageError(
            f"threat_model: {threat_model!r} is no ThreatModel.",
            'ducat_serve.threat_model.ThreatModel(norm="linf", eps=8 / 255)',
        )
    if not isinstance(fold, Switch):
        require_one_of("fold", fold, ("none", "max", "lse"))
    require_one_of("lattice", lattice, (None, "8bit"))
    if lattice is not None:
        _require_levels(images)
    require_suite(suite)
    _require_different(class_names)
    require_whole("batch_size", batch_size, 1, optional=False)
    require_whole("seed", seed, 0, optional=False)
    outputs = Outputs(
        None if save_adversarial is None else Path(save_adversarial),
        None if per_image is None else Path(per_image),
    )
    with outputs.opened(output) as write:
        subject, plan = prepare_model(
            model,
            DeviceSplit(images, labels),
            threat_model,
            suite=suite,
            attacks=attacks_asked_for(attacks),
            fold=fold,
            class_names=class_names,
            dataset=dataset,
            batch_size=batch_size,
            seed=seed,
            output=output,
            origin=origin,
        )
        plan = replace(plan, eight_bit=lattice is not None, keep_images=save_adversarial is not None)
        measured = measure(subject, plan, output)
        write(subject, plan, measured, range(len(images)))
    return measured.report


def _require_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"model: {type(model).__name__} is no torch.nn.Module.",
            "wrap it in one; ducat_serve.evaluate(path) measures a file of ours",
        )


def _require_gradients_possible(model: nn.Module) -> None:
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        raise UsageError(
            "The model was made under torch.inference_mode(), so nothing of it can have a gradient.",
            "make or load it outside",
        )


def _require_tensors(images: object, labels: object) -> None:
    """Raise UsageError for anything but tensors on one device; `DeviceSplit` says what they have to hold."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise UsageError(
                f"{name}: {type(given).__name__} is no tensor of torch.", f"give torch.as_tensor({name})"
            )
    assert isinstance(images, Tensor)
    assert isinstance(labels, Tensor)
    if images.device != labels.device:
        raise UsageError(
            f"The images are on {images.device}, and the labels on {labels.device}.",
            "give labels.to(images.device)",
        )


def _require_levels(images: Tensor) -> None:
    if images.is_floating_point() and bool(
        ((255 * images - (255 * images).round()).abs() > _LEVEL_ROUNDING).any()
    ):
        raise UsageError(
            "lattice: the images are not of 8 bits themselves.",
            "give (255 * images).round().byte(), or leave it out",
        )


def _require_different(class_names: Sequence[str] | None) -> None:
    if class_names is not None and len(set(class_names)) != len(class_names):
        raise UsageError("class_names: two classes have the same name.", "give each class a name of its own")
