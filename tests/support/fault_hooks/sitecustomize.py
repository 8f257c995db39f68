"""Faults on demand inside a real server: Python imports this first where its folder is on PYTHONPATH.

Files in the folder `$FAULTS` are the switches. `clock`: seconds by which `time.time` is off. `hold`: inference waits
while it is there. `raise`: the next inference of more rows than this number fails, once. What Python connects to or
looks up is written to `connections`. `$STALL_SECONDS` is how long an inference takes at least to be one that stalls.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAULTS"])
_true_time = time.time


def _content(name: str) -> str | None:
    try:
        return (FOLDER / name).read_text()
    except FileNotFoundError:
        return None


def _jumping_time() -> float:
    return _true_time() + float(_content("clock") or 0)


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"):
        with (FOLDER / "connections").open("a") as file:
            file.write(f"{event} {arguments!r}\n")


time.time = _jumping_time
(FOLDER / "connections").touch()  # that it is there and empty says: Python was watched
sys.addaudithook(_audit)

if "service.server.process" in sys.orig_argv:
    from ducat_serve.predictor import Predictor
    from service.models import batcher

    batcher.STALL_SECONDS = float(os.environ.get("STALL_SECONDS", batcher.STALL_SECONDS))
    _infer = Predictor.__call__

    def _faulty(self: Predictor, images: Any) -> Any:
        while _content("hold") is not None:
            time.sleep(0.01)
        limit = _content("raise")
        if limit is not None and len(images) > int(limit):
            (FOLDER / "raise").unlink()
            raise RuntimeError("the fault that was asked for")
        return _infer(self, images)

    Predictor.__call__ = _faulty  # type: ignore[method-assign]
