"""Build the JSON that clients get."""

from __future__ import annotations

from typing import Any

from ducat_serve.images import RESIZE_POLICY
from ducat_serve.report import NOT_MEASURED
from ducat_serve.report_text import report_in_words
from service.models.served import LoadedVersion


def model_summary(loaded: LoadedVersion) -> dict[str, Any]:
    """The short description that goes with every prediction."""
    spec = loaded.predictor.spec
    return {
        "name": loaded.name,
        "version": loaded.version,
        "network": spec.network,
        "weights_digest": spec.weights_digest,
        "function_digest": loaded.function_digest,
        "precision": spec.precision,
        "threat_model": str(spec.threat_model),
        "robustness": NOT_MEASURED if spec.robustness is None else spec.robustness.summary(),
        "resizing": RESIZE_POLICY,
    }


def model_details(loaded: LoadedVersion) -> dict[str, Any]:
    """All that is known of the model: its ModelSpec, robustness report and how it runs here."""
    spec = loaded.predictor.spec
    return {
        "name": loaded.name,
        "version": loaded.version,
        "spec": spec.model_dump(mode="json"),
        "robustness": NOT_MEASURED if spec.robustness is None else spec.robustness.model_dump(mode="json"),
        "robustness_summary": NOT_MEASURED if spec.robustness is None else spec.robustness.summary(),
        "robustness_in_words": report_in_words(spec),
        "source_sha256": loaded.predictor.source_sha256,
        "function_digest": loaded.function_digest,
        "provider": loaded.predictor.provider,
        "resizing": RESIZE_POLICY,
    }
