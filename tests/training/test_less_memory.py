"""A batch in portions, and activations that are computed again: less memory, and the same update."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ducat_serve.cli.main import run
from ducat_serve.deployed import Classifier
from ducat_serve.errors import DucatError, UsageError
from ducat_serve.networks import create_network
from ducat_serve.spec import ModelSpec
from tests.support.training_runs import trainer
from training.activation_checkpoints import checkpoint_blocks
from training.distributed.processes import ProcessGroup
from training.objectives import METHODS
from training.resolve import resolve
from training.run.enough_memory import enough_memory_for
from training.trainer import Trainer

BATCH, PORTIONS = 13, 3
CASES = [
    (method, "off" if method == "standard" else mode) for method in METHODS for mode in ("off", "folded")
]


class Block(nn.Module):
    """Several layers, with a norm that sees one image at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


def grouped(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.Sequential(Block(), Block()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, outputs),
    )


@pytest.fixture
def _in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an attack's signs do not hang on the order of sums."""

    def build(spec: ModelSpec) -> Classifier:
        return Classifier(grouped(spec.num_logits), spec).double()

    monkeypatch.setattr("training.trainer.build_classifier", build)
    monkeypatch.setattr("training.batches.to_pixels", lambda images: images.double() / 255)


def gradients_of(folder: Path, epoch: int, **changes: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the second step of an epoch; guided compares with clean images there."""
    subject = trainer(folder, batch_size=BATCH, epochs=2, attack_steps=2, **changes)
    subject.classifier.train()
    loss = subject.train_step(subject.batches.order(epoch), epoch, 1)
    found = {name: p.grad for name, p in subject.classifier.named_parameters() if p.grad is not None}
    assert len(found) == len(list(subject.classifier.parameters()))
    return loss, found


@pytest.mark.integration
@pytest.mark.usefixtures("_in_float64")
@pytest.mark.parametrize(("method", "mode"), sorted(set(CASES)))
@pytest.mark.parametrize("option", [{"accumulate": PORTIONS}, {"checkpoint_activations": True}])
def test_the_gradient_is_that_of_the_whole_batch(
    tmp_path: Path, method: str, mode: str, option: dict[str, object]
) -> None:
    """For every method, with perturbed weights, where a batch does not divide, and in the dummy phase."""
    changes = {
        "method": method,
        "ducat": mode,
        "ducat_start": None if mode == "off" else 2,
        "awp_gamma": 0.01,
    }
    whole = gradients_of(tmp_path / "whole", 2, **changes)
    found = gradients_of(tmp_path / "portions", 2, **changes, **option)
    torch.testing.assert_close(found, whole, rtol=1e-10, atol=1e-13)


@pytest.mark.integration
def test_the_network_sees_one_portion_at_a_time(tmp_path: Path) -> None:
    sizes: set[int] = set()
    subject = trainer(
        tmp_path, batch_size=BATCH, accumulate=PORTIONS, method="trades", ducat="off", ducat_start=None
    )
    for model in (subject.step.train_model, subject.step.attack_model):
        model.register_forward_pre_hook(lambda _, images: sizes.add(len(images[0])))
    subject.train_step(subject.batches.order(1), 1, 0)
    assert sizes == {4, 5, 8, 10}  # clean and adversarial images go through together in the update
    assert subject.validation.batch_size == 128  # of 8x8 pixels


def test_portions_of_several_processes_are_the_batch() -> None:
    values = torch.randn(BATCH, dtype=torch.float64)
    groups = [ProcessGroup(rank, 2) for rank in range(2)]
    portions = [(group, portion) for group in groups for portion in group.portions(BATCH, PORTIONS)]
    assert torch.equal(torch.cat([values[portion] for _, portion in portions]), values)
    means = [group.weight(portion, BATCH) * values[portion].mean() for group, portion in portions]
    assert torch.stack(means).sum().item() / 2 == pytest.approx(values.mean().item(), abs=1e-12)


def answered(network: nn.Module) -> tuple[int, list[Tensor]]:
    """Bytes that wait for the backward pass; and what comes out of both passes, statistics included."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    torch.manual_seed(1)  # of dropout
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = network(torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))
    logits.square().sum().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return sum(kept), [logits.detach(), *gradients, *network.buffers()]


@pytest.mark.parametrize(
    "name", ["resnet-small", "torchvision:resnet18", "timm:test_vit", "timm:test_convnext"]
)
def test_blocks_are_computed_again_and_nothing_else_changes(name: str) -> None:
    """Bit for bit: BatchNorm's statistics, which would otherwise count each image twice, and what dropout drops."""
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        network = create_network(name, channels=3, image_size=(32, 32), outputs=4).train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        networks.append(network)
    checkpoint_blocks(networks[1], name)
    (whole, expected), (part, found) = map(answered, networks)
    assert part < whole / 3
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match="no blocks to compute again") as caught:
        checkpoint_blocks(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "nets:make")
    assert caught.value.next_step == "leave out --checkpoint-activations"


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than 2 images of a --batch-size of 5"):
        trainer(tmp_path, batch_size=5, accumulate=3)
    with pytest.raises(UsageError, match="says nothing to --compile"):
        trainer(tmp_path, checkpoint_activations=True, compile=True)


def test_synchronised_norms_are_computed_again_too() -> None:
    """SyncBatchNorm, which several GPUs have, always counts its batches."""
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        network = create_network("resnet-small", channels=3, image_size=(32, 32), outputs=4)
        networks.append(nn.SyncBatchNorm.convert_sync_batchnorm(network).train())  # type: ignore[no-untyped-call]
    checkpoint_blocks(networks[1], "resnet-small")
    (_, expected), (_, found) = map(answered, networks)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.integration
def test_a_training_without_enough_memory_says_what_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(self: Trainer, *_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation")

    monkeypatch.setattr(Trainer, "train_step", step)
    flags = [
        "--batch-size",
        "64",
        "--accumulate",
        "3",
        "--epochs",
        "1",
        "--attack-steps",
        "1",
        "--ducat",
        "off",
    ]
    assert run(["train", "--dataset", "digits", *flags, "--out", str(tmp_path / "run")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "not enough memory to train on 22 images at once (CUDA out of memory. Tried to allocate 2 GiB.)"
        in said
    )
    assert (
        "begin again with --accumulate 6 (the same batch in smaller portions), --checkpoint-activations"
        in said
    )
    assert "Traceback" not in said


def test_other_errors_are_no_lack_of_memory() -> None:
    config = resolve("digits", {})
    with pytest.raises(RuntimeError, match="shapes"), enough_memory_for(config):
        raise RuntimeError("shapes do not match")
    with pytest.raises(DucatError, match="not enough memory"), enough_memory_for(config):
        torch.empty(1 << 62, dtype=torch.uint8)  # the CPU allocator's own error


@pytest.mark.parametrize(
    ("batch_size", "portions", "told"),
    [
        (6, 2, "--accumulate 3 ("),
        (8, 2, "--accumulate 4 ("),
        (6, None, "--accumulate 2 ("),
        (5, 2, "--checkpoint-activations, or a smaller --batch-size"),
        (2, None, "--checkpoint-activations, or a smaller network"),
    ],
)
def test_it_names_no_number_of_portions_that_would_be_refused(
    batch_size: int, portions: int | None, told: str
) -> None:
    config = resolve("digits", {"batch_size": batch_size, "accumulate": portions})
    with pytest.raises(DucatError) as caught, enough_memory_for(config):
        raise torch.OutOfMemoryError("out of memory")
    assert str(caught.value.next_step).startswith(f"begin again with {told}")
