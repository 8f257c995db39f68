"""Results go to stdout, everything else to stderr; nothing is cut or broken inside a word."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ducat_serve import output as output_module
from ducat_serve.cli.main import cli, main, run
from ducat_serve.networks import NETWORKS
from ducat_serve.output import Output
from tests.support.training_runs import epoch_row
from training.recipes import load_recipe

DUCAT = [sys.executable, "-P", "-m", "ducat_serve"]
SENTENCE = "an image classifier that withstands changes of at most eight grey levels in every pixel " * 2
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a b.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(path)
    return path


def on_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    """What would be seen on a terminal: results and notes in one place."""
    screen = io.StringIO()

    class Terminal(Console):
        def __init__(self, **_: object) -> None:
            super().__init__(
                file=screen, force_terminal=True, width=width, color_system=None, highlight=False
            )

    monkeypatch.setattr(output_module, "Console", Terminal)
    return screen


@pytest.mark.parametrize("listing", ["networks", "datasets", "recipes", "doctor"])
def test_listings_are_on_stdout_a_line_per_row(listing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([listing]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert not set("│┃━─") & set(captured.out)
    if listing == "networks":
        lines = captured.out.splitlines()
        assert len(lines) == 1 + len(NETWORKS)
        assert all(line.startswith(name) for line, name in zip(lines[1:], NETWORKS, strict=True))


def test_a_recipe_that_was_redirected_is_a_recipe_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes", "show", "digits"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    written = {key.replace("-", "_"): value for key, value in tomllib.loads(captured.out).items()}
    assert written == load_recipe("digits")


def test_predictions_are_on_stdout(onnx_model: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["predict", str(onnx_model), str(image)]) == 0
    captured = capsys.readouterr()
    assert str(image) in captured.out
    assert str(image) not in captured.err


def test_what_comes_next_is_on_stderr_and_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "my recipe.toml"
    assert run(["recipes", "copy", "digits", str(target)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"Next: ducat train --recipe '{target}'\n"


def test_a_recipe_for_images_of_ones_own_asks_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "my recipe.toml"
    assert run(["recipes", "copy", "folder", str(target)]) == 0
    assert capsys.readouterr().err == f"Next: ducat train --recipe '{target}' --dataset folder:PATH\n"
    first = target.read_text().partition("\n")[0]
    assert first.endswith("ducat train --recipe 'my recipe.toml' --dataset folder:PATH")


def test_long_rows_are_neither_cut_nor_wrapped_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table("", ("name", "what"), [(DIGEST, SENTENCE.strip()), ("x", "y")])
    assert capsys.readouterr().out.splitlines()[1] == f"{DIGEST}  {SENTENCE.strip()}"


@pytest.mark.parametrize("width", [100, 80, 40])
def test_no_word_is_broken_on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, width)
    output = Output()
    output.table(SENTENCE, ("", ""), [("SHA-256", DIGEST), ("robustness", SENTENCE)])
    output.text(SENTENCE)
    output.say(SENTENCE)
    words = set(screen.getvalue().replace("│", " ").split())
    assert {DIGEST, *SENTENCE.split()} <= words
    assert all(len(line) <= width or line == DIGEST for line in screen.getvalue().splitlines())


@pytest.mark.parametrize("width", [100, 80, 40])
def test_no_command_is_broken_on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would run: a training, say, without the --dry-run that stood on the second line."""
    screen = on_terminal(monkeypatch, width)
    command = "ducat train --dataset folder:photos --recipe folder-hours --batch-size 4 --dry-run " * 2
    output = Output()
    output.next(command)
    output.fail("Cause.", command)
    output.say(f"\n$ {command}")
    lines = screen.getvalue().splitlines()
    assert [line for line in lines if "ducat" in line] == [*[f"Next: {command}"] * 2, f"$ {command}"]


def test_a_table_that_would_need_more_than_the_terminal_has_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = on_terminal(monkeypatch, 60)
    Output().table("", ("", ""), [("SHA-256", DIGEST)])
    assert screen.getvalue().split() == ["SHA-256", DIGEST]


@pytest.mark.parametrize("listing", ["networks", "datasets", "recipes", "models"])
def test_listings_are_boxes_on_a_terminal_of_a_hundred_columns(
    listing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of their columns have to be wrapped for it."""
    screen = on_terminal(monkeypatch, 100)
    assert run(["--quiet", listing]) == 0
    lines = screen.getvalue().splitlines()
    assert {line[0] for line in lines} <= set("┏┃┡│└")
    assert max(map(len, lines)) <= 100


def test_an_epoch_is_a_line_of_a_hundred_characters() -> None:
    measured = dict.fromkeys(("val_legacy_accuracy", "val_fgsm_accuracy", "val_clean_accuracy"), 0.999)
    row = epoch_row(130, images_per_second=12_345.6, loss=2.3456, dummy_share_clean=0.5, **measured)
    assert len(row.line(130, 99 * 3600 + 59 * 60)) <= 100
    assert row.line(130, 61).endswith("  1m01s left")


@pytest.mark.parametrize("where", [["-q", "recipes"], ["recipes", "--quiet"]])
def test_quiet_leaves_results_warnings_and_errors(
    where: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (where, []) if where[0] == "-q" else (["recipes"], ["--quiet"])
    assert run([*first, "copy", "digits", str(tmp_path / "a.toml"), *second]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert run([*first, "show", "digits", *second]) == 0
    assert 'network = "resnet-small"' in capsys.readouterr().out
    assert run([*first, "show", "digit", *second]) == 2
    assert "Did you mean 'digits'" in capsys.readouterr().err
    assert run(["recipes", "copy", "digits", str(tmp_path / "b.toml")]) == 0
    assert capsys.readouterr().err, "it is quiet for one command only"


def test_verbose_tells_the_device(onnx_model: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["predict", str(onnx_model), str(image)]) == 0
    assert capsys.readouterr().err == ""
    assert run(["-v", "predict", str(onnx_model), str(image)]) == 0
    assert "Device: cpu" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--json", "networks"], ["networks", "--json"]])
def test_json_may_stand_before_the_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["networks"]


def test_json_before_the_command_holds_for_its_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json", "inspect", "none.onnx"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 4


@pytest.mark.parametrize(
    ("variable", "value", "as_json"),
    [
        ("DUCAT_JSON", "false", False),
        ("DUCAT_JSON", "1", True),
        ("DUCAT_RECIPES_JSON", "off", False),
        ("DUCAT_RECIPES_JSON", "yes", True),
        ("DUCAT_RECIPES_SHOW_JSON", "1", True),
    ],
)
def test_errors_are_json_where_results_would_be(
    variable: str,
    value: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    for wrong in (["nosuch"], ["digits", "--nosuch"]):
        assert run(["recipes", "show", *wrong]) == 2
        assert bool(capsys.readouterr().out) == as_json


def test_errors_are_json_where_a_config_file_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text("[runs]\njson = true\n")
    assert run(["runs", str(tmp_path / "nowhere"), "--config", str(tmp_path / "c.toml")]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 4


@pytest.mark.parametrize("manner", [[], ["--json"]])
def test_ctrl_c_leaves_no_line_that_is_no_event(
    manner: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    command = cli.get_command(None, "networks")  # type: ignore[arg-type]
    assert command is not None
    monkeypatch.setattr(command, "callback", stopped)
    assert run(["networks", *manner]) == 130
    said = capsys.readouterr().err
    if manner:
        assert [json.loads(line)["text"] for line in said.splitlines()] == ["interrupted"]
    else:
        assert said.endswith("Error: interrupted\n")


def test_json_holds_for_one_call_also_where_its_options_are_wrong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["inspect", "--json", "no-such-model"]) == 4
    capsys.readouterr()
    assert run(["networks"]) == 0
    assert not capsys.readouterr().out.startswith("{")


def test_debug_that_is_off_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUCAT_DEBUG", "false")
    assert run(["runs", "nowhere"]) == 4
    assert "Traceback" not in capsys.readouterr().err


def test_what_cannot_be_json_leaves_no_half_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Output(as_json=True).result({"a": 1, "b": float("nan")})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_is_told_in_a_sentence(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", full)
        assert run(["networks", *options]) == 1
        monkeypatch.undo()
    error = capsys.readouterr().err
    assert "Cannot write: No space left on device." in error
    assert "free some space" in error


@pytest.mark.integration
def test_a_stdout_that_is_closed_is_printed_to_by_nobody() -> None:
    command = 'exec "$@" >&-'
    done = subprocess.run(
        ["sh", "-c", command, "sh", *DUCAT, "networks", "--json"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ducat_alone_prints_its_help_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Usage: ducat")
    assert "Error" not in error


def test_what_libraries_warn_of_is_an_event_for_who_wants_to_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(**_: object) -> int:
        warnings.warn("Corrupt EXIF data.", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    command = cli.get_command(None, "networks")  # type: ignore[arg-type]
    monkeypatch.setattr(command, "callback", warned)
    for options, said in (([], ""), (["-v"], "UserWarning: Corrupt EXIF data.\n")):
        with warnings.catch_warnings(), pytest.raises(SystemExit):
            warnings.simplefilter("always")
            main(["networks", *options])
        assert capsys.readouterr().err == said


def test_without_a_terminal_progress_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Output().progress("epoch 3/130", 400) as advance:
        for _ in range(400):
            now[0] += 0.5
            advance(note="loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"epoch 3/130: {share}%, loss 1.5" for share in (30, 60, 90)]
    with Output(as_json=True).progress("epoch 3/130", 2) as advance:
        now[0] += 61
        advance(note="loss 1.5")
    event = json.loads(capsys.readouterr().err)
    assert (event["event"], event["label"], event["done"], event["total"]) == (
        "progress",
        "epoch 3/130",
        1,
        2,
    )


@pytest.mark.integration
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_whoever_has_read_enough_may_go(options: list[str]) -> None:
    """`ducat networks | head -0`: nothing is said about it."""
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [*DUCAT, "networks", *options], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (1, "")


@pytest.mark.integration
def test_a_stream_that_cannot_encode_a_name_shows_it_escaped(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = subprocess.run(
        [*DUCAT, "runs", str(tmp_path / "größe")], env=environment, capture_output=True, text=True
    )
    assert "gr\\xf6\\xdfe" in done.stderr
    assert "Traceback" not in done.stderr
