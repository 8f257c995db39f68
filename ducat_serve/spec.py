"""ModelSpec: everything an artefact says about itself, as one canonical JSON document.

The same JSON travels in `model.safetensors` and in `model.onnx`. It holds no dates and no paths, so the
same weights and recipe give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ducat_serve.errors import VerificationError, command_line
from ducat_serve.quantisation import Quantisation
from ducat_serve.report import ExportPrecision, RobustnessReport
from ducat_serve.threat_model import FROM_FILE, ThreatModel

SCHEMA_VERSION = 1
Tower = Literal["standard", "robust"]
METADATA_KEY = "ducat"
IMPORTED = "imported"  # in the place of the method, of a model that others have trained

MAX_IMAGE_SIZE = 512
_ONLY_SOME = ("network_source", "towers", "quantisation")
# Whoever predicts resizes to this: without a bound a small file could ask for gigabytes.
_ImageSide = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]


class Switch(BaseModel):
    """The fold of a two-tower model: its standard tower's class, unless the robust tower is sure that it is wrong.

    Args:
        scale, power, shift: of the map that makes the robust tower's logits more or less sure (`ducat_serve.switch`).
        threshold: by how much probability the robust tower's best class must lead before it overrules the other tower.
        divisor: what the robust tower's centred logits are divided by, so that large ones count as sure; None: each
            image's own standard deviation, as in models of before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["switch"] = "switch"
    scale: float = Field(gt=0)
    power: float = Field(ge=1)  # below 1 the map has no gradient at 0
    shift: float
    threshold: float = Field(gt=0, lt=1)
    divisor: float | None = Field(default=None, gt=0)

    def __str__(self) -> str:
        return self.kind


# How C logits come from 2C; a network with C logits and no dummies needs none.
Fold = Literal["none", "max", "lse"] | Switch


class Normalisation(BaseModel):
    """Per-channel mean and standard deviation of pixels in [0, 1]; applied inside the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]


class NetworkSource(BaseModel):
    """Where a network that is not ours comes from, and how it is built again.

    ``version`` is that of the installed distribution that holds it, None for a module that belongs to none.
    ``rebuild`` is a sentence for people: what was called, and what was replaced.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str
    version: str | None
    rebuild: str


