"""`--help` of every command: what it says, under which headings, and what it does not import."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from ducat_serve.cli.headings import CommandWithHeadings, heading
from ducat_serve.cli.main import COMMANDS, cli, run


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example_and_json(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example:" in text
    assert f"ducat {name}" in text
    assert "--json" in text
    assert "--config" in text


@pytest.mark.parametrize("name", list(COMMANDS))
def test_help_breaks_no_word_at_a_hyphen(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option's name that goes over two lines is found by nobody who searches for it."""
    monkeypatch.setenv("COLUMNS", "80")
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.endswith("-")] == []
    assert "\N{NON-BREAKING HYPHEN}" not in text


@pytest.mark.integration
def test_help_imports_neither_torch_nor_anything_heavy() -> None:
    code = (
        "import sys; from ducat_serve.cli.main import run; run(['--help']);"
        "heavy = {'torch', 'numpy', 'onnxruntime', 'bentoml', 'pydantic', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", ["predict", "inspect", "serve", "bento", "networks", "models", "sign", "verify"]
)
def test_commands_of_the_serving_side_import_no_torch(name: str) -> None:
    code = (
        f"import sys; sys.modules['torch'] = None; from ducat_serve.cli.main import run;"
        f"sys.exit(run(['{name}', '--help']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_train_help_shows_sizes_as_fractions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "[default: 8/255; l2 128/255" in text
    assert "2/255" in text


@pytest.mark.parametrize("name", ["train", "evaluate", "serve"])
def test_every_option_of_a_command_with_many_stands_below_a_heading_once(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert len(headings) >= 6
    assert headings[-1] == "All commands:"
    names = [line.strip().split("  ")[0] for line in lines if line.startswith("  -")]
    listed = [flag for name in names for flag in re.findall(r"--[a-z-]+", name)]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    flags = [f for p in command.params for f in (*p.opts, *p.secondary_opts) if f.startswith("--")]
    assert sorted(listed) == sorted([*flags, "--help"])


def test_a_heading_stands_above_the_options_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    @click.command(cls=CommandWithHeadings)
    @click.argument("model")
    @heading("First")
    @click.option("--one")
    @click.option("--two")
    @heading("Second")
    @click.option("--three", help="The third.")
    def command(**_given: str) -> None:
        """Nothing."""

    command.main(["--help"], standalone_mode=False)
    text = capsys.readouterr().out
    assert text[text.index("First") :] == (
        "First:\n  --one TEXT\n  --two TEXT\n\nSecond:\n  --three TEXT  The third.\n"
        "  --help        Show this message and exit.\n"
    )


def test_the_list_of_commands_has_all_of_them_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in lines), name
    assert "From images to predictions:" in lines


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["val", "runs/a"], "Next: ducat evaluate --split val"),
        (["quantize", "runs/a"], "Next: ducat export --precision int8"),
        (["export", "runs/a", "--half"], "Here it is --precision float16."),
        (["train", "--imgsz", "32"], "Here it is --image-size."),
    ],
)
def test_what_other_tools_call_it_leads_to_ours(
    arguments: list[str], ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert ours in capsys.readouterr().err
