"""deploy/: every field is one that Kubernetes, or what extends it, knows and takes."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import FILES, documents

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
    # Here, since they compile a grammar for seconds, and every process of the tests imports this file.
    import jsonschema
    import kubernetes_validate

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
