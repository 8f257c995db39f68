"""The model of ours that is measured, a checkpoint or an exported file, with the attacks that fit it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from ducat_serve.checkpoint import checkpoint_path, read_spec
from ducat_serve.deployed import Deployed, load, towers_of
from ducat_serve.errors import DucatError, VerificationError, missing_extra
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor
from ducat_serve.sealed import read_sealed
from ducat_serve.spec import ModelSpec
from training.attacks.base import Attack, TargetModel
from training.batches import to_levels
from training.device import LAYOUT
from training.evaluation.settings import EvaluationSettings
from training.evaluation.stages import attack_named, on_doubt, score_attacks
from training.evaluation.stages import suite as attacks_of
from training.fused_classifier import fold_norms
from training.run.folder import RunFolder

if TYPE_CHECKING:
    from training.evaluation.prepare import Request


@dataclass(frozen=True)
class Loaded:
    """A model and the attacks that fit it.

    ``function`` is the `ModelSpec.function_digest`. ``gradients`` is "copy" where they are those of a copy of an int8
    file, which ``predictor`` then reads.
    """

    spec: ModelSpec
    model: Deployed
    function: str
    attacks: tuple[Attack, ...]
    on_doubt: tuple[Attack, ...]
    surrogate: Deployed | None
    thorough: bool  # whether detection and rejection are studied
    has_gradients: bool = True
    gradients: Literal["copy"] | None = None
    predictor: Predictor | None = None


def load_model(request: Request, device: torch.device, output: Output) -> Loaded:
    """The model on the device. Raises what `prepare` does of its file and of the attacks."""
    if request.path.suffix == ".onnx":
        return _load_export(request, output)
    return _load_checkpoint(request, device, output)


def _load_checkpoint(request: Request, device: torch.device, output: Output) -> Loaded:
    model = fold_norms(load(request.path).to(device).to(memory_format=LAYOUT))
    spec = model.spec
    surrogate = _standard_tower(model, device) or _pre_dummy(request.path, spec, device, output)
    attacks, doubt = attacks_with_gradients(
        request.settings, TargetModel(spec.fold, spec.num_classes, surrogate)
    )
    thorough = _is_thorough(request.settings)
    return Loaded(spec, model, spec.function_digest(), attacks, doubt, surrogate, thorough)


def attacks_with_gradients(
    settings: EvaluationSettings, target: TargetModel
) -> tuple[tuple[Attack, ...], tuple[Attack, ...]]:
    """The attacks that were asked for, and those on doubt, for a model that has gradients."""
    if settings.attacks:
        return tuple(attack_named(name, target) for name in settings.attacks), ()
    return tuple(attacks_of(settings.suite, target)), tuple(on_doubt(settings.suite, target))


def _is_thorough(settings: EvaluationSettings) -> bool:
    return not settings.attacks and settings.suite != "quick"


def _standard_tower(model: Deployed, device: torch.device) -> Deployed | None:
    """Of a two-tower model the tower that gives way first: images made on it alone are tried on both."""
    towers = towers_of(model)
    if towers is None:
        return None
    assert isinstance(towers.standard, Deployed)
    return copy.deepcopy(towers.standard).to(device).to(memory_format=LAYOUT)


def _pre_dummy(path: Path, spec: ModelSpec, device: torch.device, output: Output) -> Deployed | None:
    """The model's own weights from before the dummy phase, if they are beside it."""
    file = RunFolder(path.parent).pre_dummy
    if spec.fold not in ("max", "lse") or not file.is_file() or file == path:
        return None
    try:
        before = load(file)
    except DucatError as error:
        output.warn(f"no transfer attack: {error.cause}")
        return None
    if (before.spec.labels, before.spec.image_size) != (spec.labels, spec.image_size):
        output.warn(f"no transfer attack: {file} belongs to another model.")
        return None
    return fold_norms(before.to(device).to(memory_format=LAYOUT))


class ExportedClassifier(nn.Module):
    """ONNX Runtime behind the interface of a classifier: what is really deployed. No gradient goes through it."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1], rounded to 8 bits, to folded logits [N, C]."""
        answer = self.predictor(to_levels(images))
        return torch.from_numpy(answer.logits).to(images.device)


def exported_model(predictor: Predictor) -> Deployed:
    """The deployed function of an ONNX file; its fold is inside the graph, so there is none left to apply."""
    return Deployed(ExportedClassifier(predictor), "none").eval()


def _load_export(request: Request, output: Output) -> Loaded:
    settings = request.settings
    file = read_sealed(request.path)
    predictor = Predictor.of_bytes(file, request.path, settings.device)
    surrogate = _source(request.path, request.checkpoint, predictor.spec, output)
    if predictor.spec.quantisation is not None and (
        loaded := _load_int8(settings, file, predictor, surrogate, output)
    ):
        return loaded
    target = TargetModel("none", predictor.spec.num_classes, surrogate)
    attacks = score_attacks(settings.suite, settings.attacks, target, "evaluate its checkpoint")
    return Loaded(
        predictor.spec,
        exported_model(predictor),
        predictor.function_digest,
        tuple(attacks),
        (),
        surrogate,
        thorough=False,
        has_gradients=False,
    )


def _load_int8(
    settings: EvaluationSettings,
    file: bytes,
    predictor: Predictor,
    surrogate: Deployed | None,
    output: Output,
) -> Loaded | None:
    """An int8 file: attacked as its checkpoint would be, through a copy, and by all that scores tell beside.

    None where it cannot be copied.
    """
    try:
        from training.evaluation.quantised import differentiable
        from training.evaluation.quantised_operators import UnknownOperator
    except ImportError as error:
        raise missing_extra(error.name or "onnx", "export") from error

    spec = predictor.spec
    try:
        model = differentiable(file, predictor, settings.device)
    except UnknownOperator as error:
        output.warn(
            f"no attack with gradients: {error.cause}. Rounding hides gradients from scores, so expect less."
        )
        return None
    target = TargetModel(spec.fold, spec.num_classes, surrogate)
    attacks, doubt = attacks_with_gradients(settings, target)
    if not settings.attacks:
        known = {attack.name for attack in attacks}
        by_scores = score_attacks(settings.suite, (), target, "evaluate its checkpoint")
        attacks += tuple(attack for attack in by_scores if attack.name not in known)
    return Loaded(
        spec,
        model,
        predictor.function_digest,
        attacks,
        doubt,
        surrogate,
        _is_thorough(settings),
        gradients="copy",
        predictor=predictor,
    )


def _source(path: Path, checkpoint: Path | None, spec: ModelSpec, output: Output) -> Deployed | None:
    """The checkpoint that an exported file came from: the one with the same weights."""
    file = checkpoint_path(checkpoint or path.with_name("model.safetensors"))
    if checkpoint is None and not file.is_file():
        output.warn(f"no transfer attack: there is no checkpoint beside {path}; name it with --checkpoint.")
        return None
    if read_spec(file).weights_digest != spec.weights_digest:
        problem = f"{path} was not exported from {file}: other weights."
        if checkpoint is not None:
            raise VerificationError(problem, "name the checkpoint that it was exported from")
        output.warn(f"no transfer attack: {problem}")
        return None
    return load(file)
