"""The `ducat` command: one group whose commands are imported only when they run."""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import itertools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.shell_completion import CompletionItem

from ducat_serve import __version__
from ducat_serve.cli.bad_values import explained
from ducat_serve.cli.help_formatter import HelpFormatter
from ducat_serve.cli.manner_options import manner_options
from ducat_serve.errors import EXTRAS, DataError, DucatError, Terminated, command_line, missing_extra
from ducat_serve.threads import prepare_threads

# Name -> short help, by what one wants; the command itself is `command` in ducat_serve/cli/commands/<name>.py.
_SECTIONS = {
    "From images to predictions": {
        "train": "Train a robust classifier and write a run folder.",
        "evaluate": "Measure clean and robust accuracy of the deployed function.",
        "export": "Export a checkpoint to ONNX, checked against torch.",
        "serve": "Serve a .onnx model over HTTP.",
        "predict": "Predict image files with a .onnx or .safetensors model.",
        "demo": "Do all of that once, on images that come with scikit-learn.",
    },
    "What there is": {
        "models": "List the trained models that come with the package.",
        "recipes": "List, show and copy the settings that `ducat train` starts from.",
        "datasets": "List the data sets.",
        "networks": "List the networks.",
        "runs": "List training runs: state, epoch, accuracies.",
    },
    "Other models": {
        "import": "Make a checkpoint of a network that others have trained.",
        "mix": "Join an accurate and a robust model by a switch.",
    },
    "Model files": {
        "inspect": "Show what a model file says about itself.",
        "compare": "Compare the measured robustness of models, with a plot.",
        "benchmark": "Measure how fast .onnx models answer here.",
        "sign": "Sign a model file with a private key.",
        "verify": "Check the signature of a model file with a public key.",
        "bento": "Pack a .onnx model and the service into a Bento.",
    },
    "This machine": {"doctor": "Check this machine and installation."},
}
COMMANDS = {name: text for commands in _SECTIONS.values() for name, text in commands.items()}
# What other tools call it.
_ELSEWHERE = {
    "classify": "ducat predict",
    "convert": "ducat export",
    "eval": "ducat evaluate",
    "finetune": "ducat train --pretrained",
    "fit": "ducat train",
    "infer": "ducat predict",
    "info": "ducat inspect",
    "quantize": "ducat export --precision int8",
    "test": "ducat evaluate",
    "val": "ducat evaluate --split val",
}
_OPTIONS_ELSEWHERE = {
    "--amp": "--precision bfloat16",
    "--data": "--dataset",
    "--epsilon": "--eps",
    "--format": "--onnx",
    "--fp16": "--precision float16",
    "--half": "--precision float16",
    "--imgsz": "--image-size",
    "--int8": "--precision int8",
    "--learning-rate": "--lr",
    "--model": "--network",
    "--opt": "--optimizer",
    "--sched": "--schedule",
    "--weights": "--initial-checkpoint",
    "--workers": "--threads",
}


_WITHOUT_TORCH = ("serve", "bento")

click.Context.formatter_class = HelpFormatter  # of every command, wherever it is defined


