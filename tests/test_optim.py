"""AdamW through megatron-core against torch's own and by hand; the learning rate by hand."""

import pytest
import torch

from megatron_ring import config, optim, parallel, platform
from megatron_ring.config import Config, OptimConfig
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from tests.model.layouts import GOLDEN


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.2),  # the first of five warm-up steps
        (3, 0.8),
        (4, 1.0),
        (5, 1.0),  # the cosine begins at its top
        (15, 0.1 + 0.9 * 0.5 * (1 + 0.5**0.5)),  # a quarter: cos(π/4)
        (25, 0.55),  # half way: the mean of 1 and 0.1
        (45, 0.1),  # the end
        (99, 0.1),
    ],
)
def test_cosine_by_hand(step, expected):
    settings = OptimConfig(lr=1.0, warmup_steps=5, min_lr_ratio=0.1)
    assert optim.lr_at(step, 45, settings) == pytest.approx(expected, abs=1e-12)


def test_constant_by_hand():
    settings = OptimConfig(lr=2.0, warmup_steps=2, schedule="constant")
    assert [optim.lr_at(step, 9, settings) for step in range(4)] == [1.0, 2.0, 2.0, 2.0]
    no_warmup = OptimConfig(lr=2.0, schedule="constant")
    assert optim.lr_at(0, 9, no_warmup) == 2.0


def test_a_run_shorter_than_its_warm_up():
    settings = OptimConfig(lr=1.0, warmup_steps=10)
    assert [optim.lr_at(step, 3, settings) for step in range(3)] == [0.1, 0.2, 0.3]


def updated(gradients, **settings):
    """Parameters before and after updates with these gradients (name -> tensor, one dict each).

    Also the gradient norms that the optimizer reports.
    """
    made = config.load(Config, [], [f"model.hf_config={GOLDEN / 'ling_lite_tiny'}"])
    device = platform.prepare()
    with parallel.process_groups(made.parallel, device, seed=1):
        stages = build_stages(made, torch.float32, device)
        weights.load_first(made, stages)
        models = optim.wrap(stages, made.parallel)
        optimizer = optim.build_optimizer(models, OptimConfig(**settings), torch.float32)
        named = dict(stages[0].named_parameters())
        before = {name: p.detach().clone() for name, p in named.items()}
        norms = []
        for step in gradients(before):
            models[0].zero_grad_buffer()
            optimizer.zero_grad()
            for name, p in named.items():
                p.main_grad.copy_(step[name])
            norms.append(float(optimizer.step()[1]))
        return before, {name: p.detach().clone() for name, p in named.items()}, norms


def zeros(before):
    return [{name: torch.zeros_like(p) for name, p in before.items()}]


def random_steps(before):
    g = torch.Generator().manual_seed(5)
    return [{n: torch.randn(p.shape, generator=g) for n, p in before.items()} for _ in range(3)]


def test_decay_shrinks_matrices_and_no_norm():
    """A gradient of zero leaves only the decay: p · (1 - lr · weight_decay)."""
    before, after, norms = updated(zeros, lr=0.1, weight_decay=0.5)
    assert norms == [0.0]
    for name, p in before.items():
        if name.endswith("layernorm.weight"):
            assert torch.equal(after[name], p), name
        else:
            torch.testing.assert_close(after[name], p * (1 - 0.1 * 0.5), atol=1e-8, rtol=1e-6)
    assert sum(name.endswith("layernorm.weight") for name in before) == 7


def test_three_updates_are_those_of_torch():
    """torch.optim.AdamW on copies, with the clipping of torch.nn.utils before each step."""
    settings = {"lr": 0.01, "weight_decay": 0.1, "clip_norm": 1.0}
    before, after, norms = updated(random_steps, **settings)
    copies = {name: p.clone().requires_grad_() for name, p in before.items()}
    decayed = [p for n, p in copies.items() if not n.endswith("layernorm.weight")]
    plain = [p for n, p in copies.items() if n.endswith("layernorm.weight")]
    theirs = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
    )
    for step, norm in zip(random_steps(before), norms, strict=True):
        for name, p in copies.items():
            p.grad = step[name]
        total = torch.nn.utils.clip_grad_norm_(copies.values(), 1.0)
        assert norm == pytest.approx(total.item(), rel=1e-5)
        theirs.step()
    for name, p in copies.items():
        torch.testing.assert_close(after[name], p.detach(), atol=1e-6, rtol=1e-5, msg=name)


def test_clipping_by_hand():
    """One entry 3, one 4: norm 5 over dense and expert weights together, so scaled by 1/5.

    With eps = 1 Adam's first step is lr · g / (|g| + 1): it shows the size of the gradient.
    """

    def two(before):
        (step,) = zeros(before)
        step["output_layer.weight"][0, 0] = 3.0
        step["decoder.layers.1.mlp.experts.w1"][2, 0, 0] = -4.0
        return [step]

    for clip, scale in ((1.0, 1 / 5), (10.0, 1.0)):
        settings = {"lr": 0.1, "weight_decay": 0.0, "eps": 1.0, "clip_norm": clip}
        before, after, norms = updated(two, **settings)
        assert norms == pytest.approx([5.0])
        moved = {name: (after[name] - p) for name, p in before.items()}
        g, e = 3 * scale, 4 * scale
        assert moved["output_layer.weight"][0, 0].item() == pytest.approx(
            -0.1 * g / (g + 1), abs=1e-6
        )
        expert = moved["decoder.layers.1.mlp.experts.w1"][2, 0, 0].item()
        assert expert == pytest.approx(0.1 * e / (e + 1), abs=1e-6)
        assert sum(int((m != 0).sum()) for m in moved.values()) == 2
