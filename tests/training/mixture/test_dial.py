"""The dial against counting: every setting's two figures are what the fold itself gives."""

from __future__ import annotations

import pytest
import torch

from ducat_serve.pairs import fold_logits
from ducat_serve.switch import certainty
from training.mixture.answers import Answers
from training.mixture.dial import Setting, dial, giving_up, reaching


@pytest.fixture(scope="module")
def answers() -> Answers:
    """200 images of 6 classes: most are right by the standard tower, fewer by the robust one, attacked fewer yet."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (200,), generator=generator)
    right = torch.nn.functional.one_hot(labels, 6).float()

    def logits(strength: float) -> torch.Tensor:
        return strength * right + torch.randn(200, 6, generator=generator)

    robust = logits(2.5)
    attacked = torch.stack([robust, robust - 1.0 * right, robust - 1.2 * right + 0.1 * logits(0.0)])
    return Answers(labels, logits(4.0), robust, attacked)


@pytest.fixture(scope="module")
def front(answers: Answers) -> list[Setting]:
    return dial(answers)


def test_figures_are_those_of_the_fold(answers: Answers, front: list[Setting]) -> None:
    assert len(front) > 10
    raw = torch.cat([answers.standard, answers.robust], dim=1)
    for setting in front:
        answer = fold_logits(raw.double(), setting.switch).argmax(dim=1)
        assert setting.clean == pytest.approx((answer == answers.labels).double().mean().item())
        margins = [certainty(d.double(), answers.labels, setting.switch) for d in answers.attacked]
        carried = (torch.stack(margins) >= setting.switch.threshold).all(dim=0)
        assert setting.floor == pytest.approx(carried.double().mean().item())


def test_no_setting_beats_another_and_the_dial_goes_somewhere(answers: Answers, front: list[Setting]) -> None:
    assert [s.floor for s in front] == sorted((s.floor for s in front), reverse=True)
    assert [s.clean for s in front] == sorted(s.clean for s in front)
    assert len({s.floor for s in front}) == len(front)
    # From about the robust tower to about the standard one.
    assert front[0].floor >= answers.robust_worst_case - 0.05
    assert front[-1].clean >= answers.standard_clean - 0.03
    assert front[0].clean < front[-1].clean - 0.05


def test_what_is_given_up_is_kept_to_and_used(answers: Answers, front: list[Setting]) -> None:
    worst = answers.robust_worst_case
    for points in (2, 5, 15):
        setting = giving_up(front, worst, points)
        assert setting is not None
        assert setting.floor >= worst - points / 100 - 1e-9
        assert all(other.clean <= setting.clean for other in front if other.floor >= worst - points / 100)
    assert giving_up(front, 1.5, 0) is None


def test_a_clean_accuracy_is_reached_at_the_highest_floor(front: list[Setting]) -> None:
    middle = front[len(front) // 2]
    assert reaching(front, middle.clean) == middle
    assert reaching(front, 1.01) is None


def test_shares_of_single_towers(answers: Answers) -> None:
    right = [int(d.argmax()) == int(y) for d, y in zip(answers.robust, answers.labels, strict=True)]
    assert answers.robust_clean == pytest.approx(sum(right) / 200)
    always = [
        all(int(attack[i].argmax()) == int(answers.labels[i]) for attack in answers.attacked)
        for i in range(200)
    ]
    assert answers.robust_worst_case == pytest.approx(sum(always) / 200)
    assert answers.robust_worst_case < answers.robust_clean < answers.standard_clean


def test_a_network_that_is_sure_by_the_size_of_its_logits_is_divided_by_one_number() -> None:
    """Standardised, all logits are alike, and nothing tells wrong clean answers from attacked right ones."""
    labels = torch.zeros(200, dtype=torch.long)
    shape = torch.tensor([1.0, 0.0, 0.0, 0.0])
    size = torch.where(torch.arange(200) < 100, 5.0, 1.0).unsqueeze(1)
    robust = torch.where(torch.arange(200).unsqueeze(1) < 100, shape, shape.roll(1)) * size
    attacked = torch.stack([robust, robust])
    [first, *_] = dial(Answers(labels, shape.expand(200, 4), robust, attacked))
    assert (first.clean, first.floor) == (1.0, 0.5)
    assert first.switch.divisor == pytest.approx(3 * 3**0.5 / 4, rel=1e-5), (
        "the mean deviation of clean logits"
    )
