"""`ducat inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ducat_serve.checkpoint import checkpoint_path, file_sha256, read_checkpoint
from ducat_serve.cli.options import common
from ducat_serve.output import Output
from ducat_serve.report import NOT_MEASURED
from ducat_serve.spec import ModelSpec


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@common
def command(model: Path, json: bool) -> None:
    """Show what MODEL (.safetensors, .onnx or a run folder) says about itself, and check its digests.

    \b
    Example:
      ducat inspect model.onnx
      ducat inspect runs/digits --json
    """
    output = Output(json)
    path = checkpoint_path(model)
    spec, extra = _read(path)
    robustness = NOT_MEASURED if spec.robustness is None else spec.robustness.summary()
    recipe: Any = spec.training["recipe"]
    rows = [
        ("file", f"{path} ({path.stat().st_size:,} bytes)"),
        ("SHA-256", file_sha256(path)),
        ("network", f"{spec.network}, {spec.num_logits} logits"),
        (
            "classes",
            f"{spec.num_classes}: {'; '.join(spec.labels[:4])}{'; ...' if spec.num_classes > 4 else ''}",
        ),
        ("images", f"{spec.image_size[0]}x{spec.image_size[1]}, {spec.channels} channels"),
        ("fold", spec.fold),
        ("precision", spec.precision),
        ("threat model", spec.threat_model),
        ("trained on", spec.training["data"]),
        ("method", f"{recipe.get('method', 'pgd-at')}, ducat {recipe['ducat']}"),
        ("recipe", f"{recipe['epochs']} epochs, seed {recipe['seed']}"),
        ("robustness", robustness),
        ("weights digest", spec.weights_digest),
        *extra.items(),
    ]
    output.table(path.name, ("", ""), rows)
    document = spec.model_dump(mode="json")
    document["robustness"] = document["robustness"] or NOT_MEASURED
    output.result({"file": str(path), "sha256": file_sha256(path), "spec": document, **extra})


def _read(path: Path) -> tuple[ModelSpec, dict[str, str]]:
    if path.suffix == ".onnx":
        from ducat_serve.predictor import Predictor

        predictor = Predictor(path, device="cpu", threads=1)
        return predictor.spec, {"source checkpoint": predictor.source_sha256}
    return read_checkpoint(path)[0], {}
