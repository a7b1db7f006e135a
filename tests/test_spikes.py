"""The detector on series whose spikes are known, and the queue of batches, without a model."""

import json
import math
import random

import pytest

from megatron_ring import config, spikes
from megatron_ring.config import ConfigError, SpikesConfig
from megatron_ring.spikes import Band, Guard
from tests.test_train import HF


def guard(planned, state=None, **changes):
    return Guard(SpikesConfig(**{"action": "skip", **changes}), 7, planned, state or {})


def fed(numbers, **changes):
    """Steps (from 0) that spike among (loss, norm) pairs, each a batch of its own."""
    watching = guard(10**9, **{"stop_after": 128, "max_retries": 0, **changes})
    return [i for i, pair in enumerate(numbers) if not watching.judge(i, *pair).update]


def test_what_is_usual_by_hand():
    """Logarithms of 1, 2, 4, 8, 16: median of 4, deviations 0 to 2 ln 2, their median ln 2."""
    band = Band.of([16, 1, 4, 8, 2], threshold=3)
    assert band.median == pytest.approx(4)
    assert band.limit == pytest.approx(4 * 2 ** (3 * 1.4826))
    assert Band.of([16e9, 1, 4, 8, 2], threshold=3) == band, "an outlier moves nothing"
    calm = Band.of([5.0] * 9, threshold=6)  # at the end of a run: the least that counts
    assert calm == (pytest.approx(5), pytest.approx(5 * math.exp(6 * 0.05)))
    assert Band.of([0.0, 2, 2], threshold=6).median == pytest.approx(2)


def noise(seed, steps, drift=0.0, tails=None):
    """Losses around 2 (σ of the logarithm 0.1) and norms around 1 (σ 0.3), e^drift apart a step."""
    draw = random.Random(seed)

    def one():
        scale = math.sqrt(draw.gammavariate(tails / 2, 2) / tails) if tails else 1.0
        return draw.gauss(0, 1) / scale

    return [(2 * math.exp(0.1 * one() + drift * i), math.exp(0.3 * one())) for i in range(steps)]


@pytest.mark.parametrize("drift", [0.0, -1 / 2000, 1 / 2000])
def test_ordinary_steps_are_no_spikes(drift):
    """20,000 numbers; a loss that falls or rises by a factor of 148 in all."""
    assert fed(noise(1, 10_000, drift)) == []


def test_heavy_tails_cost_few_steps():
    """Student's t with five degrees of freedom: a dozen of 10,000 steps come a second time."""
    assert len(fed(noise(1, 10_000, tails=5))) < 20


@pytest.mark.parametrize("which", ["loss", "grad_norm"])
def test_every_wide_spike_is_caught_and_nothing_else(which):
    numbers, wide = noise(2, 10_000), list(range(193, 10_000, 97))
    for step in wide:
        loss, norm = numbers[step]
        high = (2 * math.exp(0.1 * 10), norm) if which == "loss" else (loss, math.exp(0.3 * 10))
        numbers[step] = high
    assert fed(numbers) == wide


def test_before_the_warm_up_only_what_is_not_finite_is_a_spike():
    numbers = [(2.0, 1.0)] * 80
    numbers[10], numbers[20], numbers[70] = (90.0, 50.0), (2.0, math.inf), (90.0, 1.0)
    numbers[30] = (math.nan, 1.0)
    assert fed(numbers, warmup=64) == [20, 30, 70]
    assert fed(
        [(90.0 if i == 64 + 1 else 2.0, math.nan if i == 3 else 1.0) for i in range(80)]
    ) == [
        3,
        65,
    ]
    assert fed([(90.0 if i == 64 else 2.0, math.nan if i == 3 else 1.0) for i in range(80)]) == [3]


