"""Accuracy under corruptions, measured and kept beside the worst case of the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ducat_serve.bundled import bundled_name
from ducat_serve.checkpoint import checkpoint_path
from ducat_serve.deployed import Deployed, load
from ducat_serve.errors import UsageError
from ducat_serve.library.file_evaluation import copy_here
from ducat_serve.library.foreign import ForeignRequest, dataset_for, write_report
from ducat_serve.library.foreign_sources import ServerSource
from ducat_serve.library.report_places import existing_reports
from ducat_serve.library.storing import store_in_checkpoint, store_in_export
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor
from ducat_serve.report import CorruptionReport, RobustnessReport
from ducat_serve.report_file import read_report
from ducat_serve.spec import ModelSpec
from training.device import LAYOUT, choose_device
from training.evaluation.corruptions import corrupted_images, measure_corruptions
from training.evaluation.loading import exported_model
from training.evaluation.prepare import Request
from training.run.dataset import load_training_data, locate_training_data


@dataclass(frozen=True)
class MeasuredCorruptions:
    """What was measured, and of which model.

    ``path`` is its file; of a model of others, that of its report. ``function`` is the `ModelSpec.function_digest`.
    """

    path: Path
    corruptions: CorruptionReport
    weights_digest: str
    spec: ModelSpec | None  # None of a model of others
    name: str = ""  # of a model of others, as is the next
    takes: str | None = None
    function: str = ""  # of a model of ours

    def store(self, output: Output) -> None:
        """Add it to the report of attacks on the same weights, which stays as it is; where there is none, that is said.

        Raises DataError for a report of somebody else's model that is damaged.
        """
        path, report = self._beside()
        if report is None or not report.is_of(self.weights_digest, self.takes):
            output.warn(
                f"not stored: {self.path} holds no report of attacks on these weights, beside which it belongs. "
                "Measure attacks first (another --suite), then corruptions again."
            )
            return

        def added(now: RobustnessReport | None) -> RobustnessReport:
            return (now or report).model_copy(update={"corruptions": self.corruptions})

        if self.spec is None:
            write_report(self.name, added(report), path, output)
        else:
            store = store_in_export if path.suffix == ".onnx" else store_in_checkpoint
            store(path, self.function, added)
        output.say(f"Added to the report in {path}.")

    def _beside(self) -> tuple[Path, RobustnessReport | None]:
        """The report of attacks, and its file: of a model of others it may be one with a number."""
        if self.spec is not None:
            return self.path, self.spec.robustness
        known = [(place, read_report(place)) for place in existing_reports(self.path)]
        of_these = [(p, r) for p, r in known if r is not None and r.is_of(self.weights_digest, self.takes)]
        return of_these[0] if of_these else (self.path, None)


def measure_on_corruptions(request: Request, output: Output) -> MeasuredCorruptions:
    """Measure a checkpoint or an exported file; of a bundled model a copy in the current folder.

    Raises what `prepare` and `corrupted_images` do.
    """
    settings, path = request.settings, checkpoint_path(request.path)
    if bundled_name(path) is not None:
        path = copy_here(path, output)
    exported = path.suffix == ".onnx"
    device = choose_device("cpu" if exported else settings.device, output)
    model: Deployed
    if exported:
        predictor = Predictor(path, device=settings.device)
        spec, model, function = predictor.spec, exported_model(predictor), predictor.function_digest
    else:
        loaded = load(path)
        spec, model = loaded.spec, loaded.to(device).to(memory_format=LAYOUT)
        function = spec.function_digest()
    name, data_dir = locate_training_data(path, spec, dataset=request.dataset, data_dir=settings.data_dir)
    data = load_training_data(
        path,
        spec,
        dataset=request.dataset,
        data_dir=settings.data_dir,
        offline=settings.offline,
        output=output,
    )
    if data.class_names != spec.labels:
        raise UsageError(
            f"{data.title} has other classes than the model ({len(data.class_names)} and {spec.num_classes})."
        )
    clean, _ = settings.choose(data)
    corrupted = corrupted_images(
        name, data, clean, settings.split, data_dir, count=settings.max_examples, seed=settings.seed
    )
    found = measure_corruptions(
        model,
        clean,
        corrupted,
        classes=spec.num_classes,
        artefact="onnx" if exported else "checkpoint",
        device=device,
        batch_size=settings.at_a_time(clean),
        seed=settings.seed,
        output=output,
    )
    return MeasuredCorruptions(path, found, spec.weights_digest, spec, function=function)


def measure_foreign_on_corruptions(
    request: ForeignRequest, file: Path, output: Output
) -> MeasuredCorruptions:
    """Measure a callable's model or a file of others. Raises what `measure_foreign` does, but needs no eps.

    Args:
        file: of the report of attacks on it.

    Raises UsageError for a running server, whose queries are dear.
    """
    settings, source = request.settings, request.source
    if isinstance(source, ServerSource):
        raise UsageError(
            "--suite corruptions is not for a running server: it would take dozens of queries for each image.",
            "measure the file that it serves",
        )
    device = choose_device("cpu" if source.on_cpu else settings.device, output)
    with source.opened(device, output) as opened:
        data = dataset_for(request, opened, output)
        clean, _ = settings.choose(data)
        corrupted = corrupted_images(
            request.dataset,
            data,
            clean,
            settings.split,
            settings.data_dir,
            count=settings.max_examples,
            seed=settings.seed,
        )
        found = measure_corruptions(
            Deployed(opened.model, opened.fold).eval(),
            clean,
            corrupted,
            classes=len(data.class_names),
            artefact="onnx" if opened.origin.artefact == "onnx" else "checkpoint",
            device=device,
            batch_size=settings.at_a_time(clean),
            seed=settings.seed,
            output=output,
        )
    return MeasuredCorruptions(file, found, opened.origin.digest, None, source.name, source.takes)
