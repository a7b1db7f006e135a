import json

import pytest

from megatron_ring.data.chat import SampleError, encode_chat
from megatron_ring.data.tokenizer import load_tokenizer

from .conftest import CHATML

SUM = [
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "sums"}}]


def spans(tokenizer, messages, tools=None):
    """The sample's text, cut where targets begin and end: [(text, is target), ...]."""
    tokens, targets = encode_chat(messages, tokenizer, tools)
    assert (str(tokens.dtype), str(targets.dtype)) == ("int32", "bool")
    found, start = [], 0
    for stop in range(1, len(tokens) + 1):
        if stop == len(tokens) or targets[stop] != targets[start]:
            found.append((tokenizer.decode(tokens[start:stop]), bool(targets[start])))
            start = stop
    return found


def test_ling_by_hand(ling):
    """Only the answer and the end token are targets, although that token is the padding too."""
    tokens, targets = encode_chat(SUM[:2], ling)
    role, close, end = (ling.encode(text)[0] for text in ("<role>", "</role>", "<|endoftext|>"))
    assert ling.pad_id == ling.eos_id == end
    letters = {text: ling.encode(text) for text in ("HUMAN", "1+1?", "ASSISTANT", "2")}
    prompt = [role, *letters["HUMAN"], close, *letters["1+1?"], role, *letters["ASSISTANT"], close]
    assert tokens.tolist() == [*prompt, *letters["2"], end]
    assert targets.tolist() == [False] * len(prompt) + [True, True]


def test_every_assistant_turn_is_learnt_with_its_end(ling):
    assert spans(ling, [{"role": "system", "content": "Sum."}, *SUM]) == [
        ("<role>SYSTEM</role>Sum.<role>HUMAN</role>1+1?<role>ASSISTANT</role>", False),
        ("2<|endoftext|>", True),
        ("<role>HUMAN</role>2+2?<role>ASSISTANT</role>", False),
        ("4<|endoftext|>", True),
    ]


def test_train_false_keeps_the_turn_as_context(ling):
    messages = [SUM[0], {**SUM[1], "train": False}, *SUM[2:]]
    assert spans(ling, messages) == [
        (
            "<role>HUMAN</role>1+1?<role>ASSISTANT</role>2<|endoftext|>"
            "<role>HUMAN</role>2+2?<role>ASSISTANT</role>",
            False,
        ),
        ("4<|endoftext|>", True),
    ]
    assert encode_chat(messages, ling)[0].tolist() == encode_chat(SUM, ling)[0].tolist()


def test_turns_after_the_last_answer_are_left_out(ling):
    assert spans(ling, SUM[:3]) == spans(ling, SUM[:2])


def test_template_that_ends_turns_itself(make_tokenizer):
    """ChatML: the end token is the template's own; the line break behind it is not learnt."""
    expected = [
        ("<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n", False),
        ("2<|im_end|>", True),
        ("\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n", False),
        ("4<|im_end|>", True),
    ]
    assert spans(load_tokenizer(make_tokenizer(CHATML, "<|im_end|>")), SUM) == expected
    # The same where the tokenizer's end token is another: <|im_end|> closes the turn all the same.
    assert spans(load_tokenizer(make_tokenizer(CHATML, "<|endoftext|>")), SUM) == expected


@pytest.mark.parametrize("content", ["d", "|", ">", "im_end"])
def test_content_that_looks_like_part_of_the_end_token(make_tokenizer, content):
    messages = [SUM[0], {"role": "assistant", "content": content}]
    tokenizer = load_tokenizer(make_tokenizer(CHATML, "<|im_end|>"))
    assert spans(tokenizer, messages)[-1] == (f"{content}<|im_end|>", True)


def test_special_text_that_ends_a_content_does_not_end_the_turn(ling):
    quoted = [SUM[0], {"role": "assistant", "content": "it is </role>"}]
    assert spans(ling, quoted)[-1] == ("it is </role><|endoftext|>", True)


