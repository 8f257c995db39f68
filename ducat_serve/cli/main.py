"""The `ducat` command: one group whose commands are imported only when they run."""

from __future__ import annotations

import importlib
import io
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import click
from click.shell_completion import CompletionItem

from ducat_serve import __version__
from ducat_serve.cli.help_formatter import HelpFormatter
from ducat_serve.cli.manner_options import manner_options
from ducat_serve.errors import EXTRAS, DucatError, Terminated, missing_extra
from ducat_serve.threads import prepare_threads

# Name -> short help; the command itself is `command` in ducat_serve/cli/commands/<name>.py.
COMMANDS = {
    "train": "Train a robust classifier and write a run folder.",
    "recipes": "List, show and copy the settings that `ducat train` starts from.",
    "runs": "List training runs: state, epoch, accuracies.",
    "import": "Make a checkpoint of a network that others have trained.",
    "mix": "Put an accurate and a robust model together, with a switch between them.",
    "evaluate": "Measure clean and robust accuracy of the deployed function.",
    "compare": "Compare the measured robustness of models, with a plot.",
    "export": "Export a checkpoint to ONNX, checked against torch.",
    "predict": "Predict image files with a .onnx or .safetensors model.",
    "sign": "Sign a model file with a private key.",
    "verify": "Check the signature of a model file with a public key.",
    "benchmark": "Measure how fast .onnx models answer here.",
    "serve": "Serve a .onnx model over HTTP.",
    "bento": "Pack a .onnx model and the service into a Bento.",
    "inspect": "Show what a model file says about itself.",
    "models": "List the trained models that come with the package.",
    "datasets": "List the data sets.",
    "networks": "List the networks.",
    "doctor": "Check this machine and installation.",
    "demo": "Train, evaluate, export, serve and predict on an embedded data set.",
}


_WITHOUT_TORCH = ("serve", "bento")

click.Context.formatter_class = HelpFormatter  # of every command, wherever it is defined


@dataclass(frozen=True)
class Invocation:
    """How `ducat` was called: its arguments, and the environment as the user has it."""

    arguments: list[str]
    environment: dict[str, str]


class LazyGroup(click.Group):
    """Lists commands from a table, so that `ducat --help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"ducat_serve.cli.commands.{name}").command
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands without importing the commands, as a shell waits for them."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(n, help=text) for n, text in COMMANDS.items() if n.startswith(incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from ducat_serve.errors import unknown_name

            raise unknown_name("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DUCAT"}
)
@click.version_option(__version__, prog_name="ducat")
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback when a command fails.")
@click.option("--json", is_flag=True, help="Print one JSON document on stdout.")
@manner_options
@click.pass_context
def cli(ctx: click.Context, json: bool) -> None:
    """Robust image classifiers that can be deployed (DUCAT, arXiv 2410.12671).

    Every option also reads an environment variable, DUCAT_<COMMAND>_<OPTION>, and a TOML file given with
    --config (a table per command). A flag wins over the environment, the environment over the file.

    Results go to stdout, everything else to stderr.

    \b
    Example:
      ducat train --dataset digits --out runs/digits
      ducat evaluate runs/digits
      ducat export runs/digits --onnx
      ducat serve runs/digits/model.onnx
    """
    from ducat_serve.output import manner

    ctx.with_resource(manner(as_json=json))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run a command and turn every failure into one paragraph and the right exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that a terminal's encoding does not have
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(arguments))


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """By itself SIGTERM ends a process on the spot, and temporary files stay behind."""
    raise Terminated


def run(arguments: Sequence[str]) -> int:
    """Run `ducat ARGUMENTS` and return its exit code."""
    command = next((word for word in arguments if word in COMMANDS), "")
    debug = "--debug" in itertools.takewhile(lambda word: word != command, arguments) or _is_set(
        "DUCAT_DEBUG"
    )
    as_json = "--json" in arguments or _is_set("DUCAT_JSON") or _is_set(f"DUCAT_{command.upper()}_JSON")
    invocation = Invocation(list(arguments), dict(os.environ))
    if command not in _WITHOUT_TORCH:
        prepare_threads()
    try:
        code = cli.main(args=list(arguments), prog_name="ducat", standalone_mode=False, obj=invocation)
        return code if isinstance(code, int) else 0
    except DucatError as error:
        if debug:
            traceback.print_exc()
        _report(error.cause, error.next_step, error.exit_code, as_json)
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ducat"
        _report(error.format_message(), f"{command} --help", error.exit_code, as_json)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _report("interrupted", None, 130, as_json)
        return 130
    except Terminated:
        _report("interrupted", None, 143, as_json)
        return 143
    except BrokenPipeError:  # `ducat runs | head`: whoever read has enough; rich ends alike
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
            missing = missing_extra(error.name, EXTRAS[error.name])
            _report(missing.cause, missing.next_step, missing.exit_code, as_json)
            return missing.exit_code
        _report(
            f"{type(error).__name__}: {error}",
            "run it again as `ducat --debug ...` and report it",
            1,
            as_json,
        )
        return 1


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def _report(cause: str, next_step: str | None, exit_code: int, as_json: bool) -> None:
    from ducat_serve.output import Output

    output = Output(as_json)
    output.fail(cause, next_step)
    output.result({"error": {"message": cause, "next": next_step, "exit_code": exit_code}})
