"""What an evaluation leaves behind beside its report, where it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ducat_serve import atomic
from ducat_serve.output import Output
from training.evaluation.adversarial_images import new_folder, write_adversarial_images
from training.evaluation.evaluate import Measured, Plan, Subject
from training.evaluation.per_image import write_per_image

Write = Callable[[Subject, Plan, Measured, Sequence[int]], None]


@dataclass(frozen=True)
class Outputs:
    """Where to keep the images that break the model (a new folder) and a row for each image (a CSV file)."""

    adversarial: Path | None = None
    per_image: Path | None = None

    @contextlib.contextmanager
    def opened(self, output: Output) -> Iterator[Write]:
        """Give what writes all that is kept. A place that cannot be written is found now, not after the attacks.

        Raises DucatError for such a place. Folders that are not there yet are made.
        """
        if self.per_image is not None:
            atomic.require_writable(
                self.per_image, "free some space or choose another place with --per-image"
            )
        with contextlib.ExitStack() as stack:
            folder = None if self.adversarial is None else stack.enter_context(new_folder(self.adversarial))

            def write(subject: Subject, plan: Plan, measured: Measured, index: Sequence[int]) -> None:
                if self.per_image is not None:
                    write_per_image(self.per_image, measured, index)
                    output.say(f"A row for each image: {self.per_image}")
                if folder is not None:
                    lost = write_adversarial_images(folder, subject, plan, measured, index)
                    note = (
                        f"; {lost} of them fool it only with more than 8 bits and have no PNG" if lost else ""
                    )
                    output.say(f"Images that break the model: {self.adversarial}{note}")

            yield write
