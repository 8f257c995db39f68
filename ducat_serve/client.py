"""A client for `ducat serve`, synchronous and asynchronous, that waits when the server asks it to.

>>> with Client("http://127.0.0.1:3000", key="...") as client:
...     client.predict(["photo.jpg", "other.png"])
[{"label": "cat", "class_id": 3, "confidence": 0.9, "top_k": [...], "dummy_mass": 0.01}, {...}]
"""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from ducat_serve.errors import DucatError, UsageError
from ducat_serve.regular_file import read_regular_file

Image = str | Path | bytes | bytearray | memoryview
_T = TypeVar("_T", list[Image], NDArray[np.uint8])
_KEY = re.compile(r"[!-~]+")  # what a header carries as it is
_BYTES = (bytes, bytearray, memoryview)
_RETRIED = (429, 503)
_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
# Where nothing has ever answered, the address is more likely wrong than the server away.
_RETRIES_OF_A_STRANGER = 3
_FIRST_WAIT = 0.5  # seconds; doubled with each retry where the server names no time


class ServerError(DucatError):
    """The server refused, failed or answered something else; ``status`` and ``code`` are those of its answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({status} {code})")
        self.status, self.code = status, code


class _Base:
    """What both clients share: how a request is made, when it is sent again, what an answer means."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        version: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        max_wait: float = 30.0,
        top_k: int | None = None,
        at_once: int = 100,
    ) -> None:
        """
        Args:
            url: of the server, such as http://127.0.0.1:3000.
            key: API key, where the server asks for one.
            model: name, where the server has several. version: of that model, instead of its newest.
            timeout: seconds without a byte from the server, in one attempt.
            retries: how often a request is sent again after 429, 503 or a lost connection. Not after a timeout: the
                server may be working on it, and would charge it again. At most 3 times before the first answer of all,
                so that a wrong address is found out in seconds.
            max_wait: seconds of the longest pause; where the server asks for a longer one (a budget that is spent), it
                is an error.
            top_k: how many classes each prediction lists; the server's own number unless given.
            at_once: images of one request of `predict` and `predict_array`, which send as many requests as they need.
                A server takes 100, and so many bytes, unless its owner said otherwise.

        Raises:
            UsageError: the URL is none, no header can carry the key, or ``at_once`` is less than 1.
        """
        if at_once < 1:
            raise UsageError(f"at_once={at_once} sends no image.", "give 1 or more")
        if key is not None and not _KEY.fullmatch(key):
            raise UsageError(
                "The key is empty, or holds a character that is not printable ASCII, such as a line break.",
                "give the key as `ducat serve` has it, without what a file has around it (key.strip())",
            )
        self._retries, self._max_wait, self._at_once = retries, max_wait, at_once
        self._has_answered = False
        self.waited = 0.0  # seconds between attempts, so far
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # No proxy and no credentials from the environment: the URL says where images go.
        self._options: dict[str, Any] = {
            "base_url": _url(url),
            "headers": headers,
            "params": {
                n: v for n, v in (("model", model), ("version", version), ("top_k", top_k)) if v is not None
            },
            # Requests that wait for one of the connections of this client have not been sent yet.
            "timeout": httpx.Timeout(timeout, pool=None),
            "trust_env": False,
        }

    def _pause(
        self, attempt: int, response: httpx.Response | None, lost: httpx.TransportError | None
    ) -> float | None:
        """Seconds until the next attempt; None where there is to be none."""
        self._has_answered = self._has_answered or response is not None
        may_help = isinstance(lost, _LOST) if response is None else response.status_code in _RETRIED
        retries = self._retries if self._has_answered else min(self._retries, _RETRIES_OF_A_STRANGER)
        if attempt >= retries or not may_help:
            return None
        asked = response.headers.get("Retry-After", "") if response is not None else ""
        if not asked.isdigit():
            return float(min(_FIRST_WAIT * 2**attempt, self._max_wait))
        return float(asked) if float(asked) <= self._max_wait else None


class Client(_Base):
    """Ask a server, from one thread at a time. As a context manager it is closed at the end; else call `close`."""

    _http: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server. The next request opens new ones."""
        http, self._http = self._http, None
        if http is not None:
            http.close()

    def predict(self, *images: Image | Sequence[Image]) -> list[dict[str, Any]]:
        """Predict image files, given as paths or as their bytes, one by one or in a list; one answer each.

        More than ``at_once`` are sent in several requests, one after another, whose files are read one request at a
        time. If one of these fails, the answers to those before it are lost.

        Raises:
            UsageError: there is no image, or something else than paths and bytes. DataError: a file cannot be read.
                ServerError: the server refused, or is not `ducat serve`. DucatError: it cannot be reached.
        """
        answers = []
        for some in _in_parts(_flat(images), self._at_once):
            answers += _predictions(self._send("POST", "/v1/predict", files=_files(some)))
        return answers

    def answer(self, *images: Image | Sequence[Image]) -> dict[str, Any]:
        """As `predict`, in one request, with what the server says of the model beside the predictions."""
        return _document(self._send("POST", "/v1/predict", files=_files(_flat(images))))

    def predict_array(self, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """Predict uint8 images [N, H, W, channels] of exactly the model's size. Raises as `predict`."""
        answers = []
        for some in _in_parts(_checked_array(images), self._at_once):
            answers += _predictions(self._send("POST", "/v1/predict", **_array(some)))
        return answers

    def model(self) -> dict[str, Any]:
        """What is served, and what was measured on it: `GET /v1/model`. Raises as `predict`."""
        return _document(self._send("GET", "/v1/model"))

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        if self._http is None:
            self._http = httpx.Client(**self._options)
        attempt = 0
        while True:
            try:
                response, lost = self._http.request(method, path, **content), None
            except httpx.TransportError as error:
                response, lost = None, error
            pause = self._pause(attempt, response, lost)
            if pause is None:
                return _checked(response, lost)
            self.waited += pause
            time.sleep(pause)
            attempt += 1


