"""A server's whole life in a network namespace with nothing but a loopback; prints what the kernel counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
import sys
from pathlib import Path

import psutil

from tests.support.fault_server import running
from tests.support.server_process import WAIT

_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # of linux/sockios.h and net/if.h
URL = "http://192.0.2.1/a.png"


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, _GET_FLAGS, request))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _UP))


def counted() -> dict[str, int]:
    """Attempts without a route, datagrams, and TCP connections begun since the namespace is there."""
    counts: dict[str, int] = {}
    lines = Path("/proc/net/snmp").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        kind = names.split(":")[0]
        pairs = zip(names.split()[1:], values.split()[1:], strict=True)
        counts.update({f"{kind}.{name}": int(value) for name, value in pairs})
    with contextlib.suppress(FileNotFoundError):  # no IPv6
        for line in Path("/proc/net/snmp6").read_text().splitlines():
            name, value = line.split()
            counts[name] = int(value)
    return {
        "no_route": counts["Ip.OutNoRoutes"] + counts.get("Ip6OutNoRoutes", 0),
        "datagrams": counts["Udp.OutDatagrams"] + counts.get("Udp6OutDatagrams", 0),
        "connections": counts["Tcp.ActiveOpens"],
    }


def main(model: Path, folder: Path) -> None:
    loopback_up()
    ours: list[object] = []
    sys.addaudithook(lambda event, _: ours.append(event) if event == "socket.connect" else None)
    with running(model, folder) as server:
        server.assert_good()
        assert (
            server.post("/v1/predict", files={"image": (None, URL)}).json()["error"]["code"] == "not_a_file"
        )
        for body in ({"images": [URL]}, {"url": URL}):
            assert server.post("/v1/predict", json=body).status_code == 400
        assert server.post("/v1/predict", files={"image": (URL, b"", "image/png")}).status_code == 400
        for path in ("/", "/livez", "/v1/model", "/v2", "/v2/models/model", "/metrics"):
            assert server.get(path).status_code in (200, 401), path
        assert server.reload().status_code == 200
        server.assert_good()
        processes = server.all_processes()
        server.process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=WAIT)
        assert alive == [], server.log.read_text()
    seen = counted()
    asked = len(ours)
    for kind, family in ((socket.SOCK_STREAM, socket.AF_INET), (socket.SOCK_DGRAM, socket.AF_INET)):
        with socket.socket(family, kind) as outside, contextlib.suppress(OSError):
            outside.connect(("192.0.2.1", 80))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as name_server:
        name_server.sendto(b"?", ("127.0.0.53", 53))
    print(json.dumps({"server": seen, "asked": asked, "control": counted()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
