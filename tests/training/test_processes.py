"""Several processes that train one model: real ones, connected by gloo on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ducat_serve.checkpoint import read_checkpoint
from tests.support.training_runs import IMPORT_FROM, RESUME_FLAGS, TINY_FLAGS
from training.distributed.launch import _first_failure
from training.distributed.processes import ProcessGroup

pytestmark = pytest.mark.integration

_END = "import os; c = {}; os.kill(os.getpid(), -c) if c < 0 else os._exit(c)"

DUCAT = [sys.executable, "-P", "-m", "ducat_serve", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TINY = ["--dataset", "digits", *TINY_FLAGS, *IMPORT_FROM, "--epochs", "3", "--ducat-start", "3"]


def ducat(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DUCAT, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize(("count", "size"), [(64, 2), (7, 2), (10, 3), (4, 4)])
def test_parts_are_all_and_their_weighted_means_are_the_mean(count: int, size: int) -> None:
    values = torch.randn(count, dtype=torch.float64)
    groups = [ProcessGroup(rank, size) for rank in range(size)]
    assert torch.equal(torch.cat([values[g.part(count)] for g in groups]), values)
    means = [g.weight(g.part(count), count) * values[g.part(count)].mean() for g in groups]
    assert torch.stack(means).sum().item() / size == pytest.approx(values.mean().item(), abs=1e-12)


_GRADIENTS = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from ducat_serve.output import Output
from training.resolve import resolve
from training.data import load_dataset
from training.run.folder import RunFolder
import training.trainer as module
from training.trainer import Trainer
from training.distributed.processes import ProcessGroup

# Method, --ducat, images of a batch, and portions in which each process works through its part.
CASES = [
    ("pgd-at", "off", 32, None),
    ("pgd-at", "paper", 33, None),
    ("trades", "folded", 32, None),
    ("consistency", "folded", 33, None),
    ("trades", "off", 33, 3),
]
out = Path(sys.argv[1])


class Plain(nn.Module):
    '''No BatchNorm, whose statistics are those of each process's part on CPUs.'''

    def __init__(self, outputs):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x):
        return self.fc(torch.tanh(self.conv(x)).mean(dim=(2, 3)))


def build(spec):
    from ducat_serve.deployed import Classifier
    return Classifier(Plain(spec.num_logits), spec).double()


module.build_classifier = build
import training.batches as batches
batches.to_pixels = lambda images: images.double() / 255
processes = ProcessGroup.join(torch.device("cpu"))
data, cpu, seen = load_dataset("digits"), torch.device("cpu"), {}
for method, mode, batch, portions in CASES:
    given = {"method": method, "ducat": mode, "epochs": 2, "batch_size": batch, "attack_steps": 2}
    given |= {} if portions is None else {"accumulate": portions}
    config = resolve("digits", {**given, **({} if mode == "off" else {"ducat_start": 2})})
    trainer = Trainer(config, data, RunFolder(out), cpu, Output(silent=True), processes=processes)
    for epoch in (1, 2):
        trainer.classifier.train()
        loss = trainer.train_step(trainer.batches.order(epoch), epoch, 0)
        gradients = [p.grad.flatten().tolist() for p in trainer.classifier.parameters()]
        seen[f"{method} {mode} {epoch}"] = [loss.item()], *gradients
if processes.is_first:
    out.mkdir(parents=True, exist_ok=True)
    (out / "seen.json").write_text(json.dumps(seen))
processes.leave()
"""


_START_WEIGHTS = """
import json, sys
from pathlib import Path
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from ducat_serve.networks.allowed import allow
from ducat_serve.output import Output
from tests.support import tiny_network
from training.resolve import resolve
from training.data import Dataset, load_dataset
from training.distributed.processes import ProcessGroup
from training.pretrained import Pretrained
from training.run.folder import RunFolder
from training.start_robustness import head_alone
from training.state_dict_file import StateDict
from training.trainer import Trainer

out, cpu, silent = Path(sys.argv[1]), torch.device("cpu"), Output(silent=True)
processes = ProcessGroup.join(cpu)
allow(tiny_network.NAME)
data = load_dataset("digits")
data = Dataset(data.title, data.class_names, data.train.first(64), data.val.first(32), data.test, data.digest)
given = {"network": tiny_network.NAME, "ducat": "off", "epochs": 1, "batch_size": 16, "attack_steps": 1}
config = resolve("digits", {**given, "precision": "float32"})
weights = Pretrained("weights", "0" * 64, StateDict(tiny_network.make(10, 3).state_dict()))
result = head_alone(config, data, cpu, silent, weights, processes)

config = resolve("digits", {**given, "method": "standard", "batch_size": 64, "accumulate": 2})
trainer = Trainer(config, data, RunFolder(out), cpu, silent, processes=processes)
trainer.classifier.train()
exchanges = []


def counted(_state, bucket):
    exchanges.append(bucket.index())
    return allreduce_hook(None, bucket)


trainer.step.train_model.register_comm_hook(None, counted)
order = trainer.batches.order(1)
trainer.train_step(order, 1, 0)
if processes.is_first:
    # What both portions of both processes leave in the first layer's statistics, averaged.
    images, _ = trainer.batches.batch(order, 1, 0)
    torch.manual_seed(config.seed)
    layers = tiny_network.make(10, 3)
    means = []
    for rank in range(2):
        fresh = torch.nn.BatchNorm2d(24)
        for portion in ProcessGroup(rank, 2).portions(64, 2):
            fresh(layers.conv1((images[portion] - trainer.classifier.pixel_mean) / trainer.classifier.pixel_std))
        means.append(fresh.running_mean)
    found = trainer.classifier.network.bn1.running_mean
    error = (found - torch.stack(means).mean(0)).norm() / found.norm()
    out.mkdir(parents=True, exist_ok=True)
    seen = {"clean": result.clean_accuracy, "error": error.item(), "exchanges": exchanges}
    (out / "seen.json").write_text(json.dumps(seen))
processes.leave()
"""


