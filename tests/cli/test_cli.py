"""The command line: exit codes, errors, precedence, and one JSON document on stdout."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ducat_serve import __version__
from ducat_serve.cli.main import cli, run
from ducat_serve.errors import DataError
from ducat_serve.predictor import Predictor
from ducat_serve.sealed import read_sealed

DUCAT = [sys.executable, "-P", "-m", "ducat_serve"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], 2, ["Did you mean 'train'", "choose one of"]),
        (["train", "--dataset", "cifar"], 2, ["Did you mean 'cifar10'"]),
        (["train", "--network", "resnet81"], 2, ["Did you mean 'resnet18'"]),
        (["train", "--epoch", "3"], 2, ["--epochs"]),
        (["train"], 2, ["Which data set?", "ducat train --dataset digits"]),
        (["train", "--dataset", "digits", "--eps", "8"], 2, ["--eps 8 in linf", "8/255"]),
        (["train", "--dataset", "digits", "--step-size", "2"], 2, ["--step-size 2 in linf", "8/255"]),
        (["train", "--dataset", "digits", "--norm", "l2", "--eps", "99"], 2, ["--eps 99 in l2", "13.8"]),
        (["train", "--dataset", "digits", "--lr", "inf"], 2, ["not a finite number"]),
        (["train", "--dataset", "digits", "--momentum", "nan"], 2, ["not a finite number"]),
        (["train", "--eps", "eight"], 2, ["not a size like 8/255"]),
        (["train", "--dataset", "folder:/nowhere"], 4, ["/nowhere"]),
        (["train", "--dataset", "cifar100", "--offline", "--data-dir", "/nonexistent"], 4, ["--offline"]),
        (
            ["train", "--dataset", "digits", "--batch-size", "5000"],
            2,
            ["5000", "training images", "--batch-size 512"],
        ),
        (["train", "--device", "cuda"], 1, ["no usable GPU", "ducat doctor"]),
        (["export", "none.safetensors", "--onnx"], 4, ["none.safetensors", "ducat train"]),
        (["inspect", "none.onnx"], 4, ["none.onnx"]),
        (["predict", "none.onnx", "a.png"], 4, ["none.onnx"]),
        (["serve", "none.onnx"], 4, ["none.onnx"]),
        (["demo", "--epochs", "0"], 2, ["--epochs"]),
    ],
)
def test_errors_say_cause_and_next_step(
    arguments: list[str],
    code: int,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "Next: " in captured.err or "training images" in captured.err
    assert "Value error" not in captured.err
    for word in words:
        assert word in captured.err
    assert run([*arguments, "--json"]) == code
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["exit_code"] == code
    events = [json.loads(line) for line in captured.err.splitlines()]
    assert events[-1] == {"event": "error", "text": error["message"], "next": error["next"]}
    assert list(tmp_path.iterdir()) == [], "something was left behind"


@pytest.mark.integration
def test_unexpected_errors_have_no_traceback_unless_debug(tmp_path: Path) -> None:
    """A bug must not look like a wall of text; --debug shows it."""
    code = (
        "import sys; from ducat_serve.cli import main; import ducat_serve.cli.commands.networks as n\n"
        "def boom(*a, **k): raise RuntimeError('kaboom')\n"
        "n.Output = boom; sys.exit(main.run(sys.argv[1:]))"
    )
    plain = subprocess.run(
        [sys.executable, "-c", code, "networks"], capture_output=True, text=True, check=False
    )
    assert plain.returncode == 1
    assert "kaboom" in plain.stderr
    assert "Traceback" not in plain.stderr
    debug = subprocess.run(
        [sys.executable, "-c", code, "--debug", "networks"], capture_output=True, text=True, check=False
    )
    assert "Traceback" in debug.stderr


def seen_epochs(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """The value of --epochs that `ducat demo` gets."""
    command = cli.get_command(None, "demo")  # type: ignore[arg-type]
    assert command is not None
    seen = {}
    monkeypatch.setattr(command, "callback", lambda **given: seen.update(given))
    assert run(["demo", *arguments]) == 0
    return seen["epochs"]


def test_what_the_system_does_not_let_us_read_is_an_error_of_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder of another user; root may look into it, so the system's answer is made up."""

    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("ducat_serve.cli.commands.inspect.read_verified_spec", refused)
    assert run(["inspect", str(tmp_path / "model.onnx")]) == 4
    said = capsys.readouterr().err
    assert f"Cannot read or write {tmp_path / 'model.onnx'}: Permission denied." in said
    assert "report it" not in said
    assert run(["inspect", f"{tmp_path}/{'x' * 300}.onnx"]) == 4


