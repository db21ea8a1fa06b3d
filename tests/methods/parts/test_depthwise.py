"""Gradients of a convolution of each channel by itself, in bf16 on a processor, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.parts.depthwise import DepthwiseConv2d, quick_depthwise

CASES = [(5, 2, 0, 11), (5, 1, 2, 6), (3, 2, 1, 8), (3, 2, 1, 7), (3, 1, 1, 6), (5, 2, 2, 9), (5, 3, 1, 10)]


def loops(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The convolution by plain loops, in float64."""
    b, c, k = len(x), len(weight), weight.shape[2]
    wide = torch.zeros(b, c, x.shape[2] + 2 * padding, x.shape[3] + 2 * padding, dtype=torch.float64)
    wide[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]] = x.double()
    h = (wide.shape[2] - k) // stride + 1
    rows = []
    for i in range(h):
        for j in range(h):
            part = wide[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            rows.append((part * weight.double()[:, 0]).sum((2, 3)))
    return torch.stack(rows, dim=2).reshape(b, c, h, h)


@pytest.mark.parametrize(("kernel", "stride", "padding", "side"), CASES)
def test_gradients_in_bf16_are_those_of_float64(kernel: int, stride: int, padding: int, side: int) -> None:
    conv = DepthwiseConv2d(3, 3, kernel, stride, padding, groups=3)
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, side, side, generator=stream).bfloat16().float().requires_grad_()
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=stream).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    along = torch.randn(y.shape, generator=stream).bfloat16()
    found = torch.autograd.grad(y, [x, conv.weight, conv.bias], along)
    exact_x, exact_w = x.detach().double().requires_grad_(), conv.weight.detach().double().requires_grad_()
    exact = loops(exact_x, exact_w, stride, padding)
    expected = torch.autograd.grad(exact, [exact_x, exact_w], along.double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact + conv.bias[:, None, None].double(), rtol=0.02, atol=0.05)
    for ours, right in zip(found, (*expected, along.double().sum((0, 2, 3))), strict=True):
        assert float((ours.double() - right).norm() / right.norm()) < 0.01, "bf16 keeps 8 bits"


def test_what_it_computes_backwards_can_be_differentiated_again() -> None:
    """As second-order methods need it: the gradient of a gradient's length, against torch's own in float32."""
    plain, ours = nn.Conv2d(4, 4, 5, 2, 2, groups=4), DepthwiseConv2d(4, 4, 5, 2, 2, groups=4)
    ours.load_state_dict(plain.state_dict())
    x, low = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1)), torch.bfloat16

    def second(conv: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(conv(x).float().pow(3).sum(), x, create_graph=True)
        first.float().pow(2).sum().backward()
        assert x.grad is not None
        return x.grad

    with torch.autocast("cpu", low):
        found = second(ours, x)
    right = second(plain, x)
    assert float((found - right).norm() / right.norm()) < 0.05


@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_keeps_its_parameters_and_its_answers(bf16: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, padding="same", groups=8),
        nn.Conv2d(8, 16, 3, groups=8),
    ).eval()
    x = torch.randn(2, 3, 12, 12)
    names, parameters = list(net.state_dict()), list(net.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        before = net(x)
        quick_depthwise(net)
        after = net(x)
    assert torch.equal(before, after)
    assert list(net.state_dict()) == names
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]
    assert [type(layer) for layer in net] == [nn.Conv2d, DepthwiseConv2d, nn.Conv2d, nn.Conv2d]
    assert not net[1].training


def test_elsewhere_it_is_torchs_own() -> None:
    conv = DepthwiseConv2d(2, 2, 5, 2, 2, groups=2, bias=False)
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    assert type(conv(x).grad_fn).__name__ == "ConvolutionBackward0", "float32"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), F.conv2d(x, conv.weight, None, 2, 2, 1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        assert type(conv(x).grad_fn).__name__ == "_DepthwiseBackward"
