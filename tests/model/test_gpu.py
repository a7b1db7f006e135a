"""The same model on a GPU: parity with the authors in fp32, kernels against references in bf16."""

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring import config as configuration
from megatron_ring import losses, metrics, optim, parallel, platform, step, stopwatch
from megatron_ring.config import Config, LossConfig
from megatron_ring.data.rows import make_row
from megatron_ring.model import weights
from megatron_ring.model.ling import build_stages
from tests.model.layouts import GOLDEN, SOURCES, lay, random_pairs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def golden_rows(name):
    reference = load_file(GOLDEN / name / "reference.safetensors")
    pairs = zip(reference["input_ids"], reference["labels"], strict=True)
    documents = [(tokens.int().numpy(), (labels != -100).numpy()) for tokens, labels in pairs]
    return reference, [make_row([document], 64, pad_id=0) for document in documents]


@pytest.mark.parametrize("name", ["ling_lite_tiny", "ling_lite_1_5_tiny"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-4), ("bf16", 3e-2)])
def test_loss_and_norm_are_the_authors(name, dtype, tolerance):
    """bf16 keeps 8 bits: each of 3 layers rounds the residual stream by up to 2^-8 of it."""
    reference, rows = golden_rows(name)
    start = [f"model.hf_config={GOLDEN / name}", f"run.init_from={GOLDEN / name}"]
    off = ["loss.aux_coeff=0", "loss.z_coeff=0", f"run.dtype={dtype}"]
    config = configuration.load(Config, [], start + off)
    device = platform.prepare()
    with parallel.process_groups(config.parallel, device, seed=1):
        stages = build_stages(config, platform.dtype(dtype), device)
        weights.load_first(config, stages)
        models = optim.wrap(stages, config.parallel)
        optimizer = optim.build_optimizer(models, config.optim, platform.dtype(dtype))
        head = losses.SFT(["all"])
        _, table, norm = step.train_step(models, optimizer, rows, 0.0, head)
    assert head.report(table.cpu())["loss"] == pytest.approx(
        reference["loss"].item(), rel=tolerance
    )
    assert norm == pytest.approx(reference["grad_norm"].item(), rel=10 * tolerance)


def test_preference_loss_and_gradient_are_those_of_the_cpu():
    """Segmented sums in float64: what is left is the order of additions; and it repeats."""
    row = lay(sum(random_pairs(6, seed=5), []), 512)
    config = LossConfig(sources={"second": {"format_only": True, "kind": "ipo"}})
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(512, generator=generator) * torch.from_numpy(row.mask_S)
    results = []
    for device in ("cpu", "cuda", "cuda"):
        logp_S = values.to(device).requires_grad_()
        loss = losses.Preference(config, SOURCES)(logp_S, step.documents_of(row, device))
        (gradient,) = torch.autograd.grad(loss.sums_U.sum(), logp_S)
        results.append([loss.sums_U.cpu(), loss.table.cpu(), gradient.cpu()])
    for ours, again, cpu in zip(results[1], results[2], results[0], strict=True):
        torch.testing.assert_close(ours, cpu)
        assert torch.equal(ours, again)


def test_nothing_waits_for_the_device_between_log_lines():
    """torch itself says so: in its debug mode, measuring raises where it would wait."""
    config = configuration.load(Config, [], [f"model.hf_config={GOLDEN / 'ling_lite_tiny'}"])
    device = platform.prepare()
    with parallel.process_groups(config.parallel, device, seed=1):
        stages = build_stages(config, torch.bfloat16, device)
        meter, clock = metrics.Meter(config, stages, losses.SFT(["all"])), stopwatch.Stopwatch()
        table = torch.ones(1, 2, device=device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                with clock("forward_backward"):
                    table = table * 2
                meter.add(step.Counts((1,), 1, 40, 800), table)
                meter.skip()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert clock.read()["forward_backward"] > 0
