"""The images that broke a model, for others to look at and to check.

A folder of PNG files of 8 bits, and one `.safetensors` file with all images as the attacks left them, in the order of
the data set and with the clean image where nothing broke it: what RobustBench asks for with an external claim, but
for the pickle. A file of 8 bits is written only if it is in the ball and still fools the model.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ducat_serve import atomic
from ducat_serve.errors import UsageError
from training.attacks.ball import Ball
from training.attacks.criteria import right
from training.batches import to_pixels
from training.evaluation.evaluate import Measured, Plan, Subject
from training.evaluation.per_image import write_per_image

TENSORS, ROWS = "adversarial.safetensors", "images.csv"
_KEY = "ducat_adversarial"
_BATCH = 256


_NEXT_STEP = "free some space or choose another place with --save-adversarial"


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill, which becomes ``path`` if nothing is raised; nothing is left of it otherwise.

    It is made at once, so that a place that cannot be written is found before hours of attacks.

    Raises:
        UsageError: there is a file at ``path``, or a folder that is not empty.
        DucatError: it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not an empty folder.", "name another one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    except OSError as error:
        raise atomic.cannot_write(path, error, _NEXT_STEP) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
        atomic.sync(path.parent)
    except OSError as error:
        raise atomic.cannot_write(path, error, _NEXT_STEP) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@torch.no_grad()
def write_adversarial_images(
    folder: Path, subject: Subject, plan: Plan, measured: Measured, index: Sequence[int]
) -> int:
    """Write what broke the model; returns how many images fooled it that do not with 8 bits.

    PNG files are named INDEX-LABEL-PREDICTION.png, by numbers.

    Args:
        index: of each image in its split.

    Raises ValueError unless the images were kept.
    """
    examples, report = measured.examples, measured.report
    if examples.images is None:
        raise ValueError("the evaluation kept no images")
    document = {
        "dataset": report.dataset,
        "split": report.split,
        "norm": report.norm,
        "eps": report.eps,
        "weights_digest": report.weights_digest,
        "clean_accuracy": report.clean_accuracy,
        "worst_case_accuracy": report.worst_case_accuracy,
    }
    tensors = {
        "images": examples.images,
        "labels": examples.labels.cpu(),
        "index": torch.tensor(index),
        "fools": (examples.clean & ~examples.right).cpu(),
    }
    atomic.write_bytes(folder / TENSORS, save(tensors, metadata={_KEY: json.dumps(document, sort_keys=True)}))
    write_per_image(folder / ROWS, measured, index)
    broken = tensors["fools"].nonzero().squeeze(1)
    ball, lost = Ball.of(plan.threat_model), 0
    for batch in torch.split(broken, _BATCH):
        lost += _write_pngs(folder, subject, ball, examples.images[batch], batch, index)
    return lost


def _write_pngs(
    folder: Path, subject: Subject, ball: Ball, found: Tensor, batch: Tensor, index: Sequence[int]
) -> int:
    device = subject.data.images.device
    clean, labels = to_pixels(subject.data.images[batch.to(device)]), subject.data.labels[batch.to(device)]
    levels = ball.levels(clean, found.to(device))
    logits = subject.model(to_pixels(levels))
    fools, predictions = ~right(logits, labels), logits.argmax(dim=1)
    for row, image in enumerate(levels.permute(0, 2, 3, 1).cpu().numpy()):
        if fools[row]:
            name = f"{index[int(batch[row])]:05d}-{int(labels[row])}-{int(predictions[row])}.png"
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / name)
    return int((~fools).sum())
