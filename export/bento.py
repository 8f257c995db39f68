"""A Bento: model, our serving code, pinned requirements and a Dockerfile in one folder.

What goes in is put together here and does not depend on this machine: no path, no key, no setting of the environment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ducat_serve.atomic import cannot_write, permissions
from ducat_serve.errors import DucatError
from ducat_serve.signature import signature_path
from ducat_serve.spec import ModelSpec
from export.model_card import model_card
from export.requirements import pinned_requirements
from export.sbom import FILE as SBOM
from export.sbom import sbom

PACKAGES = ("ducat_serve", "service")  # all that serving imports; named, since stages never import each other
MODEL = "model.onnx"
ENTRY = "serving"
# The working directory of a Bento's server is not ours to choose, so the model is found from this file.
_ENTRY_TEXT = f'''"""ducat-serve's service, with the model that is beside this file.

`python serving.py --host 127.0.0.1 --port 3000` runs it in ducat-serve's own server; `bentoml serve` imports it.
"""

import os
from pathlib import Path

os.environ.setdefault("DUCAT_SERVE_MODEL", str(Path(__file__).with_name("{MODEL}")))

if __name__ == "__main__":
    from service.server.process import main

    main()

from service.app import DucatService
from service.server.bentoml_overrides import without_control_ports

without_control_ports()

__all__ = ["DucatService"]
'''
# What BentoML's own script would do is `bentoml serve`, without draining and without bounds on connections.
_START_TEXT = f"""#!/usr/bin/env bash
# Starts the container: without a command, or with options only, ducat-serve's own server; otherwise the command, such
# as `bentoml serve $BENTO_PATH`.
set -euo pipefail
if [ "$#" -eq 0 ] || [ "${{1:0:1}}" = "-" ]; then
    set -- python "$BENTO_PATH/src/{ENTRY}.py" --host 0.0.0.0 --port "${{PORT:-${{BENTOML_PORT:-3000}}}}" "$@"
fi
exec "$@"
"""
_ENVIRONMENT = {"BENTOML_DO_NOT_TRACK": "True", "ORT_DISABLE_TELEMETRY": "1"}
_CUDA_ENVIRONMENT = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}


@dataclass(frozen=True)
class BuiltBento:
    """A Bento on disk; ``is_new`` is false where the store had the very same one."""

    tag: str
    path: Path
    is_new: bool
    unpinned: tuple[str, ...]  # requirements that are not installed here, so that no version could be taken


def build_bento(
    model: Path,
    spec: ModelSpec,
    name: str,
    device: Literal["cpu", "cuda"],
    out: Path | None,
    *,
    with_sbom: bool = False,
) -> BuiltBento:
    """Build `NAME:VERSION`, whose version is the start of the digest of the weights.

    Args:
        model: an exported file that was verified, with its ``spec``. A signature beside it goes in, and then the Bento
            requires what checks it.
        device: which ONNX Runtime the Bento requires.
        out: folder to make; None for BentoML's store.
        with_sbom: whether a software bill of materials goes in, as `src/sbom.cdx.json`.

    Raises:
        DucatError: the folder or the tag is taken by something else, the bill cannot be made, or BentoML fails.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DucatError(f"{out} exists already.", "remove it, or choose another --out")
    signature = signature_path(model)
    extras = ("serve", "gpu" if device == "cuda" else "cpu", *(("sign",) if signature.is_file() else ()))
    requirements, unpinned = pinned_requirements(extras)
    with tempfile.TemporaryDirectory(prefix="ducat-bento-") as folder:
        context = Path(folder) / "context"
        _fill(context, model)
        if signature.is_file():
            shutil.copyfile(signature, signature_path(context / MODEL))
        if with_sbom:
            (context / SBOM).write_text(sbom(context / MODEL, spec, name, extras))
        order: dict[str, Any] = {
            "service": f"{ENTRY}:DucatService",
            "name": name,
            "version": spec.weights_digest[:12],
            "description": model_card(spec, MODEL),
            "include": ["*"],
            "labels": {"device": device, "weights": spec.weights_digest[:32]},
            "python": {"packages": requirements, "lock_packages": False},
            "envs": _ENVIRONMENT | (_CUDA_ENVIRONMENT if device == "cuda" else {}),
        }
        order["start"] = _START_TEXT
        order["labels"]["content"] = _digest(context, order)
        order["build_ctx"] = str(context)
        if out is None:
            return BuiltBento(**_run(order, None), unpinned=unpinned)
        return BuiltBento(**_build_into(out, order), unpinned=unpinned)


def _fill(context: Path, model: Path) -> None:
    context.mkdir()
    shutil.copyfile(model, context / MODEL)
    (context / f"{ENTRY}.py").write_text(_ENTRY_TEXT)
    for package in PACKAGES:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        # It serves the one model beside the packages; bundled ones would only make it larger.
        ignore = shutil.ignore_patterns("__pycache__", ".*", "*.onnx", "*.safetensors")
        shutil.copytree(Path(found.origin).parent, context / package, ignore=ignore)


def _digest(context: Path, order: dict[str, Any]) -> str:
    """Of all that is in the Bento, so that two of one tag can be told apart. Labels have at most 63 characters."""
    digest = hashlib.sha256(json.dumps(order, sort_keys=True).encode())
    for file in sorted(context.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            digest.update(f"{file.relative_to(context).as_posix()}\n{len(data)}\n".encode() + data)
    return digest.hexdigest()[:32]


def _build_into(out: Path, order: dict[str, Any]) -> dict[str, Any]:
    """Build in a store of its own beside ``out``, then rename: there is the whole folder or none."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as home:
            built = _run(order, Path(home))
            built["path"].chmod(permissions(out, 0o777))  # BentoML makes it private, in a temporary folder
            built["path"].rename(out)
    except OSError as error:
        raise cannot_write(out, error) from error
    return {**built, "path": out}


def _run(order: dict[str, Any], home: Path | None) -> dict[str, Any]:
    """Build in another process: BentoML imports the service from the context, not the one that may be loaded here."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DUCAT_", "OTEL_"))}
    environment |= _ENVIRONMENT
    if home is not None:
        environment["BENTOML_HOME"] = str(home)
    command = [sys.executable, "-P", "-m", "export.bento_process"]
    done = subprocess.run(
        command, input=json.dumps(order), env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DucatError(f"BentoML did not build the Bento: {cause}")
    answer = json.loads(done.stdout)
    tag = str(answer["tag"])
    if not answer["is_same"]:
        raise DucatError(
            f"BentoML's store has another {tag}, with other code, requirements or model file.",
            f"bentoml delete {tag}, or choose another --name or an --out",
        )
    return {"tag": tag, "path": Path(answer["path"]), "is_new": answer["is_new"]}
