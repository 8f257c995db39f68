"""`import ducat_serve`: cheap, without torch, and train, evaluate and export as the commands do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ducat_serve
from ducat_serve import Output, evaluate, export, load, resume, train, train_config
from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.errors import DataError, UsageError
from export.parity import ParityReport
from training.config import TrainConfig

SHORT: dict[str, Any] = {"epochs": 1, "attack_steps": 1, "precision": "float32", "ducat": "off"}
SILENT = Output(silent=True)


def in_a_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.integration
def test_importing_it_imports_next_to_nothing() -> None:
    code = "import sys, ducat_serve; print(*(n for n in ('numpy', 'torch', 'PIL', 'pydantic') if n in sys.modules))"
    assert in_a_process(code).strip() == ""


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("load", "torch", "train"),
        ("train", "torch", "train"),
        ("evaluate", "torch", "train"),
        ("export", "onnx", "export"),
        ("Client", "httpx", "client"),
    ],
)
def test_what_is_not_installed_is_said_with_its_extra(name: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try:\n    from ducat_serve import {name}\nexcept ImportError as error:\n    print(error)"
    )
    said = in_a_process(code)
    assert f"package '{package}'" in said
    assert extra in said.splitlines()[1]


@pytest.mark.integration
@pytest.mark.parametrize(
    "module", ["file_evaluation", "foreign", "corruptions", "mixing", "importing", "training"]
)
def test_only_exports_need_the_exporter(module: str) -> None:
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxscript'] = None\n"
        f"import ducat_serve.library.{module}"
    )
    assert in_a_process(code) == ""


def test_every_name_is_there_and_no_other() -> None:
    for name in ducat_serve.__all__:
        assert getattr(ducat_serve, name) is not None
    assert dir(ducat_serve) == sorted(ducat_serve.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ducat_serve.nothing


def test_settings_are_the_recipes_and_what_is_given() -> None:
    config = train_config("digits", epochs=5, eps="8/255")
    assert isinstance(config, TrainConfig)
    assert (config.epochs, config.eps, config.network) == (5, 8 / 255, "resnet-small")
    of_numpy = train_config("digits", epochs=np.int64(5), eps=np.float32(0.5), lr=1, lr_milestones=[2, 3])
    assert (of_numpy.epochs, of_numpy.eps, of_numpy.lr, of_numpy.lr_milestones) == (5, 0.5, 1.0, (2, 3))
    with pytest.raises(UsageError, match=r"Unknown setting 'epocs'\. Did you mean 'epochs'\?"):
        train_config("digits", epocs=5)
    with pytest.raises(UsageError, match="dataset: nothing is trained without one") as refused:
        train_config()
    assert "--" not in str(refused.value)
    assert train_config(recipe="digits").dataset == "digits"
    with pytest.raises(UsageError, match="Unknown data set 'digit'"):
        train_config("digit")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("eps", "abc"),
        ("eps", math.nan),
        ("step_size", "-1/255"),
        ("epochs", "three"),
        ("epochs", 0),
        ("epochs", True),
        ("epochs", "2"),
        ("batch_size", 64.0),
        ("eps", True),
        ("lr", True),
        ("flip", "yes"),
        ("flip", 1),
        ("norm", "l3"),
        ("method", "nope"),
        ("device", "tpu"),
    ],
)
def test_settings_of_another_kind_or_out_of_range_are_usage_errors(setting: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{setting}: "):
        train_config("digits", **{setting: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("eps", "abc"),
        ("eps", math.nan),
        ("eps", -0.1),
        ("eps", [0.1, None]),
        ("max_examples", 0),
        ("max_examples", -5),
        ("batch_size", -1),
        ("batch_size", 1.5),
        ("seed", -1),
        ("seed", None),
        ("eps", True),
        ("max_examples", True),
        ("attacks", []),
        ("split", "train"),
        ("norm", "l3"),
        ("lattice", "4bit"),
        ("device", "tpu"),
    ],
)
def test_arguments_that_cannot_be_measured_are_refused_at_once(argument: str, value: Any) -> None:
    """Before the model is looked for."""
    with pytest.raises(UsageError, match=f"{argument}: ") as caught:
        evaluate("nowhere/model.safetensors", **{argument: value})
    assert caught.value.next_step is not None


def test_an_argument_of_another_name_is_told_by_the_name_that_was_called(tmp_path: Path) -> None:
    misspelt: Any = {"attack": "pgd"}
    for model in (tmp_path / "model.safetensors", torch.nn.Flatten()):
        images: Any = () if isinstance(model, Path) else (None, None, None)
        with pytest.raises(TypeError, match=r"evaluate\(\): got an unexpected keyword argument 'attack'"):
            evaluate(model, *images, **misspelt)


def test_sizes_may_be_of_numpy_and_attacks_one_name(checkpoint: Path) -> None:
    size: Any = np.float32(0.1)
    report = evaluate(checkpoint, eps=size, attacks="pgd", max_examples=20, store=False, output=SILENT)
    assert [attack.name for attack in report.attacks] == ["pgd"]
    assert report.eps == pytest.approx(0.1)


def test_a_suite_that_is_none_and_a_module_are_refused() -> None:
    nothing: Any = None
    with pytest.raises(UsageError, match="Unknown suite 'None'"):
        evaluate("nowhere/model.safetensors", suite=nothing, attacks="pgd")
    module: Any = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match="measured on images that are given") as caught:
        evaluate(module)
    assert "evaluate(model, images, labels, threat_model)" in str(caught.value.next_step)


@pytest.mark.integration
def test_it_trains_evaluates_and_exports_as_the_commands_do(tmp_path: Path) -> None:
    trained = train(train_config("digits", eps=0.1, **SHORT), out=tmp_path / "run", output=SILENT)
    flags = [word for name, value in SHORT.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert (
        run(["train", "--dataset", "digits", "--eps", "0.1", *flags, "--out", str(tmp_path / "other")]) == 0
    )
    digest = read_spec(trained.model).weights_digest
    assert digest == read_spec(tmp_path / "other" / "model.safetensors").weights_digest
    assert trained.summary.epochs == 1

    report = evaluate(trained.path, eps="0.1", max_examples=40, attacks=["pgd"], output=SILENT)
    assert read_spec(trained.model).robustness == report
    assert report.examples == 40
    other = evaluate(trained.path, max_examples=20, attacks=["pgd"], store=False, output=SILENT)
    assert other.examples == 20
    assert read_spec(trained.model).robustness == report
    assert not list(trained.path.glob("*.partial"))

    exported = export(trained.path, output=SILENT)
    assert exported.model == trained.path / "model.onnx"
    assert "Image classifier" in exported.card.read_text()
    assert isinstance(exported.parity, ParityReport)
    assert exported.parity.real_images > 0
    assert ducat_serve.Predictor(exported.model).spec.weights_digest == digest
    assert load(trained.path).spec.robustness == report


@pytest.mark.integration
def test_a_run_goes_on_where_there_is_one(run_folder: Path, tmp_path: Path) -> None:
    assert resume(run_folder, output=SILENT).summary.epochs == 4  # it was finished already
    with pytest.raises(DataError, match="There is no run"):
        resume(tmp_path, output=SILENT)
    config = train_config("digits", **SHORT)
    with pytest.raises(UsageError, match="already holds a run"):
        train(config, out=run_folder, output=SILENT)


def test_nothing_is_printed_on_stdout(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(checkpoint, max_examples=20, attacks=["pgd"], store=False)
    assert json.dumps(capsys.readouterr().out) == '""'


def test_settings_and_start_weights_belong_together(checkpoint: Path, tmp_path: Path) -> None:
    """The file would say that it began with weights that it never had, or nothing of those that it had."""
    fresh = train_config("digits", epochs=1)
    started = train_config("digits", epochs=1, initial_checkpoint=checkpoint)
    for config, given in ((started, None), (fresh, checkpoint)):
        with pytest.raises(UsageError, match="starts from") as refused:
            train(config, out=tmp_path / "run", initial_checkpoint=given)
        assert "same initial_checkpoint" in str(refused.value.next_step)
    assert not (tmp_path / "run").exists()
