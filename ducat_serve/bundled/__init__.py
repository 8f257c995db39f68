"""Trained models that come with the package, and how a model's name or path becomes a file.

Beside this file lie, for each model, `NAME.safetensors` (the checkpoint with its report), `NAME.onnx` (its export) and
`NAME.md` (the model card). `index.json` says what they are. `benchmarks/bundle_model.py` writes all of them.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ducat_serve.checkpoint import file_sha256
from ducat_serve.errors import DataError, UsageError, unknown_name
from ducat_serve.report import Fraction, Interval
from ducat_serve.spec import first_problem
from ducat_serve.threat_model import ThreatModel

FOLDER = Path(__file__).parent
INDEX = "index.json"
PREFIX = "bundled:"  # `bundled:NAME` is the bundled model where a file is called NAME too

Kind = Literal["safetensors", "onnx"]
NAME = "[a-z0-9]+(-[a-z0-9]+)*"  # as a regular expression
KINDS: tuple[Kind, ...] = ("safetensors", "onnx")
REINSTALL = (
    "pip install --force-reinstall --no-deps ducat-serve; in a clone: git checkout ducat_serve/bundled"
)
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BundledModel(BaseModel):
    """An entry of the index. Accuracies are those of the standard suite on test images, as the checkpoint has them.

    ``dataset`` is the data set's true name; ``command`` and ``git_revision`` say how the model was trained, None where
    that was not recorded. ``sha256`` is over each whole file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    dataset: str
    data_digest: str | None
    network: str
    parameters: int = Field(gt=0)
    threat_model: ThreatModel
    examples: int = Field(gt=0)
    clean_accuracy: Fraction
    clean_interval: Interval
    worst_case_accuracy: Fraction
    worst_case_interval: Interval
    command: str | None
    git_revision: str | None
    sha256: dict[Kind, Digest]

    def path(self, kind: Kind) -> Path:
        """Where the file is, looked at or not."""
        return FOLDER / f"{self.name}.{kind}"

    def damage(self, kind: Kind) -> str | None:
        """What is wrong with the file, in a sentence: it is missing, or not the one that the index names."""
        path = self.path(kind)
        try:
            digest = file_sha256(path)
        except OSError as error:
            return f"The bundled model {self.name} cannot be read: {path}: {error.strerror}."
        if digest == self.sha256[kind]:
            return None
        return (
            f"The bundled model {self.name} was damaged or changed: the SHA-256 of {path} is {digest[:12]}..., "
            f"not {self.sha256[kind][:12]}..."
        )

    def file(self, kind: Kind) -> Path:
        """The file, whole. Raises DataError where it is missing or is not the one that the index names."""
        if (damage := self.damage(kind)) is not None:
            raise DataError(damage, REINSTALL)
        return self.path(kind)


class Index(BaseModel):
    """`index.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[BundledModel, ...]

    def to_json(self) -> str:
        """The text of the file: models sorted by name, keys as they are declared."""
        ordered = sorted(self.models, key=lambda model: model.name)
        return Index(models=tuple(ordered)).model_dump_json(indent=2) + "\n"


def bundled_models() -> dict[str, BundledModel]:
    """The bundled models by name. Raises DataError where the index is missing or damaged."""
    path = FOLDER / INDEX
    try:
        index = Index.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.", REINSTALL) from error
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {first_problem(error)}.", REINSTALL) from error
    return {model.name: model for model in index.models}


def bundled_name(path: Path) -> str | None:
    """The name of the bundled model that a file belongs to, None for every other file."""
    return path.stem if path.resolve().parent == FOLDER.resolve() else None


def model_path(model: str | Path, kind: Kind) -> Path:
    """The file or folder that a user means by ``model``; of a bundled model the file of this kind, checked.

    A Path is always a path. Text is the name of a bundled model where there is one, else a path; `./NAME` is a file
    and `bundled:NAME` a bundled model in any case.

    Raises:
        UsageError: the name of a bundled model and of a file or folder here; an unknown name after `bundled:`.
        DataError: neither a bundled model nor something in this folder; or the bundled file was changed.
    """
    if isinstance(model, Path) or not _can_be_name(model):
        return Path(model)
    name = model.removeprefix(PREFIX)
    models = bundled_models()
    if name in models:
        if name == model and Path(model).exists():
            raise UsageError(
                f"'{name}' is the name of a bundled model and of a file or folder here.",
                f"write ./{name} for what is here, {PREFIX}{name} for the bundled model",
            )
        return models[name].file(kind)
    if name != model:
        raise unknown_name("bundled model", name, models)
    if not os.path.exists(model):  # noqa: PTH110 (a Path raises for a name that no file system takes)
        near = difflib.get_close_matches(name, models, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(
            f"There is no file or folder '{model}' here, and no bundled model of that name.{hint}",
            f"give the path of a model, or a bundled one (`ducat models`): {', '.join(models) or 'there is none'}",
        )
    return Path(model)


def _can_be_name(model: str) -> bool:
    """Whether this is one word, and does not end like a model file."""
    path = Path(model)
    return model == path.name and path.suffix not in {f".{kind}" for kind in KINDS}
