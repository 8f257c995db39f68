"""`ducat_serve.mix`: two checkpoints become one, an accurate model with a robust one behind it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

from ducat_serve.atomic import require_writable
from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import checkpoint_path
from ducat_serve.deployed import Deployed, load
from ducat_serve.errors import UsageError
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.output import Output
from ducat_serve.predictor import Device
from ducat_serve.spec import ModelSpec
from training.attacks.base import TargetModel
from training.batches import DeviceSplit
from training.data import Dataset
from training.data.splits import choose_images
from training.device import LAYOUT, choose_device
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.stages import suite
from training.mixture.answers import Answers, Question, answers_of
from training.mixture.build import Fitted, require_towers, write_mixture
from training.mixture.curve import Attacked, Curve
from training.mixture.dial import Setting, dial, giving_up, reaching
from training.mixture.kept import FILE_NAME
from training.randomness import subset
from training.run.dataset import load_training_data

GIVE_UP = 2.0  # points of worst case, unless something else is asked for
FEWEST_IMAGES = 100  # a share of fewer says too little to choose by
_ATTACKED_SETTINGS = 5
_ATTACKED_IMAGES = 200


@dataclass(frozen=True)
class Towers:
    """Two checkpoints, and the val images that a switch between them is fitted on.

    Args:
        standard, robust: files, run folders, or as text names of bundled models. Data set, split and threat model
            are the robust one's.
        max_examples: only so many val images of a seeded shuffle.
        dataset, data_dir, offline: where the val images are, as for `evaluate`.
        force: mix in a robust tower that holds nothing under attack.
    """

    standard: str | Path
    robust: str | Path
    max_examples: int | None = None
    dataset: str | None = None
    data_dir: Path | None = None
    offline: bool = False
    batch_size: int = 256
    seed: int = 0
    device: Device = "auto"
    force: bool = False


@dataclass(frozen=True)
class Mixed:
    """A two-tower checkpoint that was written, and what was measured on val while its switch was fitted."""

    model: Path
    spec: ModelSpec
    setting: Setting
    answers: Answers


def mix(
    towers: Towers,
    *,
    out: str | Path,
    give_up: float | None = None,
    clean: float | None = None,
    output: Output | None = None,
) -> Mixed:
    """Write a two-tower model, as `ducat mix` does. No weight is trained; a switch is fitted on val images.

    What the towers answered is kept beside ``out`` in answers.safetensors, so that another setting takes no attack.

    Args:
        out: the checkpoint to write, which must not be there yet.
        give_up: points of the robust tower's worst case, in [0, 100], that its floor on val may lie below; 2 unless
            ``clean`` is given.
        clean: the clean accuracy on val to reach, in [0, 1], for the highest floor.

    Raises:
        UsageError: no `Towers`, or towers that do not fit each other, a robust tower that is not robust, too few val
            images, both of ``give_up`` and ``clean``, or a goal that no setting reaches. DataError, VerificationError:
            as `load`.

    Examples:
        >>> mixed = mix(Towers("runs/accurate", "runs/robust"), out="runs/mixed/model.safetensors", give_up=2)
        >>> mixed.setting.clean, mixed.setting.floor, mixed.spec.fold.threshold
        (0.84, 0.41, 0.23)
    """
    if not isinstance(towers, Towers):
        raise UsageError(
            f"towers: {towers!r} is no Towers.",
            'mix(Towers("accurate", "robust"), out="mixed/model.safetensors")',
        )
    output, target = output or Output(), Path(out)
    if give_up is not None and clean is not None:
        raise UsageError("A switch has one dial: give up points or reach a clean accuracy, not both.")
    if target.exists():
        raise UsageError(f"{target} exists already; nothing was written.", "choose another --out")
    require_writable(target)
    fitting = _Fitting.of(towers, target.with_name(FILE_NAME), output)
    answers, front = fitting.answers, dial(fitting.answers)
    if clean is not None:
        setting, asked = reaching(front, clean), f"--clean {clean:g}"
    else:
        points = GIVE_UP if give_up is None else give_up
        setting, asked = giving_up(front, answers.robust_worst_case, points), f"--give-up {points:g}"
    if setting is None:
        best = max(front, key=lambda s: s.clean, default=None)
        reached = "" if best is None else f"; the most accurate one has {best.clean:.1%} on val"
        raise UsageError(f"No setting of the switch meets {asked}{reached}.", "draw them all with --curve")
    fitted = Fitted(
        setting=setting,
        asked=asked,
        val_images=len(answers.labels),
        robust_clean=answers.robust_clean,
        robust_worst_case=answers.robust_worst_case,
        standard_clean=answers.standard_clean,
        command=shlex.join(["ducat", "mix", *map(_name, fitting.paths), *asked.split(), *_given(towers)]),
    )
    spec = write_mixture(fitting.standard, fitting.robust, fitted, target)
    return Mixed(target, spec, setting, answers)


def draw_curve(towers: Towers, stem: Path, *, output: Output | None = None) -> tuple[Curve, list[Path]]:
    """Draw what every setting of the switch would do, as `ducat mix --curve` does; raises as `mix`.

    A few settings are attacked end to end by the quick suite, on at most 200 of the val images.

    Returns the curve and the files written: ``stem`` with .json, .png and .svg.
    """
    output = output or Output()
    require_writable(stem.with_name(stem.name + ".png"))
    fitting = _Fitting.of(towers, stem.with_name(FILE_NAME), output)
    front = dial(fitting.answers)
    places = torch.linspace(0, len(front) - 1, min(_ATTACKED_SETTINGS, len(front))).round().long().tolist()
    attacked = [fitting.attacked(front[place], output) for place in places]
    answers = fitting.answers
    curve = Curve(
        title=f"{fitting.data.title}, {fitting.robust.spec.threat_model}, {len(answers.labels)} val images",
        front=front,
        attacked=attacked,
        robust=(answers.robust_clean, answers.robust_worst_case),
        standard_clean=answers.standard_clean,
    )
    return curve, curve.write(stem)


@dataclass(frozen=True)
class _Fitting:
    """Towers that fit each other, and what they say of val images."""

    paths: tuple[Path, Path]
    standard: Deployed
    robust: Deployed
    data: Dataset
    images: DeviceSplit
    answers: Answers
    towers: Towers

    @classmethod
    def of(cls, towers: Towers, kept: Path, output: Output) -> _Fitting:
        """Ask the towers, or go on with what is in the file ``kept``."""
        paths = [
            checkpoint_path(model_path(path, "safetensors")) for path in (towers.standard, towers.robust)
        ]
        standard, robust = (load(path) for path in paths)
        require_towers(standard.spec, robust.spec)
        data = load_training_data(
            paths[1],
            robust.spec,
            dataset=towers.dataset,
            data_dir=towers.data_dir,
            offline=towers.offline,
            output=output,
            standard=standard.spec,
        )
        if data.class_names != robust.spec.labels:
            raise UsageError(f"{data.title} has other classes than the towers.")
        chosen, _ = choose_images(data.val, towers.max_examples, towers.seed)
        if len(chosen) < FEWEST_IMAGES:
            raise UsageError(
                f"{len(chosen)} val images are too few to fit a switch; {FEWEST_IMAGES} are the fewest.",
                "train with a larger --val-fraction, or name more images with --max-examples",
            )
        device = choose_device(towers.device, output)
        standard, robust = (model.to(device).to(memory_format=LAYOUT) for model in (standard, robust))
        images = DeviceSplit.of(chosen, device)
        output.say(f"Fitting on {len(images)} val images of {data.title}, {robust.spec.threat_model}.")
        threat_model = robust.spec.threat_model
        asked = Question(standard, robust, images, threat_model, towers.seed, towers.batch_size)
        answers = answers_of(asked, kept, output)
        _require_robust(answers, towers.force, output)
        return cls((paths[0], paths[1]), standard, robust, data, images, answers, towers)

    def attacked(self, setting: Setting, output: Output) -> Attacked:
        """The quick suite on the two towers with a setting, on some of the val images."""
        spec, switch = self.robust.spec, setting.switch
        # A split that is sorted by class would begin with images of a few classes only.
        some = subset(len(self.images), _ATTACKED_IMAGES, self.towers.seed).to(self.images.labels.device)
        subject = Subject(
            model=Deployed(TwoTowers(self.standard, self.robust), switch).eval(),
            data=DeviceSplit(self.images.images[some], self.images.labels[some]),
            labels=spec.labels,
            weights_digest="",
            dataset=self.data.title,
            split="val",
        )
        plan = Plan(
            threat_model=spec.threat_model,
            attacks=tuple(suite("quick", TargetModel(switch, spec.num_classes))),
            seed=self.towers.seed,
            batch_size=self.towers.batch_size,
            legacy_attacks=(),
            sanity=False,
        )
        output.say(
            f"Attacking the setting with {setting.clean:.1%} clean and a floor of {setting.floor:.1%}:"
        )
        report = evaluate(subject, plan, output)
        assert report.floor is not None
        return Attacked(
            setting,
            report.examples,
            report.clean_accuracy,
            report.worst_case_accuracy,
            report.floor.accuracy,
        )


def _require_robust(answers: Answers, force: bool, output: Output) -> None:
    if answers.robust_worst_case > 0:
        return
    problem = "the robust tower gets no val image right under attack, so the floor would be 0"
    if not force:
        raise UsageError(
            f"{problem[0].upper()}{problem[1:]}.",
            "are the towers in the right order? --force mixes all the same",
        )
    output.warn(f"{problem}.")


def _given(towers: Towers) -> list[str]:
    """The other options that decide which switch is found."""
    given = {
        "--max-examples": towers.max_examples,
        "--dataset": towers.dataset,
        # Random numbers belong to a batch.
        "--batch-size": None if towers.batch_size == Towers.batch_size else towers.batch_size,
        "--seed": towers.seed or None,
    }
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def _name(path: Path) -> str:
    """Of a checkpoint, for a command without folders of this machine."""
    return path.parent.name if path.name == "model.safetensors" else path.name
