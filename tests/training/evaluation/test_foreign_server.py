"""A server as a classifier: what its answers tell, what may be asked, and what it may not do meanwhile."""

from __future__ import annotations

import io
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ducat_serve.client import Client, ServerError
from ducat_serve.errors import DucatError, UsageError, VerificationError
from ducat_serve.threat_model import ThreatModel
from tests.support.foreign_onnx import Linear
from training.attacks.square import Square
from training.evaluation.evaluate import Plan
from training.evaluation.foreign_server import ServerClassifier

URL = "http://somewhere/v1/predict"
IMAGES = torch.randint(256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(1)) / 255
PLAN = Plan(ThreatModel(norm="linf", eps=0.1), (Square(),))


class FakeClient:
    """Answers as `ducat serve` does, with the model `Linear`; counts images and keeps no more of them."""

    def __init__(self, top_k: int = 10, most: int = 100) -> None:
        self.top_k, self.most, self.images = top_k, most, 0
        self.summary: dict[str, Any] = {"name": "linear", "version": "1", "weights_digest": "abc"}
        self.fails: ServerError | None = None
        self.change: dict[str, Any] = {}

    def model(self) -> dict[str, Any]:
        if self.fails is not None:
            raise self.fails
        spec = {"labels": [str(i) for i in range(10)], "image_size": [8, 8], "channels": 3}
        return {"spec": {**spec, "weights_digest": "abc"}}

    def answer(self, files: list[bytes]) -> dict[str, Any]:
        if len(files) > self.most:
            raise ServerError(413, "too_many_images", "Too many images.")
        if self.fails is not None:
            raise self.fails
        self.images += len(files)
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
        logits = Linear()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).detach()
        return {"model": self.summary, "predictions": [self.prediction(row) for row in logits.softmax(1)]}

    def prediction(self, confidences: Tensor) -> dict[str, Any]:
        order = confidences.argsort(descending=True).tolist()
        entries = [{"class_id": i, "confidence": confidences[i].item()} for i in order]
        return {**entries[0], "top_k": entries[: self.top_k], **self.change}


def asking(client: FakeClient, budget: int = 1000) -> ServerClassifier:
    return ServerClassifier(cast(Client, client), URL, budget)


def test_log_confidences_are_the_logits_up_to_a_constant() -> None:
    server, logits = asking(FakeClient()), Linear()(IMAGES).detach()
    torch.testing.assert_close(server(IMAGES), logits.log_softmax(1), rtol=1e-4, atol=1e-4)
    assert (server.access().queries, server.access().classes_told) == (40, 10)


def test_classes_that_are_not_told_share_the_rest_and_change_no_decision() -> None:
    server, logits = asking(FakeClient(top_k=2)), Linear()(IMAGES).detach()
    found, truth = server(IMAGES), logits.log_softmax(1)
    assert server.access().classes_told == 2
    assert torch.equal(found.argmax(1), truth.argmax(1))
    torch.testing.assert_close(found.topk(2).values, truth.topk(2).values, rtol=1e-4, atol=1e-4)
    assert (found.exp().sum(1) <= 1 + 1e-5).all()


def test_a_confidence_of_0_and_a_tie_leave_the_servers_decision() -> None:
    client = FakeClient()
    entries = [{"class_id": i, "confidence": 0.5 if i < 2 else 0.0} for i in range(10)]
    client.change = {"class_id": 1, "confidence": 0.5, "top_k": entries}
    scores = asking(client)(IMAGES[:1])
    assert scores.isfinite().all()
    assert int(scores.argmax()) == 1


def test_requests_are_as_small_as_the_server_wants_them() -> None:
    client = FakeClient(most=3)
    server = asking(client)
    assert len(server(IMAGES)) == 40
    assert (client.images, server.queries) == (40, 40)


def test_the_budget_is_kept_in_the_worst_case_and_a_small_one_is_refused() -> None:
    server = asking(FakeClient(), budget=1000)
    (attack,) = server.within_budget(PLAN, images=9, radii=2).attacks
    assert isinstance(attack, Square)
    # At each of two radii: one look at the model, 9 clean images, 9 found ones, and the search.
    assert attack.queries == (1000 - 2 * (1 + 9 + 9)) // (2 * 9)
    with pytest.raises(UsageError, match="too little for 400 images") as caught:
        server.within_budget(PLAN, images=400, radii=1)
    assert "--max-examples" in str(caught.value)
    assert "at least 1201" in str(caught.value)


def test_nothing_is_sent_beyond_the_budget() -> None:
    client = FakeClient()
    server = asking(client, budget=70)
    server(IMAGES)
    with pytest.raises(UsageError, match="budget of 70 is spent"):
        server(IMAGES)
    assert client.images <= 70


def test_another_model_in_the_middle_is_no_figure_of_either() -> None:
    client = FakeClient()
    server = asking(client)
    server(IMAGES[:1])
    client.summary = {**client.summary, "version": "2"}
    with pytest.raises(VerificationError, match="another model after 2 queries"):
        server(IMAGES[:1])


def test_a_server_that_wants_no_more_is_obeyed_and_what_was_spent_is_said() -> None:
    client = FakeClient()
    server = asking(client)
    server(IMAGES)
    client.fails = ServerError(429, "budget_spent", "The budget of 40 images per day is spent.")
    with pytest.raises(
        DucatError, match="after 40 queries: The budget of 40 images per day is spent"
    ) as caught:
        server(IMAGES)
    assert "use another key" in str(caught.value)
    with pytest.raises(DucatError, match="after 0 queries: The budget") as caught:
        asking(client)  # it may want no more before the first image
    assert "use another key" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": None}, "without class_id and confidence"),
        ({"confidence": "high"}, "without class_id and confidence"),
        ({"class_id": 10}, "outside of 0 to 9"),
    ],
)
def test_answers_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    client = FakeClient()
    client.change = change
    with pytest.raises(DucatError, match=message):
        asking(client)(IMAGES[:1])


@pytest.mark.parametrize(("image", "names"), [((3, 32, 32), "0123456789"), ((3, 8, 8), "abcdefghij")])
def test_other_images_or_classes_are_refused(image: tuple[int, int, int], names: str) -> None:
    with pytest.raises(UsageError, match=r"other classes|takes images of 3 x 8 x 8"):
        asking(FakeClient()).require_fit(image, tuple(names))
