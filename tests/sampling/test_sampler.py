"""Answers against the authors' logits and the plain reference, on every layout."""

from functools import cache

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring import config
from megatron_ring.convert import reference
from megatron_ring.convert.sources import HFFolder
from megatron_ring.model import frozen
from megatron_ring.sampling.draw import How
from megatron_ring.sampling.sampler import Sampler
from tests import ranks
from tests.model.layouts import GOLDEN

NAMES = ["ling_lite_tiny", "ling_lite_1_5_tiny"]
TINY = GOLDEN / NAMES[0]
PROMPTS = [list(range(5, 5 + n)) for n in (7, 1, 13, 4, 70)]
LAYOUTS = {
    "alone": (1, []),
    "tp2": (2, ["parallel.tp=2"]),
    "ep2": (2, ["parallel.ep=2"]),
    "ep2, allgather": (2, ["parallel.ep=2", "experts.dispatcher=allgather"]),
    "dp2": (2, []),
    "ep2 tp2": (2, ["parallel.ep=2", "parallel.tp=2"]),
    "pp2": (2, ["parallel.pp=2"]),
    "pp2, interleaved": (2, ["parallel.pp=2", "parallel.vpp=2"]),
    "tp2 ep2 pp2": (4, [f"parallel.{key}=2" for key in ("tp", "ep", "pp")]),
}


class Ids:
    """A tokenizer whose texts are ids, each behind a space."""

    def __init__(self, eos_id=None):
        self.eos_id, self.size = eos_id, 384  # as many as the model has

    def decode(self, ids):
        return "".join(f" {i}" for i in ids)


@cache
def by_reference(name, prompt, count, size=384):
    """The likeliest token, `count` times, from logits of the whole sequence each time."""
    model, read = config.read_hf_config(GOLDEN / name), HFFolder(GOLDEN / name).read
    ids = list(prompt)
    for _ in range(count):
        hidden = reference.hidden_states(read, model, torch.tensor(ids)).hidden_SD
        ids.append(int(reference.logits(read, model, hidden[-1:])[0, :size].argmax()))
    return ids[len(prompt) :]


def sample(name, overrides, asked):
    """What ranks answer to each (options of How, of Sampler, prompts, samples)."""
    folder = GOLDEN / name
    with frozen.opened(folder, frozen.configure(folder, ["run.dtype=fp32", *overrides])) as stages:
        return [
            [tuple(a) for a in Sampler(stages, Ids(), How(**how), **options).answers(prompts, n)]
            for how, options, prompts, n in asked
        ]


GREEDY, DRAWN = {"max_tokens": 6}, {"max_tokens": 6, "temperature": 1.0, "seed": 3}
ASKED = [
    (GREEDY, {"max_batch": 2}, PROMPTS, 1),
    (GREEDY, {"remember": False}, PROMPTS, 1),
    (DRAWN, {"max_batch": 3, "row_tokens": 20}, PROMPTS, 2),
    (DRAWN | {"top_p": 0.7}, {}, PROMPTS[:1], 2),  # on two data ranks the second has no prompt
]


@pytest.fixture(scope="module")
def alone():
    return {name: sample(name, [], ASKED) for name in NAMES}


@pytest.mark.parametrize(
    ("layout", "name"),
    [(layout, NAMES[0]) for layout in LAYOUTS]
    + [(layout, NAMES[1]) for layout in ("alone", "tp2", "ep2", "pp2")],
)
def test_a_layout_changes_no_answer(alone, name, layout, tmp_path):
    """The likeliest tokens are the reference's, with memory and without; drawn ones are alone's."""
    world_size, overrides = LAYOUTS[layout]
    for found in ranks.run(world_size, sample, name, overrides, ASKED, folder=tmp_path):
        remembered, read_again, drawn, nucleus = found
        assert [a[2] for a in remembered] == [by_reference(name, tuple(p), 6) for p in PROMPTS]
        assert read_again == remembered
        assert [a[:2] for a in drawn] == [(p, s) for p in range(len(PROMPTS)) for s in range(2)]
        assert drawn == alone[name][2]
        assert nucleus == alone[name][3]


@pytest.mark.parametrize("name", NAMES)
def test_likeliest_tokens_are_the_authors(name):
    """After each beginning of the golden documents, from the logits that their code gave."""
    golden = load_file(GOLDEN / name / "reference.safetensors")
    ids, logits = golden["input_ids"], golden["logits"]
    prompts = [row[: n + 1].tolist() for row in ids for n in range(len(row))]
    [answers] = sample(name, [], [({"max_tokens": 1}, {"max_batch": 50}, prompts, 1)])
    assert [tokens for _, _, [tokens], _, _ in answers] == logits.argmax(-1).flatten().tolist()


def test_context_parallelism_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="parallel.cp=2 cuts documents over ranks; to sample"):
        ranks.run(2, sample, NAMES[0], ["parallel.cp=2"], ASKED, folder=tmp_path)


@pytest.fixture(scope="module")
def stages():
    with frozen.opened(TINY, frozen.configure(TINY, [])) as stages:
        yield stages


