"""`ducat inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from ducat_serve.checkpoint import file_sha256
from ducat_serve.cli.options import ModelPath, common
from ducat_serve.model_file import model_in, read_verified_spec
from ducat_serve.output import Output
from ducat_serve.report import NOT_MEASURED
from ducat_serve.report_text import DIGESTS, NOT_RECORDED, resumptions_in_words, versions_in_words
from ducat_serve.spec import IMPORTED, ModelSpec, Switch


@click.command("inspect")
@click.argument("model", type=ModelPath("safetensors"))
@common
def command(model: Path, json: bool) -> None:
    """Show what MODEL (.safetensors, .onnx, a run folder or a bundled model) says about itself, and check its digests.

    \b
    Example:
      ducat inspect model.onnx
      ducat inspect runs/digits --json
    """
    output = Output(json)
    path = model_in(model)
    spec, source, function = read_verified_spec(path)
    robustness = NOT_MEASURED if spec.robustness is None else spec.robustness.summary()
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
        *_towers(spec),
        ("precision", spec.precision),
        *_quantisation(spec),
        ("threat model", spec.threat_model),
        *([] if spec.towers else _training(spec)),
        ("trained by" if spec.towers is None else "mixed by", spec.command or NOT_RECORDED),
        ("git revision", spec.git_revision or NOT_RECORDED),
        ("trained with", versions_in_words(spec) or NOT_RECORDED),
        *([("resumed by", resumptions)] if (resumptions := resumptions_in_words(spec)) else []),
        ("robustness", robustness),
        ("weights digest", spec.weights_digest),
        *([] if function is None else [("function digest", function)]),
        *([] if source is None else [("source checkpoint", source)]),
        ("digests", DIGESTS),
    ]
    output.table(path.name, ("", ""), rows)
    document = spec.model_dump(mode="json")
    document["robustness"] = document["robustness"] or NOT_MEASURED  # as GET /v1/model says it
    output.result(
        {
            "file": str(path),
            "sha256": file_sha256(path),
            "spec": document,
            "digests": DIGESTS,
            "source_checkpoint": source,
            "function_digest": function,
        }
    )


def _training(spec: ModelSpec) -> list[tuple[str, str]]:
    recipe, data = spec.recipe, str(spec.training.get("data", NOT_RECORDED))
    if spec.is_imported:
        weights = recipe.get("pretrained", "those that its factory brings")
        return [("classes of", data), ("method", f"{IMPORTED}: trained by others"), ("weights", str(weights))]
    # Recipes are older than the methods; what they do not name was plain PGD adversarial training.
    method = recipe.get("method", "pgd-at") if recipe else NOT_RECORDED
    ducat, epochs, seed = (recipe.get(key, NOT_RECORDED) for key in ("ducat", "epochs", "seed"))
    return [
        ("trained on", data),
        ("method", f"{method}, ducat {ducat}"),
        ("recipe", f"{epochs} epochs, seed {seed}" if recipe else NOT_RECORDED),
    ]


def _quantisation(spec: ModelSpec) -> list[tuple[str, str]]:
    record = spec.quantisation
    if record is None:
        return []
    before = record.float32_robustness
    return [
        ("weights", "7 bits, for every CPU" if record.reduced_range else "8 bits, for CPUs with VNNI"),
        (
            "calibrated on",
            f"{record.calibration_images} train images, {record.attacked_images} of them attacked",
        ),
        ("float32 measured", NOT_MEASURED if before is None else before.summary()),
    ]


def _towers(spec: ModelSpec) -> list[tuple[str, str]]:
    if spec.towers is None or not isinstance(spec.fold, Switch):
        return []
    rows = []
    for name, tower in zip(("standard", "robust"), spec.towers, strict=True):
        rows.append((f"{name} tower", f"{tower.network}, weights {tower.weights_digest}"))
        # Others may have trained one of them.
        rows.extend((f"{name} tower: {what}", said) for what, said in _training(tower))
    switch = spec.fold
    settings = f"scale {switch.scale:g}, power {switch.power:g}, shift {switch.shift:g}"
    if switch.divisor is not None:
        settings += f", divisor {switch.divisor:g}"
    return [*rows, ("switch", f"overrules at a lead of {switch.threshold:g}; {settings}")]
