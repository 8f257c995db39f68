"""deploy/: files that parse, and name only metrics, options, routes and error codes that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ducat_serve.cli.commands.serve import command as serve
from service.settings import PREFIX, Settings
from tests.support.deployment import DEPLOY, FILES, GUIDES, documents
from tests.support.http_client import GOOD, send

WITH_AUDIT_LOG = {"ducat_audit_waiting"}  # only a server with --audit-log has it
SOURCES = [*(Path(__file__).parents[2] / "service").rglob("*.py"), Path("ducat_serve/images.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_metric_that_is_named_is_there(path: Path, client: TestClient) -> None:
    assert all(documents(path))
    send(client, GOOD)
    send(client, b"no image")
    text = client.get("/metrics").text
    named = set(re.findall(r"\bducat_[a-z_]+\b", path.read_text()))
    assert path.name not in ("alerts.yaml", "grafana.json", "kubernetes.yaml") or named
    for metric in named - WITH_AUDIT_LOG:
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
    guide = (GUIDES / "monitor.md").read_text()
    named = set(re.findall(r"`(ducat_[a-z_]+)", guide))
    assert len(named) >= 8
    for metric in named - WITH_AUDIT_LOG:
        assert f"# HELP {metric.removesuffix('_total')}" in text, metric


def manifests(*kinds: str) -> list[Any]:
    """Of Kubernetes and KServe."""
    both = [one for name in ("kubernetes", "kserve") for one in documents(DEPLOY / f"{name}.yaml")]
    found = {one["kind"]: one for one in both}
    return [found[kind] for kind in kinds]


def pods() -> list[Any]:
    """What Kubernetes and KServe are told to run."""
    deployment, service = manifests("Deployment", "InferenceService")
    return [deployment["spec"]["template"]["spec"], service["spec"]["predictor"]]


each_pod = pytest.mark.parametrize("pod", pods(), ids=["kubernetes", "kserve"])


@each_pod
def test_a_pod_is_asked_where_the_server_answers_and_has_time_to_drain(pod: Any) -> None:
    (container,) = pod["containers"]
    probes = {name: container[name] for name in container if name.endswith("Probe")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    assert probes["startupProbe"]["periodSeconds"] * probes["startupProbe"]["failureThreshold"] >= 300
    assert all(probe["timeoutSeconds"] >= 3 for probe in probes.values()), "a busy node answers late"
    (drain,) = [float(one["value"]) for one in container["env"] if one["name"] == PREFIX + "DRAIN"]
    deadline = Settings.model_fields["deadline"].default
    assert pod["terminationGracePeriodSeconds"] > drain + deadline


@each_pod
def test_a_pod_computes_with_as_many_threads_as_it_requests_cpus(pod: Any) -> None:
    (container,) = pod["containers"]
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment[PREFIX + "THREADS"] == container["resources"]["requests"]["cpu"]


def test_kserve_runs_what_kubernetes_runs() -> None:
    """The same image, settings, keys and rights; only the model comes from elsewhere."""
    kubernetes, kserve = pods()
    (ours,), (theirs,) = kubernetes["containers"], kserve["containers"]
    for name in ("image", "resources"):
        assert theirs[name] == ours[name]
    assert [one for one in theirs["env"] if one["name"] != "STORAGE_URI"] == ours["env"]
    # KServe's own init container, which fetches the model, keeps the user that it is made for.
    assert theirs["securityContext"] == kubernetes["securityContext"] | ours["securityContext"]
    assert theirs["volumeMounts"] == [one for one in ours["volumeMounts"] if one["name"] != "model"]
    assert kserve["volumes"] == [one for one in kubernetes["volumes"] if one["name"] != "model"]
    assert ":" in ours["image"]


def test_clients_of_kserve_find_the_model_by_the_name_of_the_service() -> None:
    (service,) = manifests("InferenceService")
    (container,) = service["spec"]["predictor"]["containers"]
    name, *arguments = container["args"]
    assert serve.make_context(name, arguments).params["name"] == service["metadata"]["name"]


def test_only_the_autoscaler_says_how_many_replicas_there_are() -> None:
    """`kubectl apply` of a number would take every replica away that the autoscaler has added."""
    deployment, scaled, budget = manifests("Deployment", "ScaledObject", "PodDisruptionBudget")
    assert "replicas" not in deployment["spec"]
    assert scaled["spec"]["scaleTargetRef"] == {"name": deployment["metadata"]["name"]}
    assert 2 <= scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]
    assert budget["spec"]["maxUnavailable"] == 1
    (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"] == deployment["spec"]["selector"]


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


def test_compose_says_where_it_looks_for_models_and_keys() -> None:
    """Compose takes a relative path from the folder of its file, wherever it is called."""
    text = (DEPLOY / "compose.yaml").read_text()
    (compose,) = documents(DEPLOY / "compose.yaml")
    places = [volume.split(":")[0] for volume in compose["services"]["ducat"]["volumes"]]
    assert len(places) == 2
    ignored = (DEPLOY.parent / ".gitignore").read_text().splitlines()
    comment = text.split("\nservices:")[0]
    for place in places:
        folder = f"deploy/{place.removeprefix('./')}"
        assert f"{folder}/" in comment
        assert f"/{folder}/" in ignored, "a key is committed by mistake"
    assert "10001" in comment
    assert "/deploy/.env" in ignored


def test_metrics_want_a_key_that_compose_gives_to_both() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    server, prometheus = compose["services"]["ducat"], compose["services"]["prometheus"]
    variable = PREFIX + "ADMIN_KEY"
    # `:?` ends compose where the variable is missing: an empty one must not mean "no key".
    assert server["environment"][variable].startswith(f"${{{variable}:?")
    (secret,) = prometheus["secrets"]
    assert compose["secrets"][secret] == {"environment": variable}
    (configuration,) = documents(DEPLOY / "prometheus.yaml")
    (job,) = configuration["scrape_configs"]
    assert job["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    assert all(port.startswith("127.0.0.1:") for port in prometheus["ports"])


def test_metrics_in_kubernetes_want_a_key_and_not_everyone_reaches_the_pods() -> None:
    pod = pods()[0]
    (container,) = pod["containers"]
    (key,) = [one for one in container["env"] if one["name"] == PREFIX + "ADMIN_KEY"]
    source = key["valueFrom"]["secretKeyRef"]
    (keys,) = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    assert source["name"] == keys["secretName"]
    assert source["key"] not in [item["key"] for item in keys["items"]], "clients' keys are others"
    policy = manifests("NetworkPolicy")[0]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    assert rule["from"]
    assert rule["ports"] == [{"port": container["ports"][0]["name"]}]


def test_the_documented_proxies_outlast_the_server_only_where_they_should() -> None:
    """Its idle connections close first, so that no request is sent on one that is closed; its patience ends last."""
    guide = (GUIDES / "proxy.md").read_text()
    idle = [int(seconds) for seconds in re.findall(r"\bkeepalive(?:_timeout)? (\d+)s", guide)]
    assert len(idle) == 2
    assert max(idle) < Settings.model_fields["keep_alive"].default
    (patience,) = [int(seconds) for seconds in re.findall(r"proxy_read_timeout (\d+)s", guide)]
    assert patience > Settings.model_fields["deadline"].default
