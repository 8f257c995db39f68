"""What the query of an address may ask. Anything else is refused: the answer would be to another question."""

from __future__ import annotations

from starlette.requests import Request

from ducat_serve.errors import near_name
from service.errors import APIError

# Of every address below /v1 that asks one model: clients have one set of parameters for all of them.
EXAMPLES = {"model": "NAME", "version": "1", "top_k": "3"}
_SHOWN = 40  # characters of a name that is not known
_IN_THE_PATH = " A version belongs into the path: /v2/models/NAME/versions/VERSION"


def which_model(request: Request) -> tuple[str | None, str | None]:
    """The model and the version that the query names, if any.

    Raises APIError (400) for a parameter that is not known, or that is given twice.
    """
    _require_known(request, tuple(EXAMPLES))
    return request.query_params.get("model"), request.query_params.get("version")


def model_in_path(request: Request) -> tuple[str, str | None]:
    """The model that the path names, and its version, if any. Raises APIError (400) for any query."""
    _require_known(request, (), _IN_THE_PATH)
    return request.path_params["name"], request.path_params.get("version")


def require_no_query(request: Request) -> None:
    """Raise APIError (400) for any parameter in the query."""
    _require_known(request, ())


def misplaced(name: str) -> APIError:
    """The error for a parameter of the query, one of `EXAMPLES`, that stands in the body."""
    code = "invalid_top_k" if name == "top_k" else "invalid_request"
    example = f"POST /v1/predict?{name}={EXAMPLES[name]}"
    return APIError(400, code, f"'{name}' belongs into the address: {example}")


def _require_known(request: Request, known: tuple[str, ...], hint: str = "") -> None:
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            shown = name[:_SHOWN]
            near = near_name(shown, known)
            taken = f"what is taken is {', '.join(known)}." if known else "none is taken."
            suggestion = f" Did you mean '{near}'?" if near else hint
            raise APIError(
                400, "unknown_parameter", f"{shown!a} is no parameter of this address; {taken}{suggestion}"
            )
        if name in seen:
            raise APIError(400, "repeated_parameter", f"'{name}' is given twice in the address.")
        seen.add(name)