def test_flag_over_environment_over_file_over_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[demo]\nepochs = 11\n")
    assert seen_epochs([], monkeypatch) == 40
    assert seen_epochs(["--config", str(config)], monkeypatch) == 11
    monkeypatch.setenv("DUCAT_DEMO_EPOCHS", "12")
    assert seen_epochs(["--config", str(config)], monkeypatch) == 12
    assert seen_epochs(["--config", str(config), "--epochs", "13"], monkeypatch) == 13
    monkeypatch.delenv("DUCAT_DEMO_EPOCHS")
    monkeypatch.setenv("DUCAT_CONFIG", str(config))
    assert seen_epochs([], monkeypatch) == 11


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        ("[demo]\nepoch = 3\n", 2, "Did you mean 'epochs'"),
        ("[dem]\nepochs = 3\n", 2, "Did you mean 'demo'"),
        ("[demo\n", 2, "not valid TOML"),
        (None, 4, "Cannot read"),
    ],
)
def test_bad_config_files(
    tmp_path: Path, text: str | None, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "c.toml").write_text(text)
    assert run(["demo", "--config", str(tmp_path / "c.toml")]) == code
    assert word in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize("arguments", [["networks"], ["datasets"]])
def test_json_is_exactly_one_document(arguments: list[str]) -> None:
    done = subprocess.run([*DUCAT, *arguments, "--json"], capture_output=True, text=True, check=True)
    assert isinstance(json.loads(done.stdout), dict)
    for_people = subprocess.run([*DUCAT, *arguments], capture_output=True, text=True, check=True)
    assert for_people.stdout != ""
    assert for_people.stderr == ""


