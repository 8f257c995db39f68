"""From a model file to what `evaluate` needs: the model, its surrogate, the stages that fit it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ducat_serve.checkpoint import checkpoint_path, read_spec
from ducat_serve.deployed import Deployed, load
from ducat_serve.errors import DucatError, UsageError, VerificationError, unknown_name
from ducat_serve.output import Output
from ducat_serve.predictor import Device, Predictor
from ducat_serve.spec import ModelSpec
from training.batches import DeviceSplit
from training.device import LAYOUT
from training.evaluation.evaluate import Plan, Subject
from training.evaluation.exported import exported
from training.evaluation.stages import BLACK_BOX, SUITES, Stage, Target, stage
from training.evaluation.stages import suite as build_suite
from training.run.folder import RunFolder

# The same attacks as on the deployed function, so that what differs is only what they know.
_LEGACY = ("apgd-ce", "apgd-dlr", "targeted", "square-warm")


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be evaluated."""

    spec: ModelSpec
    model: Deployed
    plan: Plan
    artefact: Literal["checkpoint", "onnx"]
    surrogate_digest: str | None  # of the weights that `transfer` uses
    studies: bool  # whether detection and rejection are studied

    def subject(self, dataset: str, split: Literal["val", "test"]) -> Subject:
        """What is measured."""
        spec = self.spec
        return Subject(spec.weights_digest, dataset, split, spec.labels, self.artefact, spec.precision)

    def with_val(self, val: DeviceSplit) -> Plan:
        """The plan, with the val images that its studies need."""
        return replace(self.plan, val=val) if self.studies else self.plan


def prepare(
    path: Path,
    checkpoint: Path | None,
    *,
    suite: str,
    attacks: tuple[str, ...],
    device: torch.device,
    runtime: Device,
    output: Output,
) -> Prepared:
    """Load the model at ``path`` and choose its stages.

    Args:
        device, runtime: where a checkpoint runs in torch, and an exported file in ONNX Runtime.
        checkpoint: of an exported file; None looks beside it.
        suite, attacks: the suite's name, or the names of attacks instead of a suite.

    Raises:
        UsageError: an unknown suite or attack, or one that needs gradients of an exported file.
        DataError, VerificationError: as `ducat_serve.load` and `Predictor` do, or a checkpoint of other weights.
    """
    if path.suffix == ".onnx":
        return _exported(path, checkpoint, suite, attacks, runtime, output)
    loaded = load(path)
    spec = loaded.spec
    surrogate, digest = _pre_dummy(path, spec, device, output)
    target = Target(spec.fold, spec.num_classes, surrogate)
    stages = _stages(suite, attacks, target)
    thorough = not attacks and suite != "quick"
    plan = Plan(
        stages=tuple(stages),
        legacy_attacks=_LEGACY if thorough else _LEGACY[:1],
        surrogate=surrogate,
    )
    model = loaded.to(device).to(memory_format=LAYOUT)
    return Prepared(spec, model, plan, "checkpoint", digest, studies=thorough)


def _stages(name: str, attacks: tuple[str, ...], target: Target) -> list[Stage]:
    return [stage(attack, target) for attack in attacks] if attacks else build_suite(name, target)


def _pre_dummy(
    path: Path, spec: ModelSpec, device: torch.device, output: Output
) -> tuple[Deployed | None, str | None]:
    """The model's own weights from before the dummy phase and their digest, if they are beside it."""
    file = RunFolder(path.parent).pre_dummy
    if spec.fold == "none" or not file.is_file() or file == path:
        return None, None
    try:
        before = load(file)
    except DucatError as error:
        output.warn(f"no transfer attack: {error.cause}")
        return None, None
    if (before.spec.labels, before.spec.image_size) != (spec.labels, spec.image_size):
        output.warn(f"no transfer attack: {file} belongs to another model.")
        return None, None
    module = before.to(device).to(memory_format=LAYOUT)
    return module, before.spec.weights_digest


def _exported(
    path: Path, checkpoint: Path | None, suite: str, attacks: tuple[str, ...], runtime: Device, output: Output
) -> Prepared:
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    impossible = [name for name in attacks if name not in BLACK_BOX]
    if impossible:
        raise UsageError(
            f"{', '.join(impossible)} needs gradients, and an exported file has none.",
            f"evaluate its checkpoint, or choose from: {', '.join(BLACK_BOX)}",
        )
    predictor = Predictor(path, device=runtime)
    surrogate = _source(path, checkpoint, predictor.spec, output)
    target = Target("none", predictor.spec.num_classes, surrogate)
    names = attacks or tuple(name for name in BLACK_BOX if surrogate is not None or name != "transfer")
    plan = Plan(stages=tuple(stage(name, target) for name in names), sanity=False)
    digest = predictor.spec.weights_digest if surrogate is not None else None
    return Prepared(predictor.spec, exported(predictor), plan, "onnx", digest, studies=False)


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
