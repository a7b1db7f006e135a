"""A preference sample to two documents; the packed folder of pairs is in test_pair_rows.py."""

import pytest

from megatron_ring.config import ConfigError, SourceConfig
from megatron_ring.data.chat import SampleError
from megatron_ring.data.pairs import Preference, encode_pair, read_preference
from megatron_ring.data.tokenizer import load_tokenizer

from .conftest import CHATML

GOOD, BAD = "<think>so it</think>4 !", "so it</think>4 !"
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
CALLED = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def turn(role, content, **extra):
    return {"role": role, "content": content, **extra}


def pieces(tokenizer, tokens, flags):
    """Texts of the runs in which a flag is set."""
    found, start = [], 0
    for stop in range(1, len(tokens) + 1):
        if stop == len(tokens) or flags[stop] != flags[start]:
            found += [tokenizer.decode(tokens[start:stop])] * bool(flags[start])
            start = stop
    return found


def shown(tokenizer, pair):
    """For both answers: the text, what is learnt of it, and what is structure."""
    return [
        (
            tokenizer.decode(answer.tokens),
            pieces(tokenizer, answer.tokens, answer.targets),
            pieces(tokenizer, answer.tokens, answer.format),
        )
        for answer in pair
    ]


def test_a_pair_by_hand(ling):
    """Prompt, answer, end: the answer and its end are learnt; structure as the rule has it."""
    chosen, rejected = encode_pair(Preference("2+2?", GOOD, BAD, spans="think"), ling)
    head = "<role>HUMAN</role>2+2?<role>ASSISTANT</role>"
    assert shown(ling, (chosen, rejected)) == [
        (f"{head}{GOOD}<|endoftext|>", [f"{GOOD}<|endoftext|>"], ["<think>so", "</think>4"]),
        (f"{head}{BAD}<|endoftext|>", [f"{BAD}<|endoftext|>"], ["so", "</think>4"]),
    ]
    assert [str(a.dtype) for a in (chosen.tokens, chosen.targets, chosen.format)] == [
        "int32",
        "bool",
        "bool",
    ]
    prompt = len(ling.encode(head))
    assert chosen.tokens[:prompt].tolist() == rejected.tokens[:prompt].tolist()
    assert not chosen.targets[:prompt].any() and chosen.targets[prompt:].all()


def test_without_spans_nothing_is_structure(ling):
    assert [a.format.sum() for a in encode_pair(Preference("2+2?", GOOD, BAD), ling)] == [0, 0]


ASKED, BEFORE = turn("user", "2+2?"), turn("system", "Sum.")
SAID = turn("assistant", GOOD), turn("assistant", BAD)
RECORDS = {
    "texts": ({}, {"prompt": "2+2?", "chosen": GOOD, "rejected": BAD}),
    "named columns": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"q": "2+2?", "a": GOOD, "b": BAD, "prompt": "no", "messages": "no"},
    ),
    "messages before a prompt column": (
        {},
        {"messages": [ASKED], "prompt": "no", "chosen": [SAID[0]], "rejected": [SAID[1]]},
    ),
    "one turn": ({}, {"prompt": ASKED, "chosen": SAID[0], "rejected": SAID[1]}),
    "ShareGPT": (
        {"messages": "conversations"},
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        },
    ),
    "what both begin with": ({}, {"chosen": [ASKED, SAID[0]], "rejected": [ASKED, SAID[1]]}),
    "prompt repeated in both": (
        {},
        {"prompt": "2+2?", "chosen": [ASKED, SAID[0]], "rejected": [ASKED, SAID[1]]},
    ),
    "thought of its own": (
        {},
        {
            "prompt": "2+2?",
            "chosen": turn("assistant", "4 !", reasoning_content="so it"),
            "rejected": "<think>\nso it\n\n4 !",
        },
    ),
}


@pytest.mark.parametrize(("keys", "record"), RECORDS.values(), ids=RECORDS)
def test_every_shape_of_a_record_is_the_same_pair(ling, keys, record):
    source = SourceConfig(path="x.jsonl", **keys)
    pair = encode_pair(read_preference(source, 0, record), ling)
    head = "<role>HUMAN</role>2+2?<role>ASSISTANT</role>"
    chosen, rejected = GOOD, BAD
    if "reasoning_content" in str(record):
        chosen, rejected = "<think>\nso it\n</think>\n\n4 !", "<think>\nso it\n\n4 !"
        structure = ["<think>\nso", "\n</think>\n\n4"], ["<think>\nso", "\n\n4"]
    else:
        structure = ["<think>so", "</think>4"], ["so", "</think>4"]
    assert shown(ling, pair) == [
        (f"{head}{text}<|endoftext|>", [f"{text}<|endoftext|>"], marks)
        for text, marks in zip((chosen, rejected), structure, strict=True)
    ]


