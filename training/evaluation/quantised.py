"""An int8 file as a classifier with gradients: its own answers forwards, those of a differentiable copy backwards.

So the attacks climb the copy, and every success is one against the file itself, at every step: backward pass
differentiable approximation (Athalye et al. 2018, arXiv 1802.00420). The file's graph answers what its heads say before
the fold, so that attacks that know the dummies or the towers work as on a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ducat_serve.deployed import Deployed
from ducat_serve.errors import VerificationError
from ducat_serve.networks.two_towers import TwoTowers
from ducat_serve.predictor import Device, Predictor, create_session
from ducat_serve.quantisation import Quantisation
from training.batches import to_levels
from training.evaluation.quantised_copy import QuantisedCopy


def differentiable(file: bytes, predictor: Predictor, device: Device) -> Deployed:
    """The deployed function of an int8 file, with the gradients of a copy of its graph.

    Args:
        file: what it holds, as `read_sealed` read it.
        predictor: of the same bytes; it has checked them.
        device: where the file runs. The copy is on the CPU.

    Raises:
        UnknownOperator: the graph cannot be copied, so there are only scores.
    """
    record = predictor.spec.quantisation
    assert record is not None
    model = onnx.load_from_string(file)
    heads = _Heads(model, record, device)
    answers = [
        ThroughCopy(QuantisedCopy(model, record.pixels, name), heads, name) for name in record.raw_logits
    ]
    towers = predictor.spec.towers
    if towers is None:
        return Deployed(answers[0], predictor.spec.fold).eval()
    standard, robust = (Deployed(a, tower.fold) for a, tower in zip(answers, towers, strict=True))
    return Deployed(TwoTowers(standard, robust), predictor.spec.fold).eval()


@torch.no_grad()
def require_same_answers(model: Deployed, predictor: Predictor, images: NDArray[np.uint8]) -> None:
    """See that what is attacked decides as the file does, on clean images uint8 [N, H, W, channels].

    Raises VerificationError where it does not: then the fold in the file is another one than its ModelSpec says.
    """
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    if not np.array_equal(model(pixels).argmax(dim=1).numpy(), predictor(images).label):
        raise VerificationError(
            "The file's labels are not what its heads and the fold of its ModelSpec give.",
            "ducat export model.safetensors --precision int8",
        )


class _Heads:
    """The file's own graph, which also answers what its heads say. It remembers the last images: towers ask in turn."""

    def __init__(self, model: onnx.ModelProto, record: Quantisation, device: Device) -> None:
        widened = onnx.ModelProto()
        widened.CopyFrom(model)
        present = {output.name for output in widened.graph.output}
        for name in record.raw_logits:
            if name not in present:
                widened.graph.output.append(
                    onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                )
        self._names = record.raw_logits
        self._session, _ = create_session(widened.SerializeToString(), device, torch.get_num_threads())
        self._images: NDArray[np.uint8] | None = None
        self._answers: dict[str, NDArray[np.float32]] = {}

    def __call__(self, images: Tensor, name: str) -> Tensor:
        """What a head answers to float images [N, channels, H, W] in [0, 1], rounded to 8 bits; [N, width]."""
        levels = to_levels(images)
        if self._images is None or not np.array_equal(levels, self._images):
            found = self._session.run(list(self._names), {"images": levels})
            self._images, self._answers = levels, dict(zip(self._names, found, strict=True))
        return torch.from_numpy(self._answers[name].copy()).to(images.device)


class ThroughCopy(nn.Module):
    """What a head of a file answers, with the gradient of its copy.

    Args:
        copy: of the graph up to that head.
        heads: what the head of some name answers to float images [N, channels, H, W], [N, width].
    """

    def __init__(self, copy: QuantisedCopy, heads: Callable[[Tensor, str], Tensor], name: str) -> None:
        super().__init__()
        self.copy = copy
        self._heads, self._name = heads, name

    def forward(self, images: Tensor) -> Tensor:
        """Float images [N, channels, H, W] in [0, 1], rounded to 8 bits for the file, to [N, width]."""
        answers = self._heads(images, self._name)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return answers
        through: Tensor = _WithGradientOf.apply(self.copy(images), answers)
        return through


class _WithGradientOf(torch.autograd.Function):
    """The second tensor's values with the first one's gradient."""

    @staticmethod
    def forward(_ctx: Any, _source: Tensor, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
