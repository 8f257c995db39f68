"""Take BentoML's own middlewares out of the way of requests: nothing of ours needs one of them.

Access log, tracing, metrics and a timeout are ours (watch.py, models.py). Three of theirs cannot be switched off by
any setting: the request context, tracing of URLs that are all excluded, and a timeout that keeps a timer and a future
for its whole time after every request, answered or not. docs/performance.md says what each costs.
"""

from __future__ import annotations

from _bentoml_impl.server.app import ServiceAppFactory


def take_out_layers() -> None:
    """To be called before BentoML makes the application. A version without this property keeps its layers."""
    ServiceAppFactory.middlewares = property(lambda _factory: [])
