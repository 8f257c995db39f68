"""Break one thing at a time in a copy of the project and name the tests that notice.

    python benchmarks/mutations.py

Prints the table of docs/evaluation.md; exits 1 if a broken copy passes. Takes some minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parent.parent
TESTS = (
    "tests/training/attacks/test_attacks.py",
    "tests/training/attacks/test_apgd.py",
    "tests/training/attacks/test_losses.py",
    "tests/training/evaluation/test_parts.py",
    "tests/training/evaluation/test_studies.py",
)


class Mutation(NamedTuple):
    """``old`` becomes ``new`` in ``file``."""

    what: str
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        "cross entropy of raw 2C logits instead of the fold",
        "training/attacks/losses.py",
        "return F.cross_entropy(fold_logits(raw, fold), labels",
        "return F.cross_entropy(raw, labels",
    ),
    Mutation(
        "success judged on logits before the fold",
        "training/attacks/criteria.py",
        "return ~right(fold_logits(raw, fold), labels)\n\n    return success\n\n\ndef misclassified_un",
        "return ~right(raw, labels)\n\n    return success\n\n\ndef misclassified_un",
    ),
    Mutation(
        "the last image instead of the best",
        "training/attacks/base.py",
        "chosen = index[better]",
        "better = torch.ones_like(better)\n        chosen = index[better]",
    ),
    Mutation(
        "eps not enforced",
        "training/attacks/ball.py",
        "        eps = self._inner_radius(images)\n",
        "        return candidates.clamp(0, 1)\n        eps = self._inner_radius(images)\n",
    ),
    Mutation(
        "pixels not clamped to [0, 1]",
        "training/attacks/ball.py",
        "max=images + eps).clamp(0, 1)",
        "max=images + eps)",
    ),
    Mutation("eval mode not set", "training/attacks/frozen.py", "    model.eval()\n", ""),
    Mutation(
        "weights get gradients", "training/attacks/frozen.py", "parameter.requires_grad_(False)", "pass"
    ),
    Mutation(
        "targets among the originals only",
        "ducat_serve/pairs.py",
        'return (labels,) if fold == "none" else (labels, labels + num_classes)',
        "return (labels,)",
    ),
    Mutation(
        "NaN logits count as robust",
        "training/attacks/criteria.py",
        " & ~logits.isnan().any(dim=1)",
        "",
    ),
    Mutation(
        "the pair's weight is not detached",
        "ducat_serve/pairs.py",
        "(temperature * pair.detach())",
        "(temperature * pair + 0.1 * pair)",
    ),
    Mutation(
        "legacy attack that knows the pairs",
        "training/evaluation/legacy.py",
        'won = misclassified("none")',
        "won = misclassified(runner.model.fold)",
    ),
    Mutation(
        "rejection attack that need not be unflagged",
        "training/attacks/criteria.py",
        " & ~(score(raw) > threshold)",
        "",
    ),
    Mutation(
        "resumed attacks run again",
        "training/evaluation/evaluate.py",
        "plan.attacks[len(results) :]",
        "plan.attacks",
    ),
)


def main() -> int:
    print("| broken | red |\n|---|---|", flush=True)
    survived = 0
    for mutation in MUTATIONS:
        failed = _failures(mutation)
        survived += not failed
        first = f"`{failed[0]}`" if failed else "**nothing: it passes**"
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        print(f"| {mutation.what} | {first}{more} |", flush=True)
    return 1 if survived else 0


def _failures(mutation: Mutation) -> list[str]:
    """Names of the tests that fail in a broken copy."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".venv", ".git", ".mypy_cache", "*.egg-info", "__pycache__")
        shutil.copytree(PROJECT, copy, ignore=ignored)
        target = copy / mutation.file
        text = target.read_text()
        if text.count(mutation.old) != 1:
            raise SystemExit(f"{mutation.what}: found {text.count(mutation.old)} times in {mutation.file}")
        target.write_text(text.replace(mutation.old, mutation.new))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *TESTS],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
        names = re.findall(r"^(?:FAILED|ERROR) tests/\S+::(\w+)", done.stdout, re.MULTILINE)
        return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(main())
