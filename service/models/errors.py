"""What the served models cannot do. service/errors.py says what a client is told about each."""

from __future__ import annotations


class ModelError(Exception):
    """The base of all. The text is a sentence that a client may read: no paths, no internals."""


class UnknownModel(ModelError):
    """There is no such model, or no such version of it."""


class ModelRequired(ModelError):
    """Several models are served, and none was named."""


class ModelRefused(ModelError):
    """A file could not be loaded or did not pass its checks; what was served before stays."""


class NotReady(ModelError):
    """Models are still loading, or none is served."""


class Stalled(ModelError):
    """An inference does not end, so no other one begins; only a new process would help."""


class Stopping(ModelError):
    """The server drains: other servers should be asked."""
