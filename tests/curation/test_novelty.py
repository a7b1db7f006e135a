"""What is new: by hand, against sets of Python, in any order, and by vectors on a real server."""

import json
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.novelty import NoveltyConfig
from megatron_ring.config.loading import build
from megatron_ring.curation.generate.memory import Memory
from megatron_ring.curation.record import Rejection
from megatron_ring.curation.synthesis import novelty
from megatron_ring.curation.synthesis.novelty import Novelty

APPLES = (
    "Tom has 3 apples and picks 12.5 more in the garden behind his house. He gives a half of all "
    "to his sister. How many apples does he have at the end of the day?"
)
TRAIN = (
    "A train leaves the station at noon and goes east at 80 km/h without any stop. When is it 200 "
    "km away from where it started?"
)


def made(*texts: str, **options: Any) -> Novelty:
    """Novelty with these known texts, named a, b, ..."""
    found = Novelty(NoveltyConfig(**options))
    for name, text in zip("abcdefgh", texts, strict=False):
        found.add(name, text)
    return found


def test_the_same_text() -> None:
    known = made(APPLES, TRAIN, "∑∂?", ngrams=None)
    same = "same as b but for case and white space"
    assert known.why_known(TRAIN.upper().replace(" ", "\n ")) == Rejection("same_text", same)
    assert known.why_known("∑∂ ?") is None and known.why_known(" ∑∂?\n") is not None
    assert known.why_known(TRAIN.replace("80", "70")) is None
    assert known.why_known("half a surrogate \ud800") is None
    assert len(known) == 3


def test_other_numbers_are_the_same_template() -> None:
    known = made(TRAIN, APPLES)
    renumbered = APPLES.replace("12.5", "1,000").replace("3", "seven")
    why = "1.000 of 5-grams shared with b, from 0.6 it is known"
    assert known.why_known(renumbered) == Rejection("ngrams", why)
    apart = made(TRAIN, APPLES, ngrams={"mask_numbers": False, "threshold": 0.8})
    assert apart.why_known(renumbered) is None
    assert apart.why_known(f"{APPLES} Why?").reason == "ngrams"


def test_where_little_but_numbers_is_said_numbers_count() -> None:
    known = made("What is the value of 3 + 4?", "Simplify 2x + 7x.")
    assert known.why_known("What is the value of 5 + 6?") is None
    assert known.why_known("Simplify 3x + 5x.") is None
    assert known.why_known("What is the value of 3 - 4?").reason == "ngrams"  # signs are no words
    all_masked = made("What is the value of 3 + 4?", ngrams={"min_words": 5})
    assert all_masked.why_known("What is the value of 5 + 6?").reason == "ngrams"


def test_a_share_counted_by_hand() -> None:
    # Bigrams: ab bc cd de; of "a b c x y" ab bc cx xy. Two of four are common.
    options = {"ngrams": {"n": 2, "threshold": 0.5}}
    why = "0.500 of 2-grams shared with a, from 0.5 it is known"
    assert made("a b c d e", **options).why_known("a b c x y") == Rejection("ngrams", why)
    higher = {"ngrams": {"n": 2, "threshold": 0.51}}
    assert made("a b c d e", **higher).why_known("a b c x y") is None
    # Of the longer one: two of six either way round, and not two of the two.
    assert made("a b c u v w x", **options).why_known("a b c") is None
    assert made("a b c", **options).why_known("a b c u v w x") is None
    # Two texts have a half each, and no one has more.
    assert made("a b c u", "c d e v", **higher).why_known("a b c d e") is None
    # Fewer words than n are one n-gram.
    short = made("a b", ngrams={"n": 5})
    assert short.why_known("A, b!").reason == "ngrams" and short.why_known("a b c") is None


def slow(text: str, known: dict[str, str], n: int) -> tuple[float, str]:
    """The largest share and the first id that has it, by sets of tuples. For ASCII."""

    def grams(text: str) -> set[tuple[str, ...]]:
        text = text.lower()
        if sum(word != "two" for word in re.findall(r"[a-z]+", text)) >= 12:
            text = re.sub(r"\d+([.,]\d+)?|two", "#", text)
        words = re.findall(r"[a-z]+|\d+|#", text)
        return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}

    own = grams(text)
    others = {name: grams(other) for name, other in known.items()}
    shares = {k: len(own & other) / max(len(own), len(other)) for k, other in others.items()}
    best = max(shares.values())
    return best, min(name for name, share in shares.items() if share == best)


def test_shares_are_those_of_sets_in_any_order_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(7)
    pieces = ["the ball", "falls", "from a tower", "of 3 m", "in two s", "and 2.5 rolls", "x 7 y"]
    texts = [" ".join(draw.choices(pieces, k=draw.randint(2, 12))) for _ in range(300)]
    known = {f"{i:03}": text for i, text in enumerate(texts[:200])}
    expected = []
    for text in texts[200:]:
        share, name = slow(text, known, 4)
        told = f"{share:.3f} of 4-grams shared with {name}, from 0.45 it is known"
        expected.append(Rejection("ngrams", told) if share >= 0.45 else None)
    assert 20 < sum(one is None for one in expected) < 80
    options = NoveltyConfig(ngrams={"n": 4, "threshold": 0.45})
    for batch, order in ((4096, 0), (3, 1), (1, 2)):
        monkeypatch.setattr(novelty, "BATCH", batch)
        names = list(known)
        random.Random(order).shuffle(names)
        found = Novelty(options)
        for name in names:
            found.add(name, known[name])
            if batch == 1:
                found.why_known("between")  # takes them in one by one
        said = [found.why_known(text) for text in texts[200:]]
        exact = [one is not None and one.reason == "same_text" for one in said]
        assert [e for e, skip in zip(said, exact, strict=True) if not skip] == [
            e for e, skip in zip(expected, exact, strict=True) if not skip
        ]


def test_equal_texts_are_named_by_the_first_id() -> None:
    for names in ("xyz", "zyx"):
        known = Novelty(NoveltyConfig())
        for name in names:
            known.add(name, TRAIN)
        assert "same as x" in known.why_known(TRAIN).evidence
        assert "shared with x" in known.why_known(f"{TRAIN} Why?").evidence


class Server(ThreadingHTTPServer):
    """Embeds a text as how often it says apple, train, sky; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.spread = 0.0  # added to all numbers: an endpoint whose last bits differ


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
        self.server.asked += texts
        rows = [[len(re.findall(w, t)) + self.server.spread for w in WORDS] for t in texts]
        data = json.dumps({"data": [{"index": i, "embedding": r} for i, r in enumerate(rows)]})
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *args: object) -> None:
        pass


WORDS = ("apple", "train", "sky")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as own:
        thread = threading.Thread(target=own.serve_forever, args=(0.01,))
        thread.start()
        yield own
        own.shutdown()
        thread.join()


def semantic(server: Server, **options: Any) -> NoveltyConfig:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    embedding = {"endpoint": url, "model": "m", "retry_wait_s": 0}
    return NoveltyConfig(semantic={"embedding": embedding, **options})


def test_near_in_meaning(server: Server) -> None:
    known = Novelty(semantic(server, similarity=0.8))
    assert known.why_known("a train") is None  # of no known texts none is near
    known.add("a", "an apple, a train")
    known.add("b", "one train below the sky")
    # (1, 1, 0) and (2, 1, 0): 3 / sqrt(2 * 5)
    why = "cosine 0.949 to a, from 0.8 it is known"
    assert known.why_known("train of apple and apple") == Rejection("semantic", why)
    assert known.why_known("only train") is None  # 1 / sqrt(2)
    assert len(server.asked) == 4


def test_embeddings_are_asked_for_once(server: Server, tmp_path: Path) -> None:
    texts = {f"{i}": f"{'apple ' * i}train sky" for i in range(1, 151)}
    said = []
    for run in range(2):
        memory = Memory(tmp_path)
        known = Novelty(semantic(server, similarity=0.5), memory)
        for name, text in texts.items():
            known.add(name, text)
        said.append([known.why_known(f"{text} tree") for text in list(texts.values())[:3]])
        memory.close()
        assert len(server.asked) == 153 and len(set(server.asked)) == 153
        server.spread = 0.1 * (run + 1)  # it would answer otherwise now
    assert said[0] == said[1] and said[0][0].reason == "semantic"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"semantic": {}}, r"semantic: neither embedding nor folder are set; .* set one of them"),
        (
            {"semantic": {"folder": "f", "embedding": {"endpoint": "http://x", "model": "m"}}},
            r"semantic: both embedding and folder are set; a text has one embedding",
        ),
        ({"ngrams": {"threshold": 0}}, r"ngrams.threshold=0: "),
        ({"ngrams": {"size": 3}}, r"unknown config key ngrams.size"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(NoveltyConfig, options)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    options = NoveltyConfig(semantic={"folder": tmp_path / "none"})
    with pytest.raises(ConfigError, match="none is no folder of a model"):
        Novelty(options)
