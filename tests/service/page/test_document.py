"""How the page is put together from its files, and its icon."""

from __future__ import annotations

import re
from collections import Counter

from starlette.testclient import TestClient

from service.page.document import FOLDER, bundle, read_page

DECLARED = re.compile(r"^(?:export )?(?:async )?(?:function\*?|const|let|class) (\w+)", re.MULTILINE)
IMPORTED = re.compile(r"^import \{([^}]*)\} from \"\./([a-z_]+\.js)\";$", re.MULTILINE)
FILES = sorted(FOLDER.glob("*.js"))


def test_every_file_is_in_the_page_once_and_after_what_it_needs() -> None:
    text = bundle("main.js")
    assert not re.search(r"^(import|export) ", text, re.MULTILINE)
    for file in FILES:
        assert text.count(f"// {file.name}\n") == 1
    assert text.index("// dom.js") < text.index("// server.js") < text.index("// main.js")
    assert text in read_page()


def test_no_two_files_declare_the_same_name() -> None:
    """They share one scope in the page."""
    names = Counter(name for file in FILES for name in DECLARED.findall(file.read_text()))
    assert [name for name, count in names.items() if count > 1] == []


def test_what_is_imported_is_exported_and_used() -> None:
    for file in FILES:
        text = file.read_text()
        assert len(re.findall(r"^import ", text, re.MULTILINE)) == len(IMPORTED.findall(text)), file.name
        for names, source in IMPORTED.findall(text):
            exported = set(
                re.findall(
                    r"^export (?:async )?(?:function|const|let) ([\w$]+)", (FOLDER / source).read_text(), re.M
                )
            )
            for name in (one.strip() for one in names.split(",")):
                assert name in exported, f"{file.name}: {name} of {source}"
                assert len(re.findall(rf"\b{re.escape(name)}\b" if name != "$" else r"\$\(", text)) > 1, (
                    file.name,
                    name,
                )


def test_files_stay_small() -> None:
    assert max(len(file.read_text().splitlines()) for file in FILES) <= 200


def test_the_icon_is_there(client: TestClient) -> None:
    response = client.get("/favicon.ico")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("image/svg+xml")
    assert '<link rel="icon" href="/favicon.ico"' in client.get("/").text
