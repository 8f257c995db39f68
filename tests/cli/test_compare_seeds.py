"""`ducat compare` of models that only the seed of their training tells apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, read_spec, write_checkpoint
from ducat_serve.cli.main import run
from training.evaluation.comparison import Candidate
from training.evaluation.seeds import seed_groups

MODEL = model_path("digits-small", "safetensors")


def candidate(name: str, clean: float, worst: float, recipe: dict[str, Any], **report: Any) -> Candidate:
    spec = read_spec(MODEL)
    assert spec.robustness is not None
    measured = {"clean_accuracy": clean, "worst_case_accuracy": worst, **report}
    return Candidate(
        name, Path(name), spec.robustness.model_copy(update=measured), spec.weights_digest, None, None, recipe
    )


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    clean, worst = [0.7, 0.75, 0.9], [0.41, 0.4, 0.45]
    candidates = [
        candidate(f"s{seed}", c, w, {"seed": seed, "beta": 2})
        for seed, (c, w) in enumerate(zip(clean, worst, strict=True))
    ]
    (group,) = seed_groups([candidate("other", 0.1, 0.1, {"seed": 0, "beta": 3}), *candidates])
    assert (group.names, group.seeds) == (("s0", "s1", "s2"), (0, 1, 2))
    assert group.clean_accuracy.mean == pytest.approx(np.mean(clean))
    assert group.clean_accuracy.deviation == pytest.approx(np.std(clean, ddof=1))
    assert group.worst_case_accuracy.deviation == pytest.approx(np.std(worst, ddof=1))
    assert str(group.worst_case_accuracy) == "42.0 ± 2.6 %"


def test_what_is_no_group() -> None:
    first, recipe = candidate("a", 0.7, 0.4, {"seed": 0}), {"seed": 1}
    unmeasured = Candidate("b", Path("b"), None, "", None, None, recipe)
    for second in (
        candidate("b", 0.8, 0.4, {"seed": 0}),  # the same seed: another thing is different, or nothing
        candidate("b", 0.8, 0.4, {**recipe, "epochs": 3}),
        candidate("b", 0.8, 0.4, recipe, eps=0.3),
        candidate("b", 0.8, 0.4, {}),
        unmeasured,
    ):
        assert seed_groups([first, second]) == []
    assert len(seed_groups([first, candidate("b", 0.8, 0.4, recipe)])) == 1


def test_the_command_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, tensors = read_checkpoint(MODEL)
    assert spec.robustness is not None
    for seed, clean in enumerate((0.9, 0.8)):
        training = {**spec.training, "recipe": {**spec.recipe, "seed": seed}}
        report = spec.robustness.model_copy(
            update={"clean_accuracy": clean, "clean_interval": (clean - 0.1, clean + 0.1)}
        )
        (tmp_path / f"s{seed}").mkdir()
        write_checkpoint(
            tmp_path / f"s{seed}" / "model.safetensors",
            tensors,
            spec.model_copy(update={"training": training, "robustness": report}),
        )
    runs = [str(tmp_path / "s0"), str(tmp_path / "s1")]
    assert run(["compare", *runs, "--out", str(tmp_path / "plot")]) == 0
    said = capsys.readouterr()
    assert "Over seeds, mean ± standard deviation" in said.out + said.err
    assert "85.0 ± 7.1 %" in said.out + said.err
    assert run(["compare", *runs, "--out", str(tmp_path / "plot"), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)["seeds"]
    assert (group["names"], group["seeds"]) == (["s0", "s1"], [0, 1])
    assert group["clean_accuracy"]["mean"] == pytest.approx(0.85)
    assert run(["compare", runs[0], "--out", str(tmp_path / "plot"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == []
