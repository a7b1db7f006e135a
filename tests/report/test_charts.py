"""The table of charts knows every key a run logs, and puts the rest at the end."""

import pytest
import torch

from megatron_ring.config import LossConfig
from megatron_ring.losses import head
from megatron_ring.report import charts

SOURCES = ["math", "org/chat"]

# Keys of a training line that no loss head reports.
OF_ALL = """loss lr grad_norm tokens supervised step steps time step_seconds tokens_per_second
tokens_per_second_per_device tflops_per_device mfu memory_gib aux_loss z_loss router_entropy
load_max_over_mean load_worst_layer load_entropy dead_experts skipped queued dropped goodput
tokens/math domain_loss/law domain_tokens/law valid_domain_loss/law grad_norm/router
grad_norm/shared_experts seconds/data seconds/forward_backward spike_loss spike_grad_norm
first_layer""".split()


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_no_key_that_a_run_logs_is_left_over(kind: str) -> None:
    made = head(LossConfig(head=kind), SOURCES)
    reported = set(made.report(torch.ones(2, len(made.columns), dtype=torch.float64)))
    assert {"loss", "loss/org/chat"} <= reported
    keys = reported | {f"valid_{key}" for key in reported} | set(OF_ALL)
    assert charts.left_over(keys) == ()


def test_a_dpo_key_has_a_chart_in_the_dpo_section() -> None:
    made = head(LossConfig(head="dpo"), SOURCES)
    patterns = [key for chart in charts.DPO.charts for key in chart.keys]
    for key in made.report(torch.ones(2, len(made.columns), dtype=torch.float64)):
        assert any(charts.matches(pattern, key) for pattern in patterns), key


def test_unknown_keys_come_last_together_by_prefix() -> None:
    keys = {"loss", "lora_norm", "loss_scale", "probe/a", "probe/b/c", "valid_probe2"}
    assert [(c.title, c.keys) for c in charts.left_over(keys)] == [
        ("lora_norm", ("lora_norm",)),
        ("loss_scale", ("loss_scale",)),
        ("probe", ("probe/*",)),
        ("valid_probe2", ("valid_probe2",)),
    ]


def test_names_of_curves() -> None:
    assert charts.label("loss/*", "loss/org/chat", mixed=False) == "org/chat"
    assert charts.label("valid_loss/*", "valid_loss/math", mixed=True) == "math, held out"
    assert charts.label("valid_loss/*", "valid_loss/math", mixed=False) == "math"
    assert charts.label("reward_chosen", "reward_chosen", mixed=True) == "reward chosen"
    assert charts.label("valid_loss", "valid_loss", mixed=True) == "loss, held out"


def test_titles_are_unique_within_a_section() -> None:
    for section in charts.SECTIONS:
        titles = [chart.title for chart in section.charts]
        assert len(set(titles)) == len(titles), section.title
