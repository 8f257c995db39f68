"""Run an exported model with ONNX Runtime. Imports neither torch nor BentoML."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ducat_serve.attacked_examples import EXAMPLES_KEY, AttackedExamples
from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import checkpoint_path
from ducat_serve.errors import DataError, DucatError, UsageError, VerificationError, missing_extra
from ducat_serve.model_file import exported_in, is_whole_export
from ducat_serve.onnx_graph import check_graph
from ducat_serve.prediction import ImageLike, Prediction, no_image, read_image, split_up
from ducat_serve.reference import REFERENCE_KEY, Reference
from ducat_serve.sealed import read_sealed
from ducat_serve.signature import require_signature
from ducat_serve.spec import METADATA_KEY, ModelSpec
from ducat_serve.threads import quota_threads

Device = Literal["auto", "cpu", "cuda"]
SOURCE_KEY = "ducat_source_sha256"
GRAPH_KEY = "ducat_graph_sha256"  # missing in files of older versions


class Predictions(NamedTuple):
    """What the model says of N images."""

    logits: NDArray[np.float32]  # [N, C], folded
    label: NDArray[np.int64]  # [N]
    dummy_mass: NDArray[np.float32]  # [N], in [0, 1]; 0 for a model without dummies

    def rows(self, start: int, end: int) -> Predictions:
        """The predictions of images ``start`` to ``end``."""
        return Predictions(self.logits[start:end], self.label[start:end], self.dummy_mass[start:end])

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """Whether the model's answer is made of numbers, [N]; NaN and infinities are none."""
        finite: NDArray[np.bool_] = np.isfinite(self.logits).all(axis=1) & np.isfinite(self.dummy_mass)
        return finite

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax of the folded logits, [N, C]; its maximum is the confidence."""
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        normalised: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
        return normalised

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Probability of the best class, [N]: the maximum of ``probabilities``, without the others."""
        best = self.logits.max(axis=1, keepdims=True)
        confidence: NDArray[np.float32] = 1 / np.exp(self.logits - best).sum(axis=1)
        return confidence

    def to_json(self, spec: ModelSpec, top_k: int) -> list[dict[str, Any]]:
        """One entry per image: label, class_id, confidence, top_k (best first) and dummy_mass.

        Of a two-tower model also answered_by: "standard" or "robust".
        """
        probabilities = self.probabilities
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]

        def choice(row: int, class_id: int) -> dict[str, Any]:
            confidence = float(probabilities[row, class_id])
            return {"label": spec.labels[class_id], "class_id": int(class_id), "confidence": confidence}

        return [
            {
                **choice(row, self.label[row]),
                "top_k": [choice(row, class_id) for class_id in order[row]],
                "dummy_mass": float(self.dummy_mass[row]),
                **({"answered_by": tower} if (tower := spec.tower_of(self.dummy_mass[row])) else {}),
            }
            for row in range(len(self.label))
        ]


