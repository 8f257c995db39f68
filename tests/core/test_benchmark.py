"""Benchmarks by a clock of the test's own: what is run when, what is reported, and what is proposed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ducat_serve.benchmark import (
    FEWEST_ROUNDS,
    Configuration,
    Timing,
    inferences,
    measure,
    proposals,
    propose,
    thread_counts,
)
from ducat_serve.bundled import model_path
from ducat_serve.errors import DucatError


def configuration(threads: int, batch: int, model: str = "a.onnx") -> Configuration:
    return Configuration(model, "float32", "CPUExecutionProvider", threads, batch)


class Machine:
    """A clock that only inferences advance, and a record of which were run."""

    def __init__(self, seconds: dict[Configuration, float]) -> None:
        self.now = 0.0
        self.ran: list[Configuration] = []
        self.runs: dict[Configuration, Callable[[], object]] = {
            given: self._inference(given, takes) for given, takes in seconds.items()
        }

    def _inference(self, given: Configuration, takes: float) -> Callable[[], object]:
        def run() -> None:
            self.ran.append(given)
            self.now += takes

        return run

    def clock(self) -> float:
        return self.now


def test_configurations_take_turns_and_no_one_is_always_first() -> None:
    one, two, three = (configuration(1, batch) for batch in (1, 2, 4))
    machine = Machine({one: 1.0, two: 2.0, three: 3.0})
    timings = measure(machine.runs, 0.5, machine.clock)
    assert machine.ran[:3] == [one, two, three]  # not counted
    rounds = [machine.ran[i : i + 3] for i in range(3, len(machine.ran), 3)]
    assert len(rounds) == FEWEST_ROUNDS
    assert rounds[:4] == [[one, two, three], [two, three, one], [three, one, two], [one, two, three]]
    assert [timing.seconds for timing in timings] == [(t,) * FEWEST_ROUNDS for t in (1.0, 2.0, 3.0)]


def test_it_goes_on_until_its_time_is_spent_and_says_how_far_it_is() -> None:
    machine = Machine({configuration(1, 1): 1.0})
    told: list[float] = []
    (timing,) = measure(machine.runs, 12.5, machine.clock, told.append)
    assert len(timing.seconds) == 13
    assert sum(told) == 13


def test_one_slow_inference_changes_no_median() -> None:
    timing = Timing(configuration(1, 8), (0.1,) * 99 + (10.0,))
    assert timing.images_per_second == pytest.approx(80)
    assert timing.latency(50) == pytest.approx(0.1)
    assert timing.latency(95) == pytest.approx(0.1)
    assert timing.latency(99) > 0.1
    printed = timing.to_json()
    assert (printed["p50_ms"], printed["images_per_second"], printed["inferences"]) == (100.0, 80.0, 100)


def timed(speeds: dict[tuple[int, int], float], model: str = "a.onnx") -> Iterator[Timing]:
    """Timings that have so many images per second, by threads and batch."""
    return (Timing(configuration(t, b, model), (b / speed,)) for (t, b), speed in speeds.items())


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        # Two threads are worth it.
        ({(1, 1): 50, (1, 8): 100, (1, 32): 102, (2, 8): 195, (2, 32): 195}, (2, 8)),
        # 4 % are not worth a thread.
        ({(1, 1): 50, (1, 8): 96, (1, 32): 90, (2, 8): 100, (2, 32): 99}, (1, 8)),
        ({(1, 1): 10, (1, 8): 80, (1, 32): 200, (2, 1): 15}, (1, 32)),
        # Batches gain nothing in the session. An inference of 100 ms is worth handing over; of 1 ms many together are.
        ({(1, 1): 10, (1, 8): 10, (1, 32): 10}, (1, 1)),
        ({(1, 1): 1000, (1, 8): 1000, (1, 32): 1000}, (1, 32)),
        # 1 + 2, 8 + 2 and 64 + 2 ms: the session is best with one image, the server with eight.
        ({(1, 1): 1000, (1, 8): 1000, (1, 32): 500}, (1, 8)),
        # 2.4 and 2.2 ms: a thread is worth it. 2.1 and 2.05 ms: it is not.
        ({(1, 1): 2500, (2, 1): 5000}, (2, 1)),
        ({(1, 1): 10_000, (2, 1): 20_000}, (1, 1)),
    ],
)
def test_the_fewest_threads_and_smallest_batches_that_are_as_good_in_a_server(
    speeds: dict[tuple[int, int], float], expected: tuple[int, int]
) -> None:
    chosen = propose(timed(speeds))
    assert (chosen.threads, chosen.max_batch) == expected


@pytest.mark.parametrize(
    ("deadline", "expected"),
    [
        (10.0, 32),  # 32 images take 3.2 s, three times that 9.6 s
        (9.5, 8),
        (4.1, 8),  # 8 images take 1.33 s
        (3.9, 1),
        (0.01, 1),  # nothing fits; the smallest is nearest
    ],
)
def test_three_batches_fit_the_deadline(deadline: float, expected: int) -> None:
    """Of larger ones the server would refuse every request that comes while one runs."""
    timings = list(timed({(1, 1): 4, (1, 8): 6, (1, 32): 10}))
    assert propose(timings, deadline).max_batch == expected
    assert [found.max_batch for found in proposals(timings, deadline)] == [expected]


def test_a_batch_beyond_the_deadline_is_no_measure_of_the_others() -> None:
    """A thread or a batch is judged by what the server could be given, not by a faster one that it could not."""
    timings = list(timed({(1, 1): 8, (1, 8): 10, (1, 32): 20, (2, 8): 10.1, (2, 32): 30}))
    chosen = propose(timings, 2.5)
    assert (chosen.threads, chosen.max_batch) == (1, 8)


def test_each_model_gets_a_proposal_of_its_own() -> None:
    timings = [*timed({(1, 1): 1, (1, 8): 9}, "a.onnx"), *timed({(1, 1): 9, (1, 8): 8}, "b.onnx")]
    found = {p.timing.configuration.model: p.max_batch for p in proposals(timings)}
    assert found == {"a.onnx": 8, "b.onnx": 1}


def test_thread_counts_end_with_all_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ducat_serve.benchmark.usable_cpus", lambda: 6)
    assert thread_counts() == (1, 2, 4, 6)
    monkeypatch.setattr("ducat_serve.benchmark.usable_cpus", lambda: 1)
    assert thread_counts() == (1,)


def test_a_file_is_run_in_every_configuration(tmp_path: Path) -> None:
    paths = [model_path("digits-small", "onnx"), tmp_path / "other.onnx"]
    shutil.copy(*paths)
    runs = inferences(paths, "cpu", [1], [1, 3])
    assert [(given.model, given.precision, given.batch) for given in runs] == [
        ("digits-small.onnx", "float32", 1),
        ("digits-small.onnx", "float32", 3),
        ("other.onnx", "float32", 1),
        ("other.onnx", "float32", 3),
    ]
    assert [len(timing.seconds) for timing in measure(runs, 0)] == [FEWEST_ROUNDS] * 4


def test_a_file_that_does_not_load_stops_it_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(DucatError, match=r"broken\.onnx"):
        inferences([model_path("digits-small", "onnx"), tmp_path / "broken.onnx"], "cpu", [1], [1])
