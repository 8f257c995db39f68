"""Closest-first: which images a round attacks, in what order, and what ends it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.spec import Fold, Switch
from training.attacks.ball import Ball
from training.attacks.base import TargetModel, Task
from training.attacks.closest_first import ClosestFirst, _Survivors
from training.attacks.criteria import misclassified
from training.attacks.losses import Loss, LossOfFold
from training.evaluation.runner import counted
from training.randomness import stream


class Brightness(nn.Module):
    """Class 1 from a mean brightness of a half on; the margin of class 0 is how much darker an image is."""

    def forward(self, images: Tensor) -> Tensor:
        brighter = images.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-brighter, brighter], dim=1)


def survivors(levels: Tensor) -> _Survivors:
    """A batch of grey images of class 0, offered as they are."""
    images = levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    model = Deployed(Brightness(), "none").eval()
    labels = torch.zeros(len(levels), dtype=torch.long)
    batch = _Survivors(
        Task(model, images, labels, Ball("linf", 0.5), misclassified("none"), stream(0, "t")), steps=5
    )
    batch.offer(torch.arange(len(levels)), images)
    return batch


def test_a_round_begins_with_the_closest_and_ends_where_two_blocks_held() -> None:
    levels = torch.rand(160, generator=stream(0, "levels")) / 2
    batch, seen = survivors(levels), []

    def nothing(index: Tensor, _copy: Tensor) -> Tensor:
        seen.append(index)
        return batch.task.images[index]

    assert batch.attack(nothing) == 0
    closest = levels.argsort(descending=True).tolist()
    assert torch.cat(seen).tolist() == closest[:20]  # two blocks of a sixteenth
    seen.clear()
    batch.attack(nothing, held=4)
    assert torch.cat(seen).tolist() == closest[:40]


def test_a_round_goes_on_while_images_fall() -> None:
    batch, seen = survivors(torch.linspace(0.49, 0, 160)), []

    def every_fifteenth(index: Tensor, _copy: Tensor) -> Tensor:
        seen.append(index)
        found = batch.task.images[index].clone()
        found[index % 15 == 0] = 0.9
        return found

    assert batch.attack(every_fifteenth) == 11  # 0, 15, ..., 150: no two blocks of 10 in a row without one
    assert len(torch.cat(seen)) == 160
    seen.clear()

    def nothing(index: Tensor, _copy: Tensor) -> Tensor:
        seen.append(index)
        return batch.task.images[index]

    assert batch.attack(nothing, everyone=True) == 0
    assert len(torch.cat(seen)) == 149  # what fell is not attacked again


def test_the_order_follows_the_best_image_so_far() -> None:
    batch = survivors(torch.tensor([0.1, 0.2, 0.3]))
    batch.offer(torch.tensor([0]), torch.full((1, 1, 2, 2), 0.45))
    seen: list[Tensor] = []
    batch.attack(lambda index, _: seen.append(index) or batch.best.images[index])  # type: ignore[func-returns-value]
    assert torch.cat(seen).tolist() == [0, 2, 1]


def test_far_images_cost_one_run_and_an_eighth_of_the_others() -> None:
    """400 images that no attack reaches: the margin for all, targets for 100 of them, the rest for 50."""
    generator = stream(0, "images")
    images = torch.rand(400, 1, 2, 2, generator=generator) * 0.1
    model = Deployed(Brightness(), "none").eval()
    attack = ClosestFirst(steps=10, restarts=3, queries=20).fitted(TargetModel("none", 2))
    with counted(model.classifier) as cost:
        attack(
            Task(
                model,
                images,
                torch.zeros(400, dtype=torch.long),
                Ball("linf", 0.01),
                misclassified("none"),
                generator,
            )
        )
    whole = 1 + 10  # gradients: at the start, and after every step
    alone = 400 + 100 + 50  # margin; one wrong class; the margin in DLR's place
    # Of three restarts two go on after the first step, one after the third.
    rivals = 3 * (1 + 1) + 2 * 2 + 1 * 7
    diversifying = 3 * 2
    assert cost.gradient_steps == whole * alone + 2 * 50 * (rivals + diversifying)  # two rounds of restarts
    # The width; clean and the margin's result; a ranking and the result of a class; that of the margin again; those of
    # three restarts, twice; squares with theirs.
    assert cost.forward_passes == 1 + 400 * 2 + 100 * 2 + 50 * (1 + 2 * 3 + 20 + 1)


def test_copies_of_an_example_are_searched_at_once_in_no_more_rows_than_the_batch_has() -> None:
    batch = survivors(torch.linspace(0.49, 0, 80))
    rows: list[tuple[int, list[int], list[int]]] = []

    def search(index: Tensor, copy: Tensor) -> Tensor:
        rows.append((len(index), sorted(set(index.tolist())), sorted(set(copy.tolist()))))
        found = batch.task.images[index].clone()
        found[(index == 3) & (copy == 1)] = 0.9
        return found

    assert batch.attack(search, copies=11) == 1
    # Blocks of 5, two at first, in parts of 7. Example 3 is in the first and the second held, so one more must hold.
    copies = list(range(11))
    parts = [range(7), range(7, 10), range(10, 15)]
    assert rows == [(11 * len(part), list(part), copies) for part in parts]


# Folded, the classes are in the order 0, 2, 4, 3, 1, and class 3 is so by its dummy; the dummies' order is 3, 4, 2, 1.
CONSTANT = torch.tensor([5.0, 1.0, 4.0, -1.0, 3.0, 0.0, 0.2, 0.6, 2.0, 0.9])


class Constant(nn.Module):
    """Logits of five classes and their dummies that do not depend on the image."""

    def forward(self, images: Tensor) -> Tensor:
        return CONSTANT + 0 * images.mean(dim=(1, 2, 3)).unsqueeze(1)


@pytest.mark.parametrize(
    ("fold", "columns"),
    [
        ("max", [2, 2, 4, 4, 8, 8, 1, 1]),  # two examples in four ways: no more rows than the batch has
        (Switch(scale=1, power=1, shift=0, threshold=0.99), [3, 8, 4, 9, 2, 7, 1, 6]),
    ],
)
def test_targets_go_down_the_ranking_of_the_best_image(fold: Fold, columns: list[int]) -> None:
    """With one network the higher logit of each pair; with two towers, which do not compare, both."""
    seen: list[Tensor] = []

    def spy(_fold: Fold) -> Loss:
        def loss(raw: Tensor, _labels: Tensor, targets: Tensor) -> Tensor:
            seen.append(targets)
            return raw.sum(dim=1)

        return loss

    batch = _Survivors(
        Task(
            Deployed(Constant(), fold).eval(),
            torch.rand(8, 1, 2, 2, generator=stream(0, "images")),
            torch.zeros(8, dtype=torch.long),
            Ball("linf", 0.1),
            misclassified(fold),
            stream(0, "t"),
        ),
        steps=1,
    )
    batch.attack(batch.at_target(spy), len(set(columns)), everyone=True)
    assert seen[0].tolist() == columns


def test_each_loss_is_climbed_by_its_own_copy() -> None:
    """Two losses that lead to opposite corners: copy 0 brightens, copy 1 darkens, and neither ends the other."""
    batch = survivors(torch.full((4,), 0.3))

    def towards(sign: float) -> LossOfFold:
        return lambda _fold: lambda raw, _labels, _targets: sign * raw[:, 1]

    search = batch.at_each([towards(1), towards(-1)])
    found = search(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
    level = found.mean(dim=(1, 2, 3))
    assert (level[:2] > 0.5).all()
    assert (level[2:] < 0.1).all()
