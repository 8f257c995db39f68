"""What the site makes of code and links. Whether it builds is what `make docs` shows."""

from __future__ import annotations

import pytest

from docs_site.links import with_site_links
from docs_site.notebooks import PROJECT, as_page
from docs_site.offline import outside_resources
from docs_site.reference import EVERYTHING, on_page_markdown
from ducat_serve.cli.main import COMMANDS
from ducat_serve.report import RobustnessReport
from service.openapi.document import document


@pytest.mark.parametrize(
    ("link", "source", "page", "led"),
    [
        ("[a](docs/method.md#one)", "README.md", "index.md", "[a](method.md#one)"),
        ("[a](results/digits.md)", "README.md", "index.md", "[a](results/digits.md)"),
        ("[a](../results/digits.md)", "docs/method.md", "method.md", "[a](results/digits.md)"),
        ("[a](../../README.md)", "docs/how-to/page.md", "how-to/page.md", "[a](../index.md)"),
        ("[a](../method.md)", "docs/how-to/page.md", "how-to/page.md", "[a](../method.md)"),
        ("![a](digits.png)", "results/digits.md", "results/digits.md", "![a](digits.png)"),
        ('<img src="docs/page.png">', "README.md", "index.md", '<img src="page.png">'),
        ("[a](https://example.org/a.md)", "README.md", "index.md", "[a](https://example.org/a.md)"),
        ("[a](Makefile)", "README.md", "index.md", "[a](Makefile)"),  # no part of the site: MkDocs reports it
    ],
)
def test_a_link_of_the_repository_leads_to_the_same_file_in_the_site(
    link: str, source: str, page: str, led: str
) -> None:
    assert with_site_links(link, source, page) == led


@pytest.mark.parametrize(
    "fetched",
    [
        '<script src="https://cdn.example/a.js">',
        '<link rel="stylesheet" href="//fonts.example/a.css">',
        '<img alt="" src="https://badges.example/a.svg">',
        "@import url(https://fonts.example/a.css)",
        "background: url(//cdn.example/a.png)",
    ],
)
def test_what_a_browser_would_fetch_from_elsewhere_is_found(fetched: str) -> None:
    assert outside_resources(f"<p>{fetched}</p>") != []


@pytest.mark.parametrize(
    "allowed",
    [
        '<a href="https://example.org">',
        '<script src="assets/a.js">',
        '<link rel="canonical" href="https://a.example">',
    ],
)
def test_links_to_follow_and_own_files_are_no_outside_resources(allowed: str) -> None:
    assert outside_resources(allowed) == []


def test_every_route_command_and_field_is_in_the_reference() -> None:
    page = on_page_markdown("<!-- http -->\n\n<!-- http-schemas -->")
    described = document(EVERYTHING)
    for path, methods in described["paths"].items():
        for method in set(methods) & {"get", "post"}:
            assert f"### `{method.upper()} {path}`" in page
    for name in set(described["components"]["schemas"]) - {"RobustnessReport"}:
        assert f"### {name}\n" in page
    report = on_page_markdown("<!-- report -->")
    assert all(f"| `{name}` |" in report for name in RobustnessReport.model_fields)
    commands = on_page_markdown("<!-- commands -->")
    assert all(f"### ducat {name}\n" in commands for name in COMMANDS)
    assert "DUCAT_<COMMAND>_<OPTION>" in commands


def test_other_comments_of_a_page_stay() -> None:
    assert on_page_markdown("<!-- a remark -->\n<!-- remark -->") == "<!-- a remark -->\n<!-- remark -->"


@pytest.mark.parametrize("page", ["cli", "http", "python", "report"])
def test_what_is_said_of_the_repository_is_left_out_of_the_site(page: str) -> None:
    written = (PROJECT / f"docs/reference/{page}.md").read_text()
    assert "<!-- repository -->" in written
    assert "`make docs`" in written
    made = on_page_markdown(written)
    assert "<!-- repository -->" not in made
    assert "`make docs`" not in made


def test_the_notebook_is_a_page_with_its_code_and_what_it_printed() -> None:
    page = as_page(PROJECT / "docs" / "notebooks" / "digits.ipynb")
    assert page.startswith("# Digits, from training to a prediction\n")
    assert "[Download the notebook](digits.ipynb)" in page
    assert "```python\nimport ducat_serve\n" in page
    assert "```text\nruns/digits/model.onnx classes: 10\n```" in page
    assert "\n## Measure\n" in page
    assert page.count("```") % 2 == 0
