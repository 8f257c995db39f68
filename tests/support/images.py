"""Container images without a container engine: built by buildah, run by crun, on a base made by debootstrap.

All three are Debian packages. Root is needed, and for the first build a Debian mirror and the package index. The base
is kept in buildah's store from one run to the next, under a name of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Of every test that builds an image.
MARKS = [
    pytest.mark.slow,
    pytest.mark.xdist_group("image"),
    pytest.mark.skipif(
        "DUCAT_TEST_IMAGE" not in os.environ, reason="builds an image for minutes: make image-test"
    ),
]

TOOLS = ("buildah", "crun", "debootstrap")
BASE = "localhost/ducat-test-base"
# Asks for a prediction from inside of a container, whose network has nothing but itself.
ASK = """
import json, urllib.request
body = open("/models/request", "rb").read()
headers = {"Content-Type": "image/png"}
request = urllib.request.Request("http://127.0.0.1:3000/v1/predict", body, headers)
answer = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60)
print(json.load(answer)["predictions"][0]["label"])
"""
_PACKAGES = "python3,python3-venv,python3-distutils,ca-certificates"
# What Debian's own slim images leave out too.
_LEFT_OUT = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
_MINUTES = 60
# What the official images have and Debian's Python has not: a pip that installs, and the certificates of `built`.
_WITH_PIP = f"""
FROM {BASE}
RUN apt-get update && apt-get install -q -y --no-install-recommends python3-pip && rm -rf /var/lib/apt/lists/*
RUN rm /usr/lib/python3*/EXTERNALLY-MANAGED
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt UV_NATIVE_TLS=true
"""
# The certificates of this machine, because its package index may be behind a proxy with a certificate of its own.
_BUILD = (
    *("buildah", "build", "--pull-never", "--isolation", "chroot", "--format", "docker", "--layers"),
    *("--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"),
)
# crun refuses machines with both versions of cgroups, even where it is to use none. So it sees one only.
_WITHOUT_HYBRID_CGROUPS = (
    *("unshare", "--mount", "sh", "-c"),
    'umount --lazy /sys/fs/cgroup/unified 2>/dev/null; exec "$@"',
    "sh",
)


def why_not() -> str | None:
    """Why no image can be built here; None where it can."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"apt-get install --no-install-recommends {' '.join(missing)}"
    return None if os.geteuid() == 0 else "only root can make a base and run a container without an engine"


def run(*command: object, timeout: float = 5 * _MINUTES, **options: Any) -> str:
    """What a command printed. Raises AssertionError with what it said where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return str(done.stdout)


def make_base(names: tuple[str, ...]) -> None:
    """Have a Debian with Python in buildah's store under these names of public images, which are not there."""
    if not run("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        with tempfile.TemporaryDirectory(prefix="ducat-base-") as folder:
            root = Path(folder) / "root"
            run(
                "debootstrap",
                "--variant=minbase",
                f"--include={_PACKAGES}",
                "bookworm",
                root,
                timeout=15 * _MINUTES,
            )
            for name in _LEFT_OUT:
                shutil.rmtree(root / name, ignore_errors=True)
                (root / name).mkdir(parents=True)
            (root / "usr/bin/python").symlink_to("python3")  # as in the official image
            container = run("buildah", "from", "scratch").strip()
            run("buildah", "add", "--quiet", container, root, "/")
            run("buildah", "commit", "--quiet", "--format", "docker", container, BASE)
            run("buildah", "rm", container)
    for name in names:
        run("buildah", "tag", BASE, name)


def make_base_with_pip(name: str) -> None:
    """The same with pip, under the name of a public image of Python."""
    make_base(())
    run(*_BUILD, "--tag", name, "--file", "-", ".", input=_WITH_PIP, timeout=15 * _MINUTES)


@dataclass(frozen=True)
class Image:
    """A built image: its root file system, mounted, and its configuration."""

    root: Path
    config: dict[str, Any]

    @property
    def user(self) -> tuple[int, int]:
        """The numbers of its user and group."""
        name = self.config["User"]
        if ":" in name:
            uid, gid = name.split(":")
            return int(uid), int(gid)
        users = (line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines())
        return next((int(uid), int(gid)) for found, _, uid, gid, *_ in users if found == name)

    @property
    def bytes(self) -> int:
        """What its files take, counted as they are, not as blocks."""
        return int(run("du", "--summarize", "--bytes", "--one-file-system", self.root).split()[0])


@contextlib.contextmanager
def built(context: Path, *options: str) -> Iterator[Image]:
    """Build a Dockerfile; its image is mounted for as long as this lasts."""
    name = "localhost/ducat-test"
    run(*_BUILD, *options, "--tag", name, context, timeout=30 * _MINUTES)
    container = run("buildah", "from", "--pull-never", name).strip()
    try:
        described = json.loads(run("buildah", "inspect", "--type", "image", name))
        yield Image(Path(run("buildah", "mount", container).strip()), described["Docker"]["config"])
    finally:
        run("buildah", "rm", container)


class Container:
    """A running container: read-only root, no capabilities, the image's user, and a network with nothing but itself."""

    def __init__(self, image: Image, folder: Path, models: Path, environment: dict[str, str]) -> None:
        self._crun = ("crun", "--root", str(folder / "state"), "--cgroup-manager=disabled")
        self._name, self._user = "ducat-test", ":".join(map(str, image.user))
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        (folder / "config.json").write_text(json.dumps(_bundle(image, folder, models, environment)))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            command = [*_WITHOUT_HYBRID_CGROUPS, *self._crun, "run", "--bundle", str(folder), self._name]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as its user."""
        words = [*_WITHOUT_HYBRID_CGROUPS, *self._crun, "exec", "--user", self._user, self._name, *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=5 * _MINUTES, check=False)

    def python(self, code: str) -> str:
        """What a piece of Python prints in it."""
        done = self.execute("python", "-I", "-c", code)
        assert done.returncode == 0, f"{done.stderr}\n{self.log.read_text()[-2000:]}"
        return done.stdout

    def wait_until(self, *command: str) -> None:
        """Until a command in it succeeds. Raises AssertionError where the container ends, or after minutes."""
        for _ in range(300):
            if self.execute(*command).returncode == 0:
                return
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            time.sleep(1)
        raise AssertionError(self.log.read_text()[-4000:])

    def signal(self, name: str) -> None:
        run(*_WITHOUT_HYBRID_CGROUPS, *self._crun, "kill", self._name, name)

    def remove(self) -> None:
        delete = [*_WITHOUT_HYBRID_CGROUPS, *self._crun, "delete", "--force", self._name]
        subprocess.run(delete, check=False, capture_output=True)
        self.process.wait(_MINUTES)


def _bundle(image: Image, folder: Path, models: Path, environment: dict[str, str]) -> dict[str, Any]:
    """The configuration of the OCI runtime, of what `docker run --read-only --tmpfs /tmp --cap-drop ALL` asks for."""
    config = image.config
    uid, gid = image.user
    variables = [*config["Env"], *(f"{name}={value}" for name, value in environment.items())]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": uid, "gid": gid},
            "args": [*config["Entrypoint"], *(config["Cmd"] or [])],
            "env": variables,
            "cwd": config["WorkingDir"] or "/",
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "root": {"path": str(image.root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/tmp",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777"],
            },
            _bind(folder / "hosts", "/etc/hosts"),
            _bind(models, "/models"),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _bind(source: Path, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), "options": ["rbind", "ro"]}
