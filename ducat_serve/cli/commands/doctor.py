"""`ducat doctor`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Literal, NamedTuple

import click

from ducat_serve import __version__
from ducat_serve.atomic import require_writable, write_text
from ducat_serve.cli.options import common
from ducat_serve.errors import DucatError, UsageError, install_extra
from ducat_serve.output import Output


class Check(NamedTuple):
    """One line: what was looked at, what was found, and whether that is as it should be."""

    name: str
    found: str
    state: Literal["ok", "missing", "FAIL"] = "ok"  # what is missing is needed by some commands only


@click.command("doctor")
@click.option("--markdown", is_flag=True, help="Print a Markdown table, to be pasted into a bug report.")
@click.option(
    "--gpu",
    is_flag=True,
    help="Prove the GPU instead: what it computes beside the CPU, arithmetic, memory and speed; ten minutes at most.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --gpu: write what was found into this file, as JSON.",
)
@common
def command(markdown: bool, gpu: bool, out: Path | None, json: bool) -> None:
    """Check this machine and installation; exits 1 where something is broken.

    With --gpu exit code 1 also says that there is no GPU, or that a check of it failed. Nothing is downloaded.

    \b
    Example:
      ducat doctor
      ducat doctor --markdown
      ducat doctor --gpu --out gpu.json
    """
    output = Output(json)
    if out is not None and not gpu:
        raise UsageError("--out is for what --gpu finds.", "ducat doctor --gpu --out gpu.json")
    if gpu:
        _prove_gpu(output, out, markdown)
        return
    checks = [*_machine(), *_packages(), _runtime_conflict(), *_accelerators(), _cache()]
    _show("", [(c.state, c.name, c.found) for c in checks], markdown, output)
    broken = [c for c in checks if c.state == "FAIL"]
    if broken:
        raise DucatError(f"{broken[0].name}: {broken[0].found}", "mend that and run `ducat doctor` again")
    output.result({"checks": [{**c._asdict(), "ok": c.state != "FAIL"} for c in checks]})


def _prove_gpu(output: Output, out: Path | None, markdown: bool) -> None:
    from ducat_serve.library.device_proof.proof import prove_gpu

    if out is not None:
        require_writable(out)  # before ten minutes of work, not after
    proof = prove_gpu()
    rows = [(item.state, item.name, item.reason or _figures(item.figures)) for item in proof.items]
    _show(proof.device, rows, markdown, output)
    document = proof.model_dump(mode="json")
    if out is not None:
        write_text(out, f"{dumps(document, indent=2)}\n")
        output.say(f"Written to {out}.")
    if failed := proof.failed:
        where = f"; all of it is in {out}" if out is not None else ""
        raise DucatError(
            f"{len(failed)} of {len(proof.items)} checks failed, first {failed[0].name}: {failed[0].reason}{where}",
            "look at the driver and at the versions that `ducat doctor` lists, then run it again",
        )
    output.result(document)


def _figures(figures: Mapping[str, float | str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def _show(title: str, rows: Sequence[tuple[str, str, str]], markdown: bool, output: Output) -> None:
    if not markdown:
        output.table(title, ("", "check", "found"), rows)
        return
    heading = [title, ""] if title else []
    lines = [_markdown(*row) for row in rows]
    output.text("\n".join([*heading, "| | check | found |", "|---|---|---|", *lines]))


def _markdown(state: str, name: str, found: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111  (Path.home() raises where nobody has this user's id)
    if home not in ("~", "/"):
        found = found.replace(home, "~")  # a report need not name its author
    return f"| {state} | {name} | {found.replace('|', chr(92) + '|')} |"


def _machine() -> list[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Check("ducat-serve", __version__),
        Check("Python", platform.python_version()),
        Check("machine", f"{platform.system()} {platform.machine()}, {cores} cores"),
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> list[Check]:
    """What our extras require, as our own metadata says; the two ONNX Runtimes are looked at below."""
    try:
        requirements = importlib.metadata.requires("ducat-serve") or []
    except importlib.metadata.PackageNotFoundError:  # as in our Docker image and in a Bento
        return [Check("packages", "not looked at: ducat-serve runs from its source, without its metadata")]
    extras: dict[str, str] = {}
    for requirement in requirements:
        found = re.match(r"([\w.-]+).*extra == [\"'](\w+)[\"']", requirement)
        if found and found[2] not in ("dev", "cpu", "gpu"):
            extras.setdefault(found[1], found[2])
    return [_package(package, extra) for package, extra in extras.items()]


def _package(package: str, extra: str) -> Check:
    version = _version(package)
    if version is None:
        return Check(package, f"not installed ({install_extra(extra)})", "missing")
    return Check(package, version)


def _runtime_conflict() -> Check:
    cpu, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if cpu and gpu:
        return Check(
            "onnxruntime",
            "onnxruntime and onnxruntime-gpu write the same folder: uninstall both, then install one",
            "FAIL",
        )
    if not (cpu or gpu):
        return Check("onnxruntime", f"not installed ({install_extra('cpu')}, or gpu)", "missing")
    return Check("onnxruntime", cpu or gpu or "")


def _accelerators() -> list[Check]:
    checks = []
    with contextlib.suppress(DucatError):
        from ducat_serve.predictor import import_onnxruntime

        providers = import_onnxruntime().get_available_providers()
        checks.append(Check("ONNX Runtime providers", _providers(providers)))
    try:
        import torch

        from training.device import fastest_precision

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        gpu = torch.cuda.get_device_name() if device.type == "cuda" else _without_gpu(torch.version.cuda)
        precision = f"{fastest_precision(device)} on {device.type}"
    except ImportError:
        return checks
    except (OSError, RuntimeError) as error:
        # A library that is missing or damaged, or a driver that does not answer.
        return [*checks, Check("GPU", f"torch does not work: {error}", "FAIL")]
    return [*checks, Check("GPU", gpu), Check("training precision", precision)]


def _providers(names: Sequence[str]) -> str:
    listed = ", ".join(names)
    if "CUDAExecutionProvider" in names:
        return listed
    return f"{listed}; no CUDA: for a GPU, '.[gpu]' in an environment without '.[cpu]'"


def _without_gpu(cuda: str | None) -> str:
    if cuda is None:
        return "none: this torch is built for the CPU"
    return f"none: this torch is built for CUDA {cuda}, and finds no NVIDIA GPU or driver"


def _cache() -> Check:
    try:
        from training.data.cache import cache_root
    except ImportError:
        return Check("data cache", "not needed for serving")
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Check("data cache", f"{root} is not writable ({error.strerror}); set DUCAT_CACHE", "FAIL")
    if not os.access(root, os.W_OK):
        return Check("data cache", f"{root} is not writable; set DUCAT_CACHE", "FAIL")
    return Check("data cache", f"{root}, {shutil.disk_usage(root).free / 2**30:.0f} GiB free")