def test_predict_from_onnx_and_checkpoint_agree(
    onnx_model: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    names = []
    for index in range(40):  # more than one batch
        names.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(names[-1])
    answers = []
    for model in (onnx_model, run_folder):
        assert run(["predict", str(model), *names, "--json", "--top-k", "3"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    for one, other in zip(*answers, strict=True):
        assert (one["image"], one["label"], len(one["top_k"])) == (other["image"], other["label"], 3)
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        assert one["dummy_mass"] == pytest.approx(other["dummy_mass"], abs=1e-4)


def test_predict_names_the_image_that_does_not_decode(
    onnx_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("not an image")
    assert run(["predict", str(onnx_model), str(tmp_path / "text.png")]) == 4
    assert "text.png" in capsys.readouterr().err


def test_inspect_of_both_artefacts(
    onnx_model: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = []
    for model in (onnx_model, run_folder):
        assert run(["inspect", str(model), "--json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["spec"] == documents[1]["spec"]
    assert documents[0]["source_checkpoint"] == documents[1]["sha256"]
    assert documents[0]["function_digest"] == Predictor(onnx_model, "cpu").function_digest
    assert documents[1]["function_digest"] is None


def test_doctor_names_every_package_of_every_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    found = {check["name"]: check["found"] for check in json.loads(capsys.readouterr().out)["checks"]}
    for package in ("torch", "filelock", "onnxscript", "bentoml", "multipart", "httpx"):
        assert found[package] == importlib.metadata.version(package)
    assert not {"pytest", "ducat-serve[train]"} & set(found)


def test_doctor_without_our_metadata(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert run(["doctor", "--json"]) == 0
    assert "without its metadata" in capsys.readouterr().out


def test_doctor_finds_two_onnxruntimes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ducat_serve.cli.commands.doctor as doctor

    monkeypatch.setattr(doctor, "_version", lambda _: "1.0")
    assert run(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "FAIL  onnxruntime " in captured.out
    assert "write the same folder" in captured.err


def test_doctor_tells_of_a_torch_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcublas.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch")
    assert run(["doctor"]) == 1
    assert "torch does not work: libcublas.so" in capsys.readouterr().out


def test_doctor_does_not_call_ok_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ducat_serve.cli.commands.doctor as doctor

    monkeypatch.setattr(doctor, "_version", lambda package: None if "t" in package else "1.0")
    assert run(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert (checks["torch"]["state"], checks["torch"]["ok"]) == ("missing", True)
    assert checks["torch"]["found"] == "not installed (pip install '.[train]' in a clone of ducat-serve)"
    assert checks["onnxruntime"]["state"] == "missing"
    assert checks["bentoml"]["state"] == "missing"
    assert checks["onnx"]["state"] == "ok"


def test_doctor_prints_markdown_for_a_bug_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("DUCAT_CACHE", "/proc/home/somebody")
    assert run(["doctor", "--markdown"]) == 1  # the cache cannot be made there
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["| | check | found |", "|---|---|---|"]
    assert f"| ok | ducat-serve | {__version__} |" in lines
    assert lines[-1].startswith("| FAIL | data cache | /proc~ is not writable")


def test_debug_keeps_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--debug", "inspect", "none.safetensors"]) == 4
    assert "Traceback" in capsys.readouterr().err


def test_json_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUCAT_INSPECT_JSON", "1")
    assert run(["inspect", "none.safetensors"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 4


@pytest.mark.parametrize("source", ["environment", "file"])
def test_options_have_their_flags_names_everywhere(
    source: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong attack name must arrive, be it by DUCAT_EVALUATE_ATTACK or by `attack` in a config file."""
    arguments = ["evaluate", str(run_folder)]
    if source == "environment":
        monkeypatch.setenv("DUCAT_EVALUATE_ATTACK", "sqare")
    else:
        (tmp_path / "c.toml").write_text('[evaluate]\nattack = ["sqare"]\nmax-examples = 5\n')
        arguments += ["--config", str(tmp_path / "c.toml")]
    assert run(arguments) == 2
    assert "Did you mean 'square'" in capsys.readouterr().err


def test_cuda_is_refused_for_a_checkpoint_too(run_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run(["predict", str(run_folder), str(tmp_path / "a.png"), "--device", "cuda"]) == 1


def test_settings_that_cannot_work_are_a_usage_error(
    onnx_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(onnx_model), "--max-queue", "5"]) == 2
    assert "max_queue 5 is less than the 100 images" in capsys.readouterr().err


@pytest.mark.integration
def test_a_run_on_a_relative_folder_goes_on_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for label in ("cat", "train"):  # a class may be called like a split
            folder = tmp_path / "here" / "pets" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                    folder / f"{index}.png"
                )
    monkeypatch.chdir(tmp_path / "here")
    small = ["--network", "resnet-small", "--epochs", "1", "--attack-steps", "1", "--batch-size", "4"]
    assert run(["train", "--dataset", "folder:pets", *small, "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    assert run(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "ended with epoch 1: nothing is left to train" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path / "run"), "--attack", "pgd"]) == 0
    assert "docs/" not in capsys.readouterr().out, "who installed the package has no such folder"
    assert str(tmp_path).encode() not in (tmp_path / "run" / "model.safetensors").read_bytes()


def test_a_weaker_report_does_not_replace_a_stronger_one(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    assert (
        run(["evaluate", str(folder), "--max-examples", "20", "--attack", "pgd", "--attack", "pair-margin-1"])
        == 0
    )
    assert "not stored" not in capsys.readouterr().err
    strong = (folder / "model.safetensors").read_bytes()
    weaker = ["evaluate", str(folder), "--max-examples", "10", "--attack", "pgd"]
    assert run(weaker) == 0
    assert "says less (weaker attacks, fewer images)" in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == strong
    assert run([*weaker, "--replace"]) == 0
    assert "not stored" not in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() != strong


@pytest.mark.integration
@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("torch", ["train", "--dataset", "digits", "--epochs", "1"], "train"),
        ("torch", ["evaluate", "runs/none"], "train"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, package: str, arguments: list[str], extra: str
) -> None:
    """In a process of its own, where nothing was imported before."""
    (tmp_path / "runs" / "none").mkdir(parents=True)
    (tmp_path / "runs" / "none" / "config.json").write_text("{}")
    code = (
        f"import sys; sys.modules[{package!r}] = None; from ducat_serve.cli.main import run; "
        f"sys.exit(run({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"pip install '.[{extra}]' in a clone" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_the_other_kind_is_called_what_it_is(
    run_folder: Path, onnx_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(onnx_model)]) == 4
    assert "is an exported model; this needs the checkpoint" in capsys.readouterr().err
    renamed = tmp_path / "a b.safetensors"
    shutil.copy(run_folder / "model.safetensors", renamed)
    with pytest.raises(DataError, match="is a checkpoint; this needs its export") as caught:
        read_sealed(renamed)
    assert caught.value.next_step == f"ducat export '{renamed}'"
