"""Networks: shapes, sizes, parameter counts, refusals."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ducat_serve.errors import UsageError
from ducat_serve.networks import NETWORKS, create_network
from training.fused_classifier import FusedClassifier


@pytest.mark.parametrize("name", list(NETWORKS))
def test_parameter_count_is_as_listed(name: str) -> None:
    network = create_network(name, channels=3, image_size=(32, 32), outputs=10)
    assert sum(p.numel() for p in network.parameters()) == NETWORKS[name].parameters


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (32, 48), (64, 64), (96, 96)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["resnet14", "resnet-small"])
def test_any_size_and_channels(name: str, size: tuple[int, int], channels: int) -> None:
    network = create_network(name, channels=channels, image_size=size, outputs=14).eval()
    assert network(torch.rand(2, channels, *size)).shape == (2, 14)


@pytest.mark.parametrize(("size", "stride"), [((32, 32), 1), ((64, 64), 2)])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_stem_stride(name: str, size: tuple[int, int], stride: int) -> None:
    network = create_network(name, channels=3, image_size=size, outputs=4)
    assert network.get_submodule("conv1").stride == (stride, stride)


@pytest.mark.parametrize(("name", "block"), [("resnet18", BasicBlock), ("resnet26", Bottleneck)])
def test_equals_torchvision_but_for_the_stem(name: str, block: type[BasicBlock | Bottleneck]) -> None:
    """The same weights in torchvision's network, stem replaced, give the same logits, and the same gradients."""
    ours = create_network(name, channels=3, image_size=(32, 32), outputs=10)
    theirs = ResNet(block, [2, 2, 2, 2], num_classes=10)
    theirs.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))
    for network in (ours, theirs):
        network(images).square().sum().backward()
    torch.testing.assert_close(
        [parameter.grad for parameter in ours.parameters()],
        [parameter.grad for parameter in theirs.parameters()],
    )


def test_wide_resnet_has_28_layers_and_width_640() -> None:
    network = create_network("wrn-28-10", channels=3, image_size=(32, 32), outputs=10)
    convolutions = [
        m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert len(convolutions) == 25  # and 3 shortcuts and the head: 28 in the authors' count
    assert network.get_submodule("fc").in_features == 640


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (513, 513)])
def test_refuses_sizes_it_cannot_take(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"not {size[0]}x{size[1]}"):
        create_network("resnet18", channels=3, image_size=size, outputs=10)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'resnet18'"):
        create_network("resnet-18", channels=3, image_size=(32, 32), outputs=10)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_copy_for_crafting_is_the_same_function(name: str) -> None:
    """In float64, with trained-looking statistics, also after the original changed; and it changes nothing itself."""
    torch.manual_seed(0)
    network = create_network(name, channels=3, image_size=(8, 8), outputs=6).double()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.bias):
                torch.nn.init.normal_(tensor)
            for tensor in (module.running_var, module.weight):
                torch.nn.init.uniform_(tensor, 0.5, 2)
    fused = FusedClassifier(network.train())
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in fused.model.modules()) < (
        2 if "resnet" in name else 14
    )
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for change in (False, True):
        if change:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.01 * torch.randn_like(parameter))
                network.train()(images)  # moves the statistics
            fused.refresh()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        x, y = (images.clone().requires_grad_(True) for _ in range(2))
        ours, theirs = fused(x), network.eval()(y)
        scale = theirs.detach().abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=1e-9, atol=1e-9)
        (mine,) = torch.autograd.grad(ours.sum(), x)
        (literal,) = torch.autograd.grad(theirs.sum(), y)
        torch.testing.assert_close(
            mine / literal.abs().max(), literal / literal.abs().max(), rtol=1e-8, atol=1e-8
        )
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
        assert not any(parameter.requires_grad for parameter in fused.model.parameters())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
