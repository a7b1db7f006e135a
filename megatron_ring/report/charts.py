"""The charts of a run: one table, of which the HTML report and the wandb dashboard are made.

A key that ends in "/*" stands for one curve a source, domain or part of the model. Charts whose
keys a run does not have are left out of its report.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["lines", "stacked", "shares", "heat map", "spikes"]


@dataclass(frozen=True)
class Chart:
    """Curves that share an axis; `stacked` ones lie on each other, `shares` add up to 100 %."""

    title: str
    unit: str  # of the values
    keys: tuple[str, ...]  # of metrics.jsonl
    about: str = ""  # what a reader may not know
    kind: Kind = "lines"
    log: bool = False  # a logarithmic axis to begin with
    smooth: bool = True  # noisy, so that a mean over neighbours says more
    percent: bool = False  # of 1


@dataclass(frozen=True)
class Section:
    title: str
    charts: tuple[Chart, ...]
    head: str | None = None  # only runs with this loss.head; None: all runs


def by_source(*charts: Chart) -> tuple[Chart, ...]:
    """The same charts again, with a curve for each source instead of the one over all."""
    return tuple(
        Chart(
            f"{chart.title} by source",
            chart.unit,
            tuple(f"{key}/*" for key in chart.keys),
            log=chart.log,
            smooth=chart.smooth,
            percent=chart.percent,
        )
        for chart in charts
    )


NATS = "nats a token"
UPDATE = (
    Chart("Learning rate", "learning rate", ("lr",), smooth=False),
    Chart("Gradient norm", "norm before clipping", ("grad_norm",), log=True),
    Chart(
        "Gradient norm by part of the model",
        "norm before clipping",
        ("grad_norm/*",),
        "A part that runs away from the others is where to look first.",
        log=True,
    ),
)

SFT = Section(
    "SFT",
    (
        Chart("Loss", NATS, ("loss", "valid_loss"), "Points, if any: rows that are held out."),
        Chart("Held-out loss", NATS, ("valid_loss",), smooth=False),
        Chart("Loss by source", NATS, ("loss/*",)),
        Chart("Held-out loss by source", NATS, ("valid_loss/*",), smooth=False),
        Chart("Loss by domain", NATS, ("domain_loss/*",)),
        Chart("Held-out loss by domain", NATS, ("valid_domain_loss/*",), smooth=False),
        Chart(
            "Tokens by source",
            "share of supervised tokens",
            ("tokens/*",),
            "Which part of what is learnt comes from which source.",
            kind="shares",
        ),
        Chart(
            "Tokens by domain", "share of supervised tokens", ("domain_tokens/*",), kind="shares"
        ),
        *UPDATE,
        Chart(
            "Tokens between two lines",
            "tokens",
            ("tokens", "supervised"),
            "All of them, and those that are learnt.",
        ),
    ),
    head="sft",
)

PAIR_LOSS = Chart(
    "Preference loss", "a pair", ("preference_loss", "valid_preference_loss"), "ln 2 at the start."
)
REWARD = Chart(
    "Rewards",
    "β log π/π_ref",
    ("reward_chosen", "reward_rejected", "valid_reward_chosen", "valid_reward_rejected"),
    "Both may fall; what counts is that the rejected one falls faster.",
)
MARGIN = Chart("Margin", "reward, chosen − rejected", ("margin", "valid_margin"))
ACCURACY = Chart(
    "Accuracy",
    "share of pairs",
    ("accuracy", "valid_accuracy"),
    "Pairs whose margin is above 0; a tie counts half.",
    percent=True,
)
KL = Chart("KL from the reference", NATS, ("kl", "valid_kl"), "Estimated from the data's answers.")
FORMAT_SHARE = Chart(
    "Format's share of the loss",
    "share of the gradient",
    ("format_share", "valid_format_share"),
    "How much of the pull is on think tags and what surrounds them.",
    percent=True,
)
ANSWER_LENGTH = Chart(
    "Length of answers", "scored tokens a pair", ("tokens_chosen", "tokens_rejected")
)
NLL_CHOSEN = Chart("Nll of chosen answers", NATS, ("nll_chosen", "valid_nll_chosen"))

DPO = Section(
    "DPO",
    (
        PAIR_LOSS,
        Chart("Loss", "a pair", ("loss", "valid_loss"), "With the nll term, where there is one."),
        REWARD,
        MARGIN,
        ACCURACY,
        KL,
        FORMAT_SHARE,
        Chart(
            "Log-probability of answers",
            "Σ logp of an answer, nats",
            ("logp_chosen", "logp_rejected", "valid_logp_chosen", "valid_logp_rejected"),
        ),
        ANSWER_LENGTH,
        NLL_CHOSEN,
        Chart("Pairs between two lines", "pairs", ("pairs",)),
        *by_source(PAIR_LOSS),
        Chart("Loss by source", "a pair", ("loss/*", "valid_loss/*")),
        *by_source(MARGIN, ACCURACY),
        *by_source(
            Chart("Reward of chosen answers", REWARD.unit, REWARD.keys[::2]),
            Chart("Reward of rejected answers", REWARD.unit, REWARD.keys[1::2]),
            KL,
            FORMAT_SHARE,
            NLL_CHOSEN,
            Chart("Length of chosen answers", ANSWER_LENGTH.unit, ("tokens_chosen",)),
            Chart("Length of rejected answers", ANSWER_LENGTH.unit, ("tokens_rejected",)),
            Chart("Log-probability of chosen answers", "nats an answer", ("logp_chosen",)),
            Chart("Log-probability of rejected answers", "nats an answer", ("logp_rejected",)),
        ),
        Chart("Pairs by source", "share of pairs", ("pairs/*",), kind="shares"),
        *UPDATE,
    ),
    head="dpo",
)

MOE = Section(
    "MoE health",
    (
        Chart(
            "Load of the experts",
            "visits, 1 = fair share",
            ("expert_load",),
            "Each layer's visits over its experts. 0 is an expert nobody visits.",
            kind="heat map",
        ),
        Chart(
            "Load of the fullest expert",
            "its visits / mean of its layer",
            ("load_max_over_mean", "load_worst_layer"),
            "1 is balanced: the mean over layers, and the worst layer.",
        ),
        Chart(
            "Entropy of the load",
            "÷ ln experts; 1 = balanced",
            ("load_entropy",),
            "Of the experts' shares of visits, mean over layers.",
        ),
        Chart(
            "Entropy of the router",
            "÷ ln experts; 0 = certain",
            ("router_entropy",),
            "Of a token's probabilities, mean over tokens and layers.",
        ),
        Chart(
            "Dead experts",
            "experts, all layers",
            ("dead_experts",),
            "Without a single visit since the last line.",
            smooth=False,
        ),
        Chart("Balance loss", "aux loss a token", ("aux_loss",)),
        Chart("Router z loss", "z loss a token", ("z_loss",)),
    ),
)

SPEED = Section(
    "Speed and memory",
    (
        Chart("Throughput of a device", "tokens/s", ("tokens_per_second_per_device",)),
        Chart("Throughput of all devices", "tokens/s", ("tokens_per_second",)),
        Chart(
            "Model FLOPs utilisation (MFU)",
            "share of the peak",
            ("mfu",),
            "Model FLOPs only: attention by Σ length² of documents, no recomputation.",
            percent=True,
        ),
        Chart("Model FLOPs of a device", "TFLOP/s", ("tflops_per_device",)),
        Chart("Time of a step", "seconds", ("step_seconds",)),
        Chart("Time of a step by part", "seconds a step", ("seconds/*",), kind="stacked"),
        Chart("Peak memory", "GiB on the first rank", ("memory_gib",), smooth=False),
        Chart(
            "Goodput",
            "share of the time",
            ("goodput",),
            "Time in steps that were kept, of all time since the first start.",
            smooth=False,
            percent=True,
        ),
    ),
)

SPIKES = Section(
    "Spikes and events",
    (
        Chart(
            "Loss with spikes and events",
            "loss",
            ("loss",),
            "✕ skipped, to come again or dropped (red); ▲ the same, above what is drawn; ● came "
            "again and went well. Below: starts, saves, warnings; dotted: a restart.",
            kind="spikes",
        ),
        Chart(
            "Batches that spiked",
            "batches so far",
            ("skipped", "queued", "dropped"),
            "Skipped in all, waiting to come again, and given up.",
            smooth=False,
        ),
    ),
)

SECTIONS = (SFT, DPO, MOE, SPEED, SPIKES)

# Not curves: where a line stands, and what is drawn otherwise.
NO_CURVES = {"step", "steps", "updates", "time", "first_layer", "spike_loss", "spike_grad_norm"}


def matches(pattern: str, key: str) -> bool:
    """Whether a key of a chart means `key` of a line."""
    if pattern.endswith("/*"):
        return key.startswith(pattern[:-1])
    return pattern == key


def label(pattern: str, key: str, mixed: bool) -> str:
    """What a legend calls the curve `key` of a chart that asked for `pattern`.

    `mixed`: the chart has curves of training and of held-out rows.
    """
    everywhere = not_held_out(key).replace("_", " ")
    said = key[len(pattern) - 1 :] if pattern.endswith("/*") else everywhere
    return f"{said}, held out" if mixed and key.startswith("valid_") else said


def not_held_out(key: str) -> str:
    """The key of the same number of training rows."""
    return key.removeprefix("valid_")


def left_over(keys: set[str]) -> tuple[Chart, ...]:
    """Charts of the keys that the table does not know, those with the same "NAME/" together."""
    known = [key for section in SECTIONS for chart in section.charts for key in chart.keys]
    # What is held out stays the same: of its tokens, pairs and lengths there is nothing to see.
    unknown = {
        key
        for key in keys - NO_CURVES
        if not any(matches(pattern, k) for pattern in known for k in (key, not_held_out(key)))
    }
    patterns = {f"{k.split('/')[0]}/*" if "/" in k else k for k in unknown}
    return tuple(Chart(p.removesuffix("/*"), "", (p,)) for p in sorted(patterns))
