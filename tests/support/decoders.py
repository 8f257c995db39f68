"""Processes in the place of image decoders."""

from __future__ import annotations

import sys

# Takes every image that it is given, and never says anything.
SILENT = (sys.executable, "-c", "import sys; print(end='+', flush=True); [None for _ in sys.stdin.buffer]")
# Ends at the first image.
DYING = (sys.executable, "-c", "import sys; print(end='+', flush=True); sys.stdin.buffer.read(1)")
