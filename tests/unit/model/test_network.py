"""The network: what it reads, and what it must not depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.ndimage import gaussian_filter

from cfer.data.inputs import APEX_SIZE
from cfer.model.network import Encoder, ExpressionNet, ModelConfig, Predictor, scale_planes

CONFIG = ModelConfig(num_classes=7, identity_dim=128, width=8, code_dim=32)


def random_planes(*lead: int, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (*lead, 6, side, side)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_masked_frames_have_no_influence(pooling: str) -> None:
    torch.manual_seed(0)
    encoder = ExpressionNet(replace(CONFIG, pooling=pooling), with_apex=False).encoder
    planes = scale_planes(random_planes(2, 4))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    codes = encoder(planes, mask)
    changed = planes.clone()
    changed[1, 2:] = torch.randn_like(changed[1, 2:])
    torch.testing.assert_close(encoder(changed, mask), codes)
    alone = encoder(planes[1:, :2])
    torch.testing.assert_close(codes[1:], alone)


def test_a_network_that_blurs_sees_planes_without_detail() -> None:
    """As SciPy blurs them; what it has learned is the same."""
    torch.manual_seed(0)
    blurring = Encoder(replace(CONFIG, blur=1.5))
    plain = Encoder(CONFIG)
    plain.load_state_dict(blurring.state_dict())
    planes = scale_planes(random_planes(3, 2, side=32))
    blurred = gaussian_filter(planes.numpy(), (0, 0, 0, 1.5, 1.5), mode="nearest")
    torch.testing.assert_close(
        blurring(planes), plain(torch.from_numpy(blurred)), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(blurring(planes), plain(planes), atol=1e-2)


def test_frames_that_are_missing_cost_nothing() -> None:
    """Of a batch that is as long as its longest clip."""
    encoder = ExpressionNet(CONFIG, with_apex=False).encoder
    seen: list[int] = []
    encoder.stem.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    mask = torch.tensor([[True] * 4, [False, True, False, False]])
    encoder(scale_planes(random_planes(2, 4)), mask)
    assert seen == [5]


def test_a_clip_does_not_depend_on_the_rest_of_the_batch() -> None:
    torch.manual_seed(0)
    expression_net = ExpressionNet(CONFIG, with_apex=True).train()
    planes, mask = scale_planes(random_planes(5, 2)), torch.ones(5, 2, dtype=torch.bool)
    z_I = torch.randn(5, 128)
    z_R, logits, apex = expression_net(planes, mask, z_I)
    assert z_R.shape == (5, 32)
    assert logits.shape == (5, 7)
    assert apex.shape == (5, 3, APEX_SIZE, APEX_SIZE)
    for together, alone in zip(
        (z_R, logits, apex), expression_net(planes[3:4], mask[3:4], z_I[3:4]), strict=True
    ):
        torch.testing.assert_close(together[3:4], alone, rtol=1e-4, atol=1e-5)


def test_identity_reaches_the_apex_and_nothing_else() -> None:
    torch.manual_seed(0)
    expression_net = ExpressionNet(CONFIG, with_apex=True)
    planes, mask = scale_planes(random_planes(3, 2)), torch.ones(3, 2, dtype=torch.bool)
    first = expression_net(planes, mask, torch.zeros(3, 128))
    second = expression_net(planes, mask, torch.randn(3, 128))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[2], second[2])
    assert float(second[2].min()) >= 0
    assert float(second[2].max()) <= 1


@pytest.mark.parametrize(
    ("num_clips", "num_frames", "temperature"), [(1, 1, 1.0), (1, 5, 1.0), (4, 2, 0.5), (4, 2, 2.5)]
)
def test_predictor_gives_the_networks_probabilities(
    num_clips: int, num_frames: int, temperature: float
) -> None:
    torch.manual_seed(0)
    expression_net = ExpressionNet(CONFIG, with_apex=True).eval()
    planes = random_planes(num_clips, num_frames)
    probabilities = Predictor.of(expression_net, CONFIG, temperature)(planes)
    mask = torch.ones(num_clips, num_frames, dtype=torch.bool)
    _, logits, _ = expression_net(scale_planes(planes), mask, torch.zeros(num_clips, 128))
    torch.testing.assert_close(probabilities, (logits / temperature).softmax(1))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(num_clips))
