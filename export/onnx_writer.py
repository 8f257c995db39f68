"""Write `model.onnx`: one sealed file, opset 18, IR 10, the same bytes for the same checkpoint."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from ducat_serve import atomic
from ducat_serve.attacked_examples import EXAMPLES_KEY, AttackedExamples
from ducat_serve.checkpoint import checkpoint_path
from ducat_serve.deployed import load
from ducat_serve.errors import DucatError, UsageError
from ducat_serve.onnx_graph import check_graph
from ducat_serve.predictor import GRAPH_KEY, SOURCE_KEY, Predictor
from ducat_serve.quantisation import Quantisation
from ducat_serve.reference import REFERENCE_KEY, Reference
from ducat_serve.report import MergeReport
from ducat_serve.sealed import SEAL_KEY, read_sealed, seal
from ducat_serve.spec import METADATA_KEY, ModelSpec
from export.agreement import Agreement, all_answers, check_agreement
from export.calibration import Calibration
from export.graph import DeployGraph, in_precision
from export.parity import ParityReport, check_parity
from export.quantise import quantise
from export.source import Source

OPSET = 18
IR_VERSION = 10
OUTPUTS = ("logits", "label", "dummy_mass")


def export_onnx(
    checkpoint: Path,
    target: Path,
    real: NDArray[np.uint8] | None = None,
    precision: Literal["float32", "float16"] = "float32",
    reference: NDArray[np.uint8] | None = None,
    examples: AttackedExamples | None = None,
) -> tuple[ModelSpec, ParityReport]:
    """Export a checkpoint, check the result against torch, and only then put it at ``target``.

    The file also holds a `Reference`: what it answers to the images in ``reference``.

    Args:
        checkpoint: `model.safetensors`, or the run folder that holds it.
        target: where `model.onnx` goes; it is replaced atomically, and only after the parity gate.
        precision: of the network up to its head. In another one than float32 it is another function, so the
            robustness report is not inherited but measured; that of the same function at ``target`` is kept.
        real: images of the model's data set for the gate, uint8 [N, H, W, channels].
        reference: many such images for the reference; None leaves it out.
        examples: images that an evaluation kept; whoever may ask the server sees them.

    Returns the spec and what the gate measured.

    Raises:
        VerificationError: ONNX Runtime and torch disagree; no file is left.
        DataError, VerificationError: as `ducat_serve.load`. UsageError: the file at ``target`` is another
            model, with a report that is nowhere else.
    """
    checkpoint = checkpoint_path(checkpoint)
    source = Source.of(checkpoint)
    raw = load(checkpoint, folded=False)
    spec = raw.spec
    if precision != spec.precision:
        spec = spec.model_copy(update={"precision": precision, "robustness": None})
    graph = DeployGraph(in_precision(raw, precision), spec.fold).eval()
    model, spec = _described(_exported(graph, spec), spec, source, target)
    with atomic.replacing(target) as temporary:
        temporary.write_bytes(seal(model))
        parity = check_parity(temporary, raw, real)
        _add_answers(temporary, model, reference, examples)
    return spec, parity


def export_int8(
    checkpoint: Path,
    target: Path,
    real: NDArray[np.uint8],
    calibration: Calibration,
    examples: AttackedExamples | None = None,
) -> tuple[ModelSpec, Agreement]:
    """Export a checkpoint in int8, see how far it agrees with torch, and only then put it at ``target``.

    Args:
        real: images of the model's data set for the gate and the reference, uint8 [N, H, W, channels].
        calibration: what fixes the ranges of the activations.

    The other arguments, and what is raised, are those of `export_onnx`; its robustness report is only kept to compare
    with. Raises DucatError where the network has nothing to quantise, VerificationError as `check_agreement` does.
    """
    checkpoint = checkpoint_path(checkpoint)
    source = Source.of(checkpoint)
    raw = load(checkpoint, folded=False)
    float32 = _exported(DeployGraph(raw, raw.spec.fold).eval(), raw.spec)
    # On every machine, since nobody knows here which CPU will serve. The eighth bit gains nothing
    # (docs/performance/int8.md).
    quantised = quantise(float32, calibration.images, reduced_range=True)
    record = Quantisation(
        calibration_images=len(calibration.images),
        attacked_images=calibration.attacked,
        calibration_digest=calibration.digest,
        seed=calibration.seed,
        reduced_range=True,
        pixels=quantised.pixels,
        raw_logits=quantised.raw_logits,
        float32_robustness=raw.spec.robustness,
    )
    spec = raw.spec.model_copy(update={"precision": "int8", "quantisation": record, "robustness": None})
    model, spec = _described(quantised.model, spec, source, target)
    with atomic.replacing(target) as temporary:
        temporary.write_bytes(seal(model))
        agreement = check_agreement(temporary, raw, real)
        _add_answers(temporary, model, real, examples)
    return spec, agreement


def _add_answers(
    file: Path, model: bytes, reference: NDArray[np.uint8] | None, examples: AttackedExamples | None
) -> None:
    """Write the file that holds ``model`` again with what it answers to images, and with attacked ones."""
    entries = {}
    if reference is not None and len(reference):
        entries[REFERENCE_KEY] = answers_to(file, reference).model_dump_json()
    if examples is not None:
        entries[EXAMPLES_KEY] = examples.model_dump_json()
    if entries:
        file.write_bytes(resealed(onnx.load_from_string(model), entries))


def answers_to(model: Path, images: NDArray[np.uint8]) -> Reference:
    """What an exported file answers to images [N, H, W, channels], on the CPU."""
    predictor = Predictor(model, device="cpu")
    found = all_answers(predictor, images)
    return Reference.of(found.label, found.confidence, predictor.spec.num_classes)


def resealed(model: onnx.ModelProto, entries: Mapping[str, str]) -> bytes:
    """A file of the model with these entries in its metadata, beside the others that it has or in their place."""
    metadata = {**_metadata(model), **entries}
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return seal(model.SerializeToString(deterministic=True))


def _read(target: Path) -> tuple[onnx.ModelProto, ModelSpec, str]:
    """A sealed file, its spec and the SHA-256 of its graph. Raises DataError or VerificationError as `read_sealed`."""
    sealed = read_sealed(target)
    graph_sha256 = check_graph(sealed, str(target))
    model = onnx.load_from_string(sealed)
    return model, ModelSpec.from_json(_metadata(model)[METADATA_KEY], str(target)), graph_sha256


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    """Without the seal, which belongs to the bytes before it."""
    return {entry.key: entry.value for entry in model.metadata_props if entry.key != SEAL_KEY}


def store_report(target: Path, function: str, merged: MergeReport) -> ModelSpec:
    """Put a report that was measured on an exported file into that file, and seal it again; returns its spec.

    Args:
        function: the `Predictor.function_digest` of what was measured.

    Raises:
        DataError, VerificationError: as `read_sealed` does, or the file holds another function by now, or the report
            belongs to other weights.
    """
    model, spec, graph_sha256 = _read(target)
    spec.require_measured(function, target, graph_sha256)
    measured = spec.model_copy(update={"robustness": merged(spec.robustness)})
    # Read back, so that a report of other weights or another precision is refused.
    spec = ModelSpec.from_json(measured.to_json(), str(target))
    atomic.write_bytes(target, resealed(model, {METADATA_KEY: spec.to_json()}))
    return spec


def _exported(graph: DeployGraph, spec: ModelSpec) -> onnx.ModelProto:
    """The graph of a model of that spec, in the precision of its weights."""
    height, width = spec.image_size
    # Batch 2: the exporter would bake in a batch of 0 or 1 as a constant.
    example = torch.zeros(2, height, width, spec.channels, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=["images"],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: "batch"},),
        )
    assert program is not None
    # The exporter writes source paths of this machine into every node.
    ClearMetadataAndDocStringPass()(program.model)
    exported: onnx.ModelProto = program.model_proto
    return exported


def _described(
    model: onnx.ModelProto, spec: ModelSpec, source: Source, target: Path
) -> tuple[bytes, ModelSpec]:
    """The serialised model, with nothing in it but its graph and what we say of it; and its spec.

    The spec is ``spec`` with what was measured on an earlier export at ``target``. Raises as `_keeping_report` and
    `Source.unchanged_sha256` do.
    """
    del model.metadata_props[:]
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "ducat-serve", "", ""
    model.graph.name = "ducat"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.ClearField("metadata_props")
    # Binds the ModelSpec to this graph: the checkpoint's own digest cannot be computed from it, since BatchNorm is
    # folded into the convolutions.
    graph_sha256 = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
    spec = _keeping_report(spec, graph_sha256, target)
    for key, value in (
        (METADATA_KEY, spec.to_json()),
        (SOURCE_KEY, source.unchanged_sha256()),
        (GRAPH_KEY, graph_sha256),
    ):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True), spec


def _keeping_report(spec: ModelSpec, graph_sha256: str, target: Path) -> ModelSpec:
    """``spec`` with what was measured on the file at ``target``, where that is the same function.

    A report that ``spec`` already has comes from its checkpoint and stays, with the corruptions of the file beside it.

    Raises UsageError where the file is another function, and has a report that is in no checkpoint.
    """
    try:
        _, old, old_graph = _read(target)
    except DucatError:  # no file, or a damaged one: nothing to keep
        return spec
    kept, report = old.robustness, spec.robustness
    if kept is None:
        return spec
    if old.function_digest(old_graph) == spec.function_digest(graph_sha256):
        if report is None:
            return spec.model_copy(update={"robustness": kept})
        if report.corruptions is None:
            report = report.model_copy(update={"corruptions": kept.corruptions})
        return spec.model_copy(update={"robustness": report})
    if kept.artefact != "checkpoint":
        raise UsageError(
            f"{target} is another model, with a report that is nowhere else: {kept.summary()}.",
            f"name another file with --out, or delete {target}",
        )
    return spec