def test_tools_as_text_for_a_template_that_knows_none(ling):
    messages = [
        SUM[0],
        {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    head, *rest = spans(ling, messages, TOOLS)
    assert head[0].startswith("<role>SYSTEM</role>You can call these tools.")
    definition = json.dumps(TOOLS[0])
    assert head[0].endswith(
        f"\n<tools>\n{definition}\n</tools><role>HUMAN</role>1+1?<role>ASSISTANT</role>"
    )
    assert rest == [
        (f"{call}\n{call}<|endoftext|>", True),
        ("<role>OBSERVATION</role>3<role>ASSISTANT</role>", False),
        ("It is 3.<|endoftext|>", True),
    ]
    assert spans(ling, messages, json.dumps(TOOLS)) == [head, *rest]


def test_tool_definitions_join_the_system_turn(ling):
    head = spans(ling, [{"role": "system", "content": "Be kind."}, *SUM[:2]], TOOLS)[0][0]
    assert head.startswith("<role>SYSTEM</role>Be kind.\n\nYou can call these tools.")
    assert head.count("<role>SYSTEM") == 1


def test_template_that_knows_tools_gets_them_as_they_are(make_tokenizer):
    template = (
        "{% if tools %}[{{ tools[0].function.name }}]{% endif %}{% for m in messages %}"
        "{{ m.role }}:{% if m.role == 'tool' %}={% endif %}{{ m.content }}{% if m.tool_calls %}"
        "@{{ m.tool_calls[0].function.arguments.b }}{% endif %}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    messages = [SUM[0], {"role": "assistant", "tool_calls": [CALL]}]
    messages += [{"role": "tool", "content": "3"}, {"role": "assistant", "content": "3!"}]
    assert spans(load_tokenizer(make_tokenizer(template)), messages, TOOLS) == [
        ("[add]user:1+1?assistant:", False),
        ("@2<|endoftext|>", True),
        ("tool:=3assistant:", False),
        ("3!<|endoftext|>", True),
    ]


def test_template_that_rewrites_history_is_refused(make_tokenizer):
    """Like templates that drop <think> of earlier turns once a later one exists."""
    forgetful = (
        "{% for m in messages %}<role>{{ m.role }}</role>"
        "{{ m.content if loop.last or m.role == 'user' else '...' }}{% endfor %}"
        "{% if add_generation_prompt %}<role>assistant</role>{% endif %}"
    )
    with pytest.raises(SampleError) as error:
        encode_chat(SUM, load_tokenizer(make_tokenizer(forgetful)))
    assert str(error.value) == (
        "turn 4: the chat template changes earlier turns once later ones follow "
        "('2' became '...<role>user</role>2+2?<role>'); "
        "use another one (chat_template=FILE) or split the sample"
    )


def test_generation_prompt_that_the_answer_lacks_is_refused(make_tokenizer):
    thinking = "{% for m in messages %}<role>{{ m.role }}</role>{{ m.content }}{% endfor %}"
    thinking += "{% if add_generation_prompt %}<role>assistant</role><think>{% endif %}"
    tokenizer = load_tokenizer(make_tokenizer(thinking))
    with pytest.raises(SampleError) as error:
        encode_chat(SUM[:2], tokenizer)
    assert str(error.value) == (
        "turn 2: the chat template writes the answer differently from its own generation prompt "
        "('<think>' became '2'); use another one (chat_template=FILE) or split the sample"
    )
    answer = {"role": "assistant", "content": "<think>1 and 1</think>2"}
    assert spans(tokenizer, [SUM[0], answer])[-1] == ("1 and 1</think>2<|endoftext|>", True)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages is NoneType, not a list of turns"),
        ([], "messages is an empty list, not a list of turns"),
        (["hello"], "turn 1 is str, not an object"),
        (
            [{"speaker": "human", "text": "hi"}],
            "turn 1 has no role (its keys: speaker, text); a turn is an object with role and "
            "content, or with from and value",
        ),
        (
            [{"from": "critic", "value": "hi"}],
            "turn 1: unknown from 'critic'; known: system, human, gpt, function_call, observation",
        ),
        ([{"from": "human", "value": 7}], "turn 1 (human): value is int, not text"),
        (
            [SUM[0], {"from": "function_call", "value": "add(1, 2)"}],
            "turn 2 (function_call): value is no JSON of a call: Expecting value: line 1 column 1 "
            "(char 0)",
        ),
        (
            [SUM[0], {"from": "function_call", "value": '{"arguments": {}}'}],
            "turn 2 (assistant), tool call 1 has no function name",
        ),
        (
            [SUM[0], {"role": "gpt", "content": "2"}],
            "turn 2: unknown role 'gpt'; did you mean 'assistant'?",
        ),
        (
            [SUM[0], {"role": "critic", "content": "2"}],
            "turn 2: unknown role 'critic'; known roles: system, user, assistant, tool",
        ),
        ([{"role": "user", "content": 7}], "turn 1 (user): content is int, not text"),
        ([{"role": "user"}], "turn 1 (user): content is NoneType, not text"),
        (
            [SUM[0], {"role": "assistant", "content": " \n"}],
            "turn 2 (assistant) is empty: it has neither content nor tool_calls",
        ),
        (
            [SUM[0], {"role": "assistant", "content": None, "tool_calls": []}],
            "turn 2 (assistant) is empty: it has neither content nor tool_calls",
        ),
        (
            [{"role": "user", "content": "x", "tool_calls": [CALL]}],
            "turn 1 (user) has tool_calls; only assistant turns may",
        ),
        ([SUM[1]], "turn 1 is an assistant turn: put a user or system turn before it"),
        ([SUM[0], SUM[2]], "no assistant turn among 2: there is nothing to learn"),
        (
            [SUM[0], {**SUM[1], "train": "no"}],
            "turn 2 (assistant): train is 'no', not true or false",
        ),
        (
            [{**SUM[0], "train": True}, SUM[1]],
            "turn 1 (user) says train: true; only assistant turns are learnt",
        ),
        (
            [SUM[0], {"role": "assistant", "tool_calls": {"name": "f"}}],
            "turn 2 (assistant): tool_calls is dict, not a list",
        ),
        (
            [SUM[0], {"role": "assistant", "tool_calls": [CALL, {"function": {}}]}],
            "turn 2 (assistant), tool call 2 has no function name",
        ),
        (
            [SUM[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{a"}]}],
            "turn 2 (assistant), tool call 1: arguments are not JSON: Expecting property name "
            "enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            [SUM[0], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}],
            "turn 2 (assistant), tool call 1: arguments are list, not an object",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_by_turn(ling, messages, message):
    with pytest.raises(SampleError) as error:
        encode_chat(messages, ling)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("[{", "tools are not JSON: Expecting property name enclosed in double quotes"),
        ('"add"', "tools are not a list of objects"),
        (["add"], "tools are not a list of objects"),
    ],
)
def test_bad_tool_definitions(ling, tools, message):
    with pytest.raises(SampleError, match=message):
        encode_chat(SUM, ling, tools)


def test_a_template_may_refuse_turns(make_tokenizer):
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    )
    with pytest.raises(SampleError) as error:
        encode_chat(
            [{"role": "system", "content": "x"}, *SUM], load_tokenizer(make_tokenizer(template))
        )
    assert str(error.value) == "turn 3: the chat template refuses these turns: no system turn"


def test_sentencepiece_in_lings_style(sentencepiece_file):
    tokenizer = load_tokenizer(sentencepiece_file)
    tool = {"role": "tool", "content": "3"}
    assert spans(tokenizer, [*SUM[:2], tool, SUM[3]]) == [
        ("<role>HUMAN</role>1+1?<role>ASSISTANT</role>", False),
        ("2<|endoftext|>", True),
        ("<role>OBSERVATION</role>3<role>ASSISTANT</role>", False),
        ("4<|endoftext|>", True),
    ]


def test_reasoning_content_is_thought_before_the_answer(ling):
    """As DeepSeek's interface returns it; nothing of it may be lost on the way."""
    question = {"role": "user", "content": "2 + 2?"}
    said = {"role": "assistant", "content": "4", "reasoning_content": "two and two\n"}
    turns = [question, said]
    tokens, targets = encode_chat(turns, ling)
    answer = ling.decode(tokens[targets])
    assert answer == "<think>\ntwo and two\n</think>\n\n4<|endoftext|>"
    with pytest.raises(SampleError, match="turn 1 .user.: reasoning_content is text, and of assis"):
        encode_chat([{**question, "reasoning_content": "b"}, said], ling)


def test_sharegpt_turns_are_the_same_conversation(ling):
    """Names of turns as ShareGPT has them; a call's value is the JSON of it, or of several."""
    call = {"name": "add", "arguments": {"a": 1, "b": 2}}
    sharegpt = [
        {"from": "system", "value": "Sum."},
        {"from": "human", "value": "1+2?"},
        {"from": "function_call", "value": json.dumps([call, call])},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "It is 3.", "train": False},
        {"from": "human", "value": "1+2?"},
        {"from": "function_call", "value": json.dumps(call)},
    ]
    openai = [
        {"role": "system", "content": "Sum."},
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3.", "train": False},
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "tool_calls": [CALL]},
    ]
    assert spans(ling, sharegpt, TOOLS) == spans(ling, openai, TOOLS)
