"""JSON schemas as Markdown tables, for the pages of the reference that are made from code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

# Objects that have a page of their own, beside the one that names them.
PAGES = {"RobustnessReport": "report.md"}

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "minLength": "{} or more characters",
    "minItems": "{} or more",
    "maxItems": "{} at most",
    "pattern": "matches `{}`",
}


def objects(schemas: Json, level: int) -> Iterator[str]:
    """A heading and a table of fields for every schema, by name; others get a line that says what they are."""
    for name, schema in schemas.items():
        yield f"{'#' * level} {name}"
        if about := schema.get("description"):
            yield _paragraphs(about)
        yield fields(schema) if "properties" in schema else f"{type_text(schema)}."


def fields(schema: Json) -> str:
    """A table of an object's fields: name, type, what it is."""
    required = set(schema.get("required", ()))
    rows = ["| field | type | |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        notes = [] if name in required else [_default(field)]
        if about := field.get("description"):
            notes.append(_cell(about))
        rows.append(f"| `{name}` | {_cell(type_text(field))} | {'. '.join(note for note in notes if note)} |")
    return "\n".join(rows)


def type_text(schema: Json) -> str:
    """The type of a value in a few words, with a link where it is an object that the page describes."""
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        return f"[{name}]({PAGES.get(name, '')}#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']!r}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(type_text(choice) for choice in choices)
    return _plain_type(schema) + _bounds(schema)


def _plain_type(schema: Json) -> str:
    kind = schema.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(type_text(item) for item in schema["prefixItems"]) + "]"
        return f"list of {type_text(schema.get('items', {}))}"
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), Mapping):
        return f"object of {type_text(values)}"
    if kind == "object" and "properties" in schema:
        return "object with " + ", ".join(f"`{name}`" for name in schema["properties"])
    return "file" if schema.get("format") == "binary" else str(kind)


def _bounds(schema: Json) -> str:
    """The bounds of a value; those of a list of fixed length are in its type already."""
    if "prefixItems" in schema:
        return ""
    if schema.get("minimum") == 0 and schema.get("maximum") == 1:
        return " in [0, 1]"
    found = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return f" ({', '.join(found)})" if found else ""


def _default(field: Json) -> str:
    return (
        f"`{field['default']}` where it is missing" if field.get("default") is not None else "may be missing"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _paragraphs(text: str) -> str:
    """A docstring as Markdown: its double backticks are single ones there."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("``", "`")
