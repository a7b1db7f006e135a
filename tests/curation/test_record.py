"""Reading a record's turns."""

from megatron_ring.config.curation.purify import PurifyConfig
from megatron_ring.curation.purify import Purify
from megatron_ring.curation.record import Rejection, calls_tools, prompt_of, response_of

CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}


def test_prompt_and_response_by_hand():
    asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    again = [*asked, {"role": "user", "content": "c"}]
    assert (prompt_of({"messages": again}), response_of({"messages": again})) == ("a\nc", "b")
    thought = {"role": "assistant", "content": "4", "reasoning_content": "two twos"}
    assert response_of({"messages": [*again, thought]}) == "<think>two twos</think>4"
    assert response_of({"messages": asked[:1]}) is None


def test_a_turn_that_calls_tools_need_not_speak():
    """Empty text is an answer that was lost, unless a tool is called."""
    user = {"role": "user", "content": "How warm is it?"}
    called = {"id": "x", "messages": [user, CALL]}
    empty = {"id": "x", "messages": [user, {"role": "assistant", "content": ""}]}
    stage = Purify(PurifyConfig())
    assert calls_tools(called) and not calls_tools(empty)
    assert stage.apply(called) is called
    assert stage.apply(empty) == Rejection("truncation_answer", "the response is empty")


def test_a_thought_that_stands_apart_needs_an_answer():
    user = {"role": "user", "content": "How warm is it?"}
    turn = {"role": "assistant", "content": "", "reasoning_content": "It is summer."}
    verdict = Purify(PurifyConfig()).apply({"id": "x", "messages": [user, turn]})
    assert verdict == Rejection("truncation_answer", "no reply behind </think>")
