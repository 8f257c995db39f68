"""The kinds of models of others: where each is found, and how it becomes a classifier to measure."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import torch
from torch import nn

from ducat_serve.client import Client
from ducat_serve.errors import UsageError, command_line
from ducat_serve.output import Output
from ducat_serve.predictor import Device
from ducat_serve.report import RobustnessReport
from ducat_serve.sealed import is_sealed
from ducat_serve.spec import Fold
from training.data import Dataset
from training.evaluation.evaluate import Plan
from training.evaluation.foreign import Origin, import_model
from training.evaluation.foreign_onnx import ImageShape, Layout, OnnxClassifier, Scale
from training.evaluation.foreign_server import ServerClassifier
from training.evaluation.state_digest import state_digest


@dataclass(frozen=True)
class Opened:
    """A model of others, while it is measured.

    Args:
        bytes_only: whether only images of 8 bits can be given to it.
        image_size: the height and width of images that it takes, where it says that and they are the same.
    """

    model: nn.Module
    origin: Origin
    fold: Fold = "none"
    bytes_only: bool = False
    image_size: int | None = None

    def fit(self, data: Dataset, output: Output) -> None:
        """Called with the data set before the first image. Raises UsageError where they do not fit."""

    def planned(self, plan: Plan, images: int, radii: int) -> Plan:  # noqa: ARG002
        """The plan that suits the model, for so many images, at so many radii."""
        return plan

    def reported(self, report: RobustnessReport) -> RobustnessReport:
        """The report with what else there is to say of the model."""
        return report


@dataclass(frozen=True)
class OpenedOnnx(Opened):
    """A file."""

    classifier: OnnxClassifier = field(kw_only=True)

    def fit(self, data: Dataset, output: Output) -> None:
        shape = image_shape(data)
        if left_open := self.classifier.fit(shape, data.class_names):
            output.say(
                f"{self.classifier.path} leaves {', '.join(left_open)} open: measured with {shape[0]} channels and "
                f"{shape[1]} x {shape[2]} pixels, as {data.title} has."
            )


@dataclass(frozen=True)
class OpenedServer(Opened):
    """A server that is being asked."""

    classifier: ServerClassifier = field(kw_only=True)

    def fit(self, data: Dataset, output: Output) -> None:  # noqa: ARG002
        self.classifier.require_fit(image_shape(data), data.class_names)

    def planned(self, plan: Plan, images: int, radii: int) -> Plan:
        return self.classifier.within_budget(plan, images, radii)

    def reported(self, report: RobustnessReport) -> RobustnessReport:
        return report.model_copy(update={"server": self.classifier.access()})


def image_shape(data: Dataset) -> ImageShape:
    """Channels, height and width."""
    _, height, width, channels = data.test.shape
    return channels, height, width


@dataclass(frozen=True)
class ModelCallable:
    """`package.module:callable`, which returns a torch.nn.Module, and the folder that it is imported from."""

    name: str
    import_from: Path | None = None

    def model(self, device: torch.device, output: Output) -> nn.Module:
        """What it returns, on a device. Raises what `import_model` does."""
        return import_model(self.name, self.import_from, output=output).to(device)


class Source(ABC):
    """Where a model of others is found.

    ``on_cpu`` is whether it takes images there, wherever it computes, ``scores_only`` whether it is known to have no
    gradients, ``resumable`` whether an interrupted evaluation can be gone on with.
    """

    on_cpu: ClassVar[bool] = False
    scores_only: ClassVar[bool] = False
    resumable: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """What its report and card call it."""

    @property
    @abstractmethod
    def file_name(self) -> str:
        """What report and card are named by, without an ending."""

    @property
    def takes(self) -> str:
        """What images it was said to take, in words: another one makes it another function."""
        return "images in [0, 1]"

    @abstractmethod
    def opened(self, device: torch.device, output: Output) -> AbstractContextManager[Opened]:
        """The model, on a device. Raises what loading it does."""


@dataclass(frozen=True)
class CallableSource(Source):
    """A callable."""

    made_by: ModelCallable
    fold: Fold = "none"
    twin: ModelCallable | None = None

    @property
    def name(self) -> str:
        return self.made_by.name

    @property
    def file_name(self) -> str:
        return self.name.replace(":", ".")

    @contextmanager
    def opened(self, device: torch.device, output: Output) -> Iterator[Opened]:
        model = self.made_by.model(device, output)
        twin = None if self.twin is None else self.twin.model(device, output)
        yield Opened(model, Origin(state_digest(model), twin=twin), self.fold)


@dataclass(frozen=True)
class OnnxSource(Source):
    """A .onnx file that `ducat export` did not write."""

    on_cpu: ClassVar[bool] = True
    scores_only: ClassVar[bool] = True
    path: Path
    layout: Layout
    scale: Scale
    device: Device = "auto"
    twin: ModelCallable | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def file_name(self) -> str:
        return self.path.stem

    @property
    def takes(self) -> str:
        return f"{self.layout} {self.scale}"

    @contextmanager
    def opened(self, device: torch.device, output: Output) -> Iterator[Opened]:
        if self.path.is_file() and is_sealed(self.path):
            raise UsageError(
                f"{self.path} was written by ducat and says itself what it takes.",
                command_line("ducat", "evaluate", self.path),
            )
        model = OnnxClassifier(self.path, self.layout, self.scale, self.device)
        twin = None if self.twin is None else self.twin.model(device, output)
        yield OpenedOnnx(
            model.eval(),
            Origin(model.digest, "onnx", twin),
            bytes_only=model.takes_bytes_only,
            image_size=model.image_size,
            classifier=model,
        )


_PATH = "/v1/predict"
_PATIENCE = 120.0  # seconds that a server may ask to wait for; a budget that is renewed tomorrow is an error
_RETRIES = 20
_ALL_CLASSES = 999_999  # the server lists as many as it has, up to a hundred


def _is_address(url: str) -> bool:
    """Whether this is an address of `/v1/predict`; ports that are no numbers and broken IPv6 addresses are none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is not looked at before it is asked for
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path.endswith(_PATH)


