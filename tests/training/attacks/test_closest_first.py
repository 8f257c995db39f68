"""Closest-first: which images a round attacks, in what order, and what ends it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.spec import Fold
from training.attacks.ball import Ball
from training.attacks.base import TargetModel, Task
from training.attacks.closest_first import ClosestFirst, _Survivors
from training.attacks.criteria import misclassified
from training.attacks.losses import Loss
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
    assert (
        torch.cat(seen).tolist() == levels.argsort(descending=True)[:40].tolist()
    )  # two blocks of an eighth


def test_a_round_goes_on_while_images_fall() -> None:
    batch, seen = survivors(torch.linspace(0.49, 0, 160)), []

    def every_thirtieth(index: Tensor, _copy: Tensor) -> Tensor:
        seen.append(index)
        found = batch.task.images[index].clone()
        found[index % 30 == 0] = 0.9
        return found

    assert batch.attack(every_thirtieth) == 6  # 0, 30, ..., 150: no two blocks of 20 in a row without one
    assert len(torch.cat(seen)) == 160
    seen.clear()

    def nothing(index: Tensor, _copy: Tensor) -> Tensor:
        seen.append(index)
        return batch.task.images[index]

    assert batch.attack(nothing, everyone=True) == 0
    assert len(torch.cat(seen)) == 154  # what fell is not attacked again


def test_the_order_follows_the_best_image_so_far() -> None:
    batch = survivors(torch.tensor([0.1, 0.2, 0.3]))
    batch.offer(torch.tensor([0]), torch.full((1, 1, 2, 2), 0.45))
    seen: list[Tensor] = []
    batch.attack(lambda index, _: seen.append(index) or batch.best.images[index])  # type: ignore[func-returns-value]
    assert torch.cat(seen).tolist() == [0, 2, 1]


def test_far_images_cost_one_run_and_a_quarter_of_the_others() -> None:
    """400 images that no attack reaches: the margin for all, the rest for 100 of them."""
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
    alone = 400 + (1 + 1) * 100  # margin; one wrong class, DLR
    rivals = (
        3 * (1 + 1) + 2 * 2 + 1 * 7
    )  # of three restarts two go on after the first step, one after the third
    diversifying = 3 * 100 * 2
    assert cost.gradient_steps == whole * alone + rivals * 100 + diversifying
    # The width; clean and the margin's result; a ranking; results of a class, DLR, three restarts; squares with theirs.
    assert cost.forward_passes == 1 + 400 * 2 + 100 * (1 + 1 + 1 + 3 + 20 + 1)


def test_copies_of_an_example_are_searched_at_once_in_no_more_rows_than_the_batch_has() -> None:
    batch = survivors(torch.linspace(0.49, 0, 80))
    rows: list[tuple[int, list[int], list[int]]] = []

    def search(index: Tensor, copy: Tensor) -> Tensor:
        rows.append((len(index), sorted(set(index.tolist())), sorted(set(copy.tolist()))))
        found = batch.task.images[index].clone()
        found[(index == 3) & (copy == 1)] = 0.9
        return found

    assert batch.attack(search, copies=11) == 1
    # Blocks of 10, two at first, in parts of 7. Example 3 is in the first and the second held, so one more must hold.
    copies = list(range(11))
    parts = [range(7), range(7, 14), range(14, 20), range(20, 27), range(27, 30)]
    assert rows == [(11 * len(part), list(part), copies) for part in parts]


def test_targets_go_down_the_ranking_of_the_best_image() -> None:
    """Five classes whose logits do not depend on the image, with dummies: each rank as class and dummy."""
    logits = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0, -1.0, -1.0, -1.0, -1.0])
    seen: list[Tensor] = []

    def spy(_fold: Fold) -> Loss:
        def loss(raw: Tensor, _labels: Tensor, targets: Tensor) -> Tensor:
            seen.append(targets)
            return raw.sum(dim=1)

        return loss

    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return logits + 0 * images.mean(dim=(1, 2, 3)).unsqueeze(1)

    batch = _Survivors(
        Task(
            Deployed(Constant(), "max").eval(),
            torch.rand(8, 1, 2, 2, generator=stream(0, "images")),
            torch.zeros(8, dtype=torch.long),
            Ball("linf", 0.1),
            misclassified("max"),
            stream(0, "t"),
        ),
        steps=1,
    )
    batch.attack(batch.at_target(spy, 2), 8, everyone=True)
    assert seen[0].tolist() == [
        2,
        7,
        4,
        9,
        3,
        8,
        1,
        6,
    ]  # eight ways for one example, as many rows as the batch has
