"""The process in which BentoML builds: an order as JSON on stdin, the Bento as JSON on stdout.

The order is the arguments of `bentoml.build`, and under "start" the script that starts a container of the Bento.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any


def build(order: dict[str, Any]) -> dict[str, Any]:
    """Build a Bento, unless the store has one of this tag; then say whether it is the same."""
    import bentoml
    from bentoml._internal import configuration
    from bentoml._internal.bento.build_config import BentoEnvSchema

    # BentoML asks for uv even where it has nothing to lock, and where there is none it would pip install it.
    configuration.get_uv_command = lambda: ["uv"]
    start = order.pop("start")
    try:
        bento, is_new = bentoml.get(f"{order['name']}:{order['version']}"), False
    except bentoml.exceptions.NotFound:
        envs = [BentoEnvSchema(name=name, value=value) for name, value in order["envs"].items()]
        bento, is_new = bentoml.build(**{**order, "envs": envs}), True
    is_same = bento.info.labels.get("content") == order["labels"]["content"]
    if is_same:  # also where it was there already: a build may have been cut short before this
        Path(bento.path, "env/docker/entrypoint.sh").write_text(start)
    return {"tag": str(bento.tag), "path": str(bento.path), "is_new": is_new, "is_same": is_same}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # BentoML prints
        answer = build(json.load(sys.stdin))
    json.dump(answer, sys.stdout)
