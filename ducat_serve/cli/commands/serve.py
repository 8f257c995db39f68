"""`ducat serve`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ducat_serve.cli.headings import CommandWithHeadings, heading
from ducat_serve.cli.manner_options import Function
from ducat_serve.cli.on_the_fly import exported
from ducat_serve.cli.options import FiniteRange, ModelPath, common, device_option
from ducat_serve.cpu import overflow_warning
from ducat_serve.errors import DataError, UsageError, VerificationError, command_line, missing_extra
from ducat_serve.output import Output
from service.settings import Settings

_AUTO_SECONDS = 3.0


def _setting(option: str, kind: click.ParamType[Any], text: str) -> Callable[[Function], Function]:
    """An option whose default is that of the service's setting of the same name."""
    default = Settings.model_fields[option.removeprefix("--").replace("-", "_")].default
    return click.option(option, type=kind, default=default, show_default=True, help=text)


@click.command("serve", cls=CommandWithHeadings)
@click.argument("model", type=ModelPath("onnx"))
@heading("Address and model")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="IP address; 0.0.0.0 for every interface."
)
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option(
    "--name",
    help="Of the model, in addresses, metrics and logs; for one model.  [default: its file's, so mostly 'model']",
)
@click.option(
    "--require-signature",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PUBKEY",
    help="A public key (PEM): only models that its owner signed are loaded, now and later (`ducat sign`).  "
    "[default: none asked for]",
)
@heading("Speed")
@device_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="CPU threads of one inference.  [default: all cores, or the CPU quota]",
)
@_setting("--max-batch", click.IntRange(1, 1024), "Rows of one inference.")
@_setting("--decoders", click.IntRange(1, 64), "Processes that decode images, one each at a time.")
@click.option(
    "--auto",
    is_flag=True,
    help="Measure for a few seconds first, and choose --threads and --max-batch where they are not given.",
)
@heading("Limits")
@_setting("--max-queue", click.IntRange(min=1), "Rows waiting; more get 429.")
@_setting("--deadline", FiniteRange(min=0, min_open=True), "Seconds until 504.")
@_setting("--max-body", click.IntRange(min=1024), "Bytes of a request.")
@_setting("--max-images", click.IntRange(min=1), "Images of a request.")
@_setting("--max-pixels", click.IntRange(min=64), "Pixels of an image before resizing.")
@heading("Clients")
@click.option(
    "--keys-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="API keys, a NAME:KEY per line, read again when it changes. Also: DUCAT_SERVE_API_KEYS.  [default: no keys]",
)
@click.option(
    "--rate",
    type=FiniteRange(min=0, min_open=True),
    help="Images per second and key; more get 429.  [default: no limit]",
)
@click.option(
    "--daily-budget",
    type=click.IntRange(min=1),
    help="Images per day (UTC) and key; more get 429.  [default: no limit]",
)
@click.option(
    "--allowed-hosts",
    help="Names, separated by commas, for which a request may ask (its Host header), as behind a proxy; '*' for any.  "
    "[default: any; without keys on a loopback address that address's names]",
)
@click.option(
    "--cors-origin",
    multiple=True,
    metavar="ORIGIN",
    help="An origin whose pages may ask, such as https://app.example; repeatable.  [default: none]",
)
@heading("Connections")
@_setting(
    "--keep-alive",
    FiniteRange(min=0, min_open=True),
    "Seconds that a connection is kept between two requests: longer than a proxy in front keeps it.",
)
@_setting("--drain", FiniteRange(min=0), "Seconds of service after SIGTERM, while /readyz says no.")
@heading("Page")
@click.option(
    "--samples",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder whose images the page offers to everyone, the first 12 by name.  [default: none]",
)
@click.option(
    "--attack-demo",
    is_flag=True,
    help="Let the page attack the model with up to 1,000 questions of one image, while no prediction waits.",
)
@heading("Logs")
@click.option(
    "--access-log", is_flag=True, help="Log every request, not only those that were refused or failed."
)
@click.option(
    "--audit-log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A line of JSON for every prediction, with the SHA-256 of its image; none is made where none can be written.  "
    "[default: none]",
)
@heading("All commands")
@common
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: Path,
    host: str,
    port: int,
    auto: bool,
    json: bool,
    cors_origin: tuple[str, ...],
    **given: Any,
) -> None:
    """Serve MODEL over HTTP with BentoML, until SIGTERM or Ctrl-C; SIGHUP reads it again.

    MODEL is a model.onnx, a folder with one, a bundled model (`ducat models`), or a model repository: a folder with
    NAME/VERSION/model.onnx. A model.safetensors, or a run folder without a model.onnx, is exported first, beside it;
    an export that is there already is served if it has the same weights.

    \b
    Example:
      ducat serve model.onnx --port 3000
      ducat serve digits-small
      ducat serve model-int8.onnx --auto
      curl -F image=@photo.jpg http://127.0.0.1:3000/v1/predict
    """
    host = host.removeprefix("[").removesuffix("]")  # an IPv6 address as in a URL
    output = Output(json)
    # Links are followed when a file is read, not now: they may lead to another file at the next reload.
    path = exported(model, output, given["require_signature"]).absolute()
    settings = {
        **given,
        "model": path,
        "host": host,
        "cors_origins": ",".join(cors_origin) or None,
    }
    if auto:
        bounds = (
            given["threads"],
            None if ctx.get_parameter_source("max_batch") is ParameterSource.DEFAULT else given["max_batch"],
        )
        settings["threads"], settings["max_batch"] = _measured(
            path,
            given["name"],
            given["device"],
            bounds,
            given["deadline"],
            given["require_signature"],
            output,
        )
    variables = {
        f"DUCAT_SERVE_{name.upper()}": str(value.absolute() if isinstance(value, Path) else value)
        for name, value in settings.items()
        if value is not None
    }
    names = _check(path, given["device"], variables, output)
    from service.server.process import bind, ignore_sighup

    bind(host, port).close()
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    environment = {**os.environ, **variables}
    environment["BENTOML_DO_NOT_TRACK"] = "True"
    output.say(f"Serving {', '.join(names)} on {url} (page at /, POST /v1/predict); Ctrl-C stops it.")
    output.result_line({"model": str(path), "names": names, "url": url})
    ignore_sighup()
    # The server takes this process's place, so signals reach it and nothing of the check above stays in memory.
    # -P: a service.py in the current directory must not shadow ours.
    server = [sys.executable, "-P", "-m", "service.server.process", "--host", host, "--port", str(port)]
    os.execve(sys.executable, server, environment)


