"""Several searches for one image: who stops, and when."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from training.attacks.apgd import APGD
from training.attacks.ball import Ball
from training.attacks.base import Task
from training.attacks.criteria import misclassified
from training.attacks.losses import margin
from training.attacks.rivals import beaten, better_half, halvings
from training.evaluation.runner import counted
from training.randomness import stream


def test_of_each_example_the_half_that_is_ahead_goes_on() -> None:
    rivals = torch.tensor([4, 0, 4, 4, 0, 4, 7, 4])
    loss = torch.tensor([0.1, 0.5, 0.9, 0.2, 0.6, 0.8, -9.0, 0.7])
    # Of five three, of two one; the only one of its kind always.
    assert better_half(rivals, loss).tolist() == [False, False, True, False, True, True, True, True]
    tied = better_half(torch.zeros(4, dtype=torch.long), torch.full((4,), torch.nan))
    assert int(tied.sum()) == 2


def test_one_success_is_enough_for_all_rivals() -> None:
    rivals = torch.tensor([2, 0, 2, 1])
    success = torch.tensor([False, False, True, False])
    assert beaten(success, rivals).tolist() == [True, False, True, False]
    assert beaten(success, None).tolist() == success.tolist()
    assert beaten(success & False, rivals).tolist() == [False] * 4


def test_halvings_come_early_and_apart() -> None:
    assert halvings(50) == [5, 11, 21, 29]
    assert halvings(100) == [10, 22, 41, 57]


class Dark(nn.Module):
    """Class 0 for dark images; class 1 from a mean brightness of 0.5 on."""

    def forward(self, images: Tensor) -> Tensor:
        brighter = images.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-brighter, brighter], dim=1)


def test_apgd_gives_its_steps_to_the_search_that_is_ahead() -> None:
    images, rivals = torch.full((8, 1, 2, 2), 0.2), torch.zeros(8, dtype=torch.long)
    model, labels = Deployed(Dark(), "none").eval(), torch.zeros(8, dtype=torch.long)

    def run(eps: float, start: Tensor, rivals: Tensor | None) -> tuple[Tensor, int]:
        with counted(model.classifier) as cost:
            found = APGD(margin, steps=50)(
                Task(model, images, labels, Ball("linf", eps), misclassified("none"), stream(0, "t")),
                start=start,
                rivals=rivals,
            )
        return found, cost.gradient_steps

    _, steps = run(0.1, images, rivals)
    assert steps == 8 * (1 + 5) + 4 * 6 + 2 * 10 + 1 * 29
    assert run(0.1, images, None)[1] == 8 * 51
    _, steps = run(0.1, images, torch.arange(8))
    assert steps == 8 * 51  # nobody's rival

    ahead = images.clone()
    ahead[3] = 0.6
    found, steps = run(0.4, ahead, rivals)
    assert steps == 8  # one is there from the first: no step for the others
    assert (model(found).argmax(dim=1) == 1).nonzero().squeeze(1).tolist() == [3]
