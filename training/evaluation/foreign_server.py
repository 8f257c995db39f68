"""A running server as a classifier: what it answers to PNG files is all that attacks see, and queries are counted.

The contract is that of `ducat serve`: `GET /v1/model` says which classes and images, `POST /v1/predict` answers with
the confidences of the best classes. An image that broke it is one that anybody could have sent.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ducat_serve.client import Client, ServerError
from ducat_serve.errors import DucatError, UsageError, VerificationError
from ducat_serve.report import ServerAccess
from training.attacks.base import Attack
from training.attacks.square import Square
from training.attacks.transfer import Transfer
from training.batches import to_levels
from training.evaluation.evaluate import Plan

_AT_ONCE = 32  # images of one request; halved where the server takes fewer
_SMALLEST = 2.0**-149  # the smallest float32 above 0: a confidence of 0 is a rounded one
_SHOWN_TO_TRANSFER = 2  # queries of `Transfer` for each image


class ServerClassifier(nn.Module):
    """A server behind the interface of a classifier; logarithms of confidences are logits up to a constant.

    Args:
        client: an open one, which waits where the server asks for it.
        url: how the report names the server.
        budget: images that may be sent in all.

    Raises what asking the server does, and DucatError where it answers otherwise than `ducat serve` does.
    """

    def __init__(self, client: Client, url: str, budget: int) -> None:
        super().__init__()
        self.client, self.url, self.budget = client, url, budget
        self.queries, self._at_once, self._fewest_told = 0, _AT_ONCE, 0
        self._summary: dict[str, Any] | None = None
        try:
            spec = client.model()["spec"]
            self.labels = tuple(str(label) for label in spec["labels"])
            height, width = (int(size) for size in spec["image_size"])
            self.image = (int(spec["channels"]), height, width)
            self.weights_digest = str(spec["weights_digest"])
        except ServerError as error:
            if error.status == 429:
                raise self._stopped(error) from error
            if error.status == 200:
                raise _other_contract(url, "/v1/model is no JSON object") from error
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise _other_contract(url, f"/v1/model has no {error}") from error

    def require_fit(self, image: tuple[int, int, int], class_names: Sequence[str]) -> None:
        """Raise UsageError where images (channels, height, width) or classes are not those of the server."""
        if tuple(class_names) != self.labels:
            raise UsageError(
                f"The data set has other classes than {self.url} ({len(class_names)} and {len(self.labels)})."
            )
        if image != self.image:
            raise UsageError(
                f"{self.url} takes images of {_size(self.image)} (channels, height, width), and the data set has "
                f"{_size(image)}; it would resize what is sent.",
                "measure it on the data set that it was trained on",
            )

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1], rounded to 8 bits, to log confidences float32 [N, C].

        Raises:
            UsageError: the budget is spent. DucatError: the server stopped answering.
            VerificationError: it has another model by now.
        """
        pixels = to_levels(images)
        predictions: list[dict[str, Any]] = []
        while len(predictions) < len(pixels):
            predictions += self._ask(pixels[len(predictions) : len(predictions) + self._at_once])
        return torch.stack([self._scores(one) for one in predictions]).to(images.device)

    def access(self) -> ServerAccess:
        """What was asked of the server, for the report."""
        told = self._fewest_told
        return ServerAccess(
            url=self.url, queries=self.queries, query_budget=self.budget, classes_told=max(1, told)
        )

    def within_budget(self, plan: Plan, images: int, radii: int) -> Plan:
        """The plan with as many queries for each image as the rest of the budget pays for in the worst case.

        The worst case is that no image is broken early: clean images and what an attack found are asked once each.

        Raises UsageError where that is less than one.
        """
        attacks = plan.attacks
        shown = sum(_SHOWN_TO_TRANSFER for attack in attacks if isinstance(attack, Transfer))
        fixed = radii * (1 + images * (1 + len(attacks) + shown)) + images * plan.keep_images
        searching = radii * images * sum(isinstance(attack, Square) for attack in attacks)
        left = self.budget - self.queries - fixed
        if left < searching:
            least = self.queries + fixed + searching
            raise UsageError(
                f"--query-budget {self.budget} is too little for {images} images.",
                f"give at least {least}, better a hundred times as much, or fewer images: --max-examples N",
            )

        def limited(attack: Attack) -> Attack:
            return replace(attack, queries=left // searching) if isinstance(attack, Square) else attack

        return replace(plan, attacks=tuple(limited(attack) for attack in attacks))

    def _ask(self, pixels: NDArray[np.uint8]) -> list[dict[str, Any]]:
        if self.queries + len(pixels) > self.budget:
            raise UsageError(
                f"The query budget of {self.budget} is spent.",
                "give a larger --query-budget, or --max-examples N",
            )
        try:
            answer = self.client.answer([_png(image) for image in pixels])
        except ServerError as error:
            if error.status == 413 and len(pixels) > 1:
                self._at_once = len(pixels) // 2
                return []
            raise self._stopped(error) from error
        self.queries += len(pixels)
        self._require_same(answer.get("model"))
        predictions = answer.get("predictions")
        if not isinstance(predictions, list) or len(predictions) != len(pixels):
            raise _other_contract(self.url, "not one prediction for each image")
        return predictions

    def _stopped(self, error: ServerError) -> DucatError:
        spent = f"The server stopped answering after {self.queries} queries: {error.cause}"
        if error.status == 429:
            return DucatError(
                spent,
                "wait as long as it asks, use another key, or ask less: --max-examples N, --query-budget N",
            )
        return DucatError(spent, f"ask it yourself: GET {self.url.removesuffix('/predict')}/model")

    def _require_same(self, model: Any) -> None:
        """Raise VerificationError where another model answers than before: a figure of both is one of neither."""
        named = {key: model.get(key) for key in ("name", "version", "weights_digest")} if model else {}
        self._summary = self._summary or named
        if named != self._summary or named.get("weights_digest", self.weights_digest) != self.weights_digest:
            raise VerificationError(
                f"The server has another model after {self.queries} queries ({named}).",
                "measure it again; ?model=NAME&version=VERSION in the URL names one",
            )

    def _scores(self, prediction: dict[str, Any]) -> Tensor:
        """Log confidences of all C classes; where fewer are told, the others share what is left of the probability."""
        try:
            decision = int(prediction["class_id"])
            told = {int(one["class_id"]): float(one["confidence"]) for one in prediction.get("top_k", ())}
            told[decision] = float(prediction["confidence"])
        except (KeyError, TypeError, ValueError) as error:
            raise _other_contract(self.url, "predictions without class_id and confidence") from error
        classes = len(self.labels)
        if not all(0 <= index < classes for index in told):
            raise _other_contract(self.url, f"a class_id outside of 0 to {classes - 1}")
        self._fewest_told = min(self._fewest_told or classes, len(told))
        hidden = classes - len(told)
        rest = min(min(told.values()), max(0.0, 1 - sum(told.values())) / hidden) if hidden else 0.0
        confidences = [told.get(index, rest) for index in range(classes)]
        scores = torch.tensor(
            [math.nan if math.isnan(c) else math.log(max(c, _SMALLEST)) for c in confidences]
        )
        if int(scores.argmax()) != decision:  # confidences tie where logits do not
            scores[decision] = torch.nextafter(scores.max(), torch.tensor(math.inf))
        return scores


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _size(image: tuple[int, int, int]) -> str:
    return " x ".join(str(n) for n in image)


def _other_contract(url: str, what: str) -> DucatError:
    return DucatError(
        f"{url} does not answer as `ducat serve` does: {what}.",
        "measure a server of `ducat serve`, or its model",
    )
