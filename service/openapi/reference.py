"""The OpenAPI document as a page for people: one HTML document without scripts and without outside resources."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ducat_serve import __version__

_STYLE = Path(__file__).with_name("reference.css")
_METHODS = ("get", "post")


def reference_page(described: dict[str, Any]) -> str:
    """Every operation of the document by its tag, with parameters, bodies, answers and an example."""
    tags = {tag["name"]: tag.get("description", "") for tag in described["tags"]}
    sections = []
    for tag, text in tags.items():
        operations = "".join(_operation(described, *one) for one in _operations(described, tag))
        heading = f'<h2>{escape(tag)}</h2><p class="quiet">{escape(text)}</p>'
        sections.append(f"<section>{heading}{operations}</section>")
    contents = "".join(_entry(*one) for tag in tags for one in _operations(described, tag))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>API · ducat-serve</title>
<style>
{_STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<p><a href="/">Try the model</a></p>
<h1>API of this server</h1>
<p class="quiet">ducat-serve {escape(__version__)}. The same for programs: <a href="/openapi.json">openapi.json</a>
(OpenAPI 3.1).</p>
</header>
<main><nav aria-label="Operations"><ul>{contents}</ul></nav>{"".join(sections)}</main>
</body>
</html>
"""


def _entry(path: str, method: str, operation: dict[str, Any]) -> str:
    link = f'<a href="#{escape(operation["operationId"])}"><code>{method.upper()} {escape(path)}</code></a>'
    return f"<li>{link} {escape(operation['summary'])}</li>"


def _operations(described: dict[str, Any], tag: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for method in _METHODS:
            if method in item and tag in item[method]["tags"]:
                yield path, method, item[method]


def _operation(described: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    shared = described["paths"][path].get("parameters", [])
    parameters = [_resolved(described, one) for one in (*shared, *operation.get("parameters", []))]
    bodies = operation.get("requestBody", {}).get("content", {})
    key = "wants a key" if operation["security"] else "open to everyone"
    answers = []
    for status, answer in sorted(operation["responses"].items()):
        found = _resolved(described, answer)
        kinds = ", ".join(found.get("content", {}))
        answers.append((status, found.get("description", ""), kinds))
    return (
        f'<article id="{escape(operation["operationId"])}"><h3><span class="method">{method.upper()}</span> '
        f'<code>{escape(path)}</code></h3><p>{escape(operation["summary"])} <span class="quiet">({key})</span></p>'
        + _table("Parameters", ("name", "where", "what"), [_parameter(one) for one in parameters])
        + _table(
            "Body",
            ("Content-Type", "what"),
            [(kind, _shape(described, body)) for kind, body in bodies.items()],
        )
        + _table("Answers", ("status", "what", "as"), answers)
        + f'<pre class="scroll"><code>{escape(_curl(path, method, bodies, operation))}</code></pre></article>'
    )


def _parameter(parameter: dict[str, Any]) -> tuple[str, str, str]:
    return parameter["name"], parameter["in"], parameter.get("description", "")


def _shape(described: dict[str, Any], body: dict[str, Any]) -> str:
    schema = _resolved(described, body.get("schema", {}))
    if "properties" in schema:
        return json.dumps({name: _kind(one) for name, one in schema["properties"].items()})
    return str(schema.get("description", _kind(schema)))


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("format", schema.get("type", "any")))


def _resolved(described: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        found: Any = described
        for part in node["$ref"].split("/")[1:]:
            found = found[part]
        node = found
    return node


def _curl(path: str, method: str, bodies: dict[str, Any], operation: dict[str, Any]) -> str:
    parts = ["curl"]
    if operation["security"]:
        parts.append("-H 'Authorization: Bearer '$KEY")
    if "multipart/form-data" in bodies:
        parts.append("-F image=@photo.jpg")
    elif "application/json" in bodies:
        parts.append("-H 'Content-Type: application/json' -d @request.json")
    elif method == "post":
        parts.append("-X POST")
    return f"{' '.join(parts)} http://this-server{path}"


def _table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = "".join(f"<tr>{_cells(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{title}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cells(row: tuple[str, ...]) -> str:
    name, *others = map(escape, row)
    return f"<td><code>{name}</code></td>" + "".join(f"<td>{cell}</td>" for cell in others)
