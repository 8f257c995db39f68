"""The server beside the bare ONNX Runtime session and beside other servers, in one run on the same cores.

    python benchmarks/serve.py                          # every case, with models it makes itself
    python benchmarks/serve.py --cases rivals,start
    python benchmarks/serve.py model.onnx --cases rate

| case     | what                                                                                        |
|----------|---------------------------------------------------------------------------------------------|
| rate     | images per second at 64 requests in flight, beside a bare session fed full batches          |
| rivals   | FastAPI, LitServe and our application without BentoML: 32 in flight, and one at a time      |
| layers   | what each of BentoML's own layers costs                                                     |
| soak     | many requests, every answer compared, and memory                                            |
| overload | 1.5, 3 and 10 times the capacity, by the clock                                               |
| start    | seconds until ready, and memory                                                             |
| batches  | `--max-batch` 1, 4, 8 and 32 at several loads, beside batches of a bare session             |

Without MODEL, `batches` takes the bundled cifar10-small and digits-small, `rate` and `overload` take a resnet18, the
others a resnet-small, both 32x32 with random weights. The client is `wrk` where it is installed, the same for every
server; it shares the cores with them. Rivals are installed into an environment of their own (--env).
"""

from __future__ import annotations

import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import click
from serving import client, endurance, largest_batch, speed
from serving.settings import Plan

from ducat_serve import Predictor
from ducat_serve.bundled import model_path

CASES = ("rate", "rivals", "layers", "soak", "overload", "start", "batches")
BUNDLED = ("cifar10-small", "digits-small")
ENV = Path(tempfile.gettempdir()) / "ducat-rivals"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--cases", default=",".join(CASES), show_default=True, help="Some of them, by commas.")
@click.option("--seconds", default=4.0, show_default=True, help="Of each load.")
@click.option("--rounds", default=3, show_default=True, help="Servers take turns; medians are printed.")
@click.option("--requests", default=20_000, show_default=True, help="Of the soak.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of one inference, everywhere.")
@click.option("--models", type=click.Path(path_type=Path, file_okay=False), help="Keep the made models here.")
@click.option(
    "--env", type=click.Path(path_type=Path), default=ENV, show_default=True, help="For the rivals."
)
def main(
    model: Path | None,
    cases: str,
    seconds: float,
    rounds: int,
    requests: int,
    threads: int,
    models: Path | None,
    env: Path,
) -> None:
    """Measure the server that serves MODEL (default: models made here)."""
    chosen = cases.split(",")
    if unknown := set(chosen) - set(CASES):
        raise click.UsageError(f"no such case: {', '.join(sorted(unknown))}")
    versions = ", ".join(
        f"{name} {version(name)}" for name in ("bentoml", "onnxruntime", "starlette", "uvicorn")
    )
    print(f"{platform.machine()}, Python {platform.python_version()}, {versions}; client: {client.NAME}")
    with tempfile.TemporaryDirectory() as temporary:
        for case in chosen:
            print(f"\n## {case}")
            if case == "batches":
                for path in [model] if model else [model_path(name, "onnx") for name in BUNDLED]:
                    largest_batch.batches(_plan(seconds, rounds, threads, path), path)
                continue
            path = model or _made(
                "resnet18" if case in ("rate", "overload") else "resnet-small", models, temporary
            )
            plan = _plan(seconds, rounds, threads, path)
            match case:
                case "rate":
                    speed.rate(plan, path)
                case "rivals":
                    speed.rivals(plan, path, env)
                case "layers":
                    speed.layers(plan, path)
                case "soak":
                    endurance.soak(plan, path, requests)
                case "overload":
                    endurance.overload(plan, path, 5 * seconds)
                case "start":
                    endurance.start(plan, path)


def _plan(seconds: float, rounds: int, threads: int, path: Path) -> Plan:
    return Plan(seconds, rounds, threads, Predictor(path, device="cpu", threads=1).spec.image_size)


def _made(network: str, models: Path | None, temporary: str) -> Path:
    from serving.models import make_model

    folder = models or Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    return make_model(network, folder).resolve()


if __name__ == "__main__":
    main()
