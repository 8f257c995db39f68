"""What works, and what is said, where the extra train is not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_SERVING_ONLY = (
    "torch",
    "torchvision",
    "sklearn",
    "scipy",
    "filelock",
    "fsspec",
    "matplotlib",
    "tensorboardX",
)


def serving_only(arguments: list[str], where: Path) -> subprocess.CompletedProcess[str]:
    """`ducat ARGUMENTS` where the extra train is not installed."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({_SERVING_ONLY!r}));"
        f"from ducat_serve.cli.main import run; sys.exit(run({arguments!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True)


def test_runs_are_listed_and_compared_without_torch(
    run_folder: Path, onnx_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder, tmp_path / "runs" / "a run")
    listed = serving_only(["runs"], tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "a run  finished  4/4" in listed.stdout
    compared = serving_only(["compare", "runs/a run", str(onnx_model)], tmp_path)
    assert compared.returncode == 0
    assert "a run" in compared.stdout


@pytest.mark.integration
def test_load_without_torch_says_what_is_missing() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    from ducat_serve import load\n"
        "except ImportError as error: sys.exit(str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        "This needs the package 'torch', which is not installed.",
        "Next: pip install '.[train]' in a clone of ducat-serve",
    ]


@pytest.mark.integration
@pytest.mark.parametrize("command", ["train --dataset digits", "evaluate digits-small"])
def test_who_starts_several_processes_imports_no_torch(command: str) -> None:
    """It only waits for them, and torch would take seconds and memory of its own."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from training.distributed import launch\n"
        "launch.launch = lambda count, *_: 40 + count\n"
        f"from ducat_serve.cli.main import run; sys.exit(run({command!r}.split() + ['--devices', '2']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 42, done.stderr
