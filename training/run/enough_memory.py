"""What a training can do where memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ducat_serve.errors import DucatError
from training.config import TrainConfig
from training.memory import is_out_of_memory


@contextmanager
def enough_memory_for(config: TrainConfig) -> Iterator[None]:
    """Raise DucatError, with the settings that take less, where memory runs out inside."""
    try:
        yield
    except Exception as error:  # libraries raise what they like
        if not is_out_of_memory(error):
            raise
        at_once = -(-config.batch_size // config.portions)
        first_line = str(error).partition("\n")[0]
        ways = []
        if portions := _more(config):
            ways.append(f"--accumulate {portions} (the same batch in smaller portions)")
        if not config.checkpoint_activations:
            ways.append("--checkpoint-activations")
        last = "a smaller --batch-size" if at_once > 2 else "a smaller network or image size"
        raise DucatError(
            f"There is not enough memory to train on {at_once} images at once ({first_line}).",
            f"begin again with {', '.join(ways)}, or {last}" if ways else f"begin again with {last}",
        ) from error


def _more(config: TrainConfig) -> int | None:
    """Twice the portions of a batch, or as many as leave 2 images to each; None where there are as many already."""
    portions = min(2 * config.portions, config.batch_size // 2)
    return portions if portions > config.portions else None
