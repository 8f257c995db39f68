"""deploy/: files that parse, and name only metrics, options, routes and error codes that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
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


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_every_manifest_is_what_kubernetes_expects(version: str) -> None:
    """With nothing that its schema does not know. What extends Kubernetes has schemas of others; see below."""
    for manifest in documents(DEPLOY / "kubernetes.yaml"):
        if manifest["kind"] == "ScaledObject":
            continue
        kubernetes_validate.validate(manifest, version, strict=True)
        manifest["spec"]["replica"] = 2
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_kserves_predictor_is_a_pod() -> None:
    """KServe takes a pod's fields beside its own, of which there is one here. Its whole schema is a megabyte."""
    (service,) = documents(DEPLOY / "kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert set(service["spec"]) == {"predictor"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": service["metadata"],
        "spec": service["spec"]["predictor"],
    }
    assert pod["spec"].pop("minReplicas") == 1
    kubernetes_validate.validate(pod, "1.37", strict=True)
    pod["spec"]["containers"][0]["readinessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.37", strict=True)


def test_the_autoscaler_scales_the_deployment_by_a_query_that_prometheus_understands() -> None:
    """KEDA's own part, whose schema is not at hand: what it points to is there."""
    manifests = {one["kind"]: one for one in documents(DEPLOY / "kubernetes.yaml")}
    scaled = manifests["ScaledObject"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": manifests["Deployment"]["metadata"]["name"]}
    assert (
        scaled["minReplicaCount"] == manifests["Deployment"]["spec"]["replicas"] < scaled["maxReplicaCount"]
    )
    (trigger,) = scaled["triggers"]
    assert {type(value) for value in trigger["metadata"].values()} == {str}  # KEDA takes nothing else


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian's package prometheus)")
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.integration
def test_prometheus_takes_rules_and_configuration(tmp_path: Path) -> None:
    rules = DEPLOY / "alerts.yaml"
    assert promtool("check", "rules", rules).returncode == 0
    # The rules are named by their place in the container, which compose.yaml mounts them to.
    text = (DEPLOY / "prometheus.yaml").read_text()
    assert text.count("/etc/prometheus/alerts.yaml") == 1
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(text.replace("/etc/prometheus/alerts.yaml", str(rules)))
    done = promtool("check", "config", configuration)
    assert done.returncode == 0, done.stderr
    assert "1 rule files found" in done.stdout
    broken = tmp_path / "broken.yaml"
    broken.write_text(rules.read_text().replace("> 0.01", "> > 0.01"))
    assert promtool("check", "rules", broken).returncode != 0


@pytest.mark.integration
def test_prometheus_understands_every_query_of_the_dashboard_and_the_autoscaler(tmp_path: Path) -> None:
    scaled = next(d for d in documents(DEPLOY / "kubernetes.yaml") if d["kind"] == "ScaledObject")
    text = (DEPLOY / "grafana.json").read_text()
    queries = [json.loads(f'"{query}"') for query in re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', text)]
    queries += [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert len(queries) >= 5
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    plain = json.dumps({"groups": [{"name": "queries", "rules": rules}]})
    file.write_text(plain.replace("$__rate_interval", "5m"))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stderr
