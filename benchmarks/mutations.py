"""Break one thing at a time in a copy of the project and see that the tests named for it notice.

    python benchmarks/mutations.py                # all of them; some minutes
    python benchmarks/mutations.py fold parity    # those whose description holds one of these words

First the named tests are run on the unbroken copy. Prints the table of results/mutations.md; exits 1 if a broken copy
passes its tests, or the unbroken one does not.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from mutation import Mutation
from mutation_table import MUTATIONS

PROJECT = Path(__file__).resolve().parent.parent


def main() -> int:
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in m.what for word in words)]
    os.environ["OMP_NUM_THREADS"] = "1"
    for package in ("torch", "torchvision.transforms.v2", "sklearn.metrics", "bentoml", "hypothesis"):
        importlib.import_module(package)  # once, and not in every fork
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve() / "project"
        ignored = shutil.ignore_patterns(
            ".venv", ".git", ".mypy_cache", ".ruff_cache", "*.egg-info", "__pycache__", "runs"
        )
        shutil.copytree(PROJECT, copy, ignore=ignored)
        every = sorted({test for mutation in chosen for test in mutation.tests})
        if failed := _failures(copy, every):
            print(f"unbroken, these fail: {', '.join(failed)}")
            return 1
        print("| broken | in | red |\n|---|---|---|", flush=True)
        survived = 0
        for mutation in chosen:
            failed = _broken(copy, mutation)
            survived += not failed
            red = ", ".join(f"`{name}`" for name in failed) or "**nothing: it passes**"
            print(f"| {mutation.what} | `{mutation.file}` | {red} |", flush=True)
    print(f"\n{len(chosen)} broken copies, {survived} passed.", flush=True)
    return 1 if survived else 0


def _broken(copy: Path, mutation: Mutation) -> list[str]:
    """Names of the tests that fail while the copy is broken."""
    target = copy / mutation.file
    text = target.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.what}: found {text.count(mutation.old)} times in {mutation.file}")
    target.write_text(text.replace(mutation.old, mutation.new))
    try:
        return _failures(copy, list(mutation.tests))
    finally:
        target.write_text(text)


def _failures(copy: Path, tests: list[str]) -> list[str]:
    """Names of the tests that fail, run in a fork, which has torch already. Raises SystemExit where none could run."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_tests, args=(copy, tests, sender))
    process.start()
    sender.close()
    try:
        code, names = receiver.recv()
    except EOFError:
        raise SystemExit(f"the process that ran {', '.join(tests)} died") from None
    process.join()
    if code not in (0, 1):
        raise SystemExit(f"pytest ended with {code}: {', '.join(tests)}")
    return list(dict.fromkeys(names))


class _Failed:
    """A plugin of pytest that remembers what failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names.append(report.nodeid.split("::")[1].split("[")[0])


def _run_tests(copy: Path, tests: list[str], answer: Connection) -> None:
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path).resolve() != PROJECT)]
    sys.dont_write_bytecode = True
    failed = _Failed()
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        code = int(
            pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={copy}", *tests], plugins=[failed])
        )
    import training

    if not Path(training.__file__ or "").is_relative_to(copy):
        code = 100  # the tests ran on the project itself
    answer.send((code, failed.names))


if __name__ == "__main__":
    sys.exit(main())