@dataclass(frozen=True)
class ServerSource(Source):
    """A running server: the address of its `/v1/predict`, and how many images may be sent there."""

    on_cpu: ClassVar[bool] = True
    scores_only: ClassVar[bool] = True
    resumable: ClassVar[bool] = False  # it may answer otherwise by then, and what it was asked is spent
    url: str
    query_budget: int
    key: str | None = field(default=None, repr=False)
    twin: ModelCallable | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for an address of something else."""
        if not _is_address(self.url):
            raise UsageError(
                f"--url {self.url} is not the address of a server's {_PATH}.",
                f"give one like http://127.0.0.1:3000{_PATH}",
            )

    @property
    def name(self) -> str:
        """The address without a password, and behind a question mark nothing but the model that is asked."""
        return self._address + (f"?{urlencode(self._asked)}" if self._asked else "")

    @property
    def file_name(self) -> str:
        words = [urlsplit(self._address).netloc, *self._asked.values()]
        return re.sub(r"[^\w.-]+", "-", "-".join(words)).strip("-")

    @property
    def _address(self) -> str:
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def _asked(self) -> dict[str, str]:
        """Which model of the server, and which version of it, where the address says that."""
        return {k: v for k, v in parse_qsl(urlsplit(self.url).query) if k in ("model", "version")}

    @contextmanager
    def opened(self, device: torch.device, output: Output) -> Iterator[Opened]:
        twin = None if self.twin is None else self.twin.model(device, output)
        client = Client(
            self._address.removesuffix(_PATH),
            key=self.key,
            model=self._asked.get("model"),
            version=self._asked.get("version"),
            timeout=60.0,
            retries=_RETRIES,
            max_wait=_PATIENCE,
            top_k=_ALL_CLASSES,
        )
        with client:
            model = ServerClassifier(client, self.name, self.query_budget).eval()
            _, height, width = model.image
            yield OpenedServer(
                model,
                Origin(model.weights_digest, "server", twin),
                bytes_only=True,
                image_size=height if height == width else None,
                classifier=model,
            )
            if client.waited:
                output.say(f"Waited {client.waited:.0f} s in all, as the server asked.")
