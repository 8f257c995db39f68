"""Processes that decode images: the same pixels as in this process, and no image that can stop them for good."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ducat_serve.images import ImageError, decode, fit, to_array
from ducat_serve.predictor import Predictor
from ducat_serve.spec import ModelSpec
from service.decoding.decoders import Decoders, DecoderUnavailable
from tests.support.decoders import COMPUTING, DYING, SILENT

pytestmark = pytest.mark.integration

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def spec(predictor: Predictor) -> ModelSpec:
    return predictor.spec


def encode(format: str, width: int = 40, height: int = 24, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def run(
    scenario: Callable[[Decoders], Coroutine[Any, Any, None]],
    command: Sequence[str] | None = None,
    count: int = 1,
) -> None:
    async def whole() -> None:
        decoders = Decoders(count) if command is None else Decoders(count, command)
        try:
            async with asyncio.timeout(60):
                await scenario(decoders)
        finally:
            await decoders.stop()

    asyncio.run(whole())


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_pixels_are_those_of_the_decoder_itself(spec: ModelSpec) -> None:
    files = [encode(format) for format in ("PNG", "JPEG", "WEBP", "BMP")] * 3

    async def scenario(decoders: Decoders) -> None:
        arrays = await asyncio.gather(*(decoders.decode(file, spec, MAX_PIXELS) for file in files))
        for file, array in zip(files, arrays, strict=True):
            expected = to_array(fit(decode(file), spec.image_size), spec.channels)
            np.testing.assert_array_equal(array, expected)

    run(scenario, count=2)


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "invalid_image"), (b"no image", "invalid_image"), (encode("PNG", 1200, 1000), "image_too_large")],
)
def test_refusals_are_those_of_the_decoder_itself(data: bytes, code: str, spec: ModelSpec) -> None:
    with pytest.raises(ImageError) as expected:
        decode(data, MAX_PIXELS)

    async def scenario(decoders: Decoders) -> None:
        with pytest.raises(ImageError) as refused:
            await decoders.decode(data, spec, MAX_PIXELS)
        assert (refused.value.code, str(refused.value)) == (code, str(expected.value))
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)  # by the same process

    run(scenario)


def test_a_process_that_does_not_answer_is_killed_once_nobody_waits_for_it(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.decoding.decoders.STUCK_SECONDS", 0.4)

    async def scenario(decoders: Decoders) -> None:
        await decoders.start()
        (stuck,) = children()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        assert children() == {stuck}, "it may still finish"
        while psutil.pid_exists(stuck):
            await asyncio.sleep(0.01)
        await decoders.start()
        assert children().isdisjoint({stuck})

    run(scenario, SILENT)


def test_a_deadline_shorter_than_a_start_does_not_end_the_start(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        (starting,) = children()
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        assert children() == {starting}

    run(scenario)


def test_a_process_that_dies_costs_one_image(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        for _ in range(2):
            with pytest.raises(ImageError, match="its decoder ended") as refused:
                await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
            assert refused.value.code == "invalid_image"

    run(scenario, DYING)


def test_an_image_that_takes_too_much_cpu_time_is_told_so(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        with pytest.raises(ImageError, match="takes longer to decode than any sound one") as refused:
            await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        assert refused.value.code == "image_too_slow"
        assert decoders.seconds_for(1) == 0, "it says nothing of how long others take"

    run(scenario, COMPUTING)


def test_time_is_bounded_for_each_image_and_by_its_pixels(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        for max_pixels, seconds in ((MAX_PIXELS, 5), (100_000_000, 20)):
            await decoders.decode(encode("PNG"), spec, max_pixels)
            (process,) = children()
            limits = Path(f"/proc/{process}/limits").read_text()
            (soft,) = (line.split()[3] for line in limits.splitlines() if line.startswith("Max cpu time"))
            taken = sum(psutil.Process(process).cpu_times()[:2])
            assert seconds <= int(soft) <= seconds + taken + 1

    run(scenario)


def test_one_that_ended_between_two_images_is_replaced(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        (process,) = children()
        os.kill(process, 9)
        while psutil.pid_exists(process):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)

    run(scenario)


def test_one_that_cannot_start_is_not_the_image_s_fault_and_is_tried_again(
    spec: ModelSpec, tmp_path: Path
) -> None:
    program = tmp_path / "decoder"

    async def scenario(decoders: Decoders) -> None:
        for says in ("No such file", "no memory left"):
            with pytest.raises(DecoderUnavailable, match=says):
                await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
            assert decoders.do_not_start
            program.write_text("#!/bin/sh\necho no memory left >&2\n")
            program.chmod(0o755)
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -P -m service.decoding.worker\n")
        program.chmod(0o755)
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        assert not decoders.do_not_start

    run(scenario, (str(program),))


def test_where_none_starts_it_is_tried_again_without_an_image(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sends one to a server that is not ready."""
    monkeypatch.setattr("service.decoding.decoders.RETRY_SECONDS", 0.05)
    program, script = tmp_path / "decoder", tmp_path / "script"
    script.write_text(f"#!/bin/sh\nexec {sys.executable} -P -m service.decoding.worker\n")
    script.chmod(0o755)

    async def scenario(decoders: Decoders) -> None:
        with pytest.raises(DecoderUnavailable):
            await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        await asyncio.sleep(0.2)
        assert decoders.do_not_start
        script.rename(program)
        while decoders.do_not_start:
            await asyncio.sleep(0.01)

    run(scenario, (str(program),))


