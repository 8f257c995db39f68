"""Build the JSON that clients get."""

from __future__ import annotations

from typing import Any

from ducat_serve.images import RESIZE_POLICY
from ducat_serve.predictor import Predictor
from ducat_serve.report import NOT_MEASURED
from ducat_serve.report_text import report_in_words


def model_summary(name: str, version: str, predictor: Predictor) -> dict[str, Any]:
    """The short description that goes with every prediction."""
    spec = predictor.spec
    return {
        "name": name,
        "version": version,
        "network": spec.network,
        "weights_digest": spec.weights_digest,
        "threat_model": str(spec.threat_model),
        "robustness": NOT_MEASURED if spec.robustness is None else spec.robustness.summary(),
        "resizing": RESIZE_POLICY,
    }


def model_details(name: str, version: str, predictor: Predictor) -> dict[str, Any]:
    """All that is known of the model: its ModelSpec, robustness report and how it runs here."""
    spec = predictor.spec
    return {
        "name": name,
        "version": version,
        "spec": spec.model_dump(mode="json"),
        "robustness": NOT_MEASURED if spec.robustness is None else spec.robustness.model_dump(mode="json"),
        "robustness_summary": NOT_MEASURED if spec.robustness is None else spec.robustness.summary(),
        "robustness_in_words": report_in_words(spec),
        "source_sha256": predictor.source_sha256,
        "provider": predictor.provider,
        "resizing": RESIZE_POLICY,
    }