def _measured(
    path: Path,
    name: str | None,
    device: str,
    given: tuple[int | None, int | None],
    deadline: float,
    public_key: Path | None,
    output: Output,
) -> tuple[int, int]:
    """The threads and the largest batch that a short measurement proposes; what is ``given`` stays."""
    from ducat_serve.benchmark import BATCHES, inferences, measure, proposals, thread_counts
    from service.models.repository import Repository

    files = [file for versions in Repository(path, name).find().values() for file in versions.values()]
    if len(files) != 1:
        raise UsageError(
            f"--auto chooses for one model, and {path} holds {len(files)}.",
            "ducat benchmark each of them, and give --threads and --max-batch",
        )
    threads, max_batch = given
    runs = inferences(
        files,
        device,  # type: ignore[arg-type]
        (threads,) if threads else thread_counts(),
        (max_batch,) if max_batch else BATCHES,
        public_key=public_key,
    )
    timings = measure(runs, _AUTO_SECONDS)
    # The server takes the GPU where it works, so its proposal counts there; it was measured last.
    proposal = proposals(timings, deadline)[-1]
    output.say(
        f"--auto: {proposal.threads} threads and batches of at most {proposal.max_batch}, by "
        f"{len(timings)} configurations ({proposal.timing.images_per_second:,.0f} images/s, a full batch in "
        f"{1000 * proposal.timing.latency(50):.1f} ms)."
    )
    return proposal.threads, proposal.max_batch


def _check(path: Path, device: str, variables: dict[str, str], output: Output) -> list[str]:
    """Find out now, and with the right exit code, what would otherwise fail in the server's log.

    Returns the names of the models.
    """
    import importlib.util

    from ducat_serve.predictor import Predictor
    from ducat_serve.signature import read_public_key

    if importlib.util.find_spec("bentoml") is None:
        raise missing_extra("bentoml", "serve")
    from service.middleware.api_keys import Keys
    from service.middleware.cors_origins import read_origins
    from service.middleware.host_check import names_to_check
    from service.models.repository import Repository
    from service.page.samples import read_samples
    from service.server.server import require_connections
    from service.telemetry.audit import AuditLog
    from service.telemetry.tracing import Tracing

    require_connections()
    settings = Settings.from_environment({**os.environ, **variables})
    Keys(settings.keys_file, settings.api_keys, settings.admin_key)
    names_to_check(settings)
    if settings.require_signature is not None:
        read_public_key(settings.require_signature)
    if settings.cors_origins is not None:
        read_origins(settings.cors_origins)
    if settings.audit_log is not None:
        AuditLog(settings.audit_log).close()
    if (samples := read_samples(settings.samples)).left_out:
        output.warn(
            f"the page offers the first {len(samples.images)} of the {len(samples.images) + samples.left_out} images "
            f"in {settings.samples}, by name."
        )
    Tracing.from_environment()
    found = Repository(path, settings.name).find()
    files = [file for versions in found.values() for file in versions.values()]
    for file in files:
        try:
            spec = Predictor(file, device=device, threads=1, public_key=settings.require_signature).spec  # type: ignore[arg-type]
        except (DataError, VerificationError) as error:
            if len(files) > 1:
                aside = command_line("mv", file.parent, file.parent.with_name(f"{file.parent.name}.bad"))
                error.next_step = f"{aside} serves the others without it; to mend it: {error.next_step}"
            raise
        if (warning := overflow_warning(spec)) is not None:
            output.warn(f"{file}: {warning}")
    return list(found)
