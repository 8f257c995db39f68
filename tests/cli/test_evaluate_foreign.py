"""`ducat evaluate package.module:callable`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from ducat_serve.checklist import tick_off
from ducat_serve.cli.main import run
from ducat_serve.errors import UsageError
from ducat_serve.library.foreign_sources import CallableSource, ModelCallable, ServerSource
from ducat_serve.output import Output
from ducat_serve.report import RobustnessReport
from tests.support.image_folders import write_colours
from tests.support.somebodys_nets import DIGITS, REPORT, SOURCE, write_and_enter
from training.evaluation.foreign import import_model


@pytest.mark.parametrize("host", ["[::1", "localhost:abc", "localhost:99999", ""])
def test_an_address_that_is_none_is_a_usage_error(host: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a server's /v1/predict"):
        ServerSource(f"http://{host}/v1/predict", query_budget=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_and_enter(tmp_path, monkeypatch)
    return tmp_path


def test_report_and_card_of_somebody_elses_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*DIGITS, "--eps", "0.05"]
    command += [
        "--eps",
        "0.1",
        "--max-examples",
        "40",
        "--attack",
        "closest-first",
        "--export",
        "robustbench",
    ]
    command += ["--per-image", "rows.csv"]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((here / "somebodys_nets.make.robustness.json").read_text())
    assert [point["eps"] for point in report["curve"]] == [0.05, 0.1]
    assert report["worst_case_accuracy"] <= report["curve"][0]["worst_case_accuracy"]
    card = (here / "somebodys_nets.make.robustness.md").read_text()
    assert "somebodys" in card
    assert report["weights_digest"] in card
    assert len((here / "rows.csv").read_text().splitlines()) == 41
    assert (here / "somebodys_nets.make.robustness.robustbench.json").is_file()
    assert (here / "somebodys_nets.make.robustness-accuracy-over-eps.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "digits", "--eps", "0.1"], "there is no module somebodys_nets"),
        (["--import-from", ".", "--eps", "0.1"], "--dataset"),
        (["--import-from", ".", "--dataset", "digits"], "needs --eps"),
    ],
)
def test_what_is_missing_is_named(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del here
    assert run(["evaluate", "somebodys_nets:make", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_logits_of_another_width_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate",
        "somebodys_nets:narrow",
        "--import-from",
        ".",
        "--dataset",
        "digits",
        "--eps",
        "0.1",
    ]
    assert run(command) == 2
    assert "tells 7 classes apart, and the data set has 10" in capsys.readouterr().err.replace("\n", " ")
    assert {file.name for file in here.iterdir()} - {"__pycache__"} == {"somebodys_nets.py"}


@pytest.mark.parametrize(
    ("net", "code", "message"),
    [
        ("nan", 3, "answers NaN to 30 clean images"),
        ("pair", 2, "returns tuple, not logits [N, C]"),
        ("changing", 2, "changes its own state_dict while it answers, even in eval mode"),
        ("no_module", 2, "returned str, not a torch.nn.Module"),
        ("broken", 2, "failed: RuntimeError: no weights here"),
        ("nobody", 2, "has no callable named nobody"),
    ],
)
def test_what_is_no_classifier_is_said_before_the_attacks(
    net: str, code: int, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", f"somebodys_nets:{net}", "--import-from", ".", "--dataset", "digits"]
    assert run([*command, "--eps", "0.1", "--max-examples", "30"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "still right" not in said
    assert not list(here.glob("*.json"))


@pytest.mark.parametrize("sizes", [["0.1", "0"], ["0"]])
def test_an_eps_of_0_is_refused(sizes: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [word for size in sizes for word in ("--eps", size)]
    assert run(["evaluate", "somebodys_nets:make", "--import-from", ".", "--dataset", "digits", *asked]) == 2
    assert "needs --eps, above 0" in capsys.readouterr().err


def test_eps_in_any_order_and_twice_are_one_curve(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--eps", "0.1", "--eps", "0.02", "--eps", "0.1", "--max-examples", "20", "--attack", "pgd"]
    command = ["evaluate", "somebodys_nets:make", "--import-from", ".", "--dataset", "digits"]
    assert run([*command, *asked, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [point["eps"] for point in report["curve"]] == [0.02, 0.1]
    assert report["eps"] == 0.1


def test_photos_of_any_size_are_made_as_large_as_was_asked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(here / "photos")
    Image.new("RGB", (30, 20)).save(here / "photos/test/red/wide.png")
    command = ["evaluate", "somebodys_nets:three", "--import-from", ".", "--dataset", "folder:photos"]
    command += ["--eps", "0.1", "--attack", "pgd"]
    assert run(command) == 4
    assert "--image-size 64" in capsys.readouterr().err
    assert run([*command, "--image-size", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["examples"] == 13
    assert report["takes"] == "images in [0, 1]"
    assert not any(doubt.startswith("test images") for doubt in report["doubts"])


def test_test_images_that_we_drew_may_be_ones_that_it_was_trained_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(here / "photos", train=20)
    command = ["evaluate", "somebodys_nets:three", "--import-from", ".", "--dataset", "folder:photos/train"]
    assert run([*command, "--image-size", "8", "--eps", "0.1", "--attack", "pgd", "--json"]) == 0
    said = capsys.readouterr()
    assert "may have been trained on" in said.err
    (doubt,) = json.loads(said.out)["doubts"]
    assert doubt.startswith("test images of our choice")
    report = RobustnessReport.model_validate_json(said.out)
    assert {item.name: holds for item, holds in tick_off(report)}["test images"] is False


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (["digits-small"], [], "yours says its size"),
        (
            ["somebodys_nets:make", "--import-from", "."],
            ["--dataset", "digits", "--eps", "0.1"],
            "has 8x8 images",
        ),
    ],
)
def test_a_size_is_refused_where_nobody_can_choose_it(
    model: list[str], data: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del here
    assert run(["evaluate", *model, *data, "--image-size", "16"]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_found_before_the_attacks(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "somebodys_nets:make", "--import-from", str(here), "--dataset", "digits"]
    monkeypatch.chdir("/proc")  # where nobody can write, root included
    assert run([*command, "--eps", "0.1"]) == 1
    said = capsys.readouterr().err
    assert "Cannot write somebodys_nets.make.robustness.json" in said
    assert "still right" not in said


def test_images_made_on_a_twin_are_shown_to_a_callable(here: Path) -> None:
    asked = ["--eps", "0.1", "--max-examples", "20", "--attack", "transfer", "--twin", "somebodys_nets:ready"]
    assert run([*DIGITS, *asked]) == 0
    report = json.loads((here / REPORT).read_text())
    assert [attack["name"] for attack in report["attacks"]] == ["transfer"]
    assert [doubt.partition(":")[0] for doubt in report["doubts"]] == ["no better than guessing"], (
        "no weights are trained"
    )


def test_what_a_network_declares_is_put_before_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`ducat train` and `import` do so with the same factory."""
    shifted = (
        SOURCE
        + """
def declaring():
    model = ready()
    model.normalisation = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return model

def otherwise():
    model = ready()
    model.normalization = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return model

def wrong():
    model = ready()
    model.normalisation = 0.5
    return model
"""
    )
    (here / "declaring_nets.py").write_text(shifted)
    images = torch.rand(2, 3, 8, 8)
    model = import_model("declaring_nets:declaring", here, output=Output())
    assert "declares its normalisation" in capsys.readouterr().err
    plain = import_model("declaring_nets:ready", here, output=Output())
    assert torch.allclose(model(images), plain((images - 0.5) / 0.25))
    capsys.readouterr()
    otherwise = import_model("declaring_nets:otherwise", here, output=Output())
    assert torch.equal(otherwise(images), plain(images)), "it may use its attribute itself"
    assert "if it were called normalisation" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="is not \\(mean, std\\)"):
        import_model("declaring_nets:wrong", here, output=Output())


