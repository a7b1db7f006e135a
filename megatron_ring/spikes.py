"""Spikes: batches whose loss or gradient jumps are skipped, kept, and trained later.

The Ling team's way (arXiv 2503.05139): no update on a spike, its data saved and fed again at random
later, a lower learning rate if it persists. Here:

- A *step* is one batch tried. Its loss and gradient norm are judged before the update; a spike
  changes neither weights nor Adam's state nor the learning rate's schedule, which counts *updates*.
- The batch, named by its number in the plan, is queued for a step drawn evenly from those that are
  left, where it stands before the plan's next batch. The run grows by that step. A run whose spikes
  pass makes the same number of updates as one without. A batch that spikes max_retries more times
  is dropped, and spikes.jsonl names its rows.
- lower_after spikes within `window` steps lower the learning rate to lr_factor of its schedule,
  from where it climbs back, linearly over `window` updates. stop_after of them end the run.

All state is a function of (seed, steps so far), is part of the checkpoint, and is the same on all
ranks, who judge the same numbers. No torch here.
"""

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from megatron_ring.config import SpikesConfig

MAD_TO_SIGMA = 1.4826  # of a normal distribution
# Losses and norms are positive and their noise is a factor, so logarithms are compared. Near the
# end of a run noise may all but vanish; what is less than threshold × 5 % above the median (with
# the default of 6: below 1.35 times the median) is worth no skipped update.
LEAST_SIGMA = 0.05
TINY = 1e-12  # the loss of a batch in which nothing is supervised has no logarithm


class Band(NamedTuple):
    """What is usual: the median, and the limit above which a value is a spike."""

    median: float
    limit: float

    @classmethod
    def of(cls, values: Sequence[float], threshold: float) -> "Band":
        """Median and median absolute deviation of logarithms: outliers do not move them."""
        logs = [math.log(max(value, TINY)) for value in values]
        median = statistics.median(logs)
        sigma = MAD_TO_SIGMA * statistics.median(abs(value - median) for value in logs)
        return cls(math.exp(median), math.exp(median + threshold * max(sigma, LEAST_SIGMA)))


class Verdict(NamedTuple):
    update: bool
    event: dict[str, Any] | None = None  # a line of spikes.jsonl
    stop: str | None = None  # why the run ends here


