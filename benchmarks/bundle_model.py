"""Put a trained model into the package, for `ducat models`: checkpoint, export, model card, and its line in the index.

    ducat evaluate runs/digits --suite standard
    python benchmarks/bundle_model.py runs/digits digits-small

A model of the same name is replaced. Commit `ducat_serve/bundled/` afterwards.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from ducat_serve import atomic, bundled
from ducat_serve.bundled import KINDS, BundledModel, Index, bundled_models
from ducat_serve.checkpoint import checkpoint_path, file_sha256, read_checkpoint, write_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.deployed import parameter_count
from ducat_serve.errors import DucatError, UsageError
from ducat_serve.report import RobustnessReport
from ducat_serve.spec import ModelSpec
from training.attacks.base import TargetModel
from training.evaluation.stages import suite

MIN_EXAMPLES = 350  # the digits' test split has 359 images
SUFFIXES = (*KINDS, "md")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder or model.safetensors, with its report")
    parser.add_argument("name", help="such as cifar10-small")
    parser.add_argument("--command", help="that trained it, where an older version did not record it")
    parser.add_argument(
        "--revision", help="git commit that trained it, where an older version did not record it"
    )
    parser.add_argument("--data-dir", type=Path, help="for real images in the parity check of the export")
    given = parser.parse_args(arguments)
    try:
        model = bundle(given.run, given.name, given.command, given.revision, given.data_dir)
    except DucatError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(f"{model.name} is in {bundled.FOLDER}.\nNext: ducat models, and commit the folder", file=sys.stderr)
    return 0


def bundle(
    run_folder: Path, name: str, command: str | None, revision: str | None, data_dir: Path | None
) -> BundledModel:
    """Write the files of a model, then its line in the index. Raises UsageError for one that is not fit to be shown."""
    if not re.fullmatch(bundled.NAME, name):
        raise UsageError(f"'{name}' cannot name a bundled model.", "choose one like cifar10-small")
    spec, tensors = read_checkpoint(checkpoint_path(run_folder))
    spec = with_provenance(spec, command, revision)
    report = standard_report(spec, run_folder)
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / f"{name}.safetensors"
        write_checkpoint(checkpoint, tensors, spec)
        export = ["export", str(checkpoint), "--onnx", "--out", str(checkpoint.with_suffix(".onnx"))]
        if run([*export, *(["--data-dir", str(data_dir)] if data_dir else [])]) != 0:
            raise DucatError(f"{run_folder} could not be exported; nothing was bundled.")
        model = entry(name, spec, report, checkpoint)
        for suffix in SUFFIXES:
            file = checkpoint.with_suffix(f".{suffix}")
            atomic.write_bytes(bundled.FOLDER / file.name, file.read_bytes())
    # Last: a name in the index has all of its files.
    others = [other for other in bundled_models().values() if other.name != name]
    atomic.write_text(bundled.FOLDER / bundled.INDEX, Index(models=(*others, model)).to_json())
    return model


def with_provenance(spec: ModelSpec, command: str | None, revision: str | None) -> ModelSpec:
    """The spec with what it does not record itself."""
    given = {"command": command, "git_revision": revision}
    for key, value in given.items():
        recorded = spec.training.get(key)
        if value is not None and recorded not in (None, value):
            raise UsageError(f"The checkpoint records another {key}: {recorded}.", "leave the option out")
    known = {key: value for key, value in given.items() if value is not None}
    return spec.model_copy(update={"training": {**spec.training, **known}})


def standard_report(spec: ModelSpec, run_folder: Path) -> RobustnessReport:
    """The report of the standard suite on test images. Raises UsageError where the checkpoint has none."""
    report = spec.robustness
    wanted = {attack.name for attack in suite("standard", TargetModel(spec.fold, spec.num_classes))}
    measure = f"ducat evaluate {run_folder} --suite standard"
    if report is None:
        raise UsageError(f"{run_folder} has no report.", measure)
    missing = sorted(wanted - {attack.name for attack in report.attacks})
    if missing or report.split != "test" or report.examples < MIN_EXAMPLES:
        raise UsageError(
            f"The report is of {report.examples} {report.split} images, without {', '.join(missing) or 'gaps'}; it "
            f"must be of the standard suite on at least {MIN_EXAMPLES} test images.",
            measure,
        )
    if (report.norm, report.eps) != (spec.threat_model.norm, spec.threat_model.eps):
        raise UsageError(f"The report is not of {spec.threat_model}, for which it was trained.", measure)
    if report.failed_checks:
        raise UsageError(f"The report says: {report.summary()}.", "train another model")
    return report


def entry(name: str, spec: ModelSpec, report: RobustnessReport, checkpoint: Path) -> BundledModel:
    """The model's line in the index; its files lie beside ``checkpoint``."""
    assert report.clean_interval is not None
    return BundledModel(
        name=name,
        dataset=report.dataset,
        data_digest=spec.data_digest,
        network=spec.network,
        parameters=parameter_count(spec),
        threat_model=spec.threat_model,
        examples=report.examples,
        clean_accuracy=report.clean_accuracy,
        clean_interval=report.clean_interval,
        worst_case_accuracy=report.worst_case_accuracy,
        worst_case_interval=report.worst_case_interval,
        command=spec.command,
        git_revision=spec.git_revision,
        sha256={kind: file_sha256(checkpoint.with_suffix(f".{kind}")) for kind in KINDS},
    )


if __name__ == "__main__":
    sys.exit(main())
