"""One version of a model, ready to answer: loaded, verified and warm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ducat_serve.errors import VerificationError
from ducat_serve.predictor import Predictor
from service.models.batcher import Batcher, Infer
from service.models.errors import Stalled
from service.settings import Settings

log = logging.getLogger("ducat_serve.service")
# Two correct implementations differ by the order of their sums, in proportion to the logits: export's gate for
# float32. TF32 and float16 round at 2^-11 in every layer; in int8 integer and float kernels round a few activations to
# neighbouring levels.
_RELATIVE_TOLERANCE = {"float32": 2e-2, "float16": 2e-2, "int8": 5e-2}


class LoadedVersion:
    """A predictor, its batcher, and how many requests are using them."""

    def __init__(self, name: str, version: str, predictor: Predictor, batcher: Batcher) -> None:
        self.name, self.version = name, version
        self.predictor, self.batcher = predictor, batcher
        self.function_digest = predictor.function_digest  # once: every answer names it
        self._users = 0
        self._unused = asyncio.Event()
        self._is_known_to_stall = False

    def require_running(self) -> None:
        """Raises Stalled where an inference will hardly end any more; the log says so once."""
        seconds = self.batcher.stalled_seconds
        was_known, self._is_known_to_stall = self._is_known_to_stall, seconds is not None
        if seconds is None:
            return
        if not was_known:
            log.error(
                "Model %s, version %s: an inference on %s has not ended for %.0f s. Unless it does, only a new process "
                "can answer: /livez and /readyz say 503",
                *(self.name, self.version, self.predictor.provider, seconds),
            )
        raise Stalled(f"An inference of model '{self.name}' has not ended for {seconds:.0f} s.")

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For as long as a request needs it; `drain` waits for the end."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._unused.set()

    async def drain(self) -> None:
        """Let the requests that use it finish, then free it."""
        while self._users:
            self._unused.clear()
            await self._unused.wait()
        await self.batcher.close()


@dataclass(frozen=True)
class Verified:
    """A model that may be served: what its batcher calls, and the seconds that a full batch took after warming up."""

    predictor: Predictor
    infer: Infer
    seconds_per_batch: float = 0.0


def load(path: Path, settings: Settings) -> Verified:
    """Read a model file, verify what it computes here, and warm it up.

    Raises DataError, VerificationError or DucatError as `Predictor` does, also where a signature is required and none
    fits; and VerificationError where its predictions are not numbers, contradict each other, or are not those of the
    plain graph on the CPU.
    """
    key = settings.require_signature
    predictor = Predictor(path, settings.device, settings.threads, public_key=key)
    _verify(predictor, Predictor(path, "cpu", threads=1, optimised=False, public_key=key))
    predictor.warm_up((1, settings.max_batch))
    started = time.perf_counter()
    predictor.warm_up((settings.max_batch,))
    return Verified(predictor, predictor, time.perf_counter() - started)


def _verify(predictor: Predictor, reference: Predictor) -> None:
    """A parity sample: a provider or an optimisation that computes something else is never served."""
    shape = (2, *predictor.spec.image_size, predictor.spec.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found, expected = predictor(images), reference(images)
    if not found.is_finite.all() or not (found.label == found.logits.argmax(axis=1)).all():
        raise VerificationError("The model's answers to test images are not sound.")
    scale = max(1.0, float(np.abs(expected.logits).max()))
    difference = float(np.abs(found.logits - expected.logits).max())
    if difference > _RELATIVE_TOLERANCE[predictor.spec.precision] * scale:
        raise VerificationError(
            f"On {predictor.provider} the model's logits differ by {difference:.2g} from those of the plain graph."
        )
