"""Names that people type: variables that are misspelt, and what a shell completes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from ducat_serve.bundled import model_path
from ducat_serve.cli.main import cli, run
from ducat_serve.networks.allowed import require_allowed
from service.settings import Settings


@pytest.mark.parametrize(
    ("variable", "arguments", "near"),
    [
        ("DUCAT_TRAIN_EPOCS", ["train", "--dataset", "digits"], "DUCAT_TRAIN_EPOCHS"),
        ("DUCAT_RECIPES_JSN", ["recipes"], "DUCAT_RECIPES_JSON"),
        ("DUCAT_RECIPES_SHOW_JSN", ["recipes", "show", "digits"], "DUCAT_RECIPES_SHOW_JSON"),
        ("DUCAT_SERVE_API_KEY", ["serve", "{onnx}"], "DUCAT_SERVE_API_KEYS"),
    ],
)
def test_a_misspelt_variable_is_a_usage_error(
    variable: str,
    arguments: list[str],
    near: str,
    onnx_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    monkeypatch.setenv(variable, "1")
    assert run([word.replace("{onnx}", str(onnx_model)) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert variable in error
    assert f"Did you mean {near}?" in error


def test_variables_of_subcommands_and_of_every_option_of_serve_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DUCAT_RECIPES_SHOW_JSON", "0")
    assert run(["recipes", "--json"]) == 0
    serve = cli.get_command(None, "serve")  # type: ignore[arg-type]
    assert serve is not None
    options = {f"DUCAT_SERVE_{(parameter.name or '').upper()}": "1" for parameter in serve.params}
    kubernetes = {
        f"DUCAT_SERVE_{name}": "10.0.0.1"
        for name in (
            "SERVICE_HOST",
            "SERVICE_PORT_HTTP",
            "PORT_3000_TCP_ADDR",
            "WEB_SERVICE_HOST",
            "WEB_PORT",
        )
    }
    Settings.from_environment(
        {
            **dict.fromkeys(options, "512"),
            **kubernetes,
            "DUCAT_SERVE_MODEL": "model.onnx",
            "DUCAT_SERVE_DEVICE": "cpu",
            "DUCAT_SERVE_ACCESS_LOG": "0",
            "DUCAT_SERVE_ATTACK_DEMO": "0",
        }
        | {"DUCAT_SERVE_MAX_BODY": "4096", "DUCAT_SERVE_DECODERS": "4"}
    )


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "re", {"recipes"}),
        (["train", "--network"], "resnet1", {"resnet14", "resnet18"}),
        (["train", "--dataset"], "cifar", {"cifar10", "cifar100"}),
        (["train", "--dataset"], "f", {"folder:"}),
        (["train", "--recipe"], "dig", {"digits"}),
        (["recipes", "show"], "cifar100-q", {"cifar100-quick"}),
    ],
)
def test_shells_complete_values(words: list[str], incomplete: str, expected: set[str]) -> None:
    found = ShellComplete(cli, {}, "ducat", "_DUCAT_COMPLETE").get_completions(words, incomplete)
    assert {item.value for item in found} == expected


def test_a_folder_stands_for_the_export_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "only onnx"
    folder.mkdir()
    shutil.copy(model_path("digits-small", "onnx"), folder / "model.onnx")
    for command in (["inspect"], ["compare"], ["benchmark", "--seconds", "0.01", "--batch", "1"]):
        capsys.readouterr()
        assert run([*command, str(folder), "--json"]) == 0, command
        assert "digits" in capsys.readouterr().out or command[0] == "benchmark"


def test_a_missing_export_is_made_from_the_checkpoint_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "a run" / "model.onnx"
    missing.parent.mkdir()
    assert run(["benchmark", str(missing)]) == 4
    assert "name a .onnx file that `ducat export` wrote" in capsys.readouterr().err
    shutil.copy(model_path("digits-small", "safetensors"), missing.with_suffix(".safetensors"))
    assert run(["benchmark", str(missing.parent)]) == 4
    command = f"ducat export '{missing.with_suffix('.safetensors')}' --out '{missing}'"
    assert f"Next: {command}" in capsys.readouterr().err


def test_towers_of_ones_own_can_be_named_to_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["one.net:make", "other.net:make"]
    options = [word for name in names for word in ("--network", name)]
    where = ["--import-from", str(tmp_path)]
    assert run(["mix", "nowhere/a", "nowhere/b", *options, *where]) == 4
    assert "nowhere/a" in capsys.readouterr().err
    assert all(require_allowed(name) == tmp_path for name in names)
