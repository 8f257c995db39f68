"""Networks of torchvision, timm and the user: how they are built, and which code a file may make us import."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ducat_serve.deployed import build_classifier, load, numpy_weights, parameter_count
from ducat_serve.errors import UsageError, VerificationError
from ducat_serve.networks import allowed, create_network
from ducat_serve.networks.foreign import describe, require_logits
from ducat_serve.networks.head import head_name, output_width
from tests.support.checkpoints import SPEC, forged
from training.fused_classifier import FusedClassifier

SOURCE = '''
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, outputs)
    def forward(self, x):
        return self.head(self.body(x).mean(dim=(2, 3)))

class Declared(Net):
    normalisation = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))

class Wrong(Net):
    normalisation = (0.1, 0.2)

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

class Late(nn.Module):
    """Its head is registered before a layer below it."""
    def __init__(self, outputs):
        super().__init__()
        self.fc, self.proj = nn.Linear(16, outputs), nn.Linear(3, 16)
    def forward(self, x):
        return self.fc(self.proj(x.mean(dim=(2, 3))))

class Cosine(nn.Module):
    """No layer is its head."""
    def __init__(self, outputs):
        super().__init__()
        self.classes = nn.Parameter(torch.rand(outputs, 3))
    def forward(self, x):
        return nn.functional.normalize(x.mean(dim=(2, 3))) @ nn.functional.normalize(self.classes).T

def make(): return Net(1000)
def late(outputs): return Late(outputs)
def late_imagenet(): return Late(1000)
def cosine(outputs): return Cosine(outputs)
def sized(outputs, image_size): return Declared(outputs + 0 * image_size[0])
def wrong(outputs): return Wrong(outputs)
def pair(outputs): return Pair(outputs)
def flat(outputs): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, outputs))
def headless(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
def no_module(): return "a network"
'''


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of the user's own, of which everything may be imported."""
    (tmp_path / "own_nets.py").write_text(SOURCE)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    monkeypatch.setattr(allowed, "_names", set())
    monkeypatch.setattr(allowed, "_folders", [])
    allowed.import_from(tmp_path)
    for name in [*re.findall(r"^def (\w+)", SOURCE, re.MULTILINE), "gone"]:
        allowed.allow(f"own_nets:{name}")
    return tmp_path


def _create(name: str, *, size: int = 32, outputs: int = 6, channels: int = 3) -> nn.Module:
    return create_network(name, channels=channels, image_size=(size, size), outputs=outputs)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("torchvision:squeezenet1_1", "classifier.1"),
        ("torchvision:mobilenet_v3_small", "classifier.3"),
        ("timm:test_vit", "head"),
        ("timm:test_convnext", "head.fc"),
        ("timm:test_resnet", "fc"),
    ],
)
def test_head_size_and_the_copy_for_crafting(name: str, head: str) -> None:
    """The head is found, takes the size asked for, and the copy for crafting is the network in eval mode."""
    torch.manual_seed(0)
    network = _create(name)
    assert (head_name(network), output_width(network)) == (head, 6)
    with torch.device("meta"):
        _create(name)  # what `load` does before it believes a file
    require_logits(network, name, channels=3, image_size=(32, 32), outputs=6)
    copy = FusedClassifier(network.train())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(copy(images), network.eval()(images), rtol=1e-4, atol=1e-5)


