"""Adversarially robust image classifiers that can be deployed (DUCAT, arXiv 2410.12671).

`load` gives the deployed function as a torch module; `Predictor` runs an exported model without torch; `Client` and
`AsyncClient` ask a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ducat_serve.client import AsyncClient, Client
    from ducat_serve.deployed import load
    from ducat_serve.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "Predictor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line and the server do not import what they do not use.
    if name == "load":
        try:
            from ducat_serve.deployed import load
        except ModuleNotFoundError as error:
            from ducat_serve.errors import MissingPackage

            raise MissingPackage(error.name or "torch", "train") from error
        return load
    if name == "Predictor":
        from ducat_serve.predictor import Predictor

        return Predictor
    if name in ("Client", "AsyncClient"):
        from ducat_serve import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
