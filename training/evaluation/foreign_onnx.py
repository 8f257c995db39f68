"""Somebody else's ONNX file as a classifier: what its input wants is declared, and no gradient goes through it.

Files leave open what they want: the order of axes, the range of pixels, often the sizes too. Nothing of that is
guessed. Axes and range are told; a size that the file leaves open is that of the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ducat_serve.errors import DataError, UsageError, VerificationError, command_line
from ducat_serve.onnx_graph import keeps_tensors_elsewhere
from ducat_serve.predictor import Device, create_session

Layout = Literal["NCHW", "NHWC"]
ImageShape = tuple[int, int, int]  # channels, height, width
# What ONNX Runtime calls the types of inputs that images can be given as.
_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(uint8)": np.dtype(np.uint8),
}


@dataclass(frozen=True)
class Scale:
    """From pixels in [0, 1] to what a model takes: ``(pixels - mean) / std``, of all channels or of each."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def is_bytes(self) -> bool:
        """Whether the model takes grey levels from 0 to 255."""
        return self == GREY_LEVELS


GREY_LEVELS = Scale(std=(1 / 255,))


def parse_scale(text: str) -> Scale:
    """Read ``1`` (the model takes [0, 1]), ``255`` ([0, 255]) or ``MEAN/STD``, each a number or one per channel.

    Raises ValueError for anything else.
    """
    if text in ("1", "255"):
        return GREY_LEVELS if text == "255" else Scale()
    means, _, deviations = text.partition("/")
    try:
        mean = tuple(float(number) for number in means.split(","))
        std = tuple(float(number) for number in deviations.split(","))
    except ValueError:
        mean = std = ()
    if not mean or not np.isfinite([*mean, *std]).all() or not 0 < min(std) <= max(std) <= 1:
        raise ValueError(
            f"'{text}' is none of 1, 255 and MEAN/STD in pixels of [0, 1], such as 0.5/0.25 or "
            "0.49,0.48,0.45/0.25,0.24,0.26."
        )
    return Scale(mean, std)