def test_trying_a_network_changes_nothing_of_it() -> None:
    network = _create("torchvision:mobilenet_v3_small").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    require_logits(network, "it", channels=3, image_size=(32, 32), outputs=6)
    assert network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_copy_of_a_network_with_stochastic_depth_drops_nothing() -> None:
    """torchvision asks for the mode while the network is traced: in train mode, the answer would stay in the graph."""
    torch.manual_seed(0)
    network = _create("torchvision:efficientnet_b0", outputs=2).train()
    copy = FusedClassifier(network)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(copy(images), copy(images))


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("torchvision:resnet18", 0.485),
        ("timm:test_vit", 0.5),
        ("own_nets:sized", 0.1),
        ("own_nets:make", 0.0),
    ],
)
def test_what_is_recorded(nets: Path, name: str, mean: float) -> None:
    found = describe(name, channels=3, image_size=(32, 32), outputs=6)
    assert found.normalisation.mean[0] == mean
    assert found.source.package == name.partition(":")[0]
    assert "6" in found.source.rebuild
    assert (found.source.version is None) == name.startswith("own_nets")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("torchvision:resnet19", {}, "Unknown network of torchvision 'resnet19'. Did you mean 'resnet18'"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "Unknown network of torchvision"),
        ("torchvision:resnet18", {"channels": 1}, "takes images of 3 channels, not 1"),
        ("torchvision:vit_b_16", {"size": 40}, "multiple of 16 pixels, not 40x40"),
        ("timm:test_vitt", {}, "Unknown network of timm 'test_vitt'. Did you mean 'test_vit"),
        ("timm:hf-hub:somebody/net", {}, "Unknown network of timm"),
        ("timm:deit_tiny_distilled_patch16_224", {}, "has 2 heads"),
        ("own_nets:gone", {}, "no callable named gone"),
        ("own_nets:no_module", {}, "returned str, not a torch.nn.Module"),
        ("own_nets:headless", {}, "no linear layer"),
    ],
)
def test_refused_names(nets: Path, name: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        _create(name, **options)
    assert words in caught.value.cause


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_nets:pair", "returns tuple, not logits [N, 6]"),
        ("own_nets:flat", "does not take images of 32x32"),
        ("own_nets:wrong", "`normalisation` is not (mean, std)"),
        ("torchvision:alexnet", "does not take images of 32x32"),
    ],
)
def test_networks_that_do_not_fit(nets: Path, name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        describe(name, channels=3, image_size=(32, 32), outputs=6)
    assert words in caught.value.cause


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["late", "late_imagenet"])
def test_the_head_is_the_last_layer_that_is_run(nets: Path, name: str, device: str) -> None:
    with torch.device(device):
        network = _create(f"own_nets:{name}")
    assert (head_name(network), output_width(network)) == ("fc", 6)
    assert network.get_submodule("proj").out_features == 16
    assert network.training


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision:resnet18", ""),
        ("torchvision:googlenet", ", aux_logits=False, init_weights=True"),
        ("timm:test_vit", ", in_chans=3, img_size=(32, 32)"),
    ],
)
def test_the_call_that_is_recorded_builds_the_same_network(name: str, options: str) -> None:
    import timm
    import torchvision

    recorded = describe(name, channels=3, image_size=(32, 32), outputs=6).source.rebuild
    assert recorded.endswith(f"num_classes=6{options})")
    again = eval(recorded, {"torchvision": torchvision, "timm": timm})
    again.load_state_dict(_create(name).state_dict())


def test_a_network_of_the_right_width_needs_no_layer_that_is_its_head(nets: Path) -> None:
    describe("own_nets:cosine", channels=3, image_size=(32, 32), outputs=6)


def test_timm_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"'timm', which is not installed") as caught:
        _create("timm:test_vit")
    assert "'.[timm]'" in str(caught.value)


def test_a_file_never_decides_what_is_imported(nets: Path, tmp_path: Path) -> None:
    """The checkpoint of an own network loads where a person named its code, and imports nothing elsewhere."""
    spec = SPEC.model_copy(update={"network": "own_nets:make"})
    path = forged(tmp_path / "m.safetensors", numpy_weights(build_classifier(spec)), network="own_nets:make")
    assert load(path)(torch.rand(1, 3, 8, 8)).shape == (1, 2)
    assert parameter_count(spec) == 3 * 4 * 9 + 4 + 4 * 2 + 2
    allowed._names.clear()
    sys.modules.pop("own_nets")
    with pytest.raises(VerificationError, match="imported only if you name it") as caught:
        load(path)
    assert "--network own_nets:make" in str(caught.value.next_step)
    assert "own_nets" not in sys.modules
