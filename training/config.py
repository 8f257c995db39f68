"""The resolved configuration of a training run: a recipe, and what the user set on top of it."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ducat_serve.errors import UsageError
from ducat_serve.spec import first_problem
from ducat_serve.threat_model import Norm, ThreatModel, parse_size
from training.objectives import METHODS, methods_with
from training.objectives.ducat import Mode
from training.recipes import load_recipe, recipe_of

# eps and step size of the paper's three threat models (arXiv 2410.12671, section 5), in pixels.
NORM_DEFAULTS: dict[Norm, tuple[float, float]] = {
    "linf": (8 / 255, 2 / 255),
    "l2": (128 / 255, 15 / 255),
    "l1": (2000 / 255, 400 / 255),
}
FOLDED_SPLIT_WEIGHT = 0.1
BETA = 6.0

TrainPrecision = Literal["float32", "bfloat16"]


class TrainConfig(BaseModel):
    """Everything that decides what a run writes. Two runs with equal configs on one CPU give equal weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    image_size: int | None = None
    network: str
    method: str = "pgd-at"  # a name in METHODS
    # Weight of the regulariser of TRADES and MART.
    beta: float = Field(default=BETA, ge=0, allow_inf_nan=False)
    ducat: Mode = "paper"
    ducat_start: int | None = None  # first epoch of the dummy phase, counted from 1; None when ducat is off
    split_weight: float = Field(default=1.0, ge=0, le=1)
    norm: Norm
    eps: float = Field(gt=0, allow_inf_nan=False)
    step_size: float = Field(gt=0, allow_inf_nan=False)
    attack_steps: int = Field(ge=1)
    inner_attack: Literal["pgd", "n-fgsm"] = "pgd"  # before the dummy phase; in it, always PGD
    # Digest of the weights that training starts from; None for fresh ones. Its path is not what decides.
    initial_weights: str | None = None
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    lr: float = Field(gt=0, allow_inf_nan=False)
    lr_milestones: tuple[int, ...]  # after each of these epochs the learning rate drops to a tenth
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    crop_padding: int = Field(ge=0)
    flip: bool
    ema_decay: float | None = Field(default=None, gt=0, lt=1)  # of the weights that are validated and kept
    compile: bool = False
    save_every: int | None = Field(default=None, ge=1)  # epochs; besides the best and the last
    precision: TrainPrecision = "float32"
    seed: int = Field(default=0, ge=0)

    @field_validator("eps", "step_size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"'{value}' is none of {', '.join(METHODS)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ducat == "off" and self.ducat_start is not None:
            raise ValueError("--ducat-start needs --ducat paper or folded")
        if self.ducat != "off" and not 1 <= (self.ducat_start or 0) <= self.epochs:
            raise ValueError(f"--ducat-start {self.ducat_start} is outside of epochs 1 to {self.epochs}")
        if self.beta != BETA and self.method not in methods_with("beta"):
            raise ValueError(f"--beta needs --method {' or '.join(methods_with('beta'))}, not {self.method}")
        if self.inner_attack == "n-fgsm" and self.norm != "linf":
            raise ValueError(f"--inner-attack n-fgsm is made for --norm linf, not {self.norm}")
        if self.ducat != "folded" and self.split_weight != 1:
            raise ValueError("--split-weight needs --ducat folded (the paper's loss has weight 1)")
        return self

    @property
    def threat_model(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps)

    def learning_rate(self, epoch: int) -> float:
        """The learning rate in ``epoch`` (counted from 1)."""
        return self.lr * 0.1 ** sum(epoch > milestone for milestone in self.lr_milestones)

    def is_dummy_phase(self, epoch: int) -> bool:
        """Whether dummies are trained in ``epoch`` (counted from 1)."""
        return self.ducat_start is not None and epoch >= self.ducat_start


def resolve(dataset: str, given: dict[str, Any], recipe: str | None = None) -> TrainConfig:
    """Overlay what the user gave (None = not given) on a recipe, and derive the rest.

    Args:
        recipe: its name; that of the data set unless given.

    Raises:
        UsageError: a value out of range or a combination that makes no sense.
    """
    given = {key: value for key, value in given.items() if value is not None}
    settings = load_recipe(recipe or recipe_of(dataset))
    values = {**settings, **given, "dataset": dataset}
    values.update(_threat_model(settings, given))
    epochs = values["epochs"]
    if "lr_milestones" not in given:  # a shorter run than the recipe's has its drops at the same fractions
        values["lr_milestones"] = _scaled(settings["lr_milestones"], epochs / settings["epochs"])
    # The paper: dummies from epoch 105 of 130.
    if values.setdefault("ducat", "paper") != "off":
        values.setdefault("ducat_start", int(epochs * 0.8) + 1)
    if values["ducat"] == "folded":
        values.setdefault("split_weight", FOLDED_SPLIT_WEIGHT)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            f"Invalid training configuration: {first_problem(error)}.", "ducat train --help"
        ) from error


def _scaled(milestones: list[int], factor: float) -> tuple[int, ...]:
    """Milestones at the same fractions of another length, a whole epoch apart at least."""
    scaled = [round(milestone * factor) for milestone in milestones]
    for later in range(len(scaled) - 1, 0, -1):
        scaled[later - 1] = max(0, min(scaled[later - 1], scaled[later] - 1))
    return tuple(scaled)


def _threat_model(recipe: dict[str, Any], given: dict[str, Any]) -> dict[str, float]:
    norm: Norm = given.get("norm", recipe["norm"])
    eps, step_size = NORM_DEFAULTS[norm]
    if norm == recipe["norm"]:
        eps, step_size = parse_size(recipe["eps"]), parse_size(recipe["step_size"])
    chosen = given.get("eps", eps)
    # A larger ball needs larger steps to be crossed in as many.
    return {"eps": chosen, "step_size": given.get("step_size", step_size * chosen / eps)}
