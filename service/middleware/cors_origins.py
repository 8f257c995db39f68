"""Which other origins' pages may read answers (CORS): exact ones, never "*"."""

from __future__ import annotations

import re

from ducat_serve.errors import UsageError

# As browsers write an origin: no path, no closing slash, lower case, and no port where it is the scheme's own.
_ORIGIN = re.compile(r"https?://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[1-9][0-9]{0,4})?")


def read_origins(text: str) -> list[str]:
    """The origins in a list with commas. Raises UsageError for one that no browser would send."""
    origins = [origin.strip() for origin in text.split(",") if origin.strip()]
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        own_port = {"http": ":80", "https": ":443"}.get(scheme, "")
        if not _ORIGIN.fullmatch(origin) or rest.endswith(own_port):
            raise UsageError(
                f"'{origin}' is not an origin as browsers send it: scheme, name and perhaps a port.",
                "ducat serve MODEL --cors-origin https://app.example",
            )
    if not origins:
        raise UsageError("No origin is named.", "ducat serve MODEL --cors-origin https://app.example")
    return origins
