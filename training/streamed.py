"""Images that stay on disk and come to the device a batch at a time; the next batch is read while this one is used."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from training.data.cache import Split


@dataclass
class StreamedSplit:
    """A split of uint8 images for a device. ``labels`` int64 [N] are there, images are not."""

    split: Split
    device: torch.device
    labels: Tensor = field(init=False)
    _ahead: tuple[Tensor, Future[Tensor]] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.labels = torch.from_numpy(self.split.labels.copy()).to(self.device)

    def __len__(self) -> int:
        return len(self.split)

    def at(self, index: Tensor, then: Tensor | None = None) -> Tensor:
        """The images uint8 [B, channels, H, W] at ``index`` [B], on the device.

        Args:
            then: what will be asked for next. It is read meanwhile; another question is answered all the same.
        """
        ahead, self._ahead = self._ahead, None
        images = (
            ahead[1].result() if ahead is not None and torch.equal(ahead[0], index) else self._read(index)
        )
        if then is not None:
            self._ahead = (then, self._begin(then))
        return images.to(self.device, non_blocking=True)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of float images in [0, 1] and labels, in order; the last one may be smaller."""
        starts = range(0, len(self), batch_size)
        pieces = [torch.arange(start, min(start + batch_size, len(self))) for start in starts]
        for piece, then in zip(pieces, [*pieces[1:], None], strict=True):
            yield self.at(piece, then).float().div_(255).contiguous(), self.labels[piece[0] : piece[-1] + 1]

    def first(self, count: int) -> StreamedSplit:
        """The first images alone."""
        return StreamedSplit(self.split.first(count), self.device)

    def _begin(self, index: Tensor) -> Future[Tensor]:
        """Start to read what will be asked for.

        Each batch has a thread of its own, which ends with it: so none is left where training ends, however it ends.
        Starting one takes a fraction of a millisecond.
        """
        thread = ThreadPoolExecutor(1, "next-batch")
        images = thread.submit(self._read, index)
        thread.shutdown(wait=False)
        return images

    def _read(self, index: Tensor) -> Tensor:
        images = np.empty((len(index), *self.split.shape[1:]), np.uint8)
        for place, wanted in enumerate(index.tolist()):
            # Copies of whole images let other threads run meanwhile.
            images[place] = self.split.stored[self.split.row(wanted)]
        # Channels last in memory, which is how networks take them.
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor
