"""Where a training begins: as a library, and after a death at an awkward moment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ducat_serve.checkpoint import read_spec
from ducat_serve.errors import DataError
from ducat_serve.library.training import resume, train
from ducat_serve.networks.allowed import allow
from ducat_serve.output import Output
from tests.support import tiny_network
from tests.support.training_runs import TINY, resumed, run_until, trainer
from training import trainer as trainer_module
from training.resolve import resolve
from training.run.folder import RunFolder

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


@pytest.mark.parametrize("killed_in", ["save_state", "write_checkpoint"])
def test_models_and_rows_agree_wherever_a_run_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """A model that no row tells of would stay the best; one that is missing is written by the resumption."""
    settings = {"epochs": 2, "ducat_start": 2}
    folder = RunFolder(tmp_path / "run")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module, killed_in, killed)
    with pytest.raises(KeyboardInterrupt):
        trainer(folder.path, **settings).run()
    monkeypatch.undo()
    models = [folder.model, folder.last, folder.pre_dummy]
    assert not any(path.exists() for path in models)
    if killed_in == "save_state":
        return
    run_until(resumed(folder.path, **settings), 1)
    assert len({read_spec(path).weights_digest for path in models}) == 1


def test_a_model_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    """A report may have been stored in it since."""
    folder = RunFolder(tmp_path / "run")
    first = trainer(folder.path)
    first.train_epoch()
    first.finish_epoch()
    before = folder.model.stat().st_mtime_ns
    run_until(resumed(folder.path), 1)
    assert folder.model.stat().st_mtime_ns == before


def test_a_run_from_other_weights_that_was_killed_before_its_first_state_is_begun_again(
    tmp_path: Path,
) -> None:
    trainer(tmp_path / "run", initial_weights="0" * 64)
    with pytest.raises(DataError, match="stopped before its first state was saved") as refused:
        resume(tmp_path / "run", device="cpu", output=Output(silent=True))
    assert "--initial-checkpoint or --pretrained" in str(refused.value.next_step)
