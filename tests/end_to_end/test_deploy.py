"""deploy/: files that parse, and name only metrics, options, routes and error codes that exist."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from starlette.testclient import TestClient

from ducat_serve.cli.commands.serve import command as serve
from service.settings import PREFIX, Settings
from tests.support.http_client import GOOD, send

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(path for path in DEPLOY.iterdir() if path.suffix in (".yaml", ".json"))
SCHEMAS = Path(__file__).parent / "schemas"
OURS = {
    "labels",
    "matchLabels",
    "annotations",
    "selector",
    "requests",
    "limits",
    "podSelector",
    "stringData",
    "data",
}
WITH_AUDIT_LOG = {"ducat_audit_waiting"}  # only a server with --audit-log has it
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
    guide = (DEPLOY.parent / "docs" / "how-to" / "monitor.md").read_text()
    named = set(re.findall(r"`(ducat_[a-z_]+)", guide))
    assert len(named) >= 8
    for metric in named - WITH_AUDIT_LOG:
        assert f"# HELP {metric.removesuffix('_total')}" in text, metric


def test_every_alert_has_one_annotation() -> None:
    """An unquoted comma in a summary made a second one, and Prometheus refused the file."""
    (groups,) = documents(DEPLOY / "alerts.yaml")
    rules = [rule for group in groups["groups"] for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        assert list(rule["annotations"]) == ["summary"], rule["alert"]
        assert rule["annotations"]["summary"].endswith(".")


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


def panels() -> dict[str, Any]:
    (dashboard,) = documents(DEPLOY / "grafana.json")
    found = {panel["title"]: panel for panel in dashboard["panels"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(found) == len(dashboard["panels"])
    return found


def test_the_table_of_models_is_of_now() -> None:
    """A query over time gives one row for each of its steps, and without a format no columns of labels."""
    for panel in panels().values():
        for target in panel["targets"]:
            is_table = (target.get("format"), target.get("instant")) == ("table", True)
            assert is_table == (panel["type"] == "table"), panel["title"]


def test_no_panel_lies_over_another_one() -> None:
    places = [panel["gridPos"] for panel in panels().values()]
    cells = [
        (x, y)
        for at in places
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_dashboard_shows_the_documented_distance_of_drift() -> None:
    (target,) = panels()["Drift of answers"]["targets"]
    assert target["expr"].split() == documented_drift().split()


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


MANIFESTS = [
    pytest.param(manifest, id=manifest["kind"])
    for path in FILES
    for manifest in documents(path)
    if "apiVersion" in manifest and "kind" in manifest
]


def problems(manifest: Any, version: str) -> str | None:
    """What Kubernetes, or what extends it, would not take or not know; None where it takes the manifest.

    A custom resource is held against schemas/, written after its definition. KServe's predictor is a pod with fields of
    its own; all others are held against Kubernetes' schema.
    """
    schema = SCHEMAS / f"{manifest['kind']}.json"
    checked = manifest
    if schema.is_file():
        validator = jsonschema.Draft202012Validator(json.loads(schema.read_text()))
        if (error := jsonschema.exceptions.best_match(validator.iter_errors(manifest))) is not None:
            return str(error.message)
        if manifest["kind"] != "InferenceService":
            return None
        pod = {name: value for name, value in manifest["spec"]["predictor"].items() if name != "minReplicas"}
        checked = {"apiVersion": "v1", "kind": "Pod", "metadata": manifest["metadata"], "spec": pod}
    try:
        kubernetes_validate.validate(checked, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return str(error)
    return None


def fields(manifest: Any) -> Iterator[tuple[str | int, ...]]:
    """Where every field stands whose name is Kubernetes' and not ours, such as that of a label."""
    entries = manifest.items() if isinstance(manifest, dict) else enumerate(manifest)
    for key, value in entries:
        if isinstance(key, str):
            yield (key,)
        if isinstance(value, dict | list) and key not in OURS:
            yield from ((key, *below) for below in fields(value))


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("manifest", MANIFESTS)
def test_every_manifest_is_what_kubernetes_expects(manifest: Any, version: str) -> None:
    """With nothing that its schema does not know."""
    assert problems(manifest, version) is None


