"""Training as a library: what belongs to the caller stays as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ducat_serve.library.training import resume, train
from ducat_serve.networks.allowed import allow
from ducat_serve.output import Output
from tests.support import tiny_network
from tests.support.training_runs import TINY
from training.resolve import resolve

pytestmark = pytest.mark.integration


def test_a_run_in_a_thread_trains_and_leaves_the_callers_generator_alone(tmp_path: Path) -> None:
    """Signals can be listened to in the main thread alone, and a training seeds torch at every step."""
    allow(tiny_network.NAME)
    config = resolve("digits", {**TINY, "epochs": 1, "ducat_start": 1})
    silent = Output(silent=True)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(train, config, out=tmp_path / "run", device="cpu", output=silent).result()
        pool.submit(resume, tmp_path / "run", device="cpu", output=silent).result()
    assert made.summary.epochs == 1
    assert torch.equal(torch.get_rng_state(), before)