def test_a_system_turn_before_the_repeated_prompt_belongs_to_it(ling):
    record = {
        "prompt": "2+2?",
        "chosen": [BEFORE, ASKED, SAID[0]],
        "rejected": [BEFORE, ASKED, SAID[1]],
    }
    pair = encode_pair(read_preference(SourceConfig(path="x.jsonl"), 0, record), ling)
    head = "<role>SYSTEM</role>Sum.<role>HUMAN</role>2+2?<role>ASSISTANT</role>"
    assert [text for text, _, _ in shown(ling, pair)] == [
        f"{head}{GOOD}<|endoftext|>",
        f"{head}{BAD}<|endoftext|>",
    ]


def test_only_the_answers_are_learnt_and_all_their_turns(ling):
    """An assistant turn of the prompt is context; of three in the answer one says train: false."""
    prompt = [ASKED, turn("assistant", "<think>x</think>5"), turn("user", "Sure?")]
    chosen = [
        turn("assistant", None, tool_calls=[CALL]),
        turn("tool", "4"),
        turn("assistant", "<think>a</think>b", train=False),
        turn("user", "?"),
        turn("assistant", "<think>y</think>4"),
    ]
    tools = [{"name": "add"}]
    pair = encode_pair(Preference(prompt, chosen, "4", tools, "think"), ling)
    assert [(learnt, marked) for _, learnt, marked in shown(ling, pair)] == [
        (
            [f"{CALLED}<|endoftext|>", "<think>y</think>4<|endoftext|>"],
            ["<think>y</think>4"],
        ),
        (["4<|endoftext|>"], []),
    ]
    texts = [text for text, _, _ in shown(ling, pair)]
    assert all('<tools>\n{"name": "add"}\n</tools><role>HUMAN' in text for text in texts)
    assert all("<think>x</think>5<|endoftext|><role>HUMAN" in text for text in texts)


def test_turns_that_are_not_learnt_have_no_structure(ling):
    """The learnt turns are compared, first with first; ranges in a turn not learnt mark nothing."""
    asked = turn("user", "?")
    unlearnt = turn("assistant", "<think>a</think>b", train=False)
    chosen = [unlearnt, asked, turn("assistant", "<think>4</think>5")]
    pair = encode_pair(Preference("?", chosen, "4 5", spans="think"), ling)
    assert [marked for _, _, marked in shown(ling, pair)] == [["<think>4</think>5"], ["4 5"]]
    chosen = [turn("assistant", "4"), asked, unlearnt]
    pair = encode_pair(Preference("?", chosen, "5", spans={"chosen": [[0, 7]]}), ling)
    assert [marked for _, _, marked in shown(ling, pair)] == [[], []]


def test_the_end_token_is_structure_where_nothing_follows_a_tag(ling, make_tokenizer):
    """Ling's end token is added to the text; ChatML's is part of it."""
    ending = Preference("2+2?", "4 so</think>", "4 so", spans="think")
    followed = Preference("2+2?", "so</think>4", "so4", spans="think")
    chatml = load_tokenizer(make_tokenizer(CHATML, "<|im_end|>"))
    closing = load_tokenizer(make_tokenizer(CHATML, "<|endoftext|>"))
    for tokenizer, end in (
        (ling, "<|endoftext|>"),
        (chatml, "<|im_end|>"),
        (closing, "<|im_end|>"),
    ):
        pair = encode_pair(ending, tokenizer)
        assert [marked for *_, marked in shown(tokenizer, pair)] == [[f"</think>{end}"], [end]]
        pair = encode_pair(followed, tokenizer)
        assert [marked for *_, marked in shown(tokenizer, pair)] == [["</think>4"], ["4"]]


def test_characters_of_many_tokens_are_marked_whole(ling):
    pair = encode_pair(Preference("?", "é 🙂</think>漢字 é", "é 🙂 漢字 é", spans="think"), ling)
    assert [marked for _, _, marked in shown(ling, pair)] == [["</think>漢"], [" 漢"]]


