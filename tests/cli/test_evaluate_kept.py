"""`ducat evaluate` with several eps, and what it keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.errors import DucatError
from ducat_serve.output import Output
from training.evaluation.outputs import Outputs


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def test_several_eps_and_all_that_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = read_spec(folder / "model.safetensors").threat_model
    half = str(trained.eps / 2)
    command = [
        "evaluate",
        str(folder),
        "--attack",
        "closest-first",
        "--max-examples",
        "19",
        "--lattice",
        "8bit",
    ]
    command += ["--eps", str(trained.eps), "--eps", half, "--per-image", str(tmp_path / "rows.csv")]
    command += ["--save-adversarial", str(tmp_path / "broken"), "--export", "robustbench", "--replace"]
    assert run([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["eps"] == trained.eps
    assert [point["eps"] for point in report["curve"]] == [trained.eps / 2, trained.eps]
    assert report["lattice"] == "8bit"
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(rows) == 20
    assert (tmp_path / "broken" / "adversarial.safetensors").is_file()
    assert {file.name for file in folder.glob("*accuracy-over-eps.*")} == {
        "model-accuracy-over-eps.png",
        "model-accuracy-over-eps.svg",
    }
    entry = json.loads((folder / "model.robustbench.json").read_text())
    assert entry["external"] == f"{100 * report['worst_case_accuracy']:.2f}"
    assert not list(folder.glob("*.partial*"))
    assert read_spec(folder / "model.safetensors").robustness is not None


@pytest.mark.parametrize("option", ["--per-image", "--save-adversarial", "--out"])
def test_a_place_that_cannot_be_written_is_found_before_the_attacks(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "model.safetensors").read_bytes()
    assert run(["evaluate", str(folder), "--attack", "pgd", option, "/proc/nothing/here"]) != 0
    said = capsys.readouterr().err
    assert "/proc/nothing" in said
    assert "still right" not in said
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "outputs"),
    [
        ("--per-image", Outputs(per_image=Path("/proc/rows.csv"))),
        ("--save-adversarial", Outputs(adversarial=Path("/proc/broken"))),
    ],
)
def test_a_place_that_cannot_be_written_names_its_option(option: str, outputs: Outputs) -> None:
    with pytest.raises(DucatError, match="Cannot write /proc/") as refused, outputs.opened(Output()):
        pass
    assert refused.value.next_step == f"free some space or choose another place with {option}"


def test_an_eps_of_0_among_several_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(folder), "--eps", "0", "--eps", "8/255"]) == 2
    assert "--eps 0 is no attack" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [["--eps", "0"], ["--norm", "l2"], ["--attack", "no"], ["--attack", "transfer"], ["--suite", "no"]],
)
def test_a_bundled_model_is_not_copied_for_what_is_refused(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["evaluate", "cifar10-small", *wrong]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--out", "--per-image"])
@pytest.mark.parametrize("place", ["model.safetensors", "link"])
def test_a_report_does_not_take_the_place_of_the_model(
    option: str, place: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "link").symlink_to(folder / "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()
    assert run(["evaluate", str(folder), "--attack", "pgd", option, str(folder / place)]) == 2
    said = capsys.readouterr().err
    assert "is the model, which would be replaced" in said
    assert "still right" not in said
    assert (folder / "model.safetensors").read_bytes() == before
