"""Recipes, what the user sets on top of them, and what makes no sense."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_spec
from ducat_serve.errors import UsageError
from ducat_serve.spec import ModelSpec
from ducat_serve.threat_model import ThreatModel, format_size, parse_size
from training.data import DATASETS
from training.evaluation.prepare import threat_model_of
from training.evaluation.settings import EvaluationSettings
from training.objectives import create_objective, methods_with
from training.objectives.ducat import PLAIN
from training.objectives.objective import Batch
from training.recipes import load_recipe, recipe_of
from training.resolve import resolve


def test_the_paper_setting_is_the_default_of_its_data_sets() -> None:
    for name in ("cifar10", "cifar100", "tiny-imagenet"):
        config = resolve(name, {})
        assert config.network == "resnet18"
        assert (config.epochs, config.ducat, config.ducat_start) == (130, "paper", 105)
        assert (config.norm, config.eps, config.step_size, config.attack_steps) == (
            "linf",
            8 / 255,
            2 / 255,
            10,
        )
        assert (config.lr, config.momentum, config.weight_decay, config.batch_size) == (0.1, 0.9, 5e-4, 128)
        assert [config.learning_rate(e) for e in (1, 100, 101, 105, 106)] == pytest.approx(
            [0.1, 0.1, 0.01, 0.01, 0.001]
        )
        assert (config.crop_padding, config.flip, config.split_weight) == (4, True, 1.0)


def test_every_data_set_has_a_recipe() -> None:
    for name in [*DATASETS, "folder:/somewhere"]:
        assert resolve(name, {}).epochs == load_recipe(recipe_of(name))["epochs"]


def test_shorter_runs_keep_the_proportions() -> None:
    config = resolve("cifar10", {"epochs": 13})
    assert config.ducat_start == 11
    assert config.lr_milestones == (9, 10)


@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 8, 2), ("l2", 128, 15), ("l1", 2000, 400)])
def test_each_norm_has_its_own_defaults(norm: str, eps: int, step: int) -> None:
    config = resolve("cifar10", {"norm": norm})
    assert (config.eps, config.step_size) == pytest.approx((eps / 255, step / 255))


def test_step_grows_with_eps_unless_given() -> None:
    assert resolve("cifar10", {"eps": 16 / 255}).step_size == pytest.approx(4 / 255)
    assert resolve("cifar10", {"eps": 16 / 255, "step_size": 0.01}).step_size == 0.01


def test_off_has_no_dummy_phase_and_folded_its_split_weight() -> None:
    assert resolve("digits", {"ducat": "off"}).ducat_start is None
    assert resolve("digits", {"ducat": "folded"}).split_weight == 0.1
    assert resolve("digits", {"ducat": "folded", "split_weight": 0.0}).split_weight == 0.0


@pytest.mark.parametrize("recipe", ["cifar10-hours", "cifar10-quick"])
@pytest.mark.parametrize("method", ["standard", "guided"])
def test_another_method_leaves_a_recipe_s_settings_that_it_does_not_have(recipe: str, method: str) -> None:
    config = resolve("cifar10", {"method": method}, recipe)
    assert config.inner_attack == "pgd"
    if method == "standard":
        assert (config.ducat, config.eps_ramp) == ("off", None)
    with pytest.raises(UsageError, match="--inner-attack"):
        resolve("cifar10", {"method": method, "inner_attack": "n-fgsm"}, recipe)


@pytest.mark.parametrize("given", [{"attack_steps": 7}, {"step_size": 5 / 255}])
def test_steps_that_are_given_are_taken_in_training_too(given: dict[str, float]) -> None:
    """N-FGSM would leave them to validation, and nobody would hear of it."""
    for method in ("pairing", "pgd-at"):
        assert resolve("cifar10", {"method": method, **given}, "cifar10-hours").inner_attack == "pgd"
    chosen = resolve("cifar10", {"inner_attack": "n-fgsm", **given}, "cifar10-hours")
    assert chosen.inner_attack == "n-fgsm"


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_another_norm_leaves_a_recipe_s_attack_that_is_made_for_linf(norm: str) -> None:
    assert resolve("cifar10", {"norm": norm}, "cifar10-hours").inner_attack == "pgd"
    assert resolve("cifar10", {"norm": "linf"}, "cifar10-hours").inner_attack == "n-fgsm"
    with pytest.raises(UsageError, match="n-fgsm is made for"):
        resolve("cifar10", {"norm": norm, "inner_attack": "n-fgsm"}, "cifar10-hours")


@pytest.mark.parametrize(
    ("recipe", "epochs", "ramp"),
    [
        ("cifar10-hours", 3, 1),
        ("cifar10-hours", 6, 1),
        ("cifar10-hours", 24, 2),
        ("cifar10-hours", 64, 5),
        ("cifar10-hours", 128, 10),
        ("folder-finetune", 9, 2),
        ("folder-finetune", 10, 2),
        ("folder-finetune", 12, 2),
        ("folder-finetune", 50, 10),
        ("folder-finetune-robust", 20, 1),
    ],
)
def test_a_ramp_of_the_recipe_takes_the_same_share_of_another_number_of_epochs(
    recipe: str, epochs: int, ramp: int
) -> None:
    dataset = load_recipe(recipe).get("dataset", "folder:/x")
    assert resolve(dataset, {"epochs": epochs}, recipe).eps_ramp == ramp
    assert resolve(dataset, {"epochs": epochs, "eps_ramp": 3}, recipe).eps_ramp == 3
    with pytest.raises(UsageError, match=f"--eps-ramp {epochs + 1} is longer"):
        resolve(dataset, {"epochs": epochs, "eps_ramp": epochs + 1}, recipe)


@pytest.mark.parametrize(
    ("given", "word", "instead"),
    [
        ({"ducat": "off", "ducat_start": 3}, "--ducat-start needs", "leave out --ducat-start"),
        (
            {"ducat_start": 99, "epochs": 10},
            "outside of epochs 1 to 10",
            "give --ducat-start 1 to 10, or more --epochs",
        ),
        (
            {"split_weight": 0.5},
            "--split-weight needs --ducat folded",
            "give --ducat folded, or leave out --split-weight",
        ),
        ({"beta": 3.0}, "--beta needs --method", "leave out --beta"),
        (
            {"method": "guided", "norm": "l1"},
            "guided is made for --norm linf, not l1",
            "give --norm linf, or another --method",
        ),
        (
            {"method": "guided", "norm": "l2"},
            "guided is made for --norm linf, not l2",
            "give --norm linf, or another --method",
        ),
        ({"norm": "l2", "inner_attack": "n-fgsm"}, "n-fgsm is made for", "leave out --inner-attack"),
        (
            {"method": "guided", "inner_attack": "n-fgsm"},
            "has a one-step attack of its own",
            "leave out --inner-attack",
        ),
        ({"method": "standard", "ducat": "paper"}, "needs --ducat off", "give --ducat off"),
        ({"method": "standard", "ducat": "folded"}, "needs --ducat off", "give --ducat off"),
        ({"method": "standard", "ducat_start": 3}, "--ducat-start needs", "leave out --ducat-start"),
        (
            {"method": "standard", "clean_share": 0.5},
            "--clean-share says nothing to --method standard",
            "leave out --clean-share",
        ),
        (
            {"method": "standard", "eps_ramp": 2},
            "--eps-ramp says nothing to --method standard",
            "leave out --eps-ramp",
        ),
        (
            {"method": "standard", "inner_attack": "n-fgsm"},
            "--inner-attack says nothing to --method standard",
            "leave out --inner-attack",
        ),
        (
            {"clean_share": 1.0},
            "that is --method standard",
            "give --method standard, or a smaller --clean-share",
        ),
        (
            {"eps_ramp": 61},
            "--eps-ramp 61 is longer than the 60 epochs",
            "give --eps-ramp 1 to 60, or more --epochs",
        ),
        (
            {"warmup": 61},
            "--warmup 61 is longer than the 60 epochs",
            "give --warmup 1 to 60, or more --epochs",
        ),
        (
            {"optimizer": "adamw", "momentum": 0.5},
            "--momentum says nothing to --optimizer adamw",
            "leave out --momentum",
        ),
        ({"ema_warmup": True}, "--ema-warmup needs --ema-decay", "give --ema-decay 0.999 with it"),
        (
            {"schedule": "cosine", "lr_milestones": (3,)},
            "--lr-milestones needs --schedule steps",
            "leave out --lr-milestones",
        ),
        ({"lr_milestones": (5, 3)}, "epochs in rising order", "give --lr-milestones 3,5"),
        ({"lr_milestones": (3, 3)}, "epochs in rising order", "give --lr-milestones 3"),
        ({"lr_milestones": (-1,)}, "epochs in rising order, from 0", "leave out --lr-milestones"),
    ],
)
def test_a_contradiction_is_a_usage_error_that_says_what_to_give(
    given: dict[str, object], word: str, instead: str
) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        resolve("digits", given)
    assert caught.value.next_step == instead


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"eps": 0.0}, "eps"),
        ({"epochs": 0}, "epochs"),
        ({"seed": 2**63}, "seed"),
        ({"lr": float("nan")}, "lr"),
        ({"method": "guided", "beta": -1.0}, "beta"),
        ({"method": "pairing", "beta": float("inf")}, "beta"),
        ({"clean_share": 1.5}, "clean_share"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"awp_gamma": 0.0}, "awp_gamma"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"schedule": "linear"}, "schedule"),
    ],
)
def test_nonsense_is_a_usage_error(given: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        resolve("digits", given)
    assert caught.value.next_step == "ducat train --help"


def test_a_recipe_is_for_its_data_set_or_images_of_ones_own() -> None:
    with pytest.raises(UsageError, match="The recipe cifar10 is made for cifar10, not for digits") as caught:
        resolve("digits", {}, "cifar10")
    assert caught.value.next_step == "ducat train --recipe cifar10, or ducat train --dataset digits"
    assert resolve("folder:/x", {}, "cifar10").epochs == 130
    assert resolve("digits", {}, "folder").epochs == 130


def test_training_without_attacks_has_no_dummies_unless_told() -> None:
    config = resolve("cifar10", {"method": "standard"})
    assert (config.ducat, config.ducat_start) == ("off", None)
    assert resolve("cifar10", {"method": "guided"}).ducat == "paper"


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), ("1", 1.0), (" 2 / 255 ", 2 / 255)]
)
def test_sizes_are_read(text: str, value: float) -> None:
    assert parse_size(text) == value


def test_a_threat_model_is_in_pixels_and_may_be_a_fraction() -> None:
    fraction: Any = "8/255"
    assert ThreatModel(norm="linf", eps=fraction) == ThreatModel(norm="linf", eps=8 / 255)
    assert ThreatModel(norm="l1", eps=2000 / 255).eps > 1
    for norm, wrong in (("linf", 8), ("linf", "8"), ("l2", "eight"), ("l2", 0), ("l2", math.inf)):
        with pytest.raises(ValidationError):
            ThreatModel.model_validate({"norm": norm, "eps": wrong})
    with pytest.raises(ValidationError, match="write 8/255 for eight grey levels"):
        ThreatModel(norm="linf", eps=8)


def test_what_was_once_trained_in_grey_levels_loads_and_is_not_measured() -> None:
    old = read_spec(model_path("digits-small", "safetensors")).model_copy(
        update={"threat_model": ThreatModel.model_construct(norm="linf", eps=8.0)}
    )
    loaded = ModelSpec.from_json(old.to_json(), "old.safetensors")
    assert loaded.threat_model.eps == 8
    for settings in (EvaluationSettings(), EvaluationSettings(eps=(0.1, 8.0))):
        with pytest.raises(UsageError, match="eps 8 in linf is larger"):
            threat_model_of(settings, loaded)


@pytest.mark.parametrize("text", ["", "eight", "8/0", "-1/255", "nan", "8/255/2"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|negative"):
        parse_size(text)


@pytest.mark.parametrize(
    ("value", "text"), [(8 / 255, "8/255"), (0.2, "0.2"), (0.5, "0.5"), (2000 / 255, "2000/255")]
)
def test_sizes_are_written_as_the_field_does(value: float, text: str) -> None:
    assert format_size(value) == text


def test_beta_belongs_to_methods_with_a_regulariser() -> None:
    published = {"trades": 6.0, "mart": 6.0, "guided": 10.0, "pairing": 0.5}
    assert {method: resolve("digits", {"method": method}).beta for method in published} == published
    assert resolve("digits", {"method": "trades", "beta": 3.0}).beta == 3.0
    assert resolve("digits", {"method": "mart"}).beta == 6.0
    with pytest.raises(
        UsageError, match="--beta needs --method trades or mart or guided or pairing, not consistency"
    ):
        resolve("digits", {"method": "consistency", "beta": 3.0})


NO_DROP = "never drops"
NO_LOSS = "nothing in the loss of --method"
NO_N_FGSM = "--inner-attack n-fgsm crafts in no epoch"
SHORT_ATTACK = "cannot reach the border of its ball"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, []),
        ({"lr_milestones": (60, 70)}, [NO_DROP]),
        ({"lr_milestones": (59, 70)}, []),
        ({"lr_milestones": (60,), "epochs": 61}, []),
        ({"epochs": 1, "ducat": "off"}, []),
        ({"schedule": "cosine"}, []),
        ({"method": "guided", "beta": 0.0, "ducat": "off"}, [NO_LOSS]),
        ({"method": "trades", "beta": 0.0, "ducat": "off"}, [NO_LOSS]),
        ({"method": "trades", "beta": 0.0}, [NO_LOSS]),
        ({"method": "trades", "beta": 0.0, "clean_share": 0.5}, []),
        ({"method": "trades", "beta": 0.1, "ducat": "off"}, []),
        ({"method": "pairing", "beta": 0.0, "ducat": "off"}, []),
        ({"method": "pairing", "beta": 0.0, "ducat": "off", "clean_share": 1.0}, [NO_LOSS]),
        ({"method": "mart", "beta": 0.0, "ducat": "off", "clean_share": 1.0}, []),
        ({"inner_attack": "n-fgsm", "ducat_start": 1}, [NO_N_FGSM]),
        ({"inner_attack": "n-fgsm", "ducat_start": 2}, []),
        ({"attack_steps": 3}, [SHORT_ATTACK]),
        ({"attack_steps": 4}, []),
        ({"attack_steps": 3, "step_size": 0.2 / 3}, []),
        ({"attack_steps": 1, "norm": "l2"}, []),
        ({"attack_steps": 1, "inner_attack": "n-fgsm"}, [SHORT_ATTACK]),
        ({"attack_steps": 1, "inner_attack": "n-fgsm", "ducat": "off"}, []),
        ({"attack_steps": 1, "method": "guided"}, []),
        ({"attack_steps": 1, "method": "standard"}, []),
    ],
)
def test_settings_that_do_little_or_nothing_are_doubted(given: dict[str, object], said: list[str]) -> None:
    doubts = " ".join(resolve("digits", given).doubts())
    assert [words for words in (NO_DROP, NO_LOSS, NO_N_FGSM, SHORT_ATTACK) if words in doubts] == said


@pytest.mark.parametrize("method", ["trades", "guided", "pairing", "mart", "consistency", "pgd-at"])
@pytest.mark.parametrize("clean_share", [None, 1.0])
def test_the_doubt_of_beta_is_that_of_the_loss(method: str, clean_share: float | None) -> None:
    """The gradient by adversarial images is 0 where the loss is said to have nothing of them."""
    if method == "pgd-at" and clean_share == 1:  # refused
        return
    beta = {"beta": 0.0} if method in methods_with("beta") else {}
    config = resolve("digits", {"method": method, "clean_share": clean_share, "ducat": "off", **beta})
    objective = create_objective(method, PLAIN, config.model_dump())
    images = torch.rand(4, 6)
    adversarial = torch.rand(4, 6).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0][: len(images) // objective.views] * objective.views)
    loss = objective.loss(torch.nn.Linear(6, 3), Batch(images, labels, 1, 1), adversarial)
    (gradient,) = torch.autograd.grad(loss, adversarial, allow_unused=True)
    counts = gradient is not None and bool(gradient.any())
    assert counts == (NO_LOSS not in " ".join(config.doubts()))


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        ({"ducat": "off"}, {"beta", "split_weight"}),
        ({"method": "trades", "ducat": "folded"}, set()),
        ({"method": "standard", "optimizer": "adamw"}, {"beta", "split_weight", "momentum", "inner_attack"}),
    ],
)
def test_settings_that_say_nothing_are_known(given: dict[str, Any], idle: set[str]) -> None:
    assert resolve("digits", given).idle_settings == idle