class Guard:
    """Which batch is next, at what share of the learning rate, and whether it becomes an update."""

    def __init__(
        self, config: SpikesConfig, seed: int, planned: int, state: dict[str, Any]
    ) -> None:
        """`planned`: batches of the plan that the run trains; `state`: of a checkpoint, or {}."""
        self.config, self.seed, self.planned = config, seed, planned
        self.watches = config.action == "skip"
        self.window: list[list[float]] = state.get("window", [])  # of updates: loss, norm
        self.queue: list[list[int]] = state.get("queue", [])  # sorted: due step, batch, retries
        self.recent: list[list[Any]] = state.get("recent", [])  # spikes: step, what was seen
        self.skipped: int = state.get("skipped", 0)  # steps without an update
        self.retried: int = state.get("retried", 0)  # steps that took their batch from the queue
        self.dropped: int = state.get("dropped", 0)  # batches given up
        self.slow: int = state.get("slow", 0)  # updates until the learning rate has recovered

    def state(self) -> dict[str, Any]:
        """What resuming needs, as JSON has it; {} while nothing has happened."""
        names = ("window", "queue", "recent", "skipped", "retried", "dropped", "slow")
        return {name: value for name in names if (value := vars(self)[name])}

    @property
    def total(self) -> int:
        """Steps of the run: the plan's, and those that have tried, or will try, a batch again."""
        return self.planned + self.retried + len(self.queue)

    @property
    def lr_scale(self) -> float:
        """Share of the scheduled learning rate."""
        return 1 - (1 - self.config.lr_factor) * min(self.slow / self.config.window, 1)

    def counts(self) -> dict[str, int]:
        """For a log line."""
        if not (self.watches or self.skipped):
            return {}
        return {"skipped": self.skipped, "queued": len(self.queue), "dropped": self.dropped}

    def batch(self, step: int) -> int:
        """Number in the plan of the batch that `step` (from 0) trains."""
        return self.queue[0][1] if self._again(step) else step - self.retried

    def _again(self, step: int) -> bool:
        done = step - self.retried >= self.planned
        return bool(self.queue) and (done or self.queue[0][0] <= step)

    def judge(self, step: int, loss: float | None, grad_norm: float) -> Verdict:
        """Is `step`'s batch to become an update? Must be equal on all ranks; None: not watched.

        Raises FloatingPointError when not watching and the gradient norm is not finite.
        """
        batch, retry = self.batch(step), 0
        if self._again(step):
            retry = self.queue[0][2] + 1
            self.queue, self.retried = self.queue[1:], self.retried + 1
        if loss is None:
            refuse(grad_norm)
            return Verdict(True)
        event = {"step": step + 1, "batch": batch, "retry": retry}
        event |= {"loss": _json(loss), "grad_norm": _json(grad_norm)}
        spiked = not (math.isfinite(loss) and math.isfinite(grad_norm))
        for (name, band), value in zip(self.bands().items(), (loss, grad_norm), strict=False):
            event |= {f"{name}_median": band.median, f"{name}_limit": band.limit}
            spiked = spiked or value > band.limit
        if spiked:
            return self._skip(step, event)
        self.window = [*self.window, [loss, grad_norm]][-self.config.window :]
        self.slow = max(self.slow - 1, 0)
        return Verdict(True, event | {"verdict": "trained"} if retry else None)

    def bands(self) -> dict[str, Band]:
        """Of loss and gradient norm; {} until there is enough to go by."""
        if len(self.window) < self.config.warmup:
            return {}
        columns = zip(("loss", "grad_norm"), zip(*self.window, strict=True), strict=True)
        return {name: Band.of(values, self.config.threshold) for name, values in columns}

    def _skip(self, step: int, event: dict[str, Any]) -> Verdict:
        self.skipped += 1
        if event["retry"] < self.config.max_retries:
            # Evenly over the steps left, of which this batch makes one more.
            last = max(self.total, step + 1)
            due = random.Random(f"{self.seed} {step}").randint(step + 1, last)
            self.queue = sorted([*self.queue, [due, event["batch"], event["retry"]]])
            event |= {"verdict": "kept", "again_at": due + 1}
        else:
            self.dropped += 1
            event["verdict"] = "dropped"
        said = f"step {event['step']} (loss {event['loss']:.6}, "
        said += f"gradient norm {event['grad_norm']:.6})"
        first = step - self.config.window
        self.recent = [*(one for one in self.recent if one[0] > first), [step, said]]
        if len(self.recent) >= self.config.lower_after:
            self.slow = self.config.window
        event["lr_scale"] = self.lr_scale
        stop = None
        if len(self.recent) >= self.config.stop_after:
            stop = self._report()
            self.recent = []  # who starts the run again has done something about it
        return Verdict(False, event, stop)

    def _report(self) -> str:
        steps = "\n".join(f"  {said}" for _, said in self.recent)
        return (
            f"{len(self.recent)} of the last {self.config.window} steps were spikes "
            f"(spikes.stop_after={self.config.stop_after}):\n{steps}\nNone of them has touched the "
            "weights, which are saved with all that was kept for later; their rows are named in "
            "spikes.jsonl of the run's folder, and tools/show_rows.py shows them. Starting again "
            "goes on from here: with a lower optim.lr; with a larger spikes.threshold where the "
            "data changes its kind; or, where the weights were spoilt before, without the last "
            "checkpoints"
        )


def refuse(grad_norm: float) -> None:
    """FloatingPointError when the norm is not finite: such a gradient never reaches the weights."""
    if not math.isfinite(grad_norm):
        raise FloatingPointError(
            f"the gradient norm is {grad_norm}; the weights are untouched. Resume from the last "
            "checkpoint with a lower optim.lr, or look at the rows of this step with "
            "tools/show_rows.py; spikes.action=skip goes on without the step"
        )


def say(event: dict[str, Any]) -> str:
    """One line of spikes.jsonl, for the person watching."""
    seen = []
    for key, name in (("loss", "loss"), ("grad_norm", "gradient norm")):
        usual = ""
        if f"{key}_limit" in event:
            usual = f" (median {event[f'{key}_median']:.4}, limit {event[f'{key}_limit']:.4})"
        seen.append(f"{name} {event[key]:.4}{usual}")
    text = f"step {event['step']}: {', '.join(seen)}. "
    rows = f"rows {event['rows'][0]} to {event['rows'][-1]}"
    if event["verdict"] == "trained":
        return f"{text}Retry {event['retry']} of {rows} went well"
    text += "A spike, no update; "
    if event["verdict"] == "dropped":
        text += f"{rows} are dropped after {event['retry']} retries"
    else:
        text += f"{rows} come again at step {event['again_at']}"
    if event["lr_scale"] < 1:
        text += f"; learning rate × {event['lr_scale']:g}"
    return text


def _json(value: float) -> float | str:
    """JSON has no nan and no inf."""
    return value if math.isfinite(value) else str(value)