@dataclass
class Invocation:
    """How `ducat` was called: its arguments, and the environment as the user has it.

    ``as_json`` is whether errors are JSON documents too: known for sure only once the options have been read.
    """

    arguments: list[str]
    environment: dict[str, str]
    as_json: bool

    def with_flag(self, flag: str) -> str:
        """The command line that was typed, with one more flag; right behind the command, where no `--` ends flags."""
        words = ["ducat", *self.arguments]
        if flag not in words:
            words.insert(next(place for place, word in enumerate(words) if word in COMMANDS) + 1, flag)
        return command_line(*words)


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
            from ducat_serve.errors import UsageError, unknown_name

            if args[0] in _ELSEWHERE:
                raise UsageError(f"There is no command '{args[0]}'.", _ELSEWHERE[args[0]])
            raise unknown_name("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Of Ctrl-C click would print a blank line on stderr, which is no event of `--json`."""
        try:
            return super().invoke(ctx)
        except (EOFError, KeyboardInterrupt) as stopped:
            if not ctx.obj.as_json:
                raise
            raise click.Abort from stopped

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, COMMANDS))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), text) for name, text in commands.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DUCAT"}
)
@click.version_option(__version__, prog_name="ducat")
@click.option("--debug", is_flag=True, expose_value=False, help="Show a traceback when a command fails.")
@manner_options
def cli(json: bool) -> None:
    """Robust image classifiers that can be deployed (DUCAT, arXiv 2410.12671).

    Every option also reads an environment variable, DUCAT_<COMMAND>_<OPTION>, and a TOML file given with
    --config (a table per command). A flag wins over the environment, the environment over the file.

    Results go to stdout, everything else to stderr.

    \b
    Example:
      ducat train --dataset digits --ducat off --out runs/digits
      ducat evaluate runs/digits
      ducat export runs/digits --onnx
      ducat serve runs/digits/model.onnx
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run a command and turn every failure into one paragraph and the right exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # `>&-` leaves None in their place; and a file that is opened next would get their number, and what is printed.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that a terminal's encoding does not have
            stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = _show_warning
    sys.exit(run(arguments))


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """By itself SIGTERM ends a process on the spot, and temporary files stay behind."""
    raise Terminated


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """What libraries warn of is for who develops with them; with `-v` it is said, in the form of all else."""
    from ducat_serve.output import Output

    Output().detail(f"{category.__name__}: {message}")


def run(arguments: Sequence[str]) -> int:
    """Run `ducat ARGUMENTS` and return its exit code."""
    command = next((word for word in arguments if word in COMMANDS), "")
    debug = "--debug" in itertools.takewhile(lambda word: word != command, arguments) or _is_set(
        "DUCAT_DEBUG"
    )
    invocation = Invocation(list(arguments), dict(os.environ), _asks_for_json(command, arguments))
    if command not in _WITHOUT_TORCH:
        prepare_threads()
    try:
        # In a context of its own, since --json and its like hold for this call alone.
        code = copy_context().run(
            cli.main, args=list(arguments), prog_name="ducat", standalone_mode=False, obj=invocation
        )
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # `ducat runs | head`: whoever read has enough; rich ends alike
        _drop_stdout()
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if debug and not isinstance(
            error, (click.ClickException, click.Abort, KeyboardInterrupt, Terminated)
        ):
            traceback.print_exc()
        failure = _failure(error)
        _report(failure, invocation.as_json)
        return failure.exit_code


def _asks_for_json(command: str, arguments: Sequence[str]) -> bool:
    """What can be told before the options are read, for errors that come before."""
    prefixes = ["DUCAT", f"DUCAT_{command}", *(f"DUCAT_{command}_{word}" for word in arguments)]
    return "--json" in arguments or any(_is_set(f"{prefix.upper()}_JSON") for prefix in prefixes)


def _is_set(variable: str) -> bool:
    """Whether click takes the variable of a flag for yes."""
    return bool(click.BOOL.str_to_bool(os.environ.get(variable, "")))


def _failure(error: BaseException) -> DucatError:
    """What is said of an error, and the exit code for it."""
    if isinstance(error, DucatError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return missing_extra(error.name, EXTRAS[error.name])
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DucatError(f"Cannot write: {error.strerror}.", "free some space, or write to another disk")
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return DataError(
            f"Cannot read or write {error.filename}: {error.strerror}.", "see who may, and as whom this runs"
        )
    if isinstance(error, click.ClickException):
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "ducat"
        ours = _here(error)
        if isinstance(error, click.NoSuchOption) and ours is not None:
            return _ended(
                error.exit_code,
                f"No such option: {error.option_name}. Here it is {ours}.",
                f"{command} --help",
            )
        cause = explained(error) if isinstance(error, click.BadParameter) else error.format_message()
        return _ended(error.exit_code, cause, f"{command} --help")
    if isinstance(error, Terminated):
        return _ended(143, "interrupted")
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return _ended(130, "interrupted")
    return _ended(1, f"{type(error).__name__}: {error}", "run it again as `ducat --debug ...` and report it")


def _here(error: click.ClickException) -> str | None:
    """What an option of other tools is called here, where the command has that."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return None
    ours = _OPTIONS_ELSEWHERE.get(error.option_name)
    known = {name for parameter in error.ctx.command.params for name in parameter.opts}
    return ours if ours is not None and ours.partition(" ")[0] in known else None


def _ended(exit_code: int, cause: str, next_step: str | None = None) -> DucatError:
    failure = DucatError(cause, next_step)
    failure.exit_code = exit_code
    return failure


def _report(failure: DucatError, as_json: bool) -> None:
    """Say why on stderr, and under `--json` on stdout; neither may be writable any more."""
    from ducat_serve.output import Output

    output = Output(as_json)
    with contextlib.suppress(OSError):
        output.fail(failure.cause, failure.next_step)
    document = {"message": failure.cause, "next": failure.next_step, "exit_code": failure.exit_code}
    try:
        output.result({"error": document})
        sys.stdout.flush()
    except OSError:
        _drop_stdout()


def _drop_stdout() -> None:
    """What could not be written would be tried again at the end of the process, and be its error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