class Predictor:
    """An exported model, ready to predict. Safe to call from several threads.

    Args:
        path: a `model.onnx` written by `ducat export`, the folder that holds it, or, as text, the name of a bundled
            model (`ducat models`).
        device: "cuda" fails without a usable GPU; "auto" takes the GPU if it works and else the CPU,
            and says which in ``provider`` and ``fallback_reason``.
        threads: CPU threads for one prediction; None takes every core, or what a container's CPU quota pays for.
        optimised: False runs the graph as it was written, slowly: a reference for the one that runs fast.
        public_key: a PEM file; only what its owner signed (`ducat sign`) is loaded. None asks for no signature.

    Raises:
        DataError: no such file, not one that ducat wrote, or only a part of it; or a bundled model that was changed.
        UsageError: the name of a bundled model and of a file or folder here.
        VerificationError: changed since it was written, with a graph that no model of ours has or that contradicts its
            ModelSpec, or not signed by the owner of the key; or, of a folder, exported from another model than the
            checkpoint in it.
        DucatError: the device was asked for and cannot be used, or ONNX Runtime is not installed.
    """

    spec: ModelSpec
    source_sha256: str
    graph_sha256: str
    provider: str
    fallback_reason: str | None
    examples: AttackedExamples | None  # what an evaluation kept, where the export was asked to hold it
    reference: Reference | None  # what it answered at export, where its data set was there

    def __init__(
        self,
        path: str | Path,
        device: Device = "auto",
        threads: int | None = None,
        *,
        optimised: bool = True,
        public_key: Path | None = None,
    ) -> None:
        given = model_path(path, "onnx")
        path = exported_in(given)
        model = read_sealed(path)
        if public_key is not None:  # before anything but hashlib has seen a byte of the file
            require_signature(model, path, public_key)
        self._load(model, path, device, threads, optimised)
        # Who names a folder means one model; only that a report is older than the checkpoint's changes no answer.
        if path != given and (checkpoint := checkpoint_path(given)).is_file():
            is_whole_export(path, self.spec, self.source_sha256, checkpoint)

    @classmethod
    def of_bytes(cls, model: bytes, path: Path, device: Device = "auto") -> Predictor:
        """What `read_sealed` read from ``path``, for a caller that needs the same bytes for something else too.

        Raises DataError, VerificationError and DucatError as `Predictor` does.
        """
        predictor = cls.__new__(cls)
        predictor._load(model, path, device, None, True)
        return predictor

    def _load(self, model: bytes, path: Path, device: Device, threads: int | None, optimised: bool) -> None:
        self.graph_sha256 = check_graph(model, str(path))
        self._session, self.fallback_reason = create_session(model, device, threads, optimised)
        self.provider = self._session.get_providers()[0]
        metadata = self._session.get_modelmeta().custom_metadata_map
        if METADATA_KEY not in metadata or SOURCE_KEY not in metadata:
            raise DataError(f"{path} has no ducat metadata.", "ducat export model.safetensors --onnx")
        if metadata.get(GRAPH_KEY, self.graph_sha256) != self.graph_sha256:
            raise VerificationError(
                f"{path} holds another graph than the one that its ModelSpec was written for.",
                "ducat export model.safetensors --onnx",
            )
        self.spec = ModelSpec.from_json(metadata[METADATA_KEY], str(path))
        self.source_sha256 = metadata[SOURCE_KEY]
        self.reference = None
        if (reference := metadata.get(REFERENCE_KEY)) is not None:
            self.reference = Reference.from_json(reference, self.spec.num_classes, str(path))
        self.examples = None
        if (examples := metadata.get(EXAMPLES_KEY)) is not None:
            self.examples = AttackedExamples.from_json(examples, self.spec, str(path))
        self._require_answers(path)

    def _require_answers(self, path: Path) -> None:
        """Try two black images, since a graph may contradict the ModelSpec that came with it.

        Raises VerificationError where the answers are not two rows of what the ModelSpec says.
        """
        try:
            answer = self(np.zeros((2, *self.spec.image_size, self.spec.channels), np.uint8))
        except Exception as error:  # each operator has its own
            raise VerificationError(
                f"{path} does not answer images of its ModelSpec: {error}",
                "ducat export model.safetensors --onnx",
            ) from error
        classes = self.spec.num_classes
        wanted = [(np.float32, (2, classes)), (np.int64, (2,)), (np.float32, (2,))]
        # Outputs of other graphs may be no arrays at all.
        found = [(getattr(part, "dtype", None), getattr(part, "shape", None)) for part in answer]
        if found != wanted or not _are_best(answer):
            raise VerificationError(
                f"{path} does not answer as its ModelSpec says: with logits of {classes} classes, and with the label "
                "of the largest.",
                "ducat export model.safetensors --onnx",
            )

    @property
    def function_digest(self) -> str:
        """SHA-256 of what tells this function from others: its graph and its ModelSpec, without what was measured."""
        return self.spec.function_digest(self.graph_sha256)

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        """Predict uint8 images [N, H, W, channels] of exactly the model's image size.

        Raises:
            UsageError: another dtype or shape.
        """
        expected = (*self.spec.image_size, self.spec.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected:
            raise UsageError(
                f"The model takes uint8 images [N, {expected[0]}, {expected[1]}, {expected[2]}], "
                f"not {images.dtype} {list(images.shape)}."
            )
        return Predictions(*self._session.run(["logits", "label", "dummy_mass"], {"images": images}))

    @overload  # a path is also a sequence of characters; it is taken as a path
    def predict(self, images: ImageLike, *, batch_size: int = ...) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageLike], *, batch_size: int = ...) -> list[Prediction]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], *, batch_size: int = 32
    ) -> Prediction | list[Prediction]:
        """Predict images of any size, as `ducat predict` and the server do.

        Args:
            images: one image (a path, the bytes of a file, a PIL image, or uint8 pixels [H, W] or [H, W, channels]),
                or a list of them.
            batch_size: how many are given to the model at once.

        Returns a prediction for one image, and a list for a list.

        Raises:
            DataError: a file cannot be read or decoded. UsageError: something else than an image, or a batch of none.

        Examples:
            >>> Predictor("model.onnx").predict("photo.jpg").label
            'cat'
        """
        if batch_size < 1:
            raise UsageError(f"A batch holds at least one image, not {batch_size}.", "leave batch_size away")
        if isinstance(images, str | Path | bytes | Image.Image | np.ndarray):
            return split_up(self(read_image(images, self.spec)[None]), self.spec)[0]
        given: object = images  # in Python it may be anything
        if not isinstance(given, Sequence):
            raise no_image(given)
        found: list[Prediction] = []
        for start in range(0, len(images), batch_size):
            batch = [read_image(image, self.spec) for image in images[start : start + batch_size]]
            found += split_up(self(np.stack(batch)), self.spec)
        return found

    def warm_up(self, batch_sizes: tuple[int, ...] = (1,)) -> None:
        """Run each batch size once, so that the first request does not pay for lazy initialisation."""
        for size in batch_sizes:
            self(np.zeros((size, *self.spec.image_size, self.spec.channels), dtype=np.uint8))


