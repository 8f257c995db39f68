"""Loading files that may never end, or end the process: a mount that hangs, a graph that computes for hours.

While models are served, a new file is first loaded in a process of its own, which is killed at the deadline. What then
still can wait for ever in the server waits in a thread that keeps nothing else from ending.

    python -P -m service.models.verification FILE     (settings in DUCAT_SERVE_... variables)
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from ducat_serve.errors import DucatError, VerificationError
from service.child_process import child_environment, close_inherited_files
from service.models.served import load
from service.settings import PREFIX, Settings

LOAD_SECONDS = 120.0
_COMMAND = (sys.executable, "-P", "-m", "service.models.verification")
_LAST = 500  # characters of what the process says

P = ParamSpec("P")
T = TypeVar("T")


async def verify_apart(file: Path, settings: Settings) -> None:
    """Load, verify and warm up ``file`` in another process; to cancel it kills that process.

    Raises VerificationError where it is refused there, or the process dies.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
        **child_environment(),
        f"{PREFIX}MODEL": str(file),
        f"{PREFIX}DEVICE": settings.device,
        f"{PREFIX}MAX_BATCH": str(settings.max_batch),
    }
    if settings.threads is not None:
        environment[f"{PREFIX}THREADS"] = str(settings.threads)
    if settings.require_signature is not None:
        environment[f"{PREFIX}REQUIRE_SIGNATURE"] = str(settings.require_signature)
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        env=environment,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        _, says = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        reason = says.decode(errors="replace").strip()[-_LAST:]
        raise VerificationError(reason or f"loading it ended a process with {process.returncode}")


async def in_daemon_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that may never return. Cancelled, it is left behind; the process can end all the same."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, error = None, None
        try:
            result = function(*args, **kwargs)
        except BaseException as caught:
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=work, name="load", daemon=True).start()
    return await future


def main() -> int:
    """Load the model that the settings name; returns the exit code."""
    close_inherited_files()
    settings = Settings.from_environment()
    try:
        load(settings.model, settings)
    except DucatError as error:
        print(error.cause, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
