"""Options of `ducat evaluate` that say what a model of others is, and where it is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ducat_serve.cli.evaluated_model import ForeignModel
from ducat_serve.cli.headings import stacked
from ducat_serve.cli.network_options import allow_folder
from ducat_serve.errors import UsageError, command_line
from ducat_serve.networks.allowed import is_anything_allowed

if TYPE_CHECKING:
    from ducat_serve.library.foreign_sources import ModelCallable, Source
    from ducat_serve.predictor import Device


# What describes a model of others.
foreign_options = stacked(
    click.option(
        "--import-from",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        metavar="DIR",
        callback=allow_folder,
        help="Where a package.module:callable is imported from, beside the installed packages.",
    ),
    click.option(
        "--fold",
        type=click.Choice(["max", "lse"]),
        help="Of a package.module:callable MODEL that returns 2C logits, the dummy of class i in column i + C.",
    ),
    click.option(
        "--input",
        type=click.Choice(["NCHW", "NHWC"]),
        help="The order of axes that a .onnx MODEL of others takes.",
    ),
    click.option(
        "--scale",
        metavar="SCALE",
        help="What a .onnx MODEL of others takes: 1 for [0, 1], 255 for [0, 255], or MEAN/STD in pixels of [0, 1].",
    ),
    click.option(
        "--url",
        metavar="URL",
        help="In the place of MODEL: a running server, http://HOST:PORT/v1/predict.",
    ),
    click.option(
        "--query-budget", type=click.IntRange(min=1), help="Images that may be sent to --url in all."
    ),
    click.option("--key", envvar="DUCAT_KEY", show_envvar=True, help="API key for --url."),
    click.option(
        "--image-size",
        type=click.IntRange(min=1),
        help="What the images of a folder are resized to, where a MODEL of others does not say it.",
    ),
    click.option(
        "--twin",
        metavar="PACKAGE.MODULE:CALLABLE",
        help="A torch model like MODEL, to make images on that are shown to it: of a MODEL without gradients, say.",
    ),
)


@dataclass(frozen=True)
class ForeignGiven:
    """These options as they were given."""

    import_from: Path | None
    fold: Any
    input: Any
    scale: str | None
    url: str | None
    query_budget: int | None
    key: str | None
    twin: str | None
    image_size: int | None

    def source(self, model: Path | ForeignModel | None, device: Device) -> Source | None:
        """Where the model of others is found; None where MODEL is one of ours.

        Raises UsageError where options do not go together, and VerificationError for a .onnx file of others of which
        nothing is said.
        """
        from ducat_serve.library.foreign_sources import CallableSource, ModelCallable, OnnxSource

        twin = None if self.twin is None else ModelCallable(self.twin, self.import_from)
        if model is None:
            return self._server(twin)
        self._refuse("a server in the place of MODEL", {"--url": self.url})
        self._refuse("--url", {"--query-budget": self.query_budget})
        if isinstance(model, ForeignModel):
            self._refuse("a .onnx MODEL of others", {"--input": self.input, "--scale": self.scale})
            made_by = ModelCallable(model.name, self.import_from)
            return CallableSource(made_by, self.fold or "none", twin)
        self._refuse("a package.module:callable MODEL", {"--fold": self.fold})
        if model.suffix == ".onnx" and self.input is not None:
            self._refuse_an_idle_folder()
            return OnnxSource(model, self.input, self._scale(model), device, twin)
        self._refuse_an_idle_folder()
        self._refuse("a .onnx MODEL of others, with --input", {"--scale": self.scale, "--twin": self.twin})
        self._refuse("a MODEL of others: yours says its size", {"--image-size": self.image_size})
        self._require_ours(model)
        return None

    def _server(self, twin: ModelCallable | None) -> Source:
        from ducat_serve.library.foreign_sources import ServerSource

        if self.url is None:
            raise UsageError("There is no MODEL to measure.", "name one, or a server: --url URL")
        described = {"--fold": self.fold, "--input": self.input, "--scale": self.scale}
        self._refuse("a MODEL, not for --url", described)
        self._refuse_an_idle_folder()
        if self.query_budget is None:
            raise UsageError(
                f"How much may {self.url} be asked?",
                "give --query-budget N, in images: a thousand for each one that is measured, say",
            )
        return ServerSource(self.url, self.query_budget, self.key, twin)

    def _scale(self, model: Path) -> Any:
        from training.evaluation.foreign_onnx import parse_scale

        if self.scale is None:
            raise UsageError(
                f"{model} does not say what its pixels are.",
                "give --scale 1 for [0, 1], --scale 255 for [0, 255], or --scale MEAN/STD",
            )
        try:
            return parse_scale(self.scale)
        except ValueError as error:
            raise UsageError(f"--scale: {error}") from None

    def _require_ours(self, model: Path) -> None:
        if model.suffix != ".onnx" or not model.is_file():
            return
        from ducat_serve.sealed import is_sealed

        if not is_sealed(model):
            from training.evaluation.foreign_onnx import not_ours

            raise not_ours(model)

    def _refuse_an_idle_folder(self) -> None:
        """Raise UsageError for a folder from which nothing that was named is imported."""
        if self.twin is None and not is_anything_allowed():
            self._refuse(
                "a package.module:callable, as MODEL, --twin, --network or --attack",
                {"--import-from": self.import_from},
            )

    def _refuse(self, are_for: str, given: dict[str, object]) -> None:
        if wrong := [name for name, value in given.items() if value is not None]:
            raise UsageError(
                f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} for {are_for}.",
                command_line("ducat", "evaluate", "--help"),
            )
