"""`ducat demo`: the whole main job on the embedded data set, by the commands a user would type."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ducat_serve.bundled import bundled_models
from ducat_serve.cli.options import common
from ducat_serve.errors import EXTRAS, DucatError, InterruptedRun, command_line, missing_extra
from ducat_serve.output import Output

if TYPE_CHECKING:
    from training.signals import StopSignal

IMAGES = 8
_NEEDED = ("torch", "sklearn", "filelock", "onnx", "onnxscript", "onnxruntime", "bentoml", "httpx")
READY_SECONDS = 60
_POLL_SECONDS = 0.1
# An easier threat model and a cheaper attack than the recipe's: two minutes instead of ten on a laptop.
QUICK = ("--eps", "0.1", "--attack-steps", "5")


@click.command("demo")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=40, show_default=True, help="Epochs of training."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run folder.  [default: runs/demo, or runs/demo-2 and so on where there is one]",
)
@common
def command(epochs: int, out: Path | None, json: bool) -> None:
    """Train on digits, evaluate, export, serve with BentoML, predict over HTTP, stop the server.

    \b
    Example:
      ducat demo
      ducat demo --out runs/demo
    """
    output = Output(json)
    started = time.monotonic()
    _require_packages()
    # SIGTERM becomes an exception, so that the server is stopped.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = out or _free_folder(Path("runs"))
    output.say(
        "The model has dummy classes (--ducat paper), so that one sees them; README says what they cost."
    )
    _ducat(output, "train", "--dataset", "digits", *QUICK, "--epochs", str(epochs), "--out", str(folder))
    report = _ducat(output, "evaluate", str(folder))
    exported = _ducat(output, "export", str(folder), "--onnx", "--examples")
    samples = _write_samples(folder / "samples")
    with _server(output, Path(exported["model"]), samples) as url:
        rows = _predict(url)
    right = sum(label == truth for _, truth, label, *_ in rows)
    output.table(
        f"POST {url}/v1/predict",
        ("image", "truth", "prediction", "confidence", "dummy mass", "milliseconds"),
        rows,
    )
    seconds = time.monotonic() - started
    attacks = ", ".join(attack["name"] for attack in report["attacks"])
    output.text(
        f"Test accuracy of the deployed function: {report['clean_accuracy']:.1%} clean, "
        f"{report['worst_case_accuracy']:.1%} under a screening by {attacks} at eps {QUICK[1]}."
    )
    output.text(f"{right} of {len(rows)} images right over HTTP. Took {seconds:.0f} s.")
    longer = " and ".join(f"`ducat serve {model.name}`" for model in bundled_models().values())
    output.say(f"Models that come with the package, trained for longer: {longer}.")
    output.say(f"The model is kept in {folder}. The next command serves a page to try it yourself.")
    output.next(command_line("ducat", "serve", folder, "--samples", samples, "--attack-demo"))
    output.result(
        {
            "run": str(folder),
            "clean_accuracy": report["clean_accuracy"],
            "worst_case_accuracy": report["worst_case_accuracy"],
            "http_right": right,
            "http_images": len(rows),
            "seconds": round(seconds, 1),
        }
    )


def _require_packages() -> None:
    """Find out before minutes of training what would be missing at their end. Raises DucatError."""
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, EXTRAS[package])


def _free_folder(parent: Path) -> Path:
    names = itertools.chain(["demo"], (f"demo-{number}" for number in itertools.count(2)))
    return next(folder for name in names if not (folder := parent / name).exists())


def _ducat(output: Output, *arguments: str) -> dict[str, Any]:
    from training.signals import StopSignal

    output.say(f"\n$ {command_line('ducat', *arguments)}")
    # A file, since a pipe that a process left behind has inherited would be waited for.
    with tempfile.TemporaryFile() as printed, StopSignal() as stop:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ducat_serve", *arguments, "--json", *_quietly(output)],
            stdout=printed,
            env={**os.environ, "DUCAT_EVENTS": "text"},
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
        try:
            _wait(process, stop)
        finally:  # after a second Ctrl-C, which waits for nothing
            process.kill()
            process.wait()
        printed.seek(0)
        document = printed.read()
    _require_success(command_line("ducat", *arguments), process.returncode, stop)
    result: dict[str, Any] = loads(document)
    return result


def _wait(process: subprocess.Popen[bytes], stop: StopSignal) -> None:
    """Until it has ended; the first signal that came is its own, so that it saves what it has."""
    passed_on = False
    while process.poll() is None:
        if stop.received is not None and not passed_on:
            process.send_signal(stop.received)
            passed_on = True
        time.sleep(_POLL_SECONDS)


def _require_success(command: str, code: int, stop: StopSignal) -> None:
    """Raise InterruptedRun where a signal came, to us or to the command alone; DucatError where that failed.

    An interrupted command has said how to go on.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if stop.received == number or code in (-number, 128 + number):
            raise InterruptedRun(number, f"The demo was interrupted in `{command}`.")
    if code != 0:
        error = DucatError(
            f"`{command}` ended with exit code {code}.", "do what it names as the next step above"
        )
        error.exit_code = code if code > 0 else 1
        raise error


def _quietly(output: Output) -> list[str]:
    return ["--quiet"] if output.notes.quiet else []


def _write_samples(folder: Path) -> Path:
    """The first test image of every digit as a PNG file, for the page to offer."""
    from PIL import Image

    from training.data import load_dataset

    test = load_dataset("digits").test
    labels = test.labels.tolist()
    folder.mkdir(exist_ok=True)
    for digit in sorted(set(labels)):
        Image.fromarray(test.images[labels.index(digit)]).save(folder / f"digit-{digit}.png")
    return folder


@contextlib.contextmanager
def _server(output: Output, model: Path, samples: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["serve", str(model), "--port", str(port), "--samples", str(samples)]
    output.say(f"\n$ {command_line('ducat', *arguments)}")
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "ducat_serve", *arguments, *_quietly(output)], stdout=subprocess.DEVNULL
    )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
        output.say("The server has stopped.")


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    import httpx

    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DucatError(f"The server ended with exit code {server.returncode}.", "ducat doctor")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise DucatError(f"The server was not ready within {READY_SECONDS} s.", "ducat doctor")


def _predict(url: str) -> list[tuple[str, str, str, str, str, str]]:
    import io

    import httpx
    from PIL import Image

    from training.data import load_dataset

    test = load_dataset("digits").test
    rows = []
    with httpx.Client() as client:
        for index in range(IMAGES):
            png = io.BytesIO()
            Image.fromarray(test.images[index]).save(png, "PNG")
            started = time.perf_counter()
            response = client.post(
                f"{url}/v1/predict", files={"image": ("digit.png", png.getvalue(), "image/png")}
            )
            milliseconds = 1000 * (time.perf_counter() - started)
            best = response.raise_for_status().json()["predictions"][0]
            rows.append(
                (
                    f"test {index}",
                    str(test.labels[index]),
                    best["label"],
                    f"{best['confidence']:.1%}",
                    f"{best['dummy_mass']:.3f}",
                    f"{milliseconds:.1f}",
                )
            )
    return rows
