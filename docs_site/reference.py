"""MkDocs hook: fills in the parts of the reference that are made from code.

`<!-- http -->` in a page stands for the routes of the OpenAPI document, `<!-- http-schemas -->` for its objects,
`<!-- commands -->` for the command line and `<!-- report -->` for the fields of the robustness report. The paragraph
after `<!-- repository -->` is for those who read the page in the repository, and is left out of the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docs_site.commands import command_line
from docs_site.schemas import PAGES, objects, type_text
from ducat_serve.cli.main import cli
from ducat_serve.report import RobustnessReport
from service.openapi.document import document
from service.settings import Settings

Json = dict[str, Any]

# A server with every kind of key, the attack demo and a name: every route and every answer is described.
EVERYTHING = Settings(
    model=Path("model.onnx"), admin_key="x" * 16, api_keys="name:key", allowed_hosts="name", attack_demo=True
)
# Every route takes this header and may answer with these; the page says so once.
_EVERY_PARAMETER, _EVERY_STATUS = "X-Request-Id", ("413", "415", "421", "500")
_MARK = re.compile(r"^<!-- ([\w-]+) -->$", re.MULTILINE)
_IN_THE_REPOSITORY = re.compile(r"^<!-- repository -->\n(?:.+\n)+\n", re.MULTILINE)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in what the page asks for."""
    markdown = _IN_THE_REPOSITORY.sub("", markdown)
    return _MARK.sub(lambda found: PARTS[found[1]]() if found[1] in PARTS else found[0], markdown)


def http_routes() -> str:
    """Every route: what it is for, who may ask, what it takes and what it answers."""
    described = document(EVERYTHING)
    parts = []
    for tag in described["tags"]:
        parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}")
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                if method in ("get", "post") and tag["name"] in operation["tags"]:
                    shared = methods.get("parameters", [])
                    parts.extend(_operation(described, f"{method.upper()} {path}", operation, shared))
    return "\n\n".join(parts)


def http_schemas() -> str:
    """The objects that requests and answers consist of; without those that have a page of their own."""
    schemas: Json = document(EVERYTHING)["components"]["schemas"]
    return "\n\n".join(objects({name: schemas[name] for name in schemas if name not in PAGES}, 3))


def report_schema() -> str:
    """The fields of a robustness report and of its parts."""
    schema = RobustnessReport.model_json_schema(mode="validation")
    return "\n\n".join(objects({"RobustnessReport": schema, **schema["$defs"]}, 2))


def ducat_commands() -> str:
    """The help of every command."""
    return command_line(cli, "ducat")


PARTS: dict[str, Callable[[], str]] = {
    "http": http_routes,
    "http-schemas": http_schemas,
    "report": report_schema,
    "commands": ducat_commands,
}


def _operation(described: Json, title: str, operation: Json, shared: list[Json]) -> Iterator[str]:
    yield f"### `{title}`"
    yield f"{operation['summary'].rstrip('.')}. {_who(operation['security'])}"
    if about := operation.get("description"):
        yield about
    parameters = [_resolved(described, one) for one in [*shared, *operation.get("parameters", [])]]
    parameters = [one for one in parameters if one["name"] != _EVERY_PARAMETER]
    if parameters:
        yield "\n".join(["| parameter | in | type | |", "|---|---|---|---|", *map(_parameter, parameters)])
    if body := operation.get("requestBody"):
        rows = [f"| `{kind}` | {type_text(part['schema'])} |" for kind, part in body["content"].items()]
        yield "\n".join(
            [body.get("description", ""), "", "| `Content-Type` | body |", "|---|---|", *rows]
        ).strip()
    yield "\n".join(["| status | answer | body |", "|---|---|---|", *_answers(described, operation)])


def _answers(described: Json, operation: Json) -> Iterator[str]:
    for status, answer in sorted(operation["responses"].items()):
        if status in _EVERY_STATUS:
            continue
        resolved = _resolved(described, answer)
        kinds = resolved.get("content", {})
        body = ", ".join(
            type_text(part["schema"]) if "json" in kind else f"`{kind}`" for kind, part in kinds.items()
        )
        yield f"| {status} | {resolved['description'].rstrip('.')} | {body} |"


def _parameter(one: Json) -> str:
    return f"| `{one['name']}` | {one['in']} | {type_text(one['schema'])} | {one.get('description', '')} |"


def _resolved(described: Json, node: Json) -> Json:
    """What a `$ref` of the document stands for; anything else as it is."""
    if "$ref" not in node:
        return node
    _, _, kind, name = node["$ref"].split("/")
    resolved: Json = described["components"][kind][name]
    return resolved


def _who(security: list[Json]) -> str:
    schemes = {name for one in security for name in one}
    if "admin" in schemes:
        return "For the admin key."
    return "With an API key, where the server has keys." if "key" in schemes else "Open to everybody."
