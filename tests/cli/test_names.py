"""Names that people type: variables that are misspelt, and what a shell completes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from ducat_serve.cli.main import cli, run
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
    kubernetes = {"DUCAT_SERVE_SERVICE_HOST": "10.0.0.1", "DUCAT_SERVE_PORT_3000_TCP_ADDR": "10.0.0.1"}
    Settings.from_environment(
        {
            **dict.fromkeys(options, "512"),
            **kubernetes,
            "DUCAT_SERVE_MODEL": "model.onnx",
            "DUCAT_SERVE_DEVICE": "cpu",
            "DUCAT_SERVE_ACCESS_LOG": "0",
            "DUCAT_SERVE_ATTACK_DEMO": "0",
        }
        | {"DUCAT_SERVE_MAX_BODY": "4096"}
    )


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "re", {"recipes"}),
        (["train", "--network"], "resnet1", {"resnet14", "resnet18"}),
        (["train", "--dataset"], "cifar", {"cifar10", "cifar100"}),
        (["train", "--dataset"], "f", {"folder:"}),
        (["train", "--recipe"], "dig", {"digits"}),
        (["recipes", "show"], "cifar100-s", {"cifar100-small"}),
    ],
)
def test_shells_complete_values(words: list[str], incomplete: str, expected: set[str]) -> None:
    found = ShellComplete(cli, {}, "ducat", "_DUCAT_COMPLETE").get_completions(words, incomplete)
    assert {item.value for item in found} == expected
