"""The kinds of models of others: where each is found, and how it becomes a classifier to measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from ducat_serve.errors import UsageError, command_line
from ducat_serve.output import Output
from ducat_serve.predictor import Device
from ducat_serve.sealed import is_sealed
from ducat_serve.spec import Fold
from training.data import Dataset
from training.evaluation.foreign import Origin, import_model, state_digest
from training.evaluation.foreign_onnx import Layout, OnnxClassifier, Scale


@dataclass(frozen=True)
class Opened:
    """A model of others, while it is measured.

    Args:
        bytes_only: whether only images of 8 bits can be given to it.
        image_size: the height and width of images that it takes, where it says that and they are the same.
        fit: called with the data set before the first image; raises UsageError where they do not fit.
    """

    model: nn.Module
    origin: Origin
    fold: Fold = "none"
    bytes_only: bool = False
    image_size: int | None = None
    fit: Callable[[Dataset], None] = field(default=lambda _data: None)


class Source(ABC):
    """Where a model of others is found. ``on_cpu`` is whether it takes images there, wherever it computes."""

    on_cpu: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What its report and card call it."""

    @property
    @abstractmethod
    def file_name(self) -> str:
        """What report and card are named by, without an ending."""

    @abstractmethod
    def opened(self, device: torch.device, output: Output) -> AbstractContextManager[Opened]:
        """The model, on a device. Raises what loading it does."""


@dataclass(frozen=True)
class CallableSource(Source):
    """`package.module:callable`, which returns a torch.nn.Module."""

    callable_name: str
    import_from: Path | None = None
    fold: Fold = "none"

    @property
    def name(self) -> str:
        return self.callable_name

    @property
    def file_name(self) -> str:
        return self.callable_name.rpartition(":")[2]

    @contextmanager
    def opened(self, device: torch.device, output: Output) -> Iterator[Opened]:  # noqa: ARG002
        model = import_model(self.callable_name, self.import_from).to(device)
        yield Opened(model, Origin(state_digest(model)), self.fold)


@dataclass(frozen=True)
class OnnxSource(Source):
    """A .onnx file that `ducat export` did not write; ``twin`` is the name of a callable."""

    on_cpu: ClassVar[bool] = True
    path: Path
    layout: Layout
    scale: Scale
    device: Device = "auto"
    twin: str | None = None
    import_from: Path | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def file_name(self) -> str:
        return self.path.stem

    @contextmanager
    def opened(self, device: torch.device, output: Output) -> Iterator[Opened]:  # noqa: ARG002
        if self.path.is_file() and is_sealed(self.path):
            raise UsageError(
                f"{self.path} was written by ducat and says itself what it takes.",
                command_line("ducat", "evaluate", self.path),
            )
        model = OnnxClassifier(self.path, self.layout, self.scale, self.device)
        twin = None if self.twin is None else import_model(self.twin, self.import_from)

        def fit(data: Dataset) -> None:
            _, height, width, channels = data.test.images.shape
            if left_open := model.fit((channels, height, width), data.class_names):
                output.say(
                    f"{self.path} leaves {', '.join(left_open)} open: measured with {channels} channels and "
                    f"{height} x {width} pixels, as {data.title} has."
                )

        yield Opened(
            model.eval(),
            Origin(model.digest, "onnx", twin),
            bytes_only=model.takes_bytes_only,
            image_size=model.image_size,
            fit=fit,
        )
