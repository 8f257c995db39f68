"""What is in deploy/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.suffix in (".yaml", ".json"))
GUIDES = DEPLOY.parent / "docs" / "how-to"


def documents(path: Path) -> list[Any]:
    return (
        [json.loads(path.read_text())]
        if path.suffix == ".json"
        else list(yaml.safe_load_all(path.read_text()))
    )