def _are_best(answer: Predictions) -> bool:
    """Whether every label is that of a class, and of the largest logit. Which one that is, NaN does not tell."""
    if not ((answer.label >= 0) & (answer.label < answer.logits.shape[1])).all():
        return False
    best = answer.logits.max(axis=1)
    own = np.take_along_axis(answer.logits, answer.label[:, None], axis=1)[:, 0]
    return bool((np.isnan(best) | (own == best)).all())


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off. Raises DucatError where it is not installed.

    Released wheels (1.29 and later) report usage to Microsoft unless this variable is set before the import.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "cpu") from error
    return onnxruntime


def create_session(
    model: bytes, device: Device, threads: int | None = None, optimised: bool = True
) -> tuple[Any, str | None]:
    """A session for a serialised model, and why it does not run on the GPU that "auto" looked for.

    Raises DucatError where ONNX Runtime is not installed, cannot load the model or cannot use the device.
    """
    if device not in get_args(Device):
        raise UsageError(f"device {device!r} is none of {', '.join(get_args(Device))}.", "name one of these")
    if threads is not None and threads < 1:
        raise UsageError(
            f"threads: {threads} is not a whole number from 1 on.", "leave it out, or give threads=1"
        )
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # ONNX Runtime knows no quota. Threads beyond it would use it up sooner, and then the kernel pauses all of them.
    if (count := threads or quota_threads()) is not None:
        options.intra_op_num_threads = count
    # Spinning threads steal the cores from decoding and from the HTTP loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    # ONNX Runtime's own format is another one, which would be read past all checks of the file.
    options.add_session_config_entry("session.load_model_format", "ONNX")

    def create(providers: list[Any]) -> Any:
        try:
            session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:
            raise DucatError(f"ONNX Runtime cannot load the model: {error}") from error
        session.disable_fallback()
        return session

    reason = None
    if device != "cpu":
        reason = _why_no_cuda()
        if reason is None:
            with contextlib.redirect_stdout(io.StringIO()):
                ort.preload_dlls()
                session = create([("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"}),
                                  "CPUExecutionProvider"])  # fmt: skip
            # Creation succeeds on the CPU when CUDA does not start, so look at what it really took.
            if session.get_providers()[0] == "CUDAExecutionProvider":
                return session, None
            reason = "ONNX Runtime could not start its CUDA provider (no GPU, or no driver)"
        if device == "cuda":
            raise DucatError(
                f"--device cuda: {reason}.", "use --device cpu, or run `ducat doctor` to see what is missing"
            )
    return create(["CPUExecutionProvider"]), reason


def is_built_for_cuda() -> bool:
    """Whether the installed ONNX Runtime is one for GPUs, be there a GPU or not."""
    return "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()


def _why_no_cuda() -> str | None:
    if is_built_for_cuda():
        return None
    return "the installed onnxruntime has no CUDA provider (the extra gpu instead of cpu brings it)"
