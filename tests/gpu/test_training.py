"""Training on a device: what it finds beside the CPU, resumption, and two processes.

Each test has a case "cpu", which runs everywhere, so that the code of the case "cuda" has run before it meets a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ducat_serve.checkpoint import read_checkpoint
from ducat_serve.networks.allowed import allow
from ducat_serve.output import Output
from tests.support import tiny_network
from tests.support.training_runs import IMPORT_FROM, TINY, TINY_FLAGS
from training.data import load_dataset
from training.provenance import Provenance
from training.resolve import resolve
from training.run.folder import RunFolder
from training.run.metrics import EpochRow
from training.trainer import Trainer

pytestmark = pytest.mark.integration
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
MINUTES = 60


def trained(folder: Path, device: str, until: int = 4) -> Trainer:
    """A trainer after ``until`` epochs of a run in ``folder``, which it begins or takes up."""
    allow(tiny_network.NAME)
    config, data, run_folder = resolve("digits", TINY), load_dataset("digits"), RunFolder(folder)
    if not run_folder.config.exists():
        run_folder.create(config, None, data.digest, Provenance())
    subject = Trainer(config, data, run_folder, torch.device(device), Output(silent=True))
    subject.resume()
    while subject.state.epoch <= until:
        subject.train_epoch()
        subject.finish_epoch()
    return subject


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_comes_out_as_on_the_cpu(device: str, tmp_path: Path) -> None:
    """The noise of the attacks is another one on a GPU, so weights drift apart; what was learnt does not."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    rows: list[EpochRow] = []
    for name in ("cpu", device):
        rows.append(trained(tmp_path / f"{name}-{len(rows)}", name).state.rows[-1])
    assert rows[1].loss == pytest.approx(rows[0].loss, rel=0.05)
    assert rows[1].val_clean_accuracy == pytest.approx(rows[0].val_clean_accuracy, abs=0.1)


@pytest.mark.parametrize("device", DEVICES)
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(device: str, tmp_path: Path) -> None:
    """On a GPU some gradients are sums in an order that changes from run to run, hence the tolerance there."""
    whole = trained(tmp_path / "whole", device)
    trained(tmp_path / "parts", device, until=2)
    parts = trained(tmp_path / "parts", device)
    tolerance = 0.0 if device == "cpu" else 1e-3
    for name, tensor in whole.classifier.state_dict().items():
        torch.testing.assert_close(
            parts.classifier.state_dict()[name], tensor, rtol=tolerance, atol=tolerance
        )


# Two processes on one GPU, where there is only one.
SHARING = """
import os, torch
os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
from ducat_serve.cli.main import main
main()
"""


@pytest.mark.extended
@pytest.mark.parametrize("device", DEVICES)
def test_two_processes_train_one_model(device: str, tmp_path: Path) -> None:
    """By NCCL and with SyncBatchNorm on GPUs. NCCL refuses two processes on one GPU unless its version allows them."""
    script, folder = tmp_path / "sharing.py", tmp_path / "run"
    script.write_text(SHARING)
    flags = [*TINY_FLAGS, *IMPORT_FROM]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
    ]
    done = subprocess.run(
        [*launcher, "train", "--dataset", "digits", "--device", device, *flags, "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=10 * MINUTES,
        check=False,
    )
    if device == "cuda" and "Duplicate GPU" in done.stderr + done.stdout:
        pytest.skip("this NCCL refuses two processes on one GPU")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_checkpoint(folder / "model.safetensors")[0].labels) == 10