class OnnxClassifier(nn.Module):
    """An ONNX file behind the interface of a classifier.

    ``digest`` is the SHA-256 of the file. It is ready for images after `fit`.

    Args:
        path: of the file. layout: the order of its input's axes. scale: what its input takes.

    Raises:
        DataError: it cannot be read, or is no ONNX file. VerificationError: it is only a part of one.
        UsageError: it has more than one input, or one that takes no images.
        DucatError: ONNX Runtime cannot load it.
    """

    def __init__(self, path: Path, layout: Layout, scale: Scale, device: Device = "auto") -> None:
        super().__init__()
        self.path, self.layout, self.scale = path, layout, scale
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror}.", "name a .onnx file") from error
        self.digest = hashlib.sha256(content).hexdigest()
        _require_whole(content, path)
        self._session, _ = create_session(content, device)
        self._input = self._require_input()
        self._dtype = _TYPES[self._input.type]
        self._output: str | None = None
        self._one_by_one = False
        if self._dtype == np.uint8 and not scale.is_bytes:
            raise UsageError(f"{path} takes uint8, so its pixels are 0 to 255.", "give --scale 255")

    @property
    def takes_bytes_only(self) -> bool:
        """Whether only images of 8 bits can be given to it."""
        return bool(self._dtype == np.uint8)

    @property
    def image_size(self) -> int | None:
        """Height and width of the images that it takes, where it says both and they are the same."""
        sizes = self._sizes()
        return sizes["H"] if sizes["H"] == sizes["W"] else None

    def fit(self, image: ImageShape, class_names: Sequence[str]) -> list[str]:
        """Make it ready for images of one shape; returns the sizes that the file leaves open, in words.

        Raises UsageError where it takes no such images, fails on one, or does not say which output has the logits.
        """
        self._require_shape(image)
        channels = image[0]
        for numbers in (self.scale.mean, self.scale.std):
            if len(numbers) not in (1, channels):
                raise UsageError(f"--scale has {len(numbers)} numbers for {channels} channels.")
        answers = self._tried(np.zeros((1, *image), dtype=np.float32))
        self._output = self._logits(answers, len(class_names))
        self._one_by_one = self._sizes()["N"] is None and not self._takes_two(image, self._output)
        names = dict(zip(self.layout, ("batch", "", "", ""), strict=True)) | {"C": "channels"}
        names |= {"H": "height", "W": "width"}
        return [names[axis] for axis, size in self._sizes().items() if axis != "N" and size is None]

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1] to what the file answers, float32 [N, C]."""
        if self._output is None:
            raise ValueError("call fit() first")
        pixels = images.detach().cpu().numpy()
        answers = [self._run(part, [self._output])[0] for part in self._parts(pixels)]
        logits = np.concatenate(answers)[: len(pixels)]
        return torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32)).to(images.device)

    def _takes_two(self, image: ImageShape, output: str) -> bool:
        """Whether it answers two images at once: an exporter may have written one into the graph, and not its input."""
        try:
            answers = self._run(np.zeros((2, *image), dtype=np.float32), [output])[0]
        except Exception:  # ONNX Runtime's are of many kinds
            return False
        return len(answers) == 2

    def _parts(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Batches as the file takes them: of its own size where it names one, the last filled up with black images."""
        size = 1 if self._one_by_one else self._sizes()["N"]
        if size is None:
            return [pixels]
        missing = -len(pixels) % size
        filled = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), dtype=np.float32)])
        return [filled[start : start + size] for start in range(0, len(filled), size)]

    def _run(self, pixels: NDArray[np.float32], names: list[str] | None) -> list[NDArray[Any]]:
        mean = np.array(self.scale.mean, dtype=np.float32).reshape(1, -1, 1, 1)
        std = np.array(self.scale.std, dtype=np.float32).reshape(1, -1, 1, 1)
        scaled = (pixels - mean) / std
        if self._dtype == np.uint8:
            scaled = scaled.round().clip(0, 255)
        if self.layout == "NHWC":
            scaled = scaled.transpose(0, 2, 3, 1)
        given = {self._input.name: np.ascontiguousarray(scaled.astype(self._dtype))}
        answers: list[NDArray[Any]] = self._session.run(names, given)
        return answers

    def _tried(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """All outputs for one image."""
        names = [output.name for output in self._session.get_outputs()]
        try:
            answers = self._run(self._parts(pixels)[0], None)
        except Exception as error:  # ONNX Runtime's are of many kinds
            size = " x ".join(str(n) for n in pixels.shape[1:])
            first = str(error).partition("\n")[0]
            raise UsageError(
                f"{self.path} fails on an image of {size} (channels, height, width): {first}",
                "export it for images of that size, or measure it on a data set of its own size",
            ) from error
        return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}

    def _logits(self, answers: dict[str, NDArray[Any]], classes: int) -> str:
        """The output that has the logits: the only one, or the only one with a float for each class."""
        if len(answers) == 1:
            return next(iter(answers))
        fits = [
            name
            for name, answer in answers.items()
            if answer.ndim == 2 and answer.shape[1] == classes and np.issubdtype(answer.dtype, np.floating)
        ]
        if len(fits) == 1:
            return fits[0]
        shown = ", ".join(f"{name} {list(answer.shape)}" for name, answer in answers.items())
        raise UsageError(
            f"{self.path} has several outputs ({shown}), and {len(fits) or 'none'} of them can be the logits of "
            f"{classes} classes.",
            "export it with its logits alone",
        )

    def _require_input(self) -> Any:
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise UsageError(
                f"{self.path} has {len(inputs)} inputs ({', '.join(i.name for i in inputs)}); images are one.",
                "export it with the images as its only input",
            )
        (images,) = inputs
        if images.type not in _TYPES or len(images.shape) != 4:
            raise UsageError(
                f"{self.path} takes {images.type} {list(images.shape)}, which are no images: they have four axes and "
                f"one of {', '.join(sorted(_TYPES))}."
            )
        return images

    def _sizes(self) -> dict[str, int | None]:
        """The size of each axis by its letter; None where the file leaves it open."""
        sizes = (size if isinstance(size, int) and size > 0 else None for size in self._input.shape)
        return dict(zip(self.layout, sizes, strict=True))

    def _require_shape(self, image: ImageShape) -> None:
        wanted = dict(zip("CHW", image, strict=True))
        sizes = self._sizes()
        if all(sizes[axis] in (None, wanted[axis]) for axis in "CHW"):
            return
        shown = ", ".join("open" if size is None else str(size) for size in self._input.shape)
        other: Layout = "NHWC" if self.layout == "NCHW" else "NCHW"
        in_other = dict(zip(other, self._input.shape, strict=True))
        if all(not isinstance(in_other[a], int) or in_other[a] == wanted[a] for a in "CHW"):
            next_step = f"its axes look like --input {other}"
        else:
            next_step = "export it for images of that size, or measure it on a data set of its own size"
        size = f"{image[0]} channels and {image[1]} x {image[2]} pixels"
        raise UsageError(
            f"{self.path} takes images [{shown}], which as {self.layout} does not fit images of {size}.",
            next_step,
        )


def not_ours(path: Path) -> DataError:
    """The error for an ONNX file that `ducat export` did not write, and of which nothing was declared."""
    command = command_line("ducat", "evaluate", path, "--input", "NCHW", "--scale", "1")
    return DataError(
        f"{path} was not written by ducat (its metadata is missing) or is truncated.",
        f"for a model of others say what it takes: {command} --dataset NAME --eps 8/255",
    )


def _require_whole(content: bytes, path: Path) -> None:
    try:
        elsewhere = keeps_tensors_elsewhere(content)
    except ValueError as error:
        raise DataError(f"{path}: {error}.", "name a .onnx file") from error
    if elsewhere:
        raise VerificationError(
            f"{path} keeps tensors in other files, which its SHA-256 says nothing of.",
            "save it as one file: onnx.save(onnx.load(path), 'whole.onnx')",
        )
