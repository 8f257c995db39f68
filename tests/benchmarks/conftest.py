"""The benchmarks are scripts: their modules are found where they lie, as when one of them is started."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
