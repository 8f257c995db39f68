"""Run the code of a notebook, cell after cell, without Jupyter.

`python -m tests.support.notebooks FILE` runs it and writes what its cells print back into the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Cells share their names, as in Jupyter. What each prints follows its own mark.
_RUNNER = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] == "code":
        print(sys.argv[2], flush=True)
        exec("".join(cell["source"]), names)
"""
_MARK = "--- cell ---"


def printed_by_cells(path: Path, folder: Path) -> list[str]:
    """What each code cell prints on stdout, run in ``folder``. Raises CalledProcessError where one fails."""
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER, str(path.resolve()), _MARK],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    return [text.removeprefix("\n") for text in done.stdout.split(_MARK)[1:]]


def code_cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, in order."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def write_outputs(path: Path) -> None:
    """Run the notebook and keep what its cells print as their outputs."""
    with tempfile.TemporaryDirectory() as folder:
        printed = iter(printed_by_cells(path, Path(folder)))
    notebook = json.loads(path.read_text())
    number = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        text = next(printed)
        output = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell.update(execution_count=number, outputs=[output] if text else [])
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_outputs(Path(sys.argv[1]))
