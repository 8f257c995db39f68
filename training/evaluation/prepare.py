"""From what was asked to what `evaluate` needs: the model, the images, the attacks that fit them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ducat_serve.checkpoint import checkpoint_path, read_spec
from ducat_serve.deployed import Deployed, load, towers_of
from ducat_serve.errors import DucatError, UsageError, VerificationError, command_line
from ducat_serve.output import Output
from ducat_serve.predictor import Device, Predictor
from ducat_serve.sealed import read_sealed
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import Norm, ThreatModel
from training.attacks.base import Attack, TargetModel
from training.batches import DeviceSplit, at_a_time, to_levels
from training.data import Dataset
from training.data.cache import Split, content_digest
from training.device import LAYOUT, choose_device, exact_float32
from training.distributed.processes import ProcessGroup, local_device
from training.evaluation.asked import state_beside
from training.evaluation.evaluate import Plan, Subject
from training.evaluation.quantised import differentiable, require_same_answers
from training.evaluation.quantised_operators import UnknownOperator
from training.evaluation.runner import BATCH
from training.evaluation.stages import attack_named, on_doubt, score_attacks
from training.evaluation.stages import suite as attacks_of
from training.evaluation.state import EvaluationState
from training.fused_classifier import fold_norms
from training.randomness import subset
from training.run.dataset import load_training_data
from training.run.folder import RunFolder

_SAMPLE = 100  # images on which an int8 file is compared with what is attacked
# The same attacks as on the deployed function, so that what differs is only what they know.
_LEGACY = ("apgd-ce", "closest-first")


@dataclass(frozen=True)
class Request:
    """What `ducat evaluate` was asked; the options of the command say what each field means."""

    path: Path  # of a model.safetensors or a model.onnx
    checkpoint: Path | None = None
    split: Literal["val", "test"] = "test"
    norm: Norm | None = None
    eps: tuple[float, ...] = ()  # several give a curve
    eight_bit: bool = False
    suite: str = "quick"
    attacks: tuple[str, ...] = ()
    max_examples: int | None = None
    batch_size: int | None = None  # None: 256, and fewer images where they are large
    seed: int = 0
    dataset: str | None = None
    data_dir: Path | None = None
    offline: bool = False
    device: Device = "auto"


@dataclass(frozen=True)
class Prepared:
    """An evaluation that is ready to run.

    ``sizes`` are the radii that were asked for, ``index`` the places of the subject's images in their split,
    ``data_digest`` is of those images, ``function`` is the `ModelSpec.function_digest`.
    """

    path: Path
    spec: ModelSpec
    subject: Subject
    plan: Plan
    data_digest: str
    sizes: tuple[float, ...]
    index: tuple[int, ...]
    function: str

    def state(self, plan: Plan) -> EvaluationState:
        """Where the evaluation by this plan is kept while it runs: beside the model."""
        return state_beside(
            self.path,
            self.subject,
            plan,
            sizes=self.sizes,
            data_digest=self.data_digest,
            function=self.function,
            surrogate=None if plan.surrogate is None else plan.surrogate.spec.weights_digest,
        )


@exact_float32()
def prepare(request: Request, output: Output, processes: ProcessGroup, device: torch.device) -> Prepared:
    """Load model and images on the device, and choose the attacks; in each of the processes that share the work.

    Raises:
        UsageError: an unknown suite or attack, or one that needs gradients of an exported file; an eps of 0 or a
            norm without one; a data set with other classes.
        DataError, VerificationError: as `ducat_serve.load`, `Predictor` and `load_dataset` do, or a checkpoint of
            other weights.
    """
    exported = request.path.suffix == ".onnx"
    if request.checkpoint is not None and not exported:
        raise UsageError(
            "--checkpoint is for a .onnx MODEL.", command_line("ducat", "evaluate", request.checkpoint)
        )
    loaded = _load_export(request, output) if exported else _load_checkpoint(request, device, output)
    spec = loaded.spec
    threat_model = threat_model_of(request, spec)
    data = processes.first_alone(
        lambda: load_training_data(
            request.path,
            spec,
            dataset=request.dataset,
            data_dir=request.data_dir,
            offline=request.offline,
            output=output,
        )
    )
    chosen, index = _choose(request, data, spec)
    subject = Subject(
        model=loaded.model,
        data=DeviceSplit.of(chosen, device),
        labels=spec.labels,
        weights_digest=spec.weights_digest,
        dataset=data.title,
        split=request.split,
        artefact="onnx" if exported else "checkpoint",
        takes_bytes_only=exported,
        precision=spec.precision,
        gradients=loaded.gradients,
    )
    if loaded.predictor is not None:
        require_same_answers(loaded.model, loaded.predictor, chosen.images[:_SAMPLE])
    plan = Plan(
        threat_model=threat_model,
        attacks=loaded.attacks,
        on_doubt=loaded.on_doubt,
        seed=request.seed,
        batch_size=request.batch_size or at_a_time(BATCH, *chosen.shape[1:3]),
        legacy_attacks=_LEGACY if loaded.thorough else _LEGACY[:1],
        sanity=loaded.has_gradients,
        surrogate=None if loaded.gradients else loaded.surrogate,
        val=DeviceSplit.of(data.val, device) if loaded.thorough else None,
        eight_bit=request.eight_bit and not exported,  # an exported file takes no others
        processes=processes,
    )
    digest = content_digest(data.class_names, [chosen])
    return Prepared(request.path, spec, subject, plan, digest, request.eps, index, loaded.function)


def evaluation_device(request: Request, output: Output) -> torch.device:
    """Where images are while they are attacked, in this process. Raises DucatError as `choose_device` does."""
    exported = request.path.suffix == ".onnx"
    return local_device(choose_device("cpu" if exported else request.device, output))


def require_possible(request: Request, spec: ModelSpec) -> None:
    """Raise what `prepare` raises for a request that no images and no weights are needed to refuse."""
    threat_model_of(request, spec)
    if request.path.suffix != ".onnx":  # whose attacks follow from how it was exported
        _with_gradients(request, TargetModel(spec.fold, spec.num_classes))


def threat_model_of(request: Request, spec: ModelSpec) -> ThreatModel:
    """The threat model of the report: that of training where it is among those asked for, else the largest eps.

    Raises UsageError for an eps of 0, and for another norm than that of training without an eps.
    """
    trained, norm, sizes = spec.threat_model, request.norm, request.eps
    if 0 in sizes:
        raise UsageError(
            "--eps 0 is no attack; the clean accuracy is printed in any case.", "give --eps 8/255"
        )
    if not sizes and norm not in (None, trained.norm):
        raise UsageError(f"--norm {norm} needs --eps: the model was trained for {trained}.")
    is_trained = norm in (None, trained.norm) and (not sizes or trained.eps in sizes)
    return ThreatModel(norm=norm or trained.norm, eps=trained.eps if is_trained else max(sizes))


def _choose(request: Request, data: Dataset, spec: ModelSpec) -> tuple[Split, tuple[int, ...]]:
    """The images to measure on, and their places in the split.

    Raises UsageError where the data set has other classes than the model.
    """
    if data.class_names != spec.labels:
        raise UsageError(
            f"{data.title} has other classes than the model ({len(data.class_names)} and {spec.num_classes})."
        )
    images = data.val if request.split == "val" else data.test
    return choose_images(images, request.max_examples, request.seed)


def choose_images(images: Split, count: int | None, seed: int) -> tuple[Split, tuple[int, ...]]:
    """The first ``count`` images of a seeded shuffle, in their order, and their places; all of them for None."""
    if count is None or count >= len(images):
        return images, tuple(range(len(images)))
    index = subset(len(images), count, seed).numpy()
    return Split(images.images[index], images.labels[index]), tuple(index.tolist())


@dataclass(frozen=True)
class _Loaded:
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


def _load_checkpoint(request: Request, device: torch.device, output: Output) -> _Loaded:
    model = fold_norms(load(request.path).to(device).to(memory_format=LAYOUT))
    spec = model.spec
    surrogate = _standard_tower(model, device) or _pre_dummy(request.path, spec, device, output)
    attacks, doubt = _with_gradients(request, TargetModel(spec.fold, spec.num_classes, surrogate))
    thorough = _is_thorough(request)
    return _Loaded(spec, model, spec.function_digest(), attacks, doubt, surrogate, thorough)


def _with_gradients(request: Request, target: TargetModel) -> tuple[tuple[Attack, ...], tuple[Attack, ...]]:
    """The attacks that were asked for, and those on doubt, for a model that has gradients."""
    if request.attacks:
        return tuple(attack_named(name, target) for name in request.attacks), ()
    return tuple(attacks_of(request.suite, target)), tuple(on_doubt(request.suite, target))


def _is_thorough(request: Request) -> bool:
    return not request.attacks and request.suite != "quick"


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


def _load_export(request: Request, output: Output) -> _Loaded:
    file = read_sealed(request.path)
    predictor = Predictor.of_bytes(file, request.path, request.device)
    surrogate = _source(request.path, request.checkpoint, predictor.spec, output)
    if predictor.spec.quantisation is not None:
        try:
            return _load_int8(request, file, predictor, surrogate)
        except UnknownOperator as error:
            output.warn(
                f"no attack with gradients: {error.cause}. Rounding hides gradients from scores, so expect less."
            )
    target = TargetModel("none", predictor.spec.num_classes, surrogate)
    attacks = score_attacks(request.suite, request.attacks, target, "evaluate its checkpoint")
    return _Loaded(
        predictor.spec,
        exported_model(predictor),
        predictor.function_digest,
        tuple(attacks),
        (),
        surrogate,
        thorough=False,
        has_gradients=False,
    )


def _load_int8(request: Request, file: bytes, predictor: Predictor, surrogate: Deployed | None) -> _Loaded:
    """An int8 file: attacked as its checkpoint would be, through a copy, and by all that scores tell beside.

    Raises UnknownOperator where it cannot be copied.
    """
    spec = predictor.spec
    model = differentiable(file, predictor, request.device)
    target = TargetModel(spec.fold, spec.num_classes, surrogate)
    attacks, doubt = _with_gradients(request, target)
    if not request.attacks:
        known = {attack.name for attack in attacks}
        by_scores = score_attacks(request.suite, (), target, "evaluate its checkpoint")
        attacks += tuple(attack for attack in by_scores if attack.name not in known)
    return _Loaded(
        spec,
        model,
        predictor.function_digest,
        attacks,
        doubt,
        surrogate,
        _is_thorough(request),
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
