"""Resuming, shrinking batches, counting."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ducat_serve.bundled import model_path
from ducat_serve.checkpoint import read_checkpoint, write_checkpoint
from ducat_serve.cli.main import run
from ducat_serve.deployed import Deployed, load
from ducat_serve.errors import DataError, Terminated, UsageError, command_line
from ducat_serve.output import Output
from ducat_serve.predictor import Predictor
from ducat_serve.report import AttackResult, RobustnessReport
from ducat_serve.spec import Normalisation
from ducat_serve.threat_model import ThreatModel
from tests.support.int8 import digits_with_dummies
from tests.support.interrupted import stop_in
from tests.support.towers import rows_of, two_patches
from training.attacks.apgd_ce import APGDCrossEntropy
from training.attacks.ball import Ball
from training.attacks.base import Attack, Task
from training.attacks.criteria import misclassified
from training.attacks.pgd import PGD
from training.attacks.square import Square
from training.batches import DeviceSplit
from training.data import load_dataset
from training.data.cache import Split
from training.distributed.processes import ProcessGroup
from training.evaluation.attack_run import AttackRun
from training.evaluation.evaluate import Plan, Subject, evaluate
from training.evaluation.examples import Examples
from training.evaluation.prepare import Request, prepare
from training.evaluation.runner import Batches, Onlooker, Runner, counted
from training.evaluation.settings import EvaluationSettings
from training.evaluation.state import EvaluationState

THREAT = ThreatModel(norm="linf", eps=0.1)


@pytest.fixture(scope="module")
def few(run_folder: Path) -> DeviceSplit:
    del run_folder  # only so that the data set is decoded
    test = load_dataset("digits").test
    return DeviceSplit.of(Split(test.images[:40], test.labels[:40]), torch.device("cpu"))


def measure(
    model: Deployed, data: DeviceSplit, *attacks: Attack, state: EvaluationState | None = None, **more: Any
) -> RobustnessReport:
    """A report on C classes with these attacks; ``more`` is of the plan."""
    with torch.no_grad():
        width = model(data.images[:1].float() / 255).shape[1]
    subject = Subject(model, data, tuple(str(i) for i in range(width)), "digest", "test", "test")
    return evaluate(subject, Plan(THREAT, attacks, batch_size=32, **more), Output(), state)


# --- resuming -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raises(Attack):
    """Stands in the place of another attack."""

    place: str
    error: BaseException

    @property
    def name(self) -> str:
        return self.place

    def __call__(self, task: Task) -> torch.Tensor:
        raise self.error


def test_a_resumed_evaluation_repeats_no_attack_and_gives_the_same_report(
    checkpoint: Path, few: DeviceSplit, tmp_path: Path
) -> None:
    model = load(checkpoint)
    whole = measure(model, few, PGD(), APGDCrossEntropy(), Square(queries=200), sanity=False)
    state = EvaluationState(tmp_path / "partial.safetensors", {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        measure(
            model,
            few,
            PGD(),
            APGDCrossEntropy(),
            Raises("square", KeyboardInterrupt()),
            state=state,
            sanity=False,
        )
    finished = AssertionError("this attack was finished before")
    done = (Raises("pgd", finished), Raises("apgd-ce", finished))
    resumed = measure(model, few, *done, Square(queries=200), state=state, sanity=False)

    def without_seconds(report: RobustnessReport) -> dict[str, object]:
        body = report.model_dump()
        body.pop("seconds")
        for attack in body["attacks"]:
            attack.pop("seconds")
        return body

    assert without_seconds(resumed) == without_seconds(whole)


def test_what_cannot_be_resumed_is_left_alone(checkpoint: Path, few: DeviceSplit, tmp_path: Path) -> None:
    model = load(checkpoint)
    path = tmp_path / "partial.safetensors"
    same, other = EvaluationState(path, {"seed": 0, "eps": 1}), EvaluationState(path, {"seed": 1, "eps": 2})
    measure(model, few, PGD(), state=same, sanity=False)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="eps, seed changed"):
        measure(model, few, PGD(), state=other, sanity=False)
    assert path.read_bytes() == before
    for damaged in (before[:50], b"not a file of ours at all", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            measure(model, few, PGD(), state=same, sanity=False)


def test_interrupt_and_resume_on_the_command_line(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first attack is kept; the second is where Ctrl-C comes; the checkpoint is not touched by either."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    command = ["evaluate", str(folder), "--attack", "pgd", "--attack", "apgd-ce", "--max-examples", "40"]
    before = (folder / "model.safetensors").read_bytes()
    real = AttackRun._run
    seen: list[str] = []

    def stops(attack_run: AttackRun, attack: Attack) -> AttackResult:
        seen.append(attack.name)
        if seen == ["pgd", "apgd-ce"]:
            raise KeyboardInterrupt
        return real(attack_run, attack)

    monkeypatch.setattr(AttackRun, "_run", stops)
    assert run(command) == 130
    assert f"Next: {command_line('ducat', 'evaluate', '--resume', *command[1:])}\n" in capsys.readouterr().err
    (kept,) = folder.glob("model.safetensors.evaluation-*.partial")
    found = kept.read_bytes()
    assert run(command) == 2, "what took hours is not dropped by the same command"
    assert (
        f"Next: go on with it by --resume (in Python resume=True), or drop it: rm {kept}\n"
        in capsys.readouterr().err
    )
    assert (kept.read_bytes(), seen) == (found, ["pgd", "apgd-ce"])
    assert (folder / "model.safetensors").read_bytes() == before
    assert run([*command, "--seed", "5", "--resume"]) == 2
    assert "data, seed changed" in capsys.readouterr().err
    assert run([*command, "--resume"]) == 0
    assert seen == ["pgd", "apgd-ce", "apgd-ce"]
    assert not list(folder.glob("*.partial"))


def test_an_evaluation_leaves_the_state_of_another_one_alone(
    checkpoint: Path, few: DeviceSplit, tmp_path: Path
) -> None:
    """Two evaluations of one model side by side, of which one is interrupted later."""
    model, silent = load(checkpoint), Output(silent=True)
    first, second = (EvaluationState.beside(tmp_path / "m", {"seed": seed}) for seed in (0, 1))
    measure(model, few, PGD(), state=first, sanity=False)
    second.begin(resume=False, output=silent)
    measure(model, few, PGD(), state=second, sanity=False)
    second.remove()
    assert first.exists()
    first.begin(resume=True, output=silent)
    with pytest.raises(UsageError, match="seed changed"):
        second.begin(resume=True, output=silent)


def test_radii_that_look_alike_have_files_of_their_own(tmp_path: Path) -> None:
    state = EvaluationState(tmp_path / "state", {})
    places = {state.at(ThreatModel(norm="linf", eps=eps)).path for eps in (0.1, 0.1 + 1e-9)}
    assert len(places) == 2


def test_a_curve_is_not_resumed_with_other_radii(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a smaller radius broke would count at one that the new curve has without it."""
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    command = ["evaluate", str(folder), "--attack", "pgd", "--attack", "apgd-ce", "--max-examples", "20"]
    stop_in(monkeypatch, "apgd-ce", eps=0.05)
    assert run([*command, "--eps", "0.02", "--eps", "0.05"]) == 130
    assert run([*command, "--eps", "0.03", "--eps", "0.05", "--resume"]) == 2
    assert "radii changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "stop", "code"),
    [
        ({"fold": "lse"}, KeyboardInterrupt, 130),
        ({"normalisation": Normalisation(mean=(0.4,) * 3, std=(0.4,) * 3)}, Terminated, 143),
    ],
)
def test_the_same_weights_in_another_function_are_not_gone_on_with(
    change: dict[str, Any],
    stop: type[BaseException],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = digits_with_dummies(tmp_path / "model.safetensors")
    command = ["evaluate", str(checkpoint), "--attack", "pgd", "--attack", "apgd-ce", "--max-examples", "20"]
    stop_in(monkeypatch, "apgd-ce", error=stop)
    assert run(command) == code
    spec, tensors = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tensors, spec.model_copy(update=change))
    assert run([*command, "--resume"]) == 2
    assert "function changed" in capsys.readouterr().err


