"""The bookkeeping of benchmarks/time_to_robustness.py: whose turn it is, and when the pair was reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest
from race import Measurement, Progress, page, summary, take_turns


def learner(progress: Progress, seconds: float, pgd_per_epoch: float) -> Callable[[], None]:
    """An epoch takes ``seconds`` and adds to the accuracy under attack; clean accuracy is there at once."""

    def epoch() -> None:
        progress.seconds += seconds
        progress.images += 100
        done = len(progress.measurements) + 1
        progress.measurements.append(Measurement(done, progress.seconds, 0.9, done * pgd_per_epoch))

    return epoch


def race(ours: Progress, textbook: Progress, seconds: float = 10.0) -> list[tuple[float, float]]:
    """Seconds of both after each turn, where an epoch of the textbook takes ``seconds`` and ours 4."""
    seen: list[tuple[float, float]] = []
    epoch = learner(textbook, seconds, 0.1)

    def until(limit: float) -> None:
        started = textbook.seconds
        epoch_ends = (len(textbook.measurements) + 1) * seconds
        textbook.seconds = min(limit, epoch_ends)
        assert textbook.seconds > started
        if textbook.seconds == epoch_ends:
            textbook.seconds -= seconds
            epoch()

    take_turns(
        ours,
        textbook,
        0.8,
        0.3,
        epoch_of_ours=learner(ours, 4.0, 0.1),
        textbook_until=until,
        after_each=lambda: seen.append((ours.seconds, textbook.seconds)),
    )
    return seen


def test_both_have_had_as_many_seconds_after_each_turn_while_both_train() -> None:
    ours, textbook = Progress(9), Progress(9)
    turns = race(ours, textbook)
    assert turns[:4] == [(4, 0), (4, 4), (8, 4), (8, 8)]
    assert all(theirs <= mine for mine, theirs in turns[:5])
    assert (ours.reached(0.8, 0.3), textbook.reached(0.8, 0.3)) == (12.0, 30.0)
    found = summary(ours, textbook, 0.8, 0.3)
    assert found["ratio"] == 2.5
    assert found["images_per_second"]["ours"] == 25.0


def test_the_page_holds_each_epoch_of_one_against_the_other() -> None:
    ours, textbook = Progress(9), Progress(2)
    race(ours, textbook)
    about = {"command": "python", "network": "net", "data": "digits", "machine": "a CPU"}
    rows = [line for line in page({**about, **summary(ours, textbook, 0.8, 0.3)}).splitlines() if "%" in line]
    assert "| 1 | 10 | 90.0% | 10.0% | 4 | 2.5 |" in rows
    assert "| 2 | 20 | 90.0% | 20.0% | 8 | 2.5 |" in rows
    assert "| 2 | 8 | 90.0% | 20.0% | 20 s, 2.5 times as long |" in rows
    assert "| 3 | 12 | 90.0% | 30.0% | more than 20 s, 1.7 times as long |" in rows


def test_whoever_has_no_epochs_left_gives_up_and_there_is_no_ratio() -> None:
    ours, textbook = Progress(9), Progress(2)
    race(ours, textbook)
    assert (len(ours.measurements), len(textbook.measurements)) == (3, 2)
    assert summary(ours, textbook, 0.8, 0.3)["ratio"] is None


def test_a_race_that_is_taken_up_ends_as_one_that_was_never_interrupted() -> None:
    whole = (Progress(9), Progress(9))
    race(*whole)
    ours, textbook = Progress(9), Progress(9)
    learner(ours, 4.0, 0.1)()
    ours, textbook = (Progress.read(json.loads(json.dumps(asdict(one)))) for one in (ours, textbook))
    race(ours, textbook)
    assert ours.reached(0.8, 0.3) == whole[0].reached(0.8, 0.3)
    assert textbook.reached(0.8, 0.3) == whole[1].reached(0.8, 0.3)


@pytest.mark.parametrize(
    ("clean", "pgd", "reached"), [(0.5, 0.1, 5.0), (0.5, 0.2, 9.0), (0.7, 0.1, 9.0), (0.8, 0.1, None)]
)
def test_the_pair_is_reached_in_the_first_epoch_that_has_both(
    clean: float, pgd: float, reached: float | None
) -> None:
    progress = Progress(5, 14.0, 0, [Measurement(1, 5.0, 0.6, 0.1), Measurement(2, 9.0, 0.7, 0.3)])
    assert progress.reached(clean, pgd) == reached
    assert not progress.is_done(0.8, 0.1)
