"""What a dry run foretells of a validation."""

from __future__ import annotations

from pathlib import Path

from tests.support.training_runs import trainer
from training.dry_run import dry_run


def test_the_attack_of_the_validation_that_is_timed_takes_all_of_its_steps(tmp_path: Path) -> None:
    """Fresh weights give in to the first step, and a trained model does not."""
    subject = trainer(tmp_path / "run", ducat="off", ducat_start=None)
    seen = 0

    def count(_module: object, inputs: tuple[object, ...]) -> None:
        nonlocal seen
        if not subject.classifier.network.training:
            seen += len(inputs[0])  # type: ignore[arg-type]

    subject.classifier.network.register_forward_pre_hook(count)
    dry_run(subject)
    images = min(subject.validation.batch_size, len(subject.validation.val))
    assert seen >= images * subject.validation.attack.steps
