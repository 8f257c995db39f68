"""`ducat recipes`, and what decides a setting: flag, environment, file, recipe."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ducat_serve import train_config
from ducat_serve.cli.main import run
from ducat_serve.errors import UsageError
from training.config import TrainConfig
from training.recipes import load_recipe, recipe_cost, recipe_names, recipe_reached, recommended_recipe
from training.resolve import fewest_options, resolve


def started_with(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """The configuration that `ducat train` would train."""
    import training.run.start

    seen: list[Any] = []

    class Stop(Exception):
        pass

    def load(config: TrainConfig, *_: object, **__: object) -> None:
        seen.append(config)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(training.run.start, "load_run_data", load)
        assert run(["train", *arguments]) == 1
    config: TrainConfig = seen[0]
    return config


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_configuration_and_says_what_it_is_named_for(name: str) -> None:
    recipe = load_recipe(name)
    config = resolve(recipe.get("dataset", "folder:/x"), {}, name)
    if "finetune" in name:
        assert (config.network, config.method, config.ducat) == ("torchvision:resnet50", "trades", "off")
        assert (config.image_size, config.optimizer, config.warmup, config.eps) == (224, "adamw", 5, 4 / 255)
        assert config.eps_ramp == (1 if name.endswith("robust") else 10)
        assert not set(recipe) - set(TrainConfig.model_fields)
        return
    assert config.eps == (0.2 if name == "digits" else 8 / 255)
    if name.endswith(("hours", "gpu")):
        purse = {"hours": "resnet14", "gpu": "resnet18"}
        assert (config.network, config.method, config.ducat) == (
            purse[name.rpartition("-")[2]],
            "pairing",
            "off",
        )
        assert (config.schedule, config.ema_warmup) == ("one-cycle", True)
        assert config.dataset == (name.rpartition("-")[0] if "dataset" in recipe else "folder:/x")
    else:
        small = name.endswith("quick") or name == "digits"
        assert config.method == "pgd-at"
        assert config.network == ("resnet-small" if small else "resnet18")
        if not small:
            assert (config.epochs, config.lr_milestones, config.ducat_start) == (130, (100, 105), 105)
    unknown = set(recipe) - set(TrainConfig.model_fields)
    assert not unknown


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny-imagenet", "digits"])
@pytest.mark.parametrize(
    ("network", "method"),
    [
        ("wrn-28-10", None),
        *itertools.product([None, "wrn-28-10"], ["trades", "mart", "consistency"]),
    ],
)
def test_a_recipe_of_an_earlier_version_is_answered_with_the_flags_that_say_the_same(
    dataset: str,
    network: str | None,
    method: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "-".join(filter(None, (dataset, network, method)))
    assert run(["train", "--recipe", name, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert f"'{name}'" in error["message"]
    told = error["next"].split()
    assert told[:2] == ["ducat", "train"]
    config = started_with(told[2:], monkeypatch)
    expected = (dataset, network or load_recipe(dataset)["network"], method or "pgd-at")
    assert (config.dataset, config.network, config.method) == expected


def test_a_recipe_is_listed_shown_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["recipes"]) == set(recipe_names())
    assert run(["recipes"]) == 0
    assert "tiny-imagenet-quick" in capsys.readouterr().out
    assert run(["recipes", "show", "cifar10-quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["inner_attack"] == "n-fgsm"
    file = tmp_path / "mine.toml"
    assert run(["recipes", "copy", "cifar10", str(file)]) == 0
    assert tomllib.loads(file.read_text())["lr-milestones"] == [100, 105]
    assert run(["recipes", "copy", "digits", str(file)]) == 2, "never overwritten"
    assert "cifar10" in file.read_text()
    capsys.readouterr()
    assert run(["recipes", "show", "cifar10-quik"]) == 2
    assert "Did you mean 'cifar10-quick'" in capsys.readouterr().err


def test_every_recipe_says_what_it_costs_and_reached_and_training_never_hears_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert all(recipe_cost(name) for name in recipe_names())
    assert all({"cost", "reached"}.isdisjoint(load_recipe(name)) for name in recipe_names())
    assert recipe_reached("cifar100-hours") == "", "never that of the recipe which it extends"
    assert recipe_cost("cifar10-hours") != recipe_cost("cifar10"), "never that of the recipe which it extends"
    assert run(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["costs"] == {name: recipe_cost(name) for name in recipe_names()}
    assert listed["reached"] == {name: recipe_reached(name) for name in recipe_names()}
    assert run(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert "cost" in shown
    assert "reached" in shown


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny-imagenet", "folder:/x"])
def test_we_recommend_a_recipe_without_dummies_for_each_purse(name: str) -> None:
    for on_gpu in (False, True):
        recommended = recommended_recipe(name, on_gpu=on_gpu)
        assert recommended is not None
        assert resolve(name, {}, recommended).ducat == "off"
    assert recommended_recipe("digits", on_gpu=False) is None


CHANGES: list[dict[str, Any]] = [
    {},
    {"epochs": 30},
    {"norm": "l2"},
    {"eps": 4 / 255},
    {"method": "trades"},
    {"method": "standard"},
    {"schedule": "one-cycle"},
]


def resolved(dataset: str, given: dict[str, Any], recipe: str | Path) -> TrainConfig | str:
    try:
        return resolve(dataset, given, recipe)
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("name", recipe_names())
def test_a_copied_recipe_is_the_recipe_whatever_is_changed(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert run(["recipes", "copy", name, str(file)]) == 0
    dataset = load_recipe(name).get("dataset", "folder:/x")
    for given in CHANGES:
        assert resolved(dataset, given, file) == resolved(dataset, given, name), given
        assert resolved(dataset, given, str(file)) == resolved(dataset, given, name), given


def test_a_copied_recipe_is_trained_as_its_closing_line_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {}
    for name in ("digits", "folder-hours", "folder-finetune"):
        assert run(["recipes", "copy", name, f"{name}.toml"]) == 0
        told[name] = capsys.readouterr().err.strip().removeprefix("Next: ")
        assert told[name] in Path(f"{name}.toml").read_text()
    assert told == {
        "digits": "ducat train --recipe digits.toml",
        "folder-hours": "ducat train --recipe folder-hours.toml --dataset folder:PATH",
        "folder-finetune": "ducat train --recipe folder-finetune.toml --dataset folder:PATH --pretrained",
    }
    original = started_with(["--recipe", "digits", "--epochs", "7"], monkeypatch)
    assert started_with(["--recipe", "digits.toml", "--epochs", "7"], monkeypatch) == original
    for recipe in ("digits.toml", Path("digits.toml")):
        assert train_config(recipe=recipe, epochs=7, device="cpu") == original


def test_a_copy_is_named_so_that_it_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "copy", "digits", str(tmp_path / "mine")]) == 2
    assert f"ducat recipes copy digits {tmp_path}/mine.toml" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["cifar10", "cifar10-hours", "folder-finetune"])
@pytest.mark.parametrize("given", CHANGES)
def test_a_file_that_extends_a_recipe_says_what_flags_on_it_say(
    name: str, given: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"extends": name, **given}.items()]
    file.write_text("\n".join(lines))
    dataset = load_recipe(name).get("dataset", "folder:/x")
    found, expected = resolved(dataset, {}, file), resolved(dataset, given, name)
    if isinstance(found, str) or isinstance(expected, str):
        assert found == expected
        return
    assert found.step_size == pytest.approx(expected.step_size)
    assert found.model_copy(update={"step_size": expected.step_size}) == expected


def test_a_file_s_own_settings_follow_the_length_of_the_run_and_the_mode_of_the_dummies(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'extends = "digits"\nepochs = 40\nducat = "folded"\nducat-start = 20\nsplit-weight = 0.3\n'
    )
    assert resolve("digits", {}, file).ducat_start == 20
    assert resolve("digits", {"epochs": 10}, file).ducat_start == 5
    assert resolve("digits", {"ducat": "off"}, file).ducat_start is None
    assert resolve("digits", {"ducat": "paper"}, file).split_weight == 1


def test_a_file_may_say_the_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "digits"\nprecision = "bfloat16"\n')
    assert started_with(["--recipe", str(file)], monkeypatch).precision == "bfloat16"
    assert started_with(["--recipe", str(file), "--precision", "float32"], monkeypatch).precision == "float32"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "digits"\nmomentun = 0.9', "'momentun'. Did you mean 'momentum'"),
        ('extends = "digits"\npretrained = "x"', "Unknown key"),
        ('extends = "cifar"', "Did you mean 'cifar10'"),
        ("extends = 3", "'extends' must be the name of a recipe"),
        ('extends = "digits"\nepochs = "many"', "mine.toml: epochs: "),
        ('extends = "digits"\nflip = 1', "mine.toml: flip: "),
        ('extends = "digits"\neps = "eight"', "not a size like 8/255"),
        ('extends = "digits"\nbatch-size = 4\nbatch_size = 5', "'batch-size' is there twice"),
        ('extends = "digits"\nlr-milestones = [9, 3]', "give --lr-milestones 3,9"),
        ('extends = "digits"\nnetwork = "resnet19"', "Unknown network 'resnet19'"),
        ("epochs = 3", "mine.toml leaves open network, method, "),
        ("epochs = ", "mine.toml is not valid TOML"),
    ],
)
def test_a_recipe_file_with_a_mistake_is_refused(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert run(["train", "--recipe", str(file), "--dataset", "digits", "--dry-run"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert words in error
    assert "Next: " in error


def test_a_recipe_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--recipe", str(tmp_path / "mine.toml")]) == 4
    assert f"ducat recipes copy digits {tmp_path}/mine.toml" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cifar10", "cifar10-hours", "digits", "folder-gpu", "folder-finetune"])
@pytest.mark.parametrize("given", CHANGES)
def test_few_options_give_a_recipe_file_s_configuration_again(
    name: str, given: dict[str, Any], tmp_path: Path
) -> None:
    dataset = load_recipe(name).get("dataset", "folder:/x")
    file = tmp_path / "mine.toml"
    file.write_text(f'extends = "{name}"\nseed = 7')
    config = resolved(dataset, given, file)
    if isinstance(config, str):  # a contradiction has no run
        return
    config = config.model_copy(update={"measure_start": False})  # it has been measured when a run begins
    options = fewest_options(config, {*TrainConfig.model_fields} - {"measure_start"})
    assert resolve(dataset, options) == config
    assert options["seed"] == 7
    if name in ("cifar10", "digits") and not given:
        assert set(options) == {"dataset", "precision", "seed"}


def test_flag_over_environment_over_file_over_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        '[train]\ndataset = "digits"\nlr = 0.03\nlr-milestones = [5, 7]\nflip = true\neps = "4/255"\n'
    )
    config = started_with(["--config", str(file)], monkeypatch)
    assert (config.lr, config.lr_milestones, config.flip, config.epochs) == (0.03, (5, 7), True, 60)
    assert config.eps == 4 / 255
    monkeypatch.setenv("DUCAT_TRAIN_LR", "0.04")
    monkeypatch.setenv("DUCAT_TRAIN_LR_MILESTONES", "6,8")
    config = started_with(["--config", str(file)], monkeypatch)
    assert (config.lr, config.lr_milestones) == (0.04, (6, 8))
    flags = ["--lr", "0.05", "--lr-milestones", "9", "--no-flip"]
    config = started_with(["--config", str(file), *flags], monkeypatch)
    assert (config.lr, config.lr_milestones, config.flip) == (0.05, (9,), False)


def test_the_data_set_alone_takes_its_own_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("tiny-imagenet", {}) == resolve("tiny-imagenet", {}, "tiny-imagenet")
    assert started_with(["--dataset", "digits"], monkeypatch).model_dump() == {
        **resolve("digits", {}).model_dump(),
        "precision": started_with(["--recipe", "digits"], monkeypatch).precision,
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\nmomentun = 0.9\n", "Did you mean 'momentum'"),
        ("[train]\nlr-milestone = [3]\n", "Did you mean 'lr-milestones'"),
        ("[train]\nlr-milestones = 'soon'\n", "not a list of epochs"),
        ("[train]\nattack-steps = 0\n", "attack-steps"),
    ],
)
def test_a_config_file_with_a_mistake_is_refused(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    assert run(["train", "--config", str(file)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--inner-attack", "n-fgsm", "--norm", "l1"], "made for --norm linf"),
        (["--ducat-start", "9", "--epochs", "8"], "outside of epochs 1 to 8"),
        (["--lr-milestones", "a,b"], "not a list of epochs"),
        (["--ema-decay", "1"], "--ema-decay"),
        (["--ema-decay", "0.9", "--ema-warmup", "--eps-ramp", "99"], "--eps-ramp 99 is longer"),
        (["--method", "guided", "--norm", "l1"], "made for --norm linf, not l1"),
        (["--method", "guided", "--beta", "-1"], "--beta"),
        (["--method", "standard", "--ducat", "folded"], "needs --ducat off"),
        (["--recipe", "cifar10", "--dataset", "digits"], "ducat train --dataset digits"),
        (["--recipe", "cifar"], "Did you mean 'cifar10'"),
    ],
)
def test_impossible_settings_are_a_usage_error(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = [] if "--recipe" in arguments else ["--dataset", "digits"]
    assert run(["train", *dataset, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Value error" not in error


def test_a_recipe_file_may_have_no_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('extends = "cifar10"\nlr-milestones = []\n')
    config = started_with(["--recipe", str(file)], monkeypatch)
    assert config.lr_milestones == ()
    assert resolve("cifar10", {"epochs": 30}, file).lr_milestones == ()
    options = fewest_options(config, TrainConfig.model_fields)
    assert options["lr_milestones"] == ()
    assert started_with(["--dataset", "cifar10", "--lr-milestones", ""], monkeypatch).lr_milestones == ()