def answers(stages, prompts=PROMPTS, samples=1, words=None, options=None, **how):
    sampler = Sampler(stages, words or Ids(), How(**{"max_tokens": 6} | how), **options or {})
    return sampler.answers(prompts, samples)


def test_neighbours_and_the_size_of_the_batch_change_no_answer(stages):
    drawn = answers(stages, samples=3, temperature=1.0)
    for max_batch in (1, 2, 7):
        options = {"max_batch": max_batch, "row_tokens": 1}
        assert answers(stages, samples=3, temperature=1.0, options=options) == drawn
    assert len({tuple(a.tokens) for a in drawn}) == 15


def test_the_seed_decides_what_is_drawn(stages):
    drawn = answers(stages, temperature=1.0, seed=3)
    assert answers(stages, temperature=1.0, seed=3) == drawn
    assert answers(stages, temperature=1.0, seed=4) != drawn
    greedy = answers(stages)
    assert answers(stages, temperature=1e-4, seed=4) == greedy
    assert answers(stages, temperature=1.0, top_p=1e-9) == greedy


def test_it_stops_at_the_end_token_and_leaves_it_out(stages):
    """Those without it go on; where one has ended another begins."""
    plain = answers(stages)
    eos_id = plain[0].tokens[3]
    for options in ({}, {"max_batch": 2}, {"remember": False}):
        for before, after in zip(
            plain, answers(stages, words=Ids(eos_id), options=options), strict=True
        ):
            ends = eos_id in before.tokens
            kept = before.tokens[: before.tokens.index(eos_id)] if ends else before.tokens
            assert after.tokens == kept
            assert after.ended == ("end" if ends else "length")
            assert after.text == Ids().decode(kept)


def test_it_ends_before_a_stop_string(stages):
    """Of several the first in the text; one that spans two tokens counts too."""
    [plain] = answers(stages, PROMPTS[:1])
    a, b, c = plain.tokens[1:4]
    [ended] = answers(stages, PROMPTS[:1], stop=("nowhere", f" {b} {c}", f"{a} {b} {c}"))
    assert (ended.text, ended.ended) == (f" {plain.tokens[0]} ", "stop")
    assert ended.tokens == plain.tokens[:4]
    [last] = answers(stages, PROMPTS[:1], stop=(" {} {}".format(*plain.tokens[4:]),))
    assert (last.ended, last.tokens) == ("stop", plain.tokens)
    assert answers(stages, PROMPTS[:1], stop=("nowhere",)) == [plain]


def test_a_stop_string_that_only_the_last_tokens_hold_is_none(stages):
    """Tokens from the middle may decode otherwise than in their text: that decides."""

    class Beginning(Ids):
        def decode(self, ids):
            return ("start" if len(ids) == 9 else "") + super().decode(ids)

    [plain] = answers(stages, PROMPTS[:1], max_tokens=12)
    [same] = answers(stages, PROMPTS[:1], words=Beginning(), max_tokens=12, stop=("s",))
    assert (same.ended, len(same.tokens)) == ("stop", 9)
    late = Beginning()
    late.decode = lambda ids: "s" * (len(ids) == 9 and ids[0] != plain.tokens[0])
    [same] = answers(stages, PROMPTS[:1], words=late, max_tokens=12, stop=("s",))
    assert (same.ended, same.tokens) == ("length", plain.tokens)


def test_it_stops_at_the_models_length(stages, monkeypatch):
    short = stages[0].arch.model_copy(update={"max_position_embeddings": 7 + 3})
    monkeypatch.setattr(stages[0], "arch", short)
    [answer] = answers(stages, PROMPTS[:1])
    assert (answer.tokens, answer.ended) == (by_reference(NAMES[0], tuple(PROMPTS[0]), 3), "length")


def test_tokens_that_have_no_text_are_not_chosen(stages):
    words = Ids()
    words.size = 20
    [answer] = answers(stages, PROMPTS[:1], words=words)
    assert answer.tokens == by_reference(NAMES[0], tuple(PROMPTS[0]), 6, 20)


def test_a_prompt_is_read_once_for_its_samples(stages):
    lengths = []
    handle = stages[0].register_forward_pre_hook(
        lambda model, args, kwargs: lengths.append(len(kwargs["tokens_S"])), with_kwargs=True
    )
    answers(stages, PROMPTS[:3], samples=4, temperature=1.0, max_tokens=2)
    handle.remove()
    assert lengths == [7 + 1 + 13, 12]


def test_attention_is_as_before_afterwards(stages):
    before = [layer.self_attention.attend for layer in stages[0].decoder.layers]
    steps = Sampler(stages, Ids(), How()).steps(PROMPTS)
    next(steps)
    assert [layer.self_attention.attend for layer in stages[0].decoder.layers] != before
    steps.close()
    assert [layer.self_attention.attend for layer in stages[0].decoder.layers] == before


def test_what_cannot_be_is_named(stages):
    with pytest.raises(ValueError, match="prompt 1 has no tokens; give it at least one"):
        answers(stages, [[1], []])
    with pytest.raises(ValueError, match="max_batch=0 must be at least 1"):
        answers(stages, options={"max_batch": 0})