def test_no_manifest_is_left_out() -> None:
    kinds = {parameter.id for parameter in MANIFESTS}
    assert {"Deployment", "Service", "ScaledObject", "InferenceService"} <= kinds
    assert {path.stem for path in SCHEMAS.iterdir()} <= kinds


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_mistyped_field_of_any_manifest_is_found(manifest: Any) -> None:
    """Of what Kubernetes' own schema is asked one is enough: it is large, and read anew for each."""
    places = list(fields(manifest))
    ours = [place for place in places if not {"containers", "volumes"} & set(place[:-1])]
    is_custom = (SCHEMAS / f"{manifest['kind']}.json").is_file()
    for *above, name in [*ours, places[-1]] if is_custom else places[-1:]:
        broken = copy.deepcopy(manifest)
        at = functools.reduce(lambda inner, key: inner[key], above, broken)
        at[f"{name}s"] = at.pop(name)
        if name != "kind":  # without it nobody knows what the rest is
            assert problems(broken, "1.37") is not None, (*above, name)


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        ("ScaledObject", ("spec", "maxReplicaCount"), "20"),
        (
            "ScaledObject",
            ("spec", "triggers", 0, "metadata", "threshold"),
            64,
        ),  # KEDA takes nothing but strings
        ("ScaledObject", ("spec", "triggers", 0, "type"), "prometeus"),
        ("ScaledObject", ("apiVersion",), "keda.sh/v1"),
        ("InferenceService", ("spec", "predictor", "minReplicas"), "1"),
        ("InferenceService", ("spec", "predictor", "containers"), []),
        ("InferenceService", ("spec", "predictor", "containers", 0, "ports", 0, "containerPort"), "3000"),
    ],
)
def test_a_wrong_value_of_a_custom_resource_is_found(
    kind: str, place: tuple[str | int, ...], value: object
) -> None:
    manifest: Any = next(copy.deepcopy(one.values[0]) for one in MANIFESTS if one.id == kind)
    at: Any = functools.reduce(lambda inner, key: inner[key], place[:-1], manifest)
    at[place[-1]] = value
    assert problems(manifest, "1.37") is not None


def test_the_documented_proxies_outlast_the_server_only_where_they_should() -> None:
    """Its idle connections close first, so that no request is sent on one that is closed; its patience ends last."""
    guide = (DEPLOY.parent / "docs" / "how-to" / "proxy.md").read_text()
    idle = [int(seconds) for seconds in re.findall(r"\bkeepalive(?:_timeout)? (\d+)s", guide)]
    assert len(idle) == 2
    assert max(idle) < Settings.model_fields["keep_alive"].default
    (patience,) = [int(seconds) for seconds in re.findall(r"proxy_read_timeout (\d+)s", guide)]
    assert patience > Settings.model_fields["deadline"].default


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
    guide = (DEPLOY.parent / "docs" / "how-to" / "many-machines.md").read_text()
    (of_kubernetes,) = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    # Debian's promtool was built without Kubernetes.
    of_kubernetes = of_kubernetes.replace(
        "kubernetes_sd_configs: [{role: pod}]", "static_configs: [{targets: [a]}]"
    )
    admin_key = tmp_path / "admin"
    admin_key.write_text("0123456789abcdef")
    for given in (text.replace("/etc/prometheus/alerts.yaml", str(rules)), of_kubernetes):
        configuration = tmp_path / "prometheus.yml"
        configuration.write_text(re.sub(r"(?<=credentials_file: )[\w/]+", str(admin_key), given))
        done = promtool("check", "config", configuration)
        assert done.returncode == 0, done.stderr
        assert "1 rule files found" in done.stdout or given == of_kubernetes
    broken = tmp_path / "broken.yaml"
    broken.write_text(rules.read_text().replace("> 0.01", "> > 0.01"))
    assert promtool("check", "rules", broken).returncode != 0


SERVERS = 'job="ducat", instance="a:3000"'


