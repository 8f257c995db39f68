"""Processes in the place of image decoders."""

from __future__ import annotations

import sys

# Takes every image that it is given, and never says anything.
SILENT = (sys.executable, "-c", "import sys; print(end='+', flush=True); [None for _ in sys.stdin.buffer]")
# Ends at the first image.
DYING = (sys.executable, "-c", "import sys; print(end='+', flush=True); sys.stdin.buffer.read(1)")
# Decodes as ours do, and takes a third of a second longer for every image.
SLOW = (
    sys.executable,
    "-P",
    "-c",
    "import time; from service.decoding import worker; decode = worker.decode; "
    "worker.decode = lambda *given: time.sleep(0.3) or decode(*given); worker.main()",
)
# Computes for ever, and takes a second of CPU time for too much.
COMPUTING = (
    sys.executable,
    "-P",
    "-c",
    "from service.decoding import worker; worker.cpu_seconds = lambda _: 1; "
    "worker.decode = lambda *_: sum(iter(int, 1)); worker.main()",
)