def test_the_state_of_an_exported_file_is_bound_to_its_graph(tmp_path: Path) -> None:
    model = Path(shutil.copy(model_path("digits-small", "onnx"), tmp_path / "model.onnx"))
    predictor = Predictor(model, "cpu")
    request = Request(model, EvaluationSettings(attacks=("square",), max_examples=20, device="cpu"))
    prepared = prepare(request, Output(silent=True), ProcessGroup(), torch.device("cpu"))
    assert prepared.state(prepared.plan).request["function"] == predictor.function_digest
    spec = predictor.spec
    assert predictor.function_digest == spec.model_copy(update={"robustness": None}).function_digest(
        predictor.graph_sha256
    )
    assert predictor.function_digest != spec.function_digest("0" * 64)


def test_an_image_that_is_now_wrong_when_clean_is_not_right_under_attack() -> None:
    """A resumed evaluation may run on another device, where a logit is rounded to the other side."""
    labels = torch.arange(4)
    data = DeviceSplit(rows_of(labels, torch.full((4,), 0.3)), labels)
    runner = Runner(two_patches(), data, Ball("linf", 0.1), 0, Batches(4, Output()), Output())
    before, now = Examples.of(runner), Examples.of(runner)
    before.right[:], now.clean[0] = True, False
    now.take_over(before.state())
    assert not (now.right & ~now.clean).any()