def test_a_file_that_is_no_report_is_found_before_the_attacks(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "settings.json").write_text('{"my": "settings"}')
    assert run([*DIGITS, "--eps", "0.1", "--max-examples", "20", "--out", "settings.json"]) == 4
    said = capsys.readouterr().err
    assert "settings.json is not a robustness report" in said
    assert "still right" not in said
    assert (here / "settings.json").read_text() == '{"my": "settings"}'


@pytest.mark.parametrize(("name", "is_said"), [("make", True), ("ready", False)])
def test_a_model_in_train_mode_is_put_into_eval_mode_and_that_is_said(
    name: str, is_said: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = import_model(f"somebodys_nets:{name}", here, output=Output())
    assert not any(module.training for module in model.modules())
    assert ("in train mode; it is measured in eval mode" in capsys.readouterr().err) is is_said


@pytest.mark.parametrize("wrong", [("--attack", "fab"), ("--suite", "autoattack")])
def test_a_name_that_is_wrong_is_found_before_the_model_is_made(
    wrong: tuple[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "slow_nets.py").write_text("def make():\n    raise RuntimeError('was made')\n")
    command = ["evaluate", "slow_nets:make", "--import-from", ".", "--dataset", "digits", "--eps", "0.1"]
    assert run([*command, *wrong]) == 2
    said = capsys.readouterr().err
    assert wrong[1] in said
    assert "was made" not in said


def test_a_report_does_not_go_to_a_device(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As /dev/full, which gives zeros without end to whoever reads it; to break this must not break the machine."""
    os.mkfifo(here / "pipe")
    assert run([*DIGITS, "--eps", "0.1", "--attack", "pgd", "--out", "pipe"]) != 0
    assert "it is a device or a pipe" in capsys.readouterr().err
    assert not (here / REPORT).exists()


def test_a_report_is_not_written_where_its_card_goes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "somebodys_nets:make", "--import-from", ".", "--dataset", "digits", "--eps", "0.1"]
    assert run([*command, "--attack", "pgd", "--max-examples", "5", "--out", "report.md"]) == 2
    error = capsys.readouterr().err
    assert "the card would be written to the same file" in error
    assert "--out report.json" in error
    assert not (here / "report.md").exists()


def test_reports_of_other_models_have_other_names() -> None:
    one, other = (CallableSource(ModelCallable(name)) for name in ("nets:make", "my.other:make"))
    assert (one.file_name, other.file_name) == ("nets.make", "my.other.make")
    url = "https://me:secret@host:3000/v1/predict"
    a, b = (ServerSource(f"{url}?key=secret&model={model}&version=2", 10) for model in ("a", "b"))
    assert a.name == "https://host:3000/v1/predict?model=a&version=2"
    assert (a.file_name, b.file_name) == ("host-3000-a-2", "host-3000-b-2")
    assert ServerSource(url, 10).name == "https://host:3000/v1/predict"
    assert ServerSource("http://[::1]:3000/v1/predict", 10).file_name == "1-3000"