def follow(watching, spikes_at, step=0, stop=None):
    """[(step, batch, became an update)] of a run whose try number of a batch is in `spikes_at`."""
    tries, seen = {}, []
    while step < watching.total and step != stop:
        batch = watching.batch(step)
        tries[batch] = tries.get(batch, 0) + 1
        bad = (batch, tries[batch]) in spikes_at
        verdict = watching.judge(step, math.nan if bad else 2.0, 1.0)
        seen.append((step, batch, verdict.update))
        step += 1
    return seen


def test_every_batch_is_trained_once_whatever_spikes():
    """200 runs of 40 batches, some of which spike at their first or second try, or at both."""
    draw, waits = random.Random(1), []
    for _ in range(200):
        bad = {(draw.randrange(40), draw.choice([1, 2])) for _ in range(6)}
        seen = follow(guard(40, stop_after=40), bad)
        assert sorted(batch for _, batch, update in seen if update) == list(range(40))
        first = {}
        for step, batch, _ in seen:
            if batch in first:
                waits.append((step - first[batch]) / (len(seen) - first[batch]))
            first.setdefault(batch, step)
        fresh = [
            batch
            for i, (_, batch, _) in enumerate(seen)
            if batch not in {b for _, b, _ in seen[:i]}
        ]
        assert fresh == list(range(40)), "the plan's order stays"
    assert 0.35 < sum(waits) / len(waits) < 0.65, "anywhere in what is left of the run"


def test_a_batch_that_keeps_spiking_is_dropped():
    watching = guard(10, max_retries=2)
    seen = follow(watching, {(4, 1), (4, 2), (4, 3)})
    assert [update for _, batch, update in seen if batch == 4] == [False] * 3
    assert len(seen) == watching.total == 12
    assert watching.counts() == {"skipped": 3, "queued": 0, "dropped": 1}
    assert sum(update for _, _, update in seen) == 9
    at_once = guard(10, max_retries=0)
    assert len(follow(at_once, {(4, 1)})) == 10
    assert at_once.counts() == {"skipped": 1, "queued": 0, "dropped": 1}


def test_a_run_goes_on_from_any_step_as_if_it_had_not_stopped():
    bad = {(3, 1), (5, 1), (3, 2), (19, 1)}
    whole = follow(guard(20), bad)
    for stop in range(len(whole)):
        first = guard(20)
        begun = follow(first, bad, stop=stop)
        second = guard(20, json.loads(json.dumps(first.state())))
        tries = [batch for _, batch, _ in begun]
        left = {(b, n - tries.count(b)) for b, n in bad}
        assert begun + follow(second, left, stop) == whole
    other = Guard(SpikesConfig(action="skip"), 8, 20, {})
    assert follow(other, bad) != whole, "another seed, other places"
    assert guard(20).state() == {}


def test_more_steps_after_the_end_go_on_with_the_plan():
    first = guard(5)
    seen = follow(first, {(2, 1)})
    assert len(seen) == 6
    more = follow(guard(8, first.state()), set(), step=6)
    assert more == [(6, 5, True), (7, 6, True), (8, 7, True)]


def test_what_is_kept_is_trained_also_when_nobody_watches_any_more():
    first = guard(6)
    follow(first, {(2, 1)}, stop=3)
    off = guard(6, first.state(), action="stop")
    batches = []
    for step in range(3, off.total):
        batches.append(off.batch(step))
        assert off.judge(step, None, 1.0) == (True, None, None)
    assert sorted(batches) == [2, 3, 4, 5]


def test_the_learning_rate_falls_and_recovers_by_hand():
    """The third spike within ten steps halves it; it climbs back over ten updates."""
    watching = guard(100, window=10, warmup=10, lower_after=3, stop_after=9, max_retries=0)
    scales = []
    for step in range(30):
        scales.append(watching.lr_scale)
        watching.judge(step, math.nan if step in (2, 6, 9) else 2.0, 1.0)
    assert scales[:10] == [1.0] * 10
    assert scales[10:20] == pytest.approx([0.5 + 0.05 * i for i in range(10)])
    assert scales[20:] == [1.0] * 10
    apart = guard(100, window=10, warmup=10, lower_after=2, stop_after=9, max_retries=0)
    for step in range(30):
        apart.judge(step, math.nan if step in (2, 12, 22) else 2.0, 1.0)
        assert apart.lr_scale == 1.0, "ten steps apart is not within a window of ten"