@pytest.mark.integration
@pytest.mark.parametrize(
    ("series", "minutes", "expected"),
    [
        ({}, 2, {"DucatDown"}),
        ({f"up{{{SERVERS}}}": "0x20"}, 10, {"DucatDown", "DucatReplicaDown"}),
        (
            {f"up{{{SERVERS}}}": "0x20", 'up{job="ducat", instance="b:3000"}': "1x20"},
            10,
            {"DucatReplicaDown"},
        ),
        ({f"process_start_time_seconds{{{SERVERS}}}": "1 1 2 2 3 3 4x20"}, 10, {"DucatRestarting"}),
        ({f"process_start_time_seconds{{{SERVERS}}}": "1 1 1 2x20"}, 10, set()),  # one update
        (
            {
                'ducat_requests_total{status="429"}': "0+10x40",
                'ducat_requests_total{status="200"}': "0+90x40",
            },
            30,
            {"DucatRefusing"},
        ),
        (
            {
                'ducat_requests_total{status="429"}': "0+1x40",
                'ducat_requests_total{status="200"}': "0+90x40",
            },
            30,
            set(),
        ),
        ({f"ducat_last_reload_successful{{{SERVERS}}}": "1 0x40"}, 30, {"DucatReloadFailed"}),
        ({f"ducat_last_reload_successful{{{SERVERS}}}": "1 0 0 0 1x40"}, 30, set()),  # tried again
        (
            {  # another version of a model, whose mean mass is its own
                'ducat_dummy_mass_sum{model="m", version="1"}': "0+0x1440 _x200",
                'ducat_dummy_mass_count{model="m", version="1"}': "0+10x1440 _x200",
                'ducat_dummy_mass_sum{model="m", version="2"}': "_x1440 0+4x200",
                'ducat_dummy_mass_count{model="m", version="2"}': "_x1440 0+10x200",
                f"up{{{SERVERS}}}": "1x1700",
            },
            1530,
            set(),
        ),
        (
            {
                'ducat_dummy_mass_sum{model="m", version="1"}': "0+0x1440 0+4x200",
                'ducat_dummy_mass_count{model="m", version="1"}': "0+10x1440 14410+10x200",
                f"up{{{SERVERS}}}": "1x1700",
            },
            1530,
            {"DucatInputsShifted"},
        ),
        ({f"ducat_audit_waiting{{{SERVERS}}}": "0 200+50x40"}, 30, {"DucatAuditStuck"}),
        ({f"ducat_audit_waiting{{{SERVERS}}}": "0 200 0 300 0 200 0 300 0 200 0"}, 8, set()),
    ],
)
def test_alerts_fire_where_they_should(
    series: dict[str, str], minutes: int, expected: set[str], tmp_path: Path
) -> None:
    """One value of each series for every minute. What is not under test is up."""
    rules = DEPLOY / "alerts.yaml"
    given = dict(series)
    if series and not any(name.startswith("up") for name in series):
        given[f"up{{{SERVERS}}}"] = "1x60"
    (groups,) = documents(rules)
    alerts = {rule["alert"]: rule for group in groups["groups"] for rule in group["rules"]}
    assert expected <= set(alerts)
    answers = {f'{{alertname="{name}"}}': 1.0 for name in expected}
    expect_of_prometheus(
        'count by (alertname) (ALERTS{alertstate="firing"})', given, minutes, answers, tmp_path, rules
    )


def documented_drift() -> str:
    guide = (DEPLOY.parent / "docs" / "how-to" / "monitor.md").read_text()
    (query,) = re.findall(r"```text\n(.*?)```", guide, flags=re.DOTALL)
    return str(query)


def expect_of_prometheus(
    query: str, series: dict[str, str], minutes: int, answers: dict[str, float], folder: Path, *rules: Path
) -> None:
    """What Prometheus answers after so many minutes of these series, one value for each minute."""
    samples = [{"labels": labels, "value": value} for labels, value in sorted(answers.items())]
    one = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": f"{minutes}m", "exp_samples": samples}],
    }
    file = folder / "test.yaml"
    file.write_text(
        json.dumps({"rule_files": [str(r) for r in rules], "evaluation_interval": "1m", "tests": [one]})
    )
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
@pytest.mark.parametrize(("dogs", "distance"), [("0+10x90", 0), ("0x90", 250)])
@pytest.mark.parametrize("replicas", [["a:3000"], ["a:3000", "b:3000"]])
def test_the_documented_distance_of_drift_is_the_same_for_any_number_of_replicas(
    replicas: list[str], dogs: str, distance: float, tmp_path: Path
) -> None:
    """Of the answers to val images three in four were cats."""
    series = {}
    for replica in replicas:
        for name, answers, share in (("cat", "0+30x90", 0.75), ("dog", dogs, 0.25)):
            labels = f'{{model="pets", version="1", class="{name}", instance="{replica}"}}'
            series[f"ducat_predictions_total{labels}"] = answers
            series[f"ducat_reference_class_share{labels}"] = f"{share}x90"
    answer = {'{model="pets", version="1"}': distance}
    expect_of_prometheus(f"round(1000 * ({documented_drift()}))", series, 80, answer, tmp_path)


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
