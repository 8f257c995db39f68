"""From what was asked to what `evaluate` needs: the model, the images, the attacks that fit them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ducat_serve.deployed import Deployed
from ducat_serve.errors import UsageError, command_line
from ducat_serve.networks import is_own
from ducat_serve.output import Output
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import ThreatModel
from training.attacks.ball import require_linf_size
from training.attacks.base import TargetModel
from training.batches import DeviceSplit, to_pixels
from training.data.cache import content_digest
from training.device import choose_device, exact_float32
from training.distributed.processes import ProcessGroup, local_device
from training.evaluation.asked import state_beside
from training.evaluation.doubts import doubts
from training.evaluation.evaluate import Plan, Subject
from training.evaluation.loading import attacks_with_gradients, load_model
from training.evaluation.settings import EvaluationSettings
from training.evaluation.state import EvaluationState
from training.run.dataset import load_training_data

_TRIED = 8  # images on which code of the user's own is tried
_SAMPLE = 100  # images on which an int8 file is compared with what is attacked
# The same attacks as on the deployed function, so that what differs is only what they know.
_LEGACY = ("apgd-ce", "closest-first")


@dataclass(frozen=True)
class Request:
    """What `ducat evaluate` was asked of a model of ours; the options of the command say what each field means."""

    path: Path  # of a model.safetensors or a model.onnx
    settings: EvaluationSettings
    checkpoint: Path | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Prepared:
    """An evaluation that is ready to run.

    ``sizes`` are the radii that were asked for, ``index`` the places of the subject's images in their split,
    ``function`` is the `ModelSpec.function_digest`.
    """

    path: Path
    spec: ModelSpec
    subject: Subject
    plan: Plan
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
    settings = request.settings
    loaded = load_model(request, device, output)
    spec = loaded.spec
    threat_model = threat_model_of(settings, spec)
    data = processes.first_alone(
        lambda: load_training_data(
            request.path,
            spec,
            dataset=request.dataset,
            data_dir=settings.data_dir,
            offline=settings.offline,
            output=output,
        )
    )
    if data.class_names != spec.labels:
        raise UsageError(
            f"{data.title} has other classes than the model ({len(data.class_names)} and {spec.num_classes})."
        )
    chosen, index = settings.choose(data)
    tried = DeviceSplit.of(chosen.first(_TRIED), device)
    subject = Subject(
        model=loaded.model,
        data=DeviceSplit.of(chosen, device),
        labels=spec.labels,
        weights_digest=spec.weights_digest,
        dataset=data.title,
        split=settings.split,
        artefact="onnx" if exported else "checkpoint",
        precision=spec.precision,
        gradients=loaded.gradients,
        doubts=None if exported or not is_own(spec.network) else _doubts(loaded.model, tried, output),
        data_digest=content_digest(data.class_names, [chosen]),
    )
    if loaded.predictor is not None:
        from training.evaluation.quantised import require_same_answers

        require_same_answers(loaded.model, loaded.predictor, chosen.images[:_SAMPLE])
    plan = Plan(
        threat_model=threat_model,
        attacks=loaded.attacks,
        on_doubt=loaded.on_doubt,
        seed=settings.seed,
        batch_size=settings.at_a_time(chosen),
        legacy_attacks=_LEGACY if loaded.thorough else _LEGACY[:1],
        sanity=loaded.has_gradients,
        surrogate=None if loaded.gradients else loaded.surrogate,
        val=DeviceSplit.of(data.val, device) if loaded.thorough else None,
        eight_bit=settings.eight_bit or exported,  # which takes no others
        processes=processes,
    )
    return Prepared(request.path, spec, subject, plan, settings.eps, index, loaded.function)


def _doubts(model: Deployed, tried: DeviceSplit, output: Output) -> tuple[str, ...]:
    """What the user's own code does that makes figures doubtful; nobody here knows what it is."""
    found = doubts(model, to_pixels(tried.images))
    for doubt in found:
        output.warn(f"{doubt}.")
    return tuple(str(doubt) for doubt in found)


def evaluation_device(request: Request, output: Output) -> torch.device:
    """Where images are while they are attacked, in this process. Raises DucatError as `choose_device` does."""
    exported = request.path.suffix == ".onnx"
    return local_device(choose_device("cpu" if exported else request.settings.device, output))


def require_possible(request: Request, spec: ModelSpec) -> None:
    """Raise what `prepare` raises for a request that no images and no weights are needed to refuse."""
    threat_model_of(request.settings, spec)
    if request.path.suffix != ".onnx":  # whose attacks follow from how it was exported
        attacks_with_gradients(request.settings, TargetModel(spec.fold, spec.num_classes))


def threat_model_of(settings: EvaluationSettings, spec: ModelSpec) -> ThreatModel:
    """The threat model of the report: that of training where it is among those asked for, else the largest eps.

    Raises UsageError for an eps of 0 or one in grey levels, and for another norm than that of training without an eps.
    """
    trained, norm, sizes = spec.threat_model, settings.norm, settings.eps
    if 0 in sizes:
        raise UsageError(
            "--eps 0 is no attack; the clean accuracy is printed in any case.", "give --eps 8/255"
        )
    if not sizes and norm not in (None, trained.norm):
        raise UsageError(f"--norm {norm} needs --eps: the model was trained for {trained}.")
    is_trained = norm in (None, trained.norm) and (not sizes or trained.eps in sizes)
    for size in sizes or (trained.eps,):
        require_linf_size("eps", size, norm or trained.norm)
    return ThreatModel(norm=norm or trained.norm, eps=trained.eps if is_trained else max(sizes))
