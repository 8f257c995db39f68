"""Downloads, against a web server on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ducat_serve.errors import DataError, DucatError
from ducat_serve.output import Output
from training.data import DATASETS, DatasetInfo, load_dataset
from training.data.download import Archive, download

CONTENT = bytes(range(256)) * 5000  # several of the chunks that `download` reads
HALF = len(CONTENT) // 2
NAME = "set-1.zip"


class Site(ThreadingHTTPServer):
    """Serves CONTENT as `behaviour` says, and records the Range header of every request."""

    daemon_threads = True
    behaviour = "ranges"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    def handle_error(self, *_: object) -> None:
        """Clients may hang up: that is what some tests are about."""

    def archive(self, **changes: str | int) -> Archive:
        known = {
            "url": f"http://127.0.0.1:{self.server_port}/data/{NAME}",
            "size": len(CONTENT),
            "md5": hashlib.md5(CONTENT).hexdigest(),
        }
        return Archive(**{**known, **changes})  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.server.ranges.append(wanted)
        behaviour = self.server.behaviour
        self.close_connection = True
        if behaviour == "missing":
            self.send_error(404)
        elif behaviour == "ranges" and wanted:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
            self.send(CONTENT[start:])
        elif behaviour == "cut":
            self.send_response(200)
            self.send(CONTENT[:HALF], announced=len(CONTENT))
        elif behaviour == "cut chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(f"{HALF:x}\r\n".encode() + CONTENT[:HALF] + b"\r\n1000\r\nhalf of a chunk")
        elif behaviour == "no HTTP":
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n")
        elif behaviour == "too much":
            self.send_response(200)
            self.send(CONTENT + b"more")
        else:
            self.send_response(200)
            self.send(CONTENT)

    def send(self, body: bytes, announced: int | None = None) -> None:
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output quiet."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(archive: Archive, folder: Path) -> Path:
    return download(archive, folder, Output())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_whole_download(site: Site, tmp_path: Path) -> None:
    """The folder is made, and the `.part` is gone."""
    path = fetch(site.archive(), tmp_path / "new" / "data")
    assert path == tmp_path / "new" / "data" / NAME
    assert contents(path.parent) == {NAME: CONTENT}
    assert site.ranges == [None]


def test_a_started_download_goes_on(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:HALF])
    fetch(site.archive(), tmp_path)
    assert site.ranges == [f"bytes={HALF}-"]
    assert contents(tmp_path) == {NAME: CONTENT}


def test_a_server_without_ranges_sends_all_again(site: Site, tmp_path: Path) -> None:
    site.behaviour = "no ranges"
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:HALF])
    fetch(site.archive(), tmp_path)
    assert site.ranges == [f"bytes={HALF}-"]
    assert contents(tmp_path) == {NAME: CONTENT}


def test_a_complete_part_needs_no_request(site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    fetch(site.archive(), tmp_path)
    assert site.ranges == []
    assert contents(tmp_path) == {NAME: CONTENT}


def test_a_cut_connection_keeps_what_arrived_and_the_next_call_completes(site: Site, tmp_path: Path) -> None:
    site.behaviour = "cut"
    with pytest.raises(DataError, match="run the command again") as failure:
        fetch(site.archive(), tmp_path)
    assert failure.value.exit_code == 4
    assert contents(tmp_path) == {f"{NAME}.part": CONTENT[:HALF]}
    site.behaviour = "ranges"
    fetch(site.archive(), tmp_path)
    assert site.ranges == [None, f"bytes={HALF}-"]
    assert contents(tmp_path) == {NAME: CONTENT}


def test_a_connection_cut_inside_a_chunk_keeps_what_arrived(site: Site, tmp_path: Path) -> None:
    """A server that sends chunks announces no length, so http.client raises where the other case ends."""
    site.behaviour = "cut chunks"
    with pytest.raises(DataError, match="Cannot download"):
        fetch(site.archive(), tmp_path)
    (kept,) = contents(tmp_path).values()
    assert kept
    assert CONTENT.startswith(kept)
    site.behaviour = "ranges"
    fetch(site.archive(), tmp_path)
    assert contents(tmp_path) == {NAME: CONTENT}


@pytest.mark.parametrize("part", [b"", CONTENT[:HALF]])
def test_a_wrong_md5_leaves_nothing(part: bytes, site: Site, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(part)
    with pytest.raises(DataError, match=f"MD5 {hashlib.md5(CONTENT).hexdigest()}, expected"):
        fetch(site.archive(md5="0" * 32), tmp_path)
    assert contents(tmp_path) == {}


def test_a_corrupt_part_is_not_kept(site: Site, tmp_path: Path) -> None:
    """It would make every further attempt fail."""
    (tmp_path / f"{NAME}.part").write_bytes(b"\xff" + CONTENT[1:HALF])
    with pytest.raises(DataError, match="MD5"):
        fetch(site.archive(), tmp_path)
    assert contents(tmp_path) == {}


def test_more_bytes_than_expected(site: Site, tmp_path: Path) -> None:
    """Even where the digest fits, nothing is kept."""
    site.behaviour = "too much"
    md5 = hashlib.md5(CONTENT + b"more").hexdigest()
    with pytest.raises(DataError, match=f"gave {len(CONTENT) + 4:,} bytes .* expected {len(CONTENT):,}"):
        fetch(site.archive(md5=md5), tmp_path)
    assert contents(tmp_path) == {}


def test_an_endless_body_is_not_read_to_its_end(site: Site, tmp_path: Path) -> None:
    """It stops long before the 1,280,000 bytes that the server has."""
    with pytest.raises(DataError, match=r"gave \d{3},\d{3} bytes .* expected 10 with"):
        fetch(site.archive(size=10), tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("behaviour", "reason"), [("missing", "Not Found"), ("no HTTP", "SSH")])
def test_a_server_without_the_file(behaviour: str, reason: str, site: Site, tmp_path: Path) -> None:
    site.behaviour = behaviour
    with pytest.raises(DataError, match=f"Cannot download http://127.*{reason}") as failure:
        fetch(site.archive(), tmp_path)
    assert failure.value.exit_code == 4
    assert str(tmp_path) in str(failure.value.next_step)
    assert not (tmp_path / NAME).exists()


def test_a_second_download_waits_for_the_first(site: Site, tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    output = Told()
    with part.open("wb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with ThreadPoolExecutor() as pool:
            second = pool.submit(download, site.archive(), tmp_path, output)
            assert output.waits.wait(10)
            first.write(CONTENT)
            first.flush()
            part.replace(tmp_path / NAME)
            fcntl.flock(first, fcntl.LOCK_UN)
            assert second.result(30) == tmp_path / NAME
    assert site.ranges == []
    assert contents(tmp_path) == {NAME: CONTENT}


class Told(Output):
    """Tells a test that a download waits for another."""

    def __init__(self) -> None:
        super().__init__(silent=True)
        self.waits = threading.Event()

    def say(self, message: str) -> None:
        if message.startswith("Waiting for another process"):
            self.waits.set()


def test_no_server(site: Site, tmp_path: Path) -> None:
    """A port that is taken by a socket that does not listen."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        archive = site.archive(url=f"http://127.0.0.1:{deaf.getsockname()[1]}/{NAME}")
        with pytest.raises(DataError, match=r"Cannot download .*refused"):
            fetch(archive, tmp_path)
    assert list(tmp_path.iterdir()) == []  # an empty .part would help nobody


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(DucatError, match="Cannot write") as failure:
        fetch(site.archive(), tmp_path / "file" / "data")
    assert failure.value.exit_code == 1
    assert site.ranges == []
    assert contents(tmp_path) == {"file": b"kept"}


def test_load_dataset_downloads_what_is_absent(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It arrives in the data folder; that it is no zip shows afterwards."""
    info = DatasetInfo("set", "Set", 2, 4, site.archive())
    monkeypatch.setitem(DATASETS, "set", info)
    with pytest.raises(DataError, match="not a readable zip") as failure:
        load_dataset("set", data_dir=tmp_path)
    assert "run the command again to download it" in str(failure.value.next_step)
    assert contents(tmp_path) == {NAME: CONTENT}