def seen_by(script: str, out: Path, processes: int) -> dict[str, Any]:
    """What the first of so many processes writes that run a script."""
    port = str(29500 + os.getpid() % 10000)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(out)],
            env={**environment, "RANK": str(rank), "WORLD_SIZE": str(processes)},
        )
        for rank in range(processes)
    ]
    assert [process.wait(timeout=120) for process in running] == [0] * processes
    seen: dict[str, Any] = json.loads((out / "seen.json").read_text())
    return seen


def test_two_processes_compute_the_gradients_of_one(tmp_path: Path) -> None:
    """In float64, also where the parts differ in size: same data, noise, loss and gradients."""
    one, two = (seen_by(_GRADIENTS, tmp_path / str(count), count) for count in (1, 2))
    assert len(one) == 10
    for case, tensors in one.items():
        for mine, theirs in zip(tensors, two[case], strict=True):
            assert np.abs(np.array(mine) - np.array(theirs)).max() < 1e-10, case
            assert np.abs(np.array(mine)).max() > 0, case


def test_two_processes_measure_start_weights_and_share_statistics(tmp_path: Path) -> None:
    """An epoch of the head alone, and a batch in portions: mean statistics of both, and one exchange of gradients."""
    seen = seen_by(_START_WEIGHTS, tmp_path / "run", 2)
    assert 0 <= seen["clean"] <= 1
    assert seen["error"] < 1e-5
    assert seen["exchanges"] == [0]  # a small network has one bucket of gradients


@pytest.mark.extended
def test_two_processes_train_and_one_of_them_prints_and_writes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = ducat(*TINY, "--devices", "2", "--out", str(run), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == 3
    events = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [e["epoch"] for e in events if e["event"] == "epoch"] == [1, 2, 3], "one process prints"
    assert next(e for e in events if e["event"] == "start")["processes"] == 2
    assert len((run / "metrics.csv").read_text().splitlines()) == 4
    read_checkpoint(run / "model.safetensors")


def stopped_run(tmp_path: Path) -> tuple[Path, subprocess.Popen[str]]:
    """A run of two processes, after its first epoch."""
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*DUCAT, *TINY, "--epochs", "4000", "--ducat-start", "4000", "--devices", "2", "--out", str(run)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return run, process


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(int(pid) for pid in found.stdout.split())


@pytest.mark.extended
def test_sigterm_reaches_every_process_and_one_process_goes_on(tmp_path: Path) -> None:
    run, process = stopped_run(tmp_path)
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 143, stderr
    assert stderr.count("Interrupted; saved at") == 1
    before = torch.load(run / "last.pt", weights_only=True)
    alone = subprocess.Popen([*DUCAT, "--resume", str(run), *RESUME_FLAGS], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len((run / "metrics.csv").read_text().splitlines()) - 1 <= len(before["rows"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    alone.send_signal(signal.SIGTERM)
    alone.communicate(timeout=60)
    after = torch.load(run / "last.pt", weights_only=True)
    assert alone.returncode == 143
    assert after["rows"][: len(before["rows"])] == before["rows"]
    assert len(after["rows"]) > len(before["rows"])


@pytest.mark.extended
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_all_and_the_checkpoint_stays(tmp_path: Path, rank: int) -> None:
    run, process = stopped_run(tmp_path)
    pids = children(process)
    assert len(pids) == 2
    os.kill(pids[rank], signal.SIGKILL)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1, stderr
    assert f"Process {rank} of 2 was killed by SIGKILL" in stderr
    assert "Traceback" not in stderr
    assert ("Another process of this run is gone" in stderr) == (rank == 1)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    read_checkpoint(run / "last.safetensors")
    assert torch.load(run / "last.pt", weights_only=True)["rows"]


@pytest.mark.extended
def test_errors_of_all_processes_are_told_once_with_their_exit_code(tmp_path: Path) -> None:
    done = ducat(
        "--dataset", "digits", "--batch-size", "5000", "--devices", "2", "--out", str(tmp_path / "run")
    )
    assert done.returncode == 2
    assert done.stderr.count("training images") == 1
    done = ducat("--dataset", "digits", "--batch-size", "2", "--devices", "2", "--out", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "BatchNorm needs 2 images in each" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("codes", "cause"),
    [
        ([2, -6], 0),
        ([-6, 2], 1),
        ([1, -9], 1),
        ([-9, 1], 0),
        ([1, -6], 0),
        ([143, 143], 0),
        ([0, 1], 1),
        ([0, 0], None),
    ],
)
def test_which_failure_is_the_cause(codes: list[int], cause: int | None) -> None:
    """-6 is what a process does that loses its connections, -9 what is done to one."""
    ended = [subprocess.Popen([sys.executable, "-c", _END.format(code)]) for code in codes]
    for process in ended:
        process.wait()
    assert _first_failure(ended) == cause


@pytest.mark.extended
def test_torchrun_starts_it_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [*TORCHRUN, "-m", "ducat_serve", "train", *TINY, "--out", str(run)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stderr
    read_checkpoint(run / "model.safetensors")


def test_batchnorm_is_synchronised_on_gpus_only() -> None:
    """SyncBatchNorm keeps the names of the weights, so that checkpoints of one GPU and of many are the same."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    names = set(network.state_dict())
    assert set(nn.SyncBatchNorm.convert_sync_batchnorm(network).state_dict()) == names  # type: ignore[no-untyped-call]