def test_explicit_spans(ling):
    """Ranges of the last answer's content, in which the thought is text already."""
    chosen = [
        turn("assistant", "", tool_calls=[CALL]),
        turn("tool", "4"),
        turn("assistant", "é4 🙂!", reasoning_content="so", tool_calls=[CALL]),
    ]
    content = "<think>\nso\n</think>\n\né4 🙂!"
    at = content.index("é")
    spans = {"chosen": [[0, 7], [at, at + 2], [at + 3, at + 4]], "rejected": []}
    pair = encode_pair(Preference("?", chosen, "4", spans=spans), ling)
    assert [marked for _, _, marked in shown(ling, pair)] == [["<think>", "é4", "🙂"], []]
    assert shown(ling, pair)[0][1][-1] == f"{content}\n{CALLED}<|endoftext|>"


def test_explicit_spans_where_the_template_strips_or_begins_the_answer(make_tokenizer):
    spans = {"chosen": [[0, 3], [8, 12], [20, 22]], "rejected": None}
    stripping = CHATML.replace("m['content']", "m['content'] | trim")
    chosen = "  <think>so </think>4 "  # [0, 3) is "  <", [8, 12) is ">so ", [20, 22) is "4 "
    tokenizer = load_tokenizer(make_tokenizer(stripping, "<|im_end|>"))
    pair = encode_pair(Preference("?", chosen, "5", spans=spans), tokenizer)
    assert shown(tokenizer, pair)[0][1:] == (
        ["<think>so </think>4<|im_end|>"],
        ["<", ">so ", "4"],
    )
    beginning = "{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}{% endfor %}"
    beginning += "{% if add_generation_prompt %}<role>assistant</role><think>{% endif %}"
    tokenizer = load_tokenizer(make_tokenizer(beginning))
    spans = {"chosen": [[0, 8], [10, 12]]}
    pair = encode_pair(Preference("?", "<think>so it</think>4", "<think>4", spans=spans), tokenizer)
    assert shown(tokenizer, pair)[0][1:] == (["so it</think>4<|endoftext|>"], ["s", "it"])