class ModelSpec(BaseModel):
    """What a classifier is, how it was trained, and what was measured on it.

    ``fold`` names the map from 2C logits to C; ``"none"`` means that the network has C logits and no
    dummies. ``precision`` is that of the network's arithmetic; head and fold are float32 in any case.
    ``weights_digest`` is the SHA-256 over names, shapes, types and bytes of all tensors. ``towers`` are what the
    standard and the robust tower of a two-tower model were as models of their own, each with its own digest.
    ``quantisation`` is how an int8 file was made.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    network: str
    network_source: NetworkSource | None = None  # None: one of ours
    num_classes: int = Field(ge=2)
    labels: tuple[str, ...]
    channels: Literal[1, 3]
    image_size: tuple[_ImageSide, _ImageSide]
    normalisation: Normalisation
    fold: Fold
    threat_model: ThreatModel
    training: dict[str, JsonValue]
    precision: ExportPrecision = "float32"
    quantisation: Quantisation | None = None
    robustness: RobustnessReport | None = None
    weights_digest: str
    towers: tuple[ModelSpec, ModelSpec] | None = None

    @property
    def num_logits(self) -> int:
        """Width of the network's head: C without dummies, 2C with them."""
        return self.num_classes if self.fold == "none" else 2 * self.num_classes

    def tower_of(self, dummy_mass: float) -> Tower | None:
        """Which tower gave the answer that came with this dummy mass; None for a model without towers."""
        if self.towers is None:
            return None
        return "robust" if dummy_mass > 0.5 else "standard"

    @property
    def recipe(self) -> dict[str, JsonValue]:
        """The settings it was trained with, empty where it does not record them: any of them can be missing."""
        recipe = self.training.get("recipe")
        return recipe if isinstance(recipe, dict) else {}

    @property
    def is_imported(self) -> bool:
        """Whether others have trained it, so that how, and on what, is not known."""
        return self.recipe.get("method") == IMPORTED

    @property
    def command(self) -> str | None:
        """The command that trained it, without folders of the machine; None where it is not recorded."""
        return self._recorded("command")

    @property
    def git_revision(self) -> str | None:
        """The commit of ducat-serve that trained it, or None; one that ends in `-dirty` had been changed."""
        return self._recorded("git_revision")

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and of the packages that trained it, by name; empty where they are not recorded."""
        versions = self.training.get("versions")
        return (
            {name: str(version) for name, version in versions.items()} if isinstance(versions, dict) else {}
        )

    @property
    def data_digest(self) -> str | None:
        """SHA-256 of the images and labels of the data set that it was trained on, or None."""
        return self._recorded("data_digest")

    def function_digest(self, graph_sha256: str = "") -> str:
        """SHA-256 of what tells this function from others of the same weights: fold, switch, normalisation and so on.

        What was measured is left out. ``graph_sha256`` is that of the graph of an exported file.
        """
        unmeasured = self.model_copy(update={"robustness": None, "quantisation": None})
        return _digest({**unmeasured.model_dump(mode="json"), "graph": graph_sha256})

    def require_measured(self, function: str, source: Path, graph_sha256: str = "") -> None:
        """Raise VerificationError unless this is the function that was measured, by its `function_digest`.

        Hours may pass between reading a file and storing a report in it, and the file may be another one by then.
        """
        if self.function_digest(graph_sha256) != function:
            raise VerificationError(
                f"{source} is another model than the one that was measured; nothing was stored in it.",
                command_line("ducat", "evaluate", source, "--out", "report.json"),
            )

    def _recorded(self, name: str) -> str | None:
        value = self.training.get(name)
        return value if isinstance(value, str) else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes")
        if {len(self.normalisation.mean), len(self.normalisation.std)} != {self.channels}:
            raise ValueError("normalisation does not have one value per channel")
        if self.robustness is not None and self.robustness.weights_digest != self.weights_digest:
            raise ValueError("the robustness report was measured on other weights")
        if self.robustness is not None and self.robustness.precision != self.precision:
            raise ValueError("the robustness report was measured in another precision")
        if (self.quantisation is not None) != (self.precision == "int8"):
            raise ValueError("what is in int8 says how it was quantised, and nothing else does")
        before = None if self.quantisation is None else self.quantisation.float32_robustness
        if before is not None and (before.weights_digest, before.precision) != (
            self.weights_digest,
            "float32",
        ):
            raise ValueError("the report of the float32 model belongs to another one")
        if isinstance(self.fold, Switch) != (self.towers is not None):
            raise ValueError("a switch is the fold of two towers, and there is no other for them")
        for tower in self.towers or ():
            if tower.towers is not None:
                raise ValueError("a tower has towers of its own")
            if (tower.labels, tower.image_size, tower.channels) != (
                self.labels,
                self.image_size,
                self.channels,
            ):
                raise ValueError("a tower has other classes or takes other images")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What only some models have is written only for them: the files of others keep their bytes."""
        values: dict[str, Any] = serialise(self)
        return {key: value for key, value in values.items() if key not in _ONLY_SOME or value is not None}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no blanks, and a digest over all the rest as ``spec_digest``."""
        body = self.model_dump(mode="json")
        return canonical_json({**body, "spec_digest": _digest(body)})

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Read and check a spec that came with ``source`` (used in messages).

        Raises:
            VerificationError: not JSON, another schema, a value out of place, or edited by hand.
        """
        try:
            body = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets in brackets
            raise VerificationError(f"{source}: its ModelSpec is not JSON ({error})") from error
        if not isinstance(body, dict) or body.get("schema_version") != SCHEMA_VERSION:
            found = body.get("schema_version") if isinstance(body, dict) else type(body).__name__
            raise VerificationError(
                f"{source}: ModelSpec schema {found!r}, but this version of ducat reads schema {SCHEMA_VERSION}",
                "install a newer ducat-serve, or export the model again",
            )
        stored = body.pop("spec_digest", None)
        if stored != _digest(body):
            raise VerificationError(
                f"{source}: the ModelSpec does not match its own digest; it was damaged or edited by hand",
                "take the file from its source again, or measure it again with `ducat evaluate`",
            )
        try:
            return cls.model_validate(body, context=FROM_FILE)
        except ValidationError as error:
            raise VerificationError(f"{source}: invalid ModelSpec: {first_problem(error)}") from error


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no optional blanks; the same value always gives the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is beyond all numbers")
    return value


def first_problem(error: ValidationError) -> str:
    """One line that names the first field pydantic complains about."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()
