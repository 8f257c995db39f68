"""A unit test, which is what every test is until it says otherwise, cannot train or start a process."""

from __future__ import annotations

import multiprocessing
import subprocess

import pytest

from training.trainer import Trainer

forbidden = pytest.raises(pytest.fail.Exception, match=r"mark it with pytest\.mark\.integration")


def test_no_process_starts() -> None:
    with forbidden:
        subprocess.run(["true"])
    with forbidden:
        multiprocessing.get_context("spawn").Process(target=print).start()


def test_no_training_starts() -> None:
    with forbidden:
        Trainer.run(None)  # type: ignore[arg-type]


@pytest.mark.integration
def test_what_is_marked_may_do_both() -> None:
    assert subprocess.run(["true"]).returncode == 0