def test_content_that_begins_as_the_prompt_ends(ling, make_tokenizer):
    """The answer is searched behind the prompt first, where an "a" stands as well."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer = load_tokenizer(make_tokenizer(template))
    spans = {"chosen": [[0, 1]], "rejected": [[1, 2]]}
    pair = encode_pair(Preference("aa", "ab", "aa", spans=spans), tokenizer)
    assert [answer.format.nonzero()[0].tolist() for answer in pair] == [[2], [3]]


def test_a_template_that_rewrites_the_answer(make_tokenizer):
    loud = CHATML.replace("m['content']", "m['content'] | upper")
    tokenizer = load_tokenizer(make_tokenizer(loud, "<|im_end|>"))
    with pytest.raises(SampleError) as error:
        encode_pair(Preference("?", "ab", "cd", spans={"chosen": [[0, 1]]}), tokenizer)
    assert str(error.value) == (
        "format spans of chosen: the chat template rewrites the answer, so that they cannot be "
        "placed; use another one (chat_template=FILE), or format_spans=think"
    )


NOT_RANGES = "format spans of chosen: {} is no [start, stop] in the answer's 2 characters"
REFUSED = {
    "equal texts": (("?", "4", "4"), "chosen and rejected are the same"),
    "equal, once as turn": (
        ("?", "4", [SAID[0] | {"content": "4"}]),
        "chosen and rejected are the",
    ),
    "equal lists": ((None, [ASKED, SAID[0]], [ASKED, SAID[0]]), "chosen and rejected are the same"),
    "empty text": (("?", " \n", "4"), "chosen is empty"),
    "empty turn": (
        ("?", "4", turn("assistant", "")),
        "rejected, turn 1 (assistant) is empty: it has neither content nor tool_calls",
    ),
    "no turns": (("?", "4", []), "rejected is an empty list, not a list of turns"),
    "no answer": (("?", True, "4"), "chosen is bool; it is text, a turn or turns"),
    "only the prompt": (
        (None, [ASKED, SAID[0]], [ASKED]),
        "rejected is empty: nothing follows the prompt",
    ),
    "nothing learnt": (
        ("?", "4", turn("assistant", "5", train=False)),
        'rejected has no token to learn: its turns are marked "train": false',
    ),
    "prompt ends with an answer": (
        ([ASKED, SAID[0]], "4", "5"),
        "the prompt ends with an assistant turn; it is what comes before the answers: another "
        "column may hold it (sources.N.prompt)",
    ),
    "common turns end with an answer": (
        (None, [ASKED, SAID[0], turn("user", "a")], [ASKED, SAID[0], turn("user", "b")]),
        "the prompt ends with an assistant turn;",
    ),
    "prompt begins with an answer": (
        ([SAID[0], ASKED], "4", "5"),
        "the prompt begins with an assistant turn;",
    ),
    "nothing in common": (
        (None, [ASKED, SAID[0]], [turn("user", "3?"), SAID[1]]),
        "no prompt: chosen and rejected begin with different turns",
    ),
    "answer begins with a question": (
        ("3?", [ASKED, SAID[0]], [ASKED, SAID[1]]),
        "chosen goes on with a turn of 'user'; an answer begins with an assistant turn, or with "
        "the whole prompt",
    ),
    "bad turn of the prompt": (
        ([turn("critic", "x")], "4", "5"),
        "prompt, turn 1: unknown role 'critic'; known roles: system, user, assistant, tool",
    ),
    "bad tools": (
        ("?", "4", "5", "[{"),
        "chosen, the prompt's turns counted in: tools are",
    ),
    "spans are a list": (
        ("?", "44", "5", None, [[0, 1]]),
        "format spans are [[0, 1]], not {chosen: [[start, stop], ...], rejected: ...}",
    ),
    "span outside": (("?", "44", "5", None, {"chosen": [[0, 3]]}), NOT_RANGES.format("[0, 3]")),
    "span before": (("?", "44", "5", None, {"chosen": [[-1, 1]]}), NOT_RANGES.format("[-1, 1]")),
    "empty span": (("?", "44", "5", None, {"chosen": [[1, 1]]}), NOT_RANGES.format("[1, 1]")),
    "span of three": (
        ("?", "44", "5", None, {"chosen": [[0, 1, 2]]}),
        NOT_RANGES.format("[0, 1, 2]"),
    ),
    "no list of spans": (("?", "44", "5", None, {"chosen": "0-1"}), NOT_RANGES.format("'0-1'")),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_pair_is_refused_by_name(ling, given, message):
    with pytest.raises(SampleError) as error:
        encode_pair(Preference(*given), ling)
    assert str(error.value).startswith(message)


def test_a_template_with_two_prompts_is_refused(ling_folder):
    """No template known to us does this; the log-ratio of such a pair would mean nothing."""
    tokenizer = load_tokenizer(ling_folder)
    plain, calls = tokenizer.render, []

    def forgetful(*arguments, **keys):
        calls.append(arguments)
        return ("A" if len(calls) <= 2 else "B") + plain(*arguments, **keys)

    tokenizer.render = forgetful
    with pytest.raises(SampleError) as error:
        encode_pair(Preference("?", "4", "5"), tokenizer)
    assert str(error.value) == (
        "the chat template writes two prompts ('A<role>HUMAN</role>?<role>ASSI' for chosen, "
        "'B<role>HUMAN</role>?<role>ASSI' for rejected); use another one (chat_template=FILE)"
    )


PROMPT_KEYS = (
    "set sources.3.prompt (text or turns) or sources.3.messages, or let both answers be lists of "
    "turns that begin with the prompt"
)
MISSING = {
    "chosen": (
        {},
        {"prompt": "x", "rejected": "y"},
        "no 'chosen' here (its keys: prompt, rejected); set sources.3.chosen",
    ),
    "rejected": (
        {"rejected": "bad"},
        {"chosen": "x", "rejected": "y"},
        "no 'bad' here (its keys: chosen, rejected); set sources.3.rejected",
    ),
    "prompt": (
        {"prompt": "q"},
        {"chosen": "x", "rejected": "y"},
        "no 'q' here (its keys: chosen, rejected); set sources.3.prompt",
    ),
    "messages": (
        {"messages": "turns"},
        {"prompt": "?", "chosen": "x", "rejected": "y"},
        f"no 'turns' here (its keys: prompt, chosen, rejected); {PROMPT_KEYS}",
    ),
    "any prompt": (
        {},
        {"chosen": "x", "rejected": "y"},
        f"no prompt here (its keys: chosen, rejected); {PROMPT_KEYS}",
    ),
    "spans": (
        {"format_spans": "spans"},
        {"prompt": "?", "chosen": "x", "rejected": "y"},
        "no 'spans' here (its keys: prompt, chosen, rejected); set sources.3.format_spans (think, "
        "null or a column)",
    ),
}


@pytest.mark.parametrize(("keys", "record", "message"), MISSING.values(), ids=MISSING)
def test_missing_columns_name_the_key(keys, record, message):
    with pytest.raises(SampleError) as error:
        read_preference(SourceConfig(path="x.jsonl", **keys), 3, record)
    assert str(error.value) == message


def test_response_is_of_chats_only():
    source = SourceConfig(path="x.jsonl", response="a")
    with pytest.raises(ConfigError) as error:
        read_preference(source, 0, {})
    assert str(error.value) == (
        "sources.0.response is for kind=chat; pairs take .chosen and .rejected"
    )
