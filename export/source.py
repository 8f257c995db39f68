"""The checkpoint that an export is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ducat_serve.checkpoint import file_sha256
from ducat_serve.errors import VerificationError, command_line


@dataclass(frozen=True)
class Source:
    """A checkpoint as it was before it was read: a training may replace it while it is exported."""

    path: Path
    sha256: str

    @classmethod
    def of(cls, checkpoint: Path) -> Source:
        """Of a file that is not there nothing is said here; loading it says so."""
        return cls(checkpoint, file_sha256(checkpoint) if checkpoint.is_file() else "")

    def unchanged_sha256(self) -> str:
        """The SHA-256 that the export is bound to. Raises VerificationError where the file is another one by now."""
        if file_sha256(self.path) != self.sha256:
            raise VerificationError(
                f"{self.path} was replaced while it was exported, by a training that goes on, say.",
                command_line("ducat", "export", self.path),
            )
        return self.sha256