def test_packages_are_found_where_the_server_finds_them(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `pip install --target` and modules of a cluster; keys in the environment stay out of it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DUCAT_SERVE_ADMIN_KEY", 32 * "k")
    (tmp_path / "found_here.py").write_text("")
    program = tmp_path / "decoder"
    code = "import os, found_here; assert not any('KEY' in n for n in os.environ)"
    program.write_text(
        f'#!/bin/sh\n{sys.executable} -P -c "{code}" && exec {sys.executable} -P -m service.decoding.worker\n'
    )
    program.chmod(0o755)

    async def scenario(decoders: Decoders) -> None:
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)

    run(scenario, (str(program),))


@pytest.mark.parametrize("answer", ["ANSWER.pack(bytes(16), True, 192)", "ANSWER.pack(number, True, 2**40)"])
def test_an_answer_to_no_request_is_not_taken(spec: ModelSpec, answer: str) -> None:
    """A process that an image has taken over might answer the next one in advance, or without end."""
    code = (
        "import sys; from service.decoding.protocol import *; print(end='+', flush=True); "
        "number = sys.stdin.buffer.read(16); "
        f"sys.stdout.buffer.write({answer} + bytes(192)); sys.stdout.flush(); sys.stdin.buffer.read()"
    )

    async def scenario(decoders: Decoders) -> None:
        with pytest.raises(ImageError, match="its decoder ended"):
            await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        await decoders.stop()
        assert children() == set()

    run(scenario, (sys.executable, "-P", "-c", code))


def test_a_decoder_ends_with_a_server_that_is_killed() -> None:
    child = (
        "from service.decoding.worker import _end_with_the_server as end; import time; end(); "
        "print('+', flush=True); time.sleep(600)"
    )
    server = (
        "import os, subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "child.stdout.read(1); print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", server], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -9
    pid = int(done.stdout)
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


def test_it_knows_no_key_and_writes_no_file(
    spec: ModelSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DUCAT_SERVE_ADMIN_KEY", "a-key-of-the-server-itself")

    async def scenario(decoders: Decoders) -> None:
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        (process,) = children()
        assert b"a-key-of-the-server-itself" not in Path(f"/proc/{process}/environ").read_bytes()
        limits = Path(f"/proc/{process}/limits").read_text()
        assert [line.split()[3] for line in limits.splitlines() if line.startswith("Max file size")] == ["0"]

    run(scenario)


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_it_gains_no_rights(spec: ModelSpec) -> None:
    async def scenario(decoders: Decoders) -> None:
        await decoders.start()
        (process,) = children()
        assert "NoNewPrivs:\t1" in Path(f"/proc/{process}/status").read_text()

    run(scenario)


def test_memory_is_bounded(spec: ModelSpec) -> None:
    """The bound on pixels refuses this image first, so it is only told of a bound that is far too small for it."""

    async def scenario(decoders: Decoders) -> None:
        await decoders.decode(encode("PNG"), spec, MAX_PIXELS)
        (process,) = children()
        limits = Path(f"/proc/{process}/limits").read_text()
        (soft,) = (line.split()[3] for line in limits.splitlines() if line.startswith("Max address space"))
        assert soft != "unlimited"
        assert int(soft) < psutil.Process(process).memory_info().vms + 200 * 2**20

    run(scenario)


def test_warnings_of_a_file_are_not_written(spec: ModelSpec, capfd: pytest.CaptureFixture[str]) -> None:
    info = PngInfo()
    for number in range(50):
        info.add(b"acTL", bytes(8), after_idat=number % 2 == 0)

    async def scenario(decoders: Decoders) -> None:
        await decoders.decode(encode("PNG", pnginfo=info), spec, MAX_PIXELS)

    run(scenario)
    assert capfd.readouterr().err == ""
