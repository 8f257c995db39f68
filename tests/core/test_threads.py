"""How many threads a process may use: its CPUs, its quota, what the user says; and that torch hears of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ducat_serve.predictor import create_session
from ducat_serve.threads import cpu_quota, thread_settings, within_quota


@pytest.mark.parametrize(
    ("cpus", "quota", "expected"),
    [(8, None, 8), (8, 8.0, 8), (8, 16.0, 8), (8, 3.0, 3), (8, 2.9, 2), (8, 0.5, 1), (1, None, 1)],
)
def test_within_a_quota(cpus: int, quota: float | None, expected: int) -> None:
    assert within_quota(cpus, quota) == expected


WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}


@pytest.mark.parametrize(
    ("given", "cpus", "quota", "expected"),
    [
        ({}, 4, None, WAIT),  # OpenMP counts CPUs by itself
        ({}, 4, 2.0, {**WAIT, "OMP_NUM_THREADS": "2"}),
        ({"OMP_NUM_THREADS": "3"}, 4, 2.0, WAIT),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, 4, 2.0, {"OMP_NUM_THREADS": "2"}),
        ({"GOMP_SPINCOUNT": "5"}, 4, None, {}),
        ({"KMP_BLOCKTIME": "1"}, 4, None, {}),
    ],
)
def test_what_the_user_has_set_stays(
    given: dict[str, str], cpus: int, quota: float | None, expected: dict[str, str]
) -> None:
    assert thread_settings(given, cpus, quota) == expected


def machine(folder: Path, membership: str, files: dict[str, str]) -> tuple[Path, Path]:
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    (folder / "self").write_text(membership)
    return folder / "cgroup", folder / "self"


V1 = "3:memory:/job\n2:cpu,cpuacct:/job/step\n1:cpuset:/job\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container's own view
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/on/the/host\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        (V1, {"cpu/job/step/cpu.cfs_quota_us": "-1\n", "cpu/job/step/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/job/cpu.cfs_quota_us": "250000\n", "cpu/job/cpu.cfs_period_us": "100000\n"}, 2.5),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/cpu.cfs_period_us": "50000\n"}, 2.0),
        (V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "0\n"}, None),
        # Both versions at once: the one that limits counts.
        ("1:cpu:/\n0::/\n", {"cpu.max": "100000 100000\n", "cpu/cpu.cfs_quota_us": "-1\n"}, 1.0),
    ],
)
def test_quotas_of_control_groups(
    membership: str, files: dict[str, str], expected: float | None, tmp_path: Path
) -> None:
    assert cpu_quota(*machine(tmp_path, membership, files)) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("quota", "given", "expected"),
    [
        (2.5, None, 2),
        (0.5, None, 1),
        (2.5, 3, 3),
        (None, None, 0),  # ONNX Runtime counts the cores by itself
        (64.0, None, 0),
    ],
)
def test_inference_has_as_many_threads_as_the_quota_pays_for(
    quota: float | None, given: int | None, expected: int, onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ducat_serve.threads.cpu_quota", lambda: quota)
    monkeypatch.setattr("ducat_serve.threads._affinity", lambda: 8)
    session, _ = create_session(onnx_model.read_bytes(), "cpu", given)
    assert session.get_session_options().intra_op_num_threads == expected


def threads_of(arguments: list[str], **environment: str) -> tuple[str, str]:
    """What torch computes with after a command was refused, and how its threads wait."""
    code = (
        "import os, sys; from ducat_serve.cli.main import run; run(sys.argv[1:]);"
        "import torch; print(torch.get_num_threads(), os.environ.get('OMP_WAIT_POLICY'))"
    )
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))
    }
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**clean, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    count, policy = ended.stdout.split()
    return count, policy


@pytest.mark.integration
@pytest.mark.parametrize(
    "command", [["evaluate"], pytest.param(["train", "--resume"], marks=pytest.mark.extended)]
)
def test_the_flag_wins_over_the_environment_in_time_for_torch(command: list[str], tmp_path: Path) -> None:
    arguments = [*command, str(tmp_path / "none")]
    # Fewer, not more: MKL takes no more threads than there are cores.
    assert threads_of([*arguments, "--threads", "1"], OMP_NUM_THREADS="2") == ("1", "PASSIVE")
    assert threads_of(arguments, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="ACTIVE") == ("1", "ACTIVE")