def test_one_logit_is_no_decision(few: DeviceSplit) -> None:
    model = Deployed(nn.Sequential(nn.Flatten(), nn.Linear(few.images[0].numel(), 1)), "none").eval()
    with pytest.raises(UsageError, match="needs 2 classes"):
        measure(model, few, PGD(), sanity=False)


class _Sent(Exception):
    """What a process of two would have sent to the other."""


class FirstOfTwo(ProcessGroup):
    def meet(self) -> None: ...

    def gather(self, mine: Any) -> list[Any]:
        raise _Sent(mine)


@pytest.mark.parametrize(("most", "sent"), [(None, 40), (16, 16), (0, 0)])
def test_no_more_images_go_to_other_processes_than_anybody_looks_at(
    few: DeviceSplit, most: int | None, sent: int
) -> None:
    model = Deployed(nn.Sequential(nn.Flatten(), nn.Linear(few.images[0].numel(), 10)), "none").eval()
    batches = Batches(256, Output(), FirstOfTwo(0, 2))
    runner = Runner(model, few, Ball("linf", 0.1), 0, batches, Output())
    onlooker = Onlooker(lambda *_: None, most)
    with pytest.raises(_Sent) as caught:
        runner.attack("pgd", PGD(), torch.arange(len(few)), misclassified("none"), onlooker)
    shown = [found.shown for batches in caught.value.args[0].values() for found in batches]
    assert [len(images) for _, images, _ in shown] == [sent]
    for index, _, raw in shown:
        fooled = misclassified("none")(raw, few.labels[index])
        assert bool(fooled.any()) == (sent > 0)
        assert bool(fooled[:-1].ge(fooled[1:]).all()), "what fools the model first"


# --- memory and cost ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cuda", "cpu"])
def test_out_of_memory_halves_the_batch_and_misses_nobody(how: str) -> None:
    tried: list[int] = []

    def work(_start: int, batch: torch.Tensor) -> torch.Tensor:
        tried.append(len(batch))
        if len(batch) > 6:
            if how == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory")
            torch.empty(1 << 62, dtype=torch.uint8)  # the CPU allocator's own error
        return batch

    batches = Batches(16, Output())
    results = batches.over(torch.arange(40), work)
    assert torch.cat(results).tolist() == list(range(40))
    assert tried[:3] == [16, 8, 4]
    assert batches.size == 4


def test_a_model_that_draws_random_numbers_is_measured_by_the_seed_alone() -> None:
    """It draws from torch's own generators, in which anything may have happened before."""

    class Noisy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            level = images.mean(dim=(1, 2, 3)) - 0.5 + 0.1 * torch.randn(len(images))
            return torch.stack([level, -level], dim=1)

    model = Deployed(Noisy(), "none").eval()
    data = DeviceSplit(torch.full((200, 1, 2, 2), 134, dtype=torch.uint8), torch.zeros(200, dtype=torch.long))

    def accuracies(ambient: int, **more: Any) -> tuple[float, float]:
        torch.manual_seed(ambient)
        found = measure(model, data, PGD(steps=1), sanity=False, **more)
        return found.clean_accuracy, found.worst_case_accuracy

    first = accuracies(1)
    assert accuracies(2) == first
    assert accuracies(2, seed=5) != first


def test_other_errors_and_a_single_image_that_does_not_fit_are_raised() -> None:
    def fails(_start: int, batch: torch.Tensor) -> None:
        raise torch.OutOfMemoryError(f"{len(batch)} images")

    with pytest.raises(torch.OutOfMemoryError, match="1 images"):
        Batches(8, Output()).over(torch.arange(8), fails)

    def wrong(_start: int, _batch: torch.Tensor) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        Batches(8, Output()).over(torch.arange(8), wrong)


def test_the_cost_is_what_was_really_asked() -> None:
    """A model that is never fooled: PGD of 20 steps is 20 gradients, and 2 evaluations without one, per image."""
    head = nn.Linear(12, 3)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1e3, 0.0, 0.0]))
    model = Deployed(nn.Sequential(nn.Flatten(), head), "none").eval()
    data = DeviceSplit(torch.full((5, 3, 2, 2), 128, dtype=torch.uint8), torch.zeros(5, dtype=torch.long))
    report = measure(model, data, PGD(), Square(), sanity=False)
    pgd, square = report.attacks
    # the images that came without a gradient: the first, the last, and the evaluator's own
    assert (pgd.gradient_steps, pgd.forward_passes) == (5 * 20, 5 * 3)
    assert (square.gradient_steps, square.forward_passes) == (0, 5 * 1001)
    with counted(model.classifier) as cost:
        model(torch.rand(4, 3, 2, 2))
    assert cost.forward_passes == 4
    model(torch.rand(4, 3, 2, 2))
    assert cost.forward_passes == 4  # the hook is gone
