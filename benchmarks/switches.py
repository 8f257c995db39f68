"""What a switch by LayerNorm alone would do beside the better of both kinds, on the val images of a fit.

    python benchmarks/switches.py runs/towers/pairing-10-0 runs/towers/pairing-10-2 --data-dir ../shared/data

Each folder is one that benchmarks/tower_study.py left: it holds the robust tower and what both towers answered.
Nothing is attacked. Prints clean accuracies of the mixture in per cent: by how many points below the robust tower's
worst case the floor may lie, and by floor.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ducat_serve.checkpoint import read_spec
from ducat_serve.output import Output
from training.data.splits import choose_images
from training.mixture.answers import SEARCHES, Answers
from training.mixture.dial import Setting, dial
from training.run.dataset import load_training_data

_POINTS = (1, 2, 3, 5)
_FLOORS = (34, 33, 32, 31, 30, 28)


def answers_in(folder: Path, val_images: int, data_dir: Path | None) -> Answers:
    """What is kept in a folder; an older fit may have had fewer attacks."""
    robust = folder / "robust.safetensors"
    data = load_training_data(
        robust, read_spec(robust), dataset=None, data_dir=data_dir, offline=True, output=Output(silent=True)
    )
    images, _ = choose_images(data.val, val_images, 0)
    kept = load_file(folder / "answers.safetensors")
    attacked = [kept[name] for name in SEARCHES if name in kept]
    labels = torch.as_tensor(images.labels).long()
    return Answers(labels, kept["standard"], kept["robust"], torch.stack([kept["robust"], *attacked]))


def _most_accurate(settings: Sequence[Setting], floor: float) -> str:
    """The highest clean accuracy at a floor in [0, 1], in per cent."""
    found = max((s.clean for s in settings if s.floor >= floor - 1e-9), default=None)
    return "none" if found is None else f"{100 * found:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--val-images", type=int, default=500)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    for folder in arguments.folders:
        answers = answers_in(folder, arguments.val_images, arguments.data_dir)
        worst = answers.robust_worst_case
        print(f"{folder.name}: alone {answers.robust_clean:.1%} clean, {worst:.1%} worst case")
        for kind, settings in (("LayerNorm", dial(answers, by_size=False)), ("either", dial(answers))):
            given_up = (f"{n}: {_most_accurate(settings, worst - n / 100)}" for n in _POINTS)
            by_floor = (f"{f}: {_most_accurate(settings, f / 100)}" for f in _FLOORS)
            print(f"  {kind:<9}  given up {', '.join(given_up)}; at floor {', '.join(by_floor)}")


if __name__ == "__main__":
    main()
