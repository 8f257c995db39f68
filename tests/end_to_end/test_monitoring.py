"""deploy/: alerts, queries and the dashboard, most of them as Prometheus itself takes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import DEPLOY, GUIDES, documents

# Read before a test takes such variables away.
IS_REQUIRED = bool(os.environ.get("DUCAT_TEST_REQUIRE_PROMTOOL"))


def test_every_alert_has_one_annotation() -> None:
    """An unquoted comma in a summary made a second one, and Prometheus refused the file."""
    (groups,) = documents(DEPLOY / "alerts.yaml")
    rules = [rule for group in groups["groups"] for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        assert list(rule["annotations"]) == ["summary"], rule["alert"]
        assert rule["annotations"]["summary"].endswith(".")


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


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None and not IS_REQUIRED:
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
    guide = (GUIDES / "many-machines.md").read_text()
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
    guide = (GUIDES / "monitor.md").read_text()
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
