"""The OpenAPI 3.1 document, the response of `GET /openapi.json`: openapi.yaml, filled in with a server's settings."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic.json_schema import models_json_schema

from ducat_serve import __version__
from ducat_serve.images import RESIZE_POLICY
from ducat_serve.report import NOT_MEASURED
from ducat_serve.spec import ModelSpec
from service.api.open_inference import MAX_JSON_PARTS
from service.middleware.auth import METRICS, is_for_admins
from service.middleware.host_check import names_to_check
from service.models.repository import Repository
from service.page.samples import MAX_SAMPLES
from service.settings import MAX_TOP_K, Settings

Json = dict[str, Any]

_FILE = Path(__file__).with_name("openapi.yaml")
# libyaml's, where PyYAML was built with it: a server starts a tenth of a second earlier.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def document(settings: Settings) -> Json:
    """Every route that a server with these settings answers, with its limits and keys. No key is in it."""
    described: Json = _filled(_template(), _values(settings))
    described["components"]["schemas"] |= _schemas_of_the_model_spec()
    if not settings.admin_key:
        # Without an admin key the metrics are open, and the other paths for admins are not there.
        _remove_keys(described, "admin", "adminHeader")
        for path in list(described["paths"]):
            if is_for_admins(path) and path != METRICS:
                del described["paths"][path]
    if not settings.attack_demo:
        del described["paths"]["/v1/attack"]
    if not settings.has_keys:
        _remove_keys(described, "key", "keyHeader")
    if names_to_check(settings) is None:
        for operation in _operations(described):
            operation["responses"].pop("421", None)
    return described


@functools.cache
def _template() -> Json:
    template: Json = yaml.load(_FILE.read_text(encoding="utf-8"), Loader=_LOADER)
    del template["x-shared"]
    return template


def _values(settings: Settings) -> Json:
    return {
        "version": __version__,
        "resize_policy": RESIZE_POLICY,
        "not_measured": NOT_MEASURED,
        "max_samples": MAX_SAMPLES,
        "max_json_parts": MAX_JSON_PARTS,
        "max_body": settings.max_body,
        "max_images": settings.max_images,
        "max_pixels": settings.max_pixels,
        "max_top_k": MAX_TOP_K,
        "top_k": settings.top_k,
        "deadline": f"{settings.deadline:g}",
        "model": Repository(settings.model, settings.name).only_name,
    }


def _filled(node: Any, values: Json) -> Any:
    """A copy with every ${name} replaced by its value, as it is where nothing stands beside it."""
    if isinstance(node, dict):
        filled = {key: _filled(value, values) for key, value in node.items()}
        return {key: value for key, value in filled.items() if value is not None}
    if isinstance(node, list):
        return [_filled(value, values) for value in node]
    if not isinstance(node, str):
        return node
    if whole := _PLACEHOLDER.fullmatch(node):
        return values[whole[1]]
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), node)


def _schemas_of_the_model_spec() -> Json:
    # As it is read, not as it is written: what writes it leaves fields out, and pydantic then describes any object.
    _, described = models_json_schema(
        [(ModelSpec, "validation")], ref_template="#/components/schemas/{model}"
    )
    schemas: Json = described["$defs"]
    return schemas


def _remove_keys(described: Json, *schemes: str) -> None:
    """Let everybody use the operations that one of these security schemes would open."""
    for scheme in schemes:
        del described["components"]["securitySchemes"][scheme]
    for operation in _operations(described):
        if any(scheme in one for one in operation["security"] for scheme in schemes):
            operation["security"] = []
            del operation["responses"]["401"]


def _operations(described: Json) -> list[Json]:
    return [
        methods[name]
        for methods in described["paths"].values()
        for name in ("get", "post")
        if name in methods
    ]