class AsyncClient(_Base):
    """`Client` for asyncio: `async with AsyncClient(url) as client: await client.predict(...)`."""

    _http: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def predict(self, *images: Image | Sequence[Image]) -> list[dict[str, Any]]:
        """As `Client.predict`."""
        answers = []
        for some in _in_parts(_flat(images), self._at_once):
            answers += _predictions(await self._send("POST", "/v1/predict", files=_files(some)))
        return answers

    async def answer(self, *images: Image | Sequence[Image]) -> dict[str, Any]:
        """As `Client.answer`."""
        return _document(await self._send("POST", "/v1/predict", files=_files(_flat(images))))

    async def predict_array(self, images: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """As `Client.predict_array`."""
        answers = []
        for some in _in_parts(_checked_array(images), self._at_once):
            answers += _predictions(await self._send("POST", "/v1/predict", **_array(some)))
        return answers

    async def model(self) -> dict[str, Any]:
        """As `Client.model`."""
        return _document(await self._send("GET", "/v1/model"))

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        if self._http is None:
            self._http = httpx.AsyncClient(**self._options)
        attempt = 0
        while True:
            try:
                response, lost = await self._http.request(method, path, **content), None
            except httpx.TransportError as error:
                response, lost = None, error
            pause = self._pause(attempt, response, lost)
            if pause is None:
                return _checked(response, lost)
            self.waited += pause
            await asyncio.sleep(pause)
            attempt += 1


def _url(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"'{url}' is no URL: {error}.", "give one such as http://127.0.0.1:3000") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"'{url}' is no URL of a server.", "give one such as http://127.0.0.1:3000")
    return parsed


def _flat(images: tuple[Image | Sequence[Image], ...]) -> list[Image]:
    """One list of what was given. Raises UsageError where there is nothing, or something that is no image."""
    single: list[Any] = []
    for given in images:
        if isinstance(given, Iterable) and not isinstance(given, (str, *_BYTES, np.ndarray)):
            single += given
        else:
            single.append(given)
    if not single:
        raise UsageError("There is no image to predict.", "give at least one path, or the bytes of one file")
    for number, image in enumerate(single):
        if not isinstance(image, (str, Path, *_BYTES)):
            raise UsageError(
                f"Image {number}, counted from 0, is of type {type(image).__name__}: neither a path nor the bytes of "
                "a file.",
                "give paths or bytes; `predict_array` takes uint8 arrays of the model's size",
            )
    return single


def _in_parts(images: _T, at_once: int) -> Iterator[_T]:
    for start in range(0, len(images), at_once):
        yield images[start : start + at_once]


def _files(images: list[Image]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("image", (f"{number}", _bytes(image))) for number, image in enumerate(images)]


def _bytes(image: Image) -> bytes:
    if isinstance(image, _BYTES):
        return bytes(image)
    return read_regular_file(Path(image), str(image), "give an image file")


def _checked_array(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.size == 0 or array.ndim != 4:
        shape = f"has shape {list(array.shape)}"
        found = (
            "is empty" if array.size == 0 else shape if array.dtype == np.uint8 else f"holds {array.dtype}"
        )
        raise UsageError(
            f"The array {found}; images are uint8 [N, H, W, channels].", "give pixels from 0 to 255 as uint8"
        )
    return array


def _array(images: NDArray[np.uint8]) -> dict[str, Any]:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(images), allow_pickle=False)
    return {"content": file.getvalue(), "headers": {"Content-Type": "application/x-npy"}}


def _checked(response: httpx.Response | None, lost: httpx.TransportError | None) -> httpx.Response:
    if isinstance(lost, httpx.TimeoutException) and not isinstance(lost, httpx.ConnectTimeout):
        raise DucatError(
            f"The server did not answer in time ({type(lost).__name__}).", "give Client a longer timeout"
        ) from lost
    if response is None:
        raise DucatError(
            f"The server cannot be reached: {str(lost) or type(lost).__name__}.", "ducat serve model.onnx"
        ) from lost
    if response.is_success:
        return response
    try:
        error = response.json()["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = "http_error", "The server answered without saying why"
    raise ServerError(response.status_code, code, message)


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:  # a page of a proxy, or of another program
        document = None
    if not isinstance(document, dict):
        raise _other_answer(response, "no JSON object")
    return document


def _predictions(response: httpx.Response) -> list[dict[str, Any]]:
    predictions = _document(response).get("predictions")
    if not isinstance(predictions, list):
        raise _other_answer(response, "no predictions")
    return predictions


def _other_answer(response: httpx.Response, what: str) -> ServerError:
    message = f"The server answered with {what}: it is not `ducat serve`, or something before it answers"
    return ServerError(response.status_code, "http_error", message)
