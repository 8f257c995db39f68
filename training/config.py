"""The settings of a training run, and which of them contradict each other."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ducat_serve.spec import Normalisation
from ducat_serve.threat_model import Norm, ThreatModel, format_size, parse_size
from training.data.selection import Selection
from training.objectives import METHODS, is_adversarial, methods_with, objective_class
from training.objectives.ducat import Mode
from training.schedules import Schedule, ramp_factor, rate_factor, share_done

BETA = 6.0
MOMENTUM = 0.9

_ONLY_WHERE_SET = (
    "val_fraction",
    "test_fraction",
    "skip_broken",
    "pretrained",
    "pretrained_licence",
    "normalisation",
    "optimizer",
    "backbone_lr",
    "warmup",
    "balanced",
    "accumulate",
    "checkpoint_activations",
    "measure_start",
)

TrainPrecision = Literal["float32", "bfloat16"]


class Contradiction(ValueError):
    """Settings that make no sense together; ``instead`` says what to give."""

    def __init__(self, problem: str, instead: str) -> None:
        super().__init__(problem)
        self.instead = instead


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _known(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"'{method}' is none of {', '.join(METHODS)}")
    return method


# May be written as 8/255.
PixelSize = Annotated[float, BeforeValidator(_size), Field(gt=0, allow_inf_nan=False)]
MethodName = Annotated[str, AfterValidator(_known)]  # a key of METHODS

# Their loss has nothing of adversarial images beside the regulariser and the classification loss.
_REGULARISED_ALONE = ("trades", "guided", "pairing")

# Of an average: from here on, without a warm-up, 1 % of the fresh statistics are left after 4,600 updates. They are 1,
# and those of a trained layer can be a hundredth of that.
LONG_MEMORY = 0.999


class TrainConfig(BaseModel):
    """Everything that decides what a run writes. Two runs with equal configs on one CPU give equal weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    image_size: int | None = None
    # What is held out where the data set does not say so, and what becomes of images that do not decode.
    val_fraction: float | None = Field(default=None, gt=0, lt=1)
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    skip_broken: bool = False
    network: str
    method: MethodName = "pgd-at"
    # Weight of the method's regulariser, where it has one; its published value unless given.
    beta: float = Field(default=BETA, ge=0, allow_inf_nan=False)
    # How much of the classification loss clean images have; None leaves it to the method.
    clean_share: float | None = Field(default=None, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    awp_gamma: float | None = Field(default=None, gt=0, lt=1)  # of adversarial weight perturbation
    ducat: Mode = "paper"
    ducat_start: int | None = None  # first epoch of the dummy phase, counted from 1; None when ducat is off
    split_weight: float = Field(default=1.0, ge=0, le=1)
    norm: Norm
    eps: PixelSize
    step_size: PixelSize
    attack_steps: int = Field(ge=1)
    inner_attack: Literal["pgd", "n-fgsm"] = "pgd"  # before the dummy phase; in it, always PGD
    eps_ramp: int | None = Field(default=None, ge=1)  # epochs over which the inner attack's eps grows from 0
    # Whether the ramp is one epoch where start weights turn out to be robust; false once that has been measured.
    measure_start: bool = False
    # Digest of the weights that training starts from; None for fresh ones. Its path is not what decides.
    initial_weights: str | None = None
    # Of weights of others: what they are called, under which licence they are, and what they are normalised by where
    # that is not what the network or the data would say.
    pretrained: str | None = None
    pretrained_licence: str | None = None
    normalisation: Normalisation | None = None
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    # In how many portions a batch is worked through, and whether activations are computed again in the backward pass:
    # both for memory, and neither changes an update (BatchNorm apart, which sees a portion at a time).
    accumulate: int | None = Field(default=None, ge=2)
    checkpoint_activations: bool = False
    balanced: bool = False  # every class is drawn as often as any other
    lr: float = Field(gt=0, allow_inf_nan=False)
    optimizer: Literal["adamw"] | None = None  # None: SGD with momentum
    # What the rate of all layers but the head is multiplied by; 0 trains the head alone. None: 1.
    backbone_lr: float | None = Field(default=None, ge=0, le=1)
    warmup: int | None = Field(default=None, ge=1)  # epochs over which the learning rate grows from 0
    schedule: Schedule = "steps"
    # Of "steps": after each of these epochs the learning rate drops to a tenth.
    lr_milestones: tuple[int, ...]
    momentum: float = Field(default=MOMENTUM, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    crop_padding: int = Field(ge=0)
    flip: bool
    ema_decay: float | None = Field(default=None, gt=0, lt=1)  # of the weights that are validated and kept
    ema_warmup: bool = False  # a smaller decay in the first updates
    compile: bool = False
    save_every: int | None = Field(default=None, ge=1)  # epochs; besides the best and the last
    precision: TrainPrecision = "float32"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ducat == "off" and self.ducat_start is not None:
            raise Contradiction("--ducat-start needs --ducat paper or folded", "leave out --ducat-start")
        if self.ducat != "off" and not 1 <= (self.ducat_start or 0) <= self.epochs:
            raise Contradiction(
                f"--ducat-start {self.ducat_start} is outside of epochs 1 to {self.epochs}",
                f"give --ducat-start 1 to {self.epochs}, or more --epochs",
            )
        if self.inner_attack == "n-fgsm" and self.norm != "linf":
            raise Contradiction(
                f"--inner-attack n-fgsm is made for --norm linf, not {self.norm}", "leave out --inner-attack"
            )
        if self.ducat != "folded" and self.split_weight != 1:
            raise Contradiction(
                "--split-weight needs --ducat folded (the paper's loss has weight 1)",
                "give --ducat folded, or leave out --split-weight",
            )
        if self.eps_ramp is not None and self.eps_ramp > self.epochs:
            raise Contradiction(
                f"--eps-ramp {self.eps_ramp} is longer than the {self.epochs} epochs of training",
                f"give --eps-ramp 1 to {self.epochs}, or more --epochs",
            )
        if self.warmup is not None and self.warmup > self.epochs:
            raise Contradiction(
                f"--warmup {self.warmup} is longer than the {self.epochs} epochs of training",
                f"give --warmup 1 to {self.epochs}, or more --epochs",
            )
        if self.warmup is not None and self.schedule == "one-cycle":
            raise Contradiction(
                "--warmup says nothing to --schedule one-cycle, which begins at 0 by itself",
                "leave out --warmup",
            )
        if self.optimizer == "adamw" and self.momentum != MOMENTUM:
            raise Contradiction(
                "--momentum says nothing to --optimizer adamw, which has moments of its own",
                "leave out --momentum",
            )
        if self.accumulate is not None and 2 * self.accumulate > self.batch_size:
            raise Contradiction(
                f"--accumulate {self.accumulate} leaves fewer than 2 images of a --batch-size of {self.batch_size} "
                "to each portion",
                f"give --accumulate 2 to {self.batch_size // 2}, or a larger --batch-size"
                if self.batch_size >= 4
                else "leave out --accumulate",
            )
        if self.checkpoint_activations and self.compile:
            raise Contradiction(
                "--checkpoint-activations says nothing to --compile, which chooses by itself what it keeps",
                "leave out one of them",
            )
        if self.schedule != "steps" and self.lr_milestones:
            raise Contradiction(
                f"--lr-milestones needs --schedule steps, not {self.schedule}", "leave out --lr-milestones"
            )
        if self.pretrained_licence is not None and self.pretrained is None:
            raise Contradiction("--pretrained-licence needs --pretrained", "give --pretrained with it")
        if self.ema_warmup and self.ema_decay is None:
            raise Contradiction("--ema-warmup needs --ema-decay", "give --ema-decay 0.999 with it")
        return self

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        objective, method = objective_class(self.method), self.method
        if self.beta != BETA and "beta" not in objective.parameters():
            raise Contradiction(
                f"--beta needs --method {' or '.join(methods_with('beta'))}, not {method}", "leave out --beta"
            )
        if self.norm not in objective.norms:
            raise Contradiction(
                f"--method {method} is made for --norm {' or '.join(objective.norms)}, not {self.norm}",
                f"give --norm {objective.norms[0]}, or another --method",
            )
        if objective.attacks_in_one_step and self.inner_attack != "pgd":
            raise Contradiction(
                f"--inner-attack {self.inner_attack}: --method {method} has a one-step attack of its own",
                "leave out --inner-attack",
            )
        if method == "pgd-at" and self.clean_share == 1:
            raise Contradiction(
                "--clean-share 1 leaves pgd-at no adversarial images: that is --method standard",
                "give --method standard, or a smaller --clean-share",
            )
        if is_adversarial(method):
            return self
        if self.ducat != "off":
            raise Contradiction(
                f"--method {method} has no adversarial images to train dummies on: it needs --ducat off",
                "give --ducat off",
            )
        for option, given in {
            "--clean-share": self.clean_share is not None,
            "--eps-ramp": self.eps_ramp is not None,
            "--inner-attack": self.inner_attack != "pgd",
        }.items():
            if given:
                raise Contradiction(
                    f"{option} says nothing to --method {method}, which trains on clean images alone",
                    f"leave out {option}",
                )
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings of a few runs are written only where they are set: the files of others stay as they were."""
        values: dict[str, Any] = serialise(self)
        # Compared by identity: a rate of 0 is set, and equals False.
        unset = {key for key in _ONLY_WHERE_SET if values.get(key) is None or values[key] is False}
        return {key: value for key, value in values.items() if key not in unset}

    @property
    def idle_settings(self) -> frozenset[str]:
        """Those that say nothing to this run, whatever their values are: whoever gives another one is refused."""
        objective = objective_class(self.method)
        says_nothing = {
            "beta": "beta" not in objective.parameters(),
            "split_weight": self.ducat != "folded",
            "momentum": self.optimizer == "adamw",
            "inner_attack": objective.attacks_in_one_step or not is_adversarial(self.method),
        }
        return frozenset(name for name, idle in says_nothing.items() if idle)

    @property
    def selection(self) -> Selection:
        """Which images of the data set are used, and as what."""
        return Selection(self.val_fraction, self.test_fraction, self.skip_broken)

    @property
    def portions(self) -> int:
        """In how many parts a batch is worked through."""
        return self.accumulate or 1

    @property
    def threat_model(self) -> ThreatModel:
        return ThreatModel(norm=self.norm, eps=self.eps)

    def learning_rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """The learning rate in a step (counted from 0) of the ``steps`` of an epoch (counted from 1)."""
        done = share_done(epoch, step, steps, self.epochs)
        return self._rate(ramp_factor(self.warmup, epoch, step, steps), epoch, done)

    def rate_of_epoch(self, epoch: int) -> float:
        """The learning rate in the middle of an epoch (counted from 1), which metrics.csv has of it."""
        return self._rate(ramp_factor(self.warmup, epoch, 0, 2), epoch, share_done(epoch, 0, 1, self.epochs))

    def _rate(self, grown: float, epoch: int, done: float) -> float:
        return grown * self.lr * rate_factor(self.schedule, done, epoch, self.lr_milestones)

    def is_dummy_phase(self, epoch: int) -> bool:
        """Whether dummies are trained in ``epoch`` (counted from 1)."""
        return self.ducat_start is not None and epoch >= self.ducat_start

    def _attacks_for_nothing(self) -> bool:
        """Whether epochs that craft adversarial images minimise nothing of them."""
        if self.method not in _REGULARISED_ALONE or self.beta > 0:
            return False
        if self.clean_share is None:  # with dummies, half of the classification loss is of adversarial images
            return objective_class(self.method).plain_clean_share == 1 and self.ducat_start != 1
        return self.clean_share == 1

    def _uses_pgd(self) -> bool:
        """Whether some epoch is attacked in the steps of the settings, unless a one-step attack has overfitted."""
        if not self.is_adversarial or objective_class(self.method).attacks_in_one_step:
            return False
        return self.inner_attack == "pgd" or self.ducat_start is not None

    def doubts(self) -> list[str]:
        """What a run this short leaves out, and settings that do little or nothing; sentences."""
        doubts = []
        if self.ducat_start == 1:
            doubts.append(
                "every epoch is one with dummies, since --ducat-start is 1: no epoch trains the plain method before."
            )
        if self.schedule == "steps" and self.lr_milestones and self.lr_milestones[0] == 0:
            lowest = self.learning_rate(1)
            doubts.append(
                f"the first epoch already has the learning rate {lowest:g} instead of {self.lr:g}, since a milestone "
                "of --lr-milestones is 0."
            )
        if (
            self.schedule == "steps"
            and self.epochs > 1
            and self.lr_milestones
            and self.lr_milestones[0] >= self.epochs
        ):
            doubts.append(
                f"the learning rate is {self.lr:g} to the end and never drops, since no milestone of --lr-milestones "
                f"is before epoch {self.epochs}, the last."
            )
        if self._attacks_for_nothing():
            where = (
                " before the dummy phase" if self.clean_share is None and self.ducat_start is not None else ""
            )
            doubts.append(
                f"with --beta 0 nothing in the loss of --method {self.method} is of adversarial images{where}: what it "
                "trains is --method standard, at the price of the attack."
            )
        if self.inner_attack == "n-fgsm" and self.ducat_start == 1:
            doubts.append(
                "--inner-attack n-fgsm crafts in no epoch, since --ducat-start is 1: in the dummy phase it is PGD."
            )
        reach = self.attack_steps * self.step_size
        if self.norm == "linf" and self._uses_pgd() and reach < self.eps * (1 - 1e-6):
            doubts.append(
                f"the inner attack cannot reach the border of its ball: --attack-steps {self.attack_steps} of "
                f"--step-size {format_size(self.step_size)} go {format_size(reach)} from where they start, and --eps "
                f"is {format_size(self.eps)}."
            )
        if self.ema_decay is not None and self.ema_decay >= LONG_MEMORY and not self.ema_warmup:
            doubts.append(
                f"--ema-decay {self.ema_decay:g} without --ema-warmup: for many epochs the average that is validated "
                "and kept is mostly the fresh weights, and fresh statistics of BatchNorm."
            )
        return doubts

    @property
    def is_adversarial(self) -> bool:
        """Whether the method trains on adversarial images."""
        return is_adversarial(self.method)

    def phase(self, epoch: int) -> str:
        """What an epoch (counted from 1) trains on, in a word."""
        if not self.is_adversarial:
            return "standard"
        return "dummy" if self.is_dummy_phase(epoch) else "adversarial"
