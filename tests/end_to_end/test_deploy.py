"""deploy/: files that parse, and name only metrics, options, routes and error codes that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.testclient import TestClient

from ducat_serve.cli.commands.serve import command as serve
from service.settings import PREFIX, Settings
from tests.support.http_client import GOOD, send

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.suffix in (".yaml", ".json"))
SOURCES = [*(Path(__file__).parents[2] / "service").rglob("*.py"), Path("ducat_serve/images.py")]


def documents(path: Path) -> list[Any]:
    return (
        [json.loads(path.read_text())]
        if path.suffix == ".json"
        else list(yaml.safe_load_all(path.read_text()))
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_metric_that_is_named_is_there(path: Path, client: TestClient) -> None:
    assert all(documents(path))
    send(client, GOOD)
    send(client, b"no image")
    text = client.get("/metrics").text
    named = set(re.findall(r"\bducat_[a-z_]+\b", path.read_text()))
    assert path.name not in ("alerts.yaml", "grafana.json", "kubernetes.yaml") or named
    for metric in named:
        assert re.search(rf"^{metric}[{{ ]", text, flags=re.MULTILINE), metric


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_and_error_code_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    for name in re.findall(rf"{PREFIX}([A-Z_]+)", text):
        assert name.lower() in Settings.model_fields, name
    codes = " ".join(source.read_text() for source in SOURCES)
    for reasons in re.findall(r'reason=~?"([a-z_|]+)"', text):
        for reason in reasons.split("|"):
            assert f'"{reason}"' in codes, reason


def test_the_documented_metrics_are_there(client: TestClient) -> None:
    send(client, GOOD)
    send(client, b"no image")
    text = client.get("/metrics").text
    guide = (DEPLOY.parent / "docs" / "how-to" / "monitor.md").read_text()
    named = set(re.findall(r"`(ducat_[a-z_]+)", guide))
    assert len(named) >= 8
    with_audit_log = {"ducat_audit_waiting"}  # only a server with --audit-log has it
    for metric in named - with_audit_log:
        assert f"# HELP {metric.removesuffix('_total')}" in text, metric


def test_every_alert_has_one_annotation() -> None:
    """An unquoted comma in a summary made a second one, and Prometheus refused the file."""
    (groups,) = documents(DEPLOY / "alerts.yaml")
    rules = [rule for group in groups["groups"] for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        assert list(rule["annotations"]) == ["summary"], rule["alert"]
        assert rule["annotations"]["summary"].endswith(".")


def test_kubernetes_asks_where_the_server_answers() -> None:
    deployment = next(d for d in documents(DEPLOY / "kubernetes.yaml") if d["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    (drain,) = [float(one["value"]) for one in container["env"] if one["name"] == PREFIX + "DRAIN"]
    deadline = Settings.model_fields["deadline"].default
    assert pod["terminationGracePeriodSeconds"] > drain + deadline


def test_arguments_are_ones_that_the_images_entrypoint_takes() -> None:
    """They go to ENTRYPOINT, `ducat`: naming it again would be a command that does not exist."""
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["ducat"]' in dockerfile
    service = documents(DEPLOY / "kserve.yaml")[0]
    (container,) = service["spec"]["predictor"]["containers"]
    given = [container["args"], json.loads(re.findall(r"^CMD (\[.*\])$", dockerfile, flags=re.MULTILINE)[-1])]
    for name, *arguments in given:
        assert name == "serve"
        assert serve.make_context(name, arguments).params["host"] == "0.0.0.0"


def test_compose_starts_a_server_that_died_anew() -> None:
    """The server has no supervisor."""
    (compose,) = documents(DEPLOY / "compose.yaml")
    assert compose["services"]["ducat"]["restart"] == "unless-stopped"
