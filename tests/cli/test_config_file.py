"""`--config FILE` with files that are no configuration: exit code 2 or 4 and a sentence, and never a hang."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ducat_serve.cli.main import cli, run

DEEP = "[" * 5000 + "]" * 5000


Given = dict[str, object]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """The options that `ducat demo` or `ducat evaluate` was given; neither does anything."""
    seen: Given = {}
    for name in ("demo", "evaluate"):
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        monkeypatch.setattr(command, "callback", lambda **options: seen.update(options))
    return seen


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"[demo]\nepochs = {DEEP}\n".encode(), "not valid TOML: it is nested too deeply"),
        (b"[demo]\nepochs = 1" + b"0" * 5000 + b"\n", "not valid TOML"),
        (b"[demo]\nout = '\xff'\n", "not valid TOML"),
        (b"demo = 3\n", "'demo' must be a table"),
        (b"[demo.epochs]\nx = 3\n", "'epochs' in [demo] must be"),
        (b"[demo]\nepochs = [1, 2]\n", "'epochs' in [demo] must be"),
        (b"[demo]\nepochs = 2026-01-01\n", "'epochs' in [demo] must be"),
        (b"[demo]\nepochs = inf\n", "'epochs' in [demo] must be"),
        (b"[demo]\nepochs = true\n", "'epochs' in [demo] must be"),
        (b"[evaluate]\neps = true\n", "'eps' in [evaluate] must be"),
        (b"[evaluate]\neps = nan\n", "'eps' in [evaluate] must be"),
        (b"[evaluate]\nattack = [['a']]\n", "'attack' in [evaluate] must be"),
    ],
    ids=[
        "deep",
        "long number",
        "no UTF-8",
        "no table",
        "table",
        "list",
        "date",
        "inf",
        "true for a number",
        "true for a size",
        "nan",
        "list of lists",
    ],
)
def test_what_is_no_configuration_is_a_usage_error(
    content: bytes, words: str, tmp_path: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_bytes(content)
    command = ["evaluate", "none.safetensors"] if b"evaluate" in content else ["demo"]
    assert run([*command, "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Next: " in error
    assert not given


def test_a_config_that_is_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "--config", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


def test_a_config_that_is_a_fifo_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "c.toml")
    # Nobody ever writes to it: reading would wait for ever.
    assert run(["demo", "--config", str(tmp_path / "c.toml")]) == 4
    assert "c.toml: it is not a file" in capsys.readouterr().err


def test_a_list_is_for_options_that_can_be_repeated(tmp_path: Path, given: Given) -> None:
    (tmp_path / "c.toml").write_text(
        "[evaluate]\nattack = ['apgd-ce', 'targeted']\neps = '8/255'\nresume = true\n"
    )
    assert run(["evaluate", "m.safetensors", "--config", str(tmp_path / "c.toml")]) == 0
    assert given["attack"] == ("apgd-ce", "targeted")
    assert (given["eps"], given["resume"]) == ((8 / 255,), True), "one value is a list of one"


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, given: Given) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf[demo]\nepochs = 3\n")
    assert run(["demo", "--config", str(tmp_path / "c.toml")]) == 0
    assert given["epochs"] == 3


def test_the_choices_for_an_unknown_key_do_not_name_the_file_itself(
    tmp_path: Path, given: Given, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text("[demo]\nnosuch = 3\n")
    assert run(["demo", "--config", str(tmp_path / "c.toml")]) == 2
    assert "choose one of: epochs, json, out, quiet, verbose\n" in capsys.readouterr().err
    assert not given


def test_the_table_of_a_group_holds_for_its_subcommands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(tmp_path / "c.toml")]
    (tmp_path / "c.toml").write_text("[datasets]\ndata-dir = '/of/file'\ntest-fraction = 0.3\n")

    def looked_in(*arguments: str) -> str:
        assert run(["datasets", *arguments]) == 4
        return capsys.readouterr().err.partition(".\n")[0].partition(" not in ")[2]

    verify = ["verify", "cifar10"]
    assert looked_in(*verify, *config) == looked_in(*config, *verify) == "/of/file"
    assert looked_in("--data-dir", "/flag", *verify, *config) == "/flag"
    monkeypatch.setenv("DUCAT_DATASETS_DATA_DIR", "/of/variable")
    assert looked_in(*verify, *config) == "/of/variable"
    monkeypatch.setenv("DUCAT_DATA", "/of/variable")
    assert looked_in("--data-dir", "/flag", *verify) == "/flag"
    assert looked_in("--data-dir", "/flag", *verify, "--data-dir", "/nearer") == "/nearer"
    (tmp_path / "c.toml").write_text("[datasets]\nnosuch = 3\n")
    assert run(["datasets", *verify, *config]) == 2
    assert "Unknown key" in capsys.readouterr().err


def test_flags_of_a_group_may_stand_before_its_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["datasets", "--offline", "download", "digits"]) == 2
    assert "--offline forbids" in capsys.readouterr().err
    assert run(["recipes", "--json", "show", "digits"]) == 0
    assert '"recipe": {' in capsys.readouterr().out


def test_a_bad_value_is_told_with_the_place_that_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[demo]\nepochs = 'x'\n")
    sentence = "Invalid value for '--epochs': 'x' is not a whole number."
    assert run(["demo", "--epochs", "x"]) == 2
    assert f"Error: {sentence}\n" in capsys.readouterr().err
    assert run(["demo", "--config", str(config)]) == 2
    assert f"Error: {config}, [demo]: {sentence}\n" in capsys.readouterr().err
    monkeypatch.setenv("DUCAT_DEMO_EPOCHS", "x")
    assert run(["demo", "--config", str(config)]) == 2
    assert f"Error: DUCAT_DEMO_EPOCHS: {sentence}\n" in capsys.readouterr().err
    monkeypatch.setenv("DUCAT_DEVICE", "gpu")
    assert run(["predict", "digits-small", "x.png"]) == 2
    assert capsys.readouterr().err.count("DUCAT_DEVICE") == 1


def test_an_option_above_all_tables_is_told_where_it_belongs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text("epochs = 3\n")
    assert run(["demo", "--config", str(tmp_path / "c.toml")]) == 2
    said = capsys.readouterr().err
    assert "'epochs' belongs to no command, since it stands outside of every table" in said
    assert "Next: put it below [train] or [demo]\n" in said
    (tmp_path / "c.toml").write_text("epohcs = 3\n")
    assert run(["demo", "--config", str(tmp_path / "c.toml")]) == 2
    said = capsys.readouterr().err
    assert "'epohcs' is an option of no command" in said
    assert "Did you mean 'epochs'?\n" in said
    (tmp_path / "c.toml").write_text("[epochs]\nx = 3\n")
    assert run(["demo", "--config", str(tmp_path / "c.toml")]) == 2
    assert "Unknown table" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["top", "top-k"])
def test_each_spelling_of_an_option_holds_in_files_and_variables(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Given = {}
    command = cli.get_command(None, "predict")  # type: ignore[arg-type]
    assert command is not None
    monkeypatch.setattr(command, "callback", lambda **options: seen.update(options))
    (tmp_path / "c.toml").write_text(f"[predict]\n{spelling} = 3\n")
    words = ["predict", "digits-small", "x.png"]
    assert run([*words, "--config", str(tmp_path / "c.toml")]) == 0
    assert seen.pop("top_k") == 3
    monkeypatch.setenv(f"DUCAT_PREDICT_{spelling.replace('-', '_').upper()}", "4")
    assert run(words) == 0
    assert seen["top_k"] == 4