def test_a_level_that_stays_high_ends_the_run():
    watching = guard(200, stop_after=3)
    for step in range(70):
        assert watching.judge(step, 2.0, 1.0) == (True, None, None)
    assert [watching.judge(step, 4.0, 1.0).stop for step in (70, 71)] == [None, None]
    verdict = watching.judge(72, 4.25, math.nan)
    assert not verdict.update
    assert verdict.stop == (
        "3 of the last 128 steps were spikes (spikes.stop_after=3):\n"
        "  step 71 (loss 4.0, gradient norm 1.0)\n"
        "  step 72 (loss 4.0, gradient norm 1.0)\n"
        "  step 73 (loss 4.25, gradient norm nan)\n"
        "None of them has touched the weights, which are saved with all that was kept for later; "
        "their rows are named in spikes.jsonl of the run's folder, and tools/show_rows.py shows "
        "them. Starting again goes on from here: with a lower optim.lr; with a larger "
        "spikes.threshold where the data changes its kind; or, where the weights were spoilt "
        "before, without the last checkpoints"
    )
    again = guard(200, watching.state(), stop_after=3)
    assert again.judge(73, 4.0, 1.0).stop is None, "who starts again has three more"


def test_what_is_reported():
    watching = guard(100, window=4, warmup=2, lower_after=2, stop_after=3, max_retries=1)
    follow(watching, set(), stop=3)
    rows = {"rows": [12, 13, 14, 15], "sources": ["chat"]}
    kept = watching.judge(3, 8.0, math.inf).event
    assert kept == {
        "step": 4,
        "batch": 3,
        "retry": 0,
        "loss": 8.0,
        "grad_norm": "inf",
        "loss_median": pytest.approx(2),
        "loss_limit": pytest.approx(2 * math.exp(0.3)),
        "grad_norm_median": pytest.approx(1),
        "grad_norm_limit": pytest.approx(math.exp(0.3)),
        "verdict": "kept",
        "again_at": kept["again_at"],
        "lr_scale": 1.0,
    }
    usual = "loss 8.0 (median 2.0, limit 2.7), gradient norm inf (median 1.0, limit 1.35). "
    assert spikes.say(kept | rows) == (
        f"step 4: {usual}A spike, no update; rows 12 to 15 come again at step {kept['again_at']}"
    )
    watching.queue = [[4, 3, 0]]
    dropped = watching.judge(4, 8.0, math.inf).event
    assert (dropped["verdict"], dropped["batch"], dropped["retry"]) == ("dropped", 3, 1)
    assert spikes.say(dropped | rows) == (
        f"step 5: {usual}A spike, no update; rows 12 to 15 are dropped after 1 retries; learning "
        "rate × 0.5"
    )
    watching.queue = [[5, 3, 0]]
    trained = watching.judge(5, 2.0, 1.0).event
    assert spikes.say(trained | rows).endswith("Retry 1 of rows 12 to 15 went well")
    json.dumps([kept, dropped, trained], allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "spikes.warmup=129",
            "spikes: warmup=129 exceeds window=128, the most updates that are remembered; no spike "
            "would ever be seen",
        ),
        (
            "spikes.stop_after=200",
            "spikes: stop_after=200 exceeds window=128, in which spikes are counted; the run would "
            "never stop",
        ),
    ],
)
def test_settings_that_contradict_each_other(change, message):
    with pytest.raises(ConfigError) as error:
        config.load(config.Config, [], [HF, change])
    assert str(error.value) == message
