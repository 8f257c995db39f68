"""What the processes that the server starts have open of it: nothing, under any event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from service.decoding.decoders import Decoders
from service.models import verification
from service.models.verification import verify_apart
from service.settings import Settings
from tests.support.http_client import WAIT

pytestmark = pytest.mark.integration
STANDARD = {"0", "1", "2"}
# Does all that comes before the file is read, and reads none.
WAITING = (
    sys.executable,
    "-P",
    "-c",
    "import time; from service.models import verification; "
    "verification.load = lambda *_: time.sleep(600); verification.main()",
)


@pytest.fixture(autouse=True)
def inheritable() -> Iterator[None]:
    """A file and a listening socket that a new process has, where nobody closes them."""
    with tempfile.TemporaryFile() as file, socket.create_server(("127.0.0.1", 0)) as listening:
        for number in (file.fileno(), listening.fileno()):
            os.set_inheritable(number, True)
        yield


def run(loop: Callable[[], asyncio.AbstractEventLoop], scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(scenario, 2 * WAIT))


def open_in_child() -> set[str]:
    """The numbers of the files that are open in the one child of this process."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(OSError):
            found |= {entry.name for entry in Path(f"/proc/{child.pid}/fd").iterdir()}
    return found


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_decoder_has_no_file_of_the_server(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        decoders = Decoders(1)
        try:
            await decoders.start()
            assert open_in_child() == STANDARD
        finally:
            await decoders.stop()

    run(loop, scenario())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_verifies_a_new_file_has_none_either(
    loop: Callable[[], asyncio.AbstractEventLoop], onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_COMMAND", WAITING)

    async def scenario() -> None:
        verifying = asyncio.create_task(verify_apart(onnx_model, Settings(model=onnx_model)))
        try:
            async with asyncio.timeout(WAIT):
                while open_in_child() != STANDARD:
                    assert not verifying.done()
                    await asyncio.sleep(0.05)
        finally:
            verifying.cancel()
            async with asyncio.timeout(WAIT):  # it is listed until its end was seen
                while psutil.Process().children():
                    await asyncio.sleep(0.01)

    run(loop, scenario())
