"""Documents whose code blocks are run, and whose outputs are held against what is really printed."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ducat_serve.cli.main import run

# A block of code, and the block of output that follows it at once.
_BLOCK = re.compile(r"```(bash|python)\n(.*?)```\n(?:\n```(?:text|json)\n(.*?)```\n)?", re.DOTALL)
_SHELL = re.compile(r"[|&;<>$`*?#]")
_NUMBER = re.compile(r"(?:\d+[hms])+|\d[\d.,]*")  # 4m56s is one, so that it may be 14s
_ARITHMETIC = re.compile(r"\b(bfloat16|float32) on (cpu|cuda)\b")  # what the machine is fastest in
# A model of two epochs has some.
_NEAR_TIES = re.compile(r" except on \d+ too close to a decision to compare")
_PADDING = re.compile(r"[\s│┃┏┓┗┛┡┩└┘├┤┬┴┼╇┳┻━─]+")
ELISION = "..."
BIN = Path(sys.executable).parent


# A document's commands, made small through the environment, which every option reads.
SMALL = {
    "PATH": f"{BIN}:/usr/bin:/bin",
    "COLUMNS": "100",
    "DUCAT_OFFLINE": "1",
    "DUCAT_TRAIN_ATTACK_STEPS": "1",
    "DUCAT_EVALUATE_ATTACK": "pgd",
    "DUCAT_EVALUATE_MAX_EXAMPLES": "24",
    "DUCAT_DEMO_EPOCHS": "2",
}


@dataclass(frozen=True)
class Block:
    """Code that a reader runs, and what the document says that it prints; None where it says nothing."""

    language: str
    code: str
    output: str | None

    @property
    def is_server(self) -> bool:
        """Whether it runs until it is stopped."""
        return self.code.startswith("ducat serve")

    def shortened(self) -> Block:
        """The same, training for two epochs against one step: what a flag says wins over the environment."""
        code = re.sub(r"--epochs \d+", "--epochs 2", self.code)
        return replace(self, code=re.sub(r"--attack-steps \d+", "--attack-steps 1", code))


def blocks(path: Path) -> list[Block]:
    """The blocks of bash and Python of a document, in order."""
    found = _BLOCK.findall(path.read_text(encoding="utf-8"))
    return [Block(language, code.strip(), output or None) for language, code, output in found]


def missing_line(said: str, printed: str) -> str | None:
    """The first line of ``said`` that ``printed`` does not have, in this order; None where it has them all.

    Numbers, near ties and the frames of tables may differ, because a test trains for fewer epochs than a reader, and
    the arithmetic may, because it is the machine's.
    """
    lines = iter([_skeleton(line) for line in printed.splitlines()])
    for line in said.splitlines():
        wanted = _skeleton(line)
        if wanted and wanted != ELISION and wanted not in lines:
            return line
    return None


def _skeleton(line: str) -> str:
    line = _NEAR_TIES.sub("", _ARITHMETIC.sub("ARITHMETIC", line))
    return _PADDING.sub(" ", _NUMBER.sub("#", line)).strip()


def run_block(block: Block, folder: Path, settings: Mapping[str, str] | None = None) -> str:
    """Run a block in a folder and return what it prints, results and messages together.

    Commands of `ducat` alone are run in this process, which has imported torch already; a shell runs everything else.
    ``settings`` are variables of the environment, beside those that make documents short.

    Raises:
        AssertionError: it failed, or it does not print what the document says.
    """
    commands = ducat_commands(block)
    variables = {**SMALL, **(settings or {})}
    if commands:
        code, printed = _run_here(commands, folder, variables)
    else:
        code, printed = _run_process(block, folder, variables)
    assert code == 0, f"{block.code}\n{printed}"
    if block.output is not None:
        line = missing_line(block.output, printed)
        assert line is None, f"{block.code}\nprints no line like\n{line}\nbut\n{printed}"
    return printed


def ducat_commands(block: Block) -> list[list[str]]:
    """The arguments of each command; empty where a block has anything else, or what only a shell understands."""
    lines = block.code.replace("\\\n", " ").splitlines()
    plain = all(line.startswith("ducat ") and not _SHELL.search(line) for line in lines)
    return [shlex.split(line)[1:] for line in lines] if plain else []


def _run_here(commands: list[list[str]], folder: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    printed = io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        code = next(filter(None, map(run, commands)), 0)
    return code, printed.getvalue()


def _run_process(block: Block, folder: Path, variables: Mapping[str, str]) -> tuple[int, str]:
    command = [sys.executable, "-c", block.code]
    if block.language == "bash":
        command = ["bash", "-eo", "pipefail", "-c", block.code]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@contextlib.contextmanager
def running_server(block: Block, url: str, folder: Path) -> Iterator[None]:
    """Run `ducat serve ...` as a document writes it, from when it is ready until the block ends."""
    server = subprocess.Popen(["bash", "-ec", f"exec {block.code}"], cwd=folder, env={**os.environ, **SMALL})
    try:
        _wait_until_ready(url, server)
        yield
    finally:
        server.terminate()
        server.wait(30)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server was not ready in time")
