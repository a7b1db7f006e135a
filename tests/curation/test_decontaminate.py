"""The stage on problems made by hand, and its n-gram search against plain Python sets."""

import json
import random
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.decontaminate import DecontaminateConfig
from megatron_ring.curation.decontaminate import neighbours, ngrams, words
from megatron_ring.curation.decontaminate.benchmark_file import sha256_of
from megatron_ring.curation.decontaminate.build import build, stop_stems
from megatron_ring.curation.decontaminate.fingerprints import open_salt
from megatron_ring.curation.decontaminate.judge import read_verdict
from megatron_ring.curation.decontaminate.neighbours import NeighbourSearch
from megatron_ring.curation.decontaminate.ngrams import Filter, Index, NgramSearch
from megatron_ring.curation.decontaminate.stage import Decontaminate, Verdict
from megatron_ring.curation.record import Rejection

FROG = (
    "A frog sits on the lowest of 31 lilies in a pond and leaps over 4 lilies at a time. After how "
    "many leaps does the frog land beyond the topmost lily?"
)
BELLS = (
    "Two bells in a tower ring every 45 minutes and every 72 minutes. They ring together at noon. "
    "How many minutes pass before the bells ring together again?"
)
TRIANGLE = "已知三角形的三条边长分别为七、八和九厘米，求这个三角形的面积是多少平方厘米。"
SHORT = "Compute $17 \\cdot 23$."
ITEMS = [FROG, BELLS, TRIANGLE, SHORT]
# FROG with other words, and with other words and numbers.
REWORDED = (
    "On the lowest of 31 lilies in some pond there is a frog that always leaps across 4 lilies. "
    "The frog wants beyond the topmost lily: how many leaps until it lands there?"
)
NEAR = {"same": 0.6, "few_numbers": 0.6}
RENUMBERED = REWORDED.replace("31", "57").replace("4", "6")


def record(text: str, *said: str) -> Any:
    turns = [{"role": "user", "content": text}]
    return {"id": "r", "messages": turns + [{"role": "assistant", "content": s} for s in said]}


def stage(folder: Path, items: list[str] = ITEMS, **options: Any) -> Decontaminate:
    salt = open_salt(folder / "salt", create=True)
    source = folder / "items.jsonl"
    source.write_text("".join(json.dumps({"problem": text}) + "\n" for text in items))
    numbered = [(str(number), text) for number, text in enumerate(items)]
    made, _ = build("own", numbered, salt, source=sha256_of(source), n=options.pop("n", 8))
    made.save(folder / "own", salt)
    files: dict[str, Any] = {"fingerprints": [folder / "own"], "salt": folder / "salt"}
    return Decontaminate(DecontaminateConfig(**files, **options))


def test_search_is_that_of_plain_sets() -> None:
    """Random texts over few words, so that n-grams are shared; items that are short among them."""
    rng = random.Random(3)
    salt = words.Salt(b"s" * 32)

    def text(most: int) -> str:
        return " ".join(rng.choice("abcdefg") for _ in range(rng.randrange(1, most)))

    items, texts = [text(25) for _ in range(60)], [text(60) for _ in range(400)]
    texts += [f"{items[k]} {text(9)}" for k in range(20)]
    n, threshold = 3, 0.4
    made = build("own", [(str(k), t) for k, t in enumerate(items)], salt, n=n)[0].items
    search = NgramSearch(made, n, threshold, salt)
    found = {
        (f.text, f.item, round(f.coverage, 9)) for f in search.search(words.split(texts, salt))
    }

    def grams(text: str) -> list[tuple[str, ...]]:
        return list(zip(*(text.split()[k:] for k in range(n)), strict=False))

    counts: dict[tuple[str, ...], int] = {}
    for one in items:
        for gram in set(grams(one)):
            counts[gram] = counts.get(gram, 0) + 1
    expected = set()
    for number, t in enumerate(texts):
        for k, one in enumerate(items):
            own = {gram for gram in grams(one) if counts[gram] < 3}
            whole = len(own) < 4
            own = set(grams(one)) if whole else own
            if own:
                covered = len(own & set(grams(t))) / len(own)
                if covered >= (1 if whole else threshold):
                    expected.add((number, k, round(covered, 9)))
            else:
                few = len(t.split()) <= 5 * len(one.split())
                if few and (f"{t} ".startswith(f"{one} ") or f" {t}".endswith(f" {one}")):
                    expected.add((number, k, 1.0))
    assert found == expected and len({item for _, item, _ in expected}) > 30
    assert any(coverage < 1 for _, _, coverage in expected)


def test_filter_lets_all_of_its_own_pass_and_few_others() -> None:
    rng = np.random.default_rng(0)
    own, others = rng.integers(0, 1 << 63, (2, 5000)).astype(np.uint64)
    filter_ = Filter.of(own)
    assert len(filter_.passing(own)) == 5000
    assert len(filter_.passing(others)) < 5000 / 16
    assert len(Filter.of(own[:0]).passing(others)) == 0


def test_index_finds_what_a_dictionary_finds() -> None:
    """Hashes that share a slot (equal but for the low bits of their product) among them."""
    rng = np.random.default_rng(1)
    inverse = np.uint64(pow(int(ngrams._SLOT_SPREAD), -1, 1 << 64))
    products = rng.integers(0, 1 << 63, 2000).astype(np.uint64)
    own = np.unique(np.concatenate([products, products[:500] + np.uint64(1)]) * inverse)
    others = rng.integers(0, 1 << 63, 200_000).astype(np.uint64)
    values = np.concatenate([others, own, (products[500:] + np.uint64(1)) * inverse, own[::-1]])
    places = {value: place for place, value in enumerate(own.tolist())}
    expected = [(k, places[v]) for k, v in enumerate(values.tolist()) if v in places]
    there, at = Index(own).find(values)
    assert list(zip(there.tolist(), at.tolist(), strict=True)) == expected
    assert len(Index(own[:0]).find(values)[0]) == 0


def test_the_longest_run_is_the_first_of_the_longest() -> None:
    rng = random.Random(4)
    keys, hits, expected = [], [], []
    for key in range(300):
        own = sorted(rng.sample(range(100 * key, 100 * key + 25), rng.randrange(1, 20)))
        runs = [[own[0]]]
        for hit in own[1:]:
            if hit == runs[-1][-1] + 1:
                runs[-1].append(hit)
            else:
                runs.append([hit])
        best = max(runs, key=len)
        expected.append((best[0], best[-1]))
        keys += [key] * len(own)
        hits += own
    made = ngrams._longest_runs(np.array(keys), np.array(hits))
    assert list(zip(*(one.tolist() for one in made), strict=True)) == expected


@pytest.mark.parametrize(("lowest", "most", "some"), [(0.5, 25, 100), (0.97, 90, 5)])
def test_neighbours_are_those_of_plain_sets(lowest: float, most: int, some: int) -> None:
    """Items and texts over few words, many of them near each other; all pairs compared slowly."""
    rng = random.Random(5)
    salt = words.Salt(b"s" * 32)
    vocabulary = ["".join(rng.choices("bcdfgklmr", k=5)) for _ in range(400)]

    def text(size: int) -> str:
        return " ".join(rng.choices(vocabulary, k=size)) + " the 7"

    items = [text(rng.randrange(3, most)) for _ in range(80)]
    texts = []
    for one in items * 3:
        said = one.split()
        kept = rng.sample(said, rng.randrange(len(said) // 3, len(said) + 1))
        texts.append(" ".join(kept + text(rng.randrange(12)).split()))
    made = build("own", [(str(k), t) for k, t in enumerate(items)], salt)[0].items
    batch = words.split(texts, salt)
    found = NeighbourSearch(made, lowest, salt).search(batch)
    stops = set(stop_stems(salt).tolist())
    expected = []
    for number, (start, stop) in enumerate(pairwise(batch.first_T.tolist())):
        stems = batch.stems(salt)[start:stop][batch.classes_W[start:stop] != words.NUMBER]
        mine, near = set(stems.tolist()) - stops, []
        for k, item in enumerate(made):
            theirs = item.words.tolist()
            anchors = theirs[: neighbours.ANCHORS]
            enough = len(mine & set(anchors)) >= neighbours.SHARED * len(anchors)
            overlap = 2 * len(mine & set(theirs)) / (len(mine) + len(theirs))
            if len(theirs) >= neighbours.MIN_WORDS and enough and overlap >= lowest:
                near.append((-overlap, k))
        expected += [(number, k, -least) for least, k in sorted(near)[: neighbours.TOP]]
    assert [tuple(one) for one in found] == expected and len(expected) > some


@pytest.mark.parametrize(
    ("text", "item", "rule", "span"),
    [
        (f"Solve this. {FROG} Thanks!", 0, "n-grams", FROG.rstrip("?")),
        (BELLS.upper(), 1, "n-grams", BELLS.upper().rstrip("?")),
        (f"请解答：{TRIANGLE}谢谢", 2, "n-grams", TRIANGLE.rstrip("。")),
        ("Compute 17 × 23, please!", 3, None, ""),  # cdot is a word, × a sign
        (f"{SHORT} Think step by step.", 3, "whole text", "Compute $17 \\cdot 23"),
        (f"First {SHORT} then add all the digits of the product and halve them", 3, None, ""),
        ("Compute $18 \\cdot 23$.", 3, None, ""),
        ("", 0, None, ""),
    ],
)
def test_what_is_found(tmp_path: Path, text: str, item: int, rule: str | None, span: str) -> None:
    (verdicts,) = stage(tmp_path).check([record(text)])
    expected = [Verdict(rule, "own", str(item), 1.0, span)] if rule else []
    assert verdicts == expected


def test_evidence_names_item_score_and_span(tmp_path: Path) -> None:
    clean = record("What is the tallest mountain of the moon?")
    kept, gone = stage(tmp_path).apply_batch([clean, record(f"x {SHORT}", "391")])
    assert kept is clean
    assert gone == Rejection("contaminated", "own item 3, whole text 1.00: Compute $17 \\cdot 23")
    evidence = stage(tmp_path).apply(record(FROG + " " + BELLS)).evidence
    assert evidence.startswith("own item 0 (and 1 more), n-grams 1.00: A frog sits on the lowest")


def test_half_an_item_is_found_by_coverage(tmp_path: Path) -> None:
    half = " ".join(FROG.split()[:20])  # 13 of 25 n-grams: it has 32 words
    everything = stage(tmp_path, number_guard=False, neighbours=None)
    (verdict,) = everything.check_texts([half])[0]
    assert verdict.score == pytest.approx(13 / 25) and verdict.span == half.rstrip(".")
    fewer = " ".join(FROG.split()[:19])
    assert everything.check_texts([fewer]) == [[]]
    assert len(stage(tmp_path, coverage=0.48, neighbours=None).check_texts([fewer])[0]) == 1


def test_answers_are_searched_when_asked_for(tmp_path: Path) -> None:
    quoted = record("Tell me a riddle", f"Here: {FROG}")
    assert stage(tmp_path).apply(quoted) is quoted
    gone = stage(tmp_path, text="all").apply(quoted)
    assert isinstance(gone, Rejection) and "own item 0" in gone.evidence
    thought = record("Tell me a riddle")
    thought["messages"].append({"role": "assistant", "reasoning_content": BELLS, "content": "no"})
    assert isinstance(stage(tmp_path, text="all").apply(thought), Rejection)
    # Neighbours are of prompts: an answer rewords many things.
    assert isinstance(
        stage(tmp_path, text="all", neighbours=NEAR).apply(record("Hm?", REWORDED)), dict
    )


def test_other_words_are_found_and_other_numbers_are_let_pass(tmp_path: Path) -> None:
    # Of an item with two numbers more words must be the same, unless told otherwise.
    assert stage(tmp_path).check_texts([REWORDED]) == [[]]
    same = stage(tmp_path, neighbours=NEAR)
    (verdict,) = same.check_texts([REWORDED])[0]
    assert (verdict.rule, verdict.item) == ("neighbour", "0") and 0.6 < verdict.score < 0.8
    assert stage(tmp_path, neighbours=None).check_texts([REWORDED]) == [[]]
    changed = record(RENUMBERED)
    changed["extra"] = {"kept": 1}
    kept = same.apply(changed)
    assert kept == {**changed, "extra": {"kept": 1, "numbers_changed_from": "own/0"}}
    assert changed["extra"] == {"kept": 1}  # stages change no record
    gone = stage(tmp_path, numbers_changed="reject", neighbours=NEAR).apply(changed)
    assert gone.reason == "numbers_changed"
    unguarded = stage(tmp_path, number_guard=False, neighbours=NEAR)
    assert unguarded.apply(changed).reason == "contaminated"


def test_the_guard_holds_for_ngrams_too(tmp_path: Path) -> None:
    other = FROG.replace("31", "63")
    (verdict,) = stage(tmp_path).check_texts([other])[0]
    assert verdict.rule == "numbers changed" and not verdict.contaminated
    assert stage(tmp_path, number_guard=False).check_texts([other])[0][0].rule == "n-grams"
    # A slip elsewhere, or more numbers around it, do not make another problem.
    (verdict,) = stage(tmp_path).check_texts(["Task 12: " + FROG.replace("lowest", "bottom")])[0]
    assert verdict.rule == "n-grams"


def test_a_neighbour_with_more_numbers_is_another_problem(tmp_path: Path) -> None:
    more = REWORDED + " Sizes: 5, 8 and 9."  # three of its five numbers are not the item's
    assert stage(tmp_path, neighbours=NEAR).check_texts([more])[0][0].rule == "numbers changed"
    allowed = stage(tmp_path, neighbours=NEAR, numbers_extra=0.6)
    assert allowed.check_texts([more])[0][0].rule == "neighbour"


def test_verdicts_do_not_depend_on_the_company(tmp_path: Path) -> None:
    texts = [
        FROG,
        REWORDED,
        RENUMBERED,
        BELLS,
        TRIANGLE,
        TRIANGLE[:-4],
        SHORT,
        "",
        "求值",
        "x " * 9,
    ]
    rng = random.Random(0)
    one = stage(tmp_path, neighbours=NEAR)
    alone = {text: one.check_texts([text])[0] for text in texts}
    for _ in range(5):
        many = rng.choices(texts, k=400)
        assert one.check_texts(many) == [alone[text] for text in many]


class Server(HTTPServer):
    """An OpenAI-style endpoint that answers what it is told to, and remembers what it was asked."""

    answers: list[tuple[int, Any]]
    asked: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append({"path": self.path, **body})
        answers = self.server.answers
        status, said = answers.pop(0) if len(answers) > 1 else answers[0]
        if self.path.endswith("embeddings"):
            data = [{"index": k, "embedding": said(text)} for k, text in enumerate(body["input"])]
            reply = json.dumps({"data": data[::-1]})
        else:
            reply = json.dumps({"choices": [{"message": {"content": said}}]})
        self.send_response(status)
        self.end_headers()
        self.wfile.write((reply if status == 200 else "out of order").encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.answers, made.asked = [], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def judged(folder: Path, server: Server, **judge: Any) -> Decontaminate:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return stage(
        folder,
        judge={"endpoint": url, "model": "m", "retry_wait_s": 0, **judge},
        # So high that nothing is the same without being asked.
        neighbours={"unsure": 0.4, "same": 1.0, "few_numbers": 1.0},
        benchmarks={"own": {"path": folder / "items.jsonl", "column": "problem"}},
    )


def test_the_judge_says_yes_or_no(tmp_path: Path, server: Server) -> None:
    server.answers = [(200, "<think>No numbers differ.</think> Yes.")]
    (verdict,) = judged(tmp_path, server).check_texts([REWORDED])[0]
    assert (verdict.rule, verdict.item, verdict.contaminated) == ("judge", "0", True)
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions" and asked["temperature"] == 0
    assert FROG in asked["messages"][0]["content"] and REWORDED in asked["messages"][0]["content"]
    server.answers = [(200, "no")]
    assert judged(tmp_path, server).check_texts([REWORDED]) == [[]]
    # What the guard lets pass is not asked for, nor what is no neighbour, nor what n-grams found.
    before = len(server.asked)
    judged(tmp_path, server).check_texts([RENUMBERED, "Name a river.", FROG])
    assert len(server.asked) == before


def test_a_judge_that_says_neither(tmp_path: Path, server: Server) -> None:
    server.answers = [(200, "It depends.")]
    gone = judged(tmp_path, server).apply(record(REWORDED))
    assert gone.reason == "contaminated" and "judge unclear" in gone.evidence
    assert [asked["seed"] for asked in server.asked] == [0, 1]
    assert isinstance(judged(tmp_path, server, unclear="keep").apply(record(REWORDED)), dict)
    server.answers = [(200, "Hm."), (200, "No, they differ.")]
    assert isinstance(judged(tmp_path, server).apply(record(REWORDED)), dict)


def test_a_judge_that_fails_stops_the_run(tmp_path: Path, server: Server) -> None:
    server.answers = [(500, ""), (429, ""), (200, "yes")]
    assert judged(tmp_path, server).check_texts([REWORDED])[0][0].rule == "judge"
    assert len(server.asked) == 3
    server.answers = [(500, "")]
    message = r"/chat/completions: no answer after 3 attempts, the last time: HTTP 500 out of order"
    with pytest.raises(RuntimeError, match=message):
        judged(tmp_path, server, retries=2).check_texts([REWORDED])
    server.asked.clear()
    server.answers = [(404, "")]
    with pytest.raises(RuntimeError, match="no answer after 1 attempts, the last time: HTTP 404"):
        judged(tmp_path, server).check_texts([REWORDED])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("said", "verdict"),
    [("Yes", True), (" **no**.", False), ("Note that", None), ("", None), ("yesterday", None)],
)
def test_answers_of_judges(said: str, verdict: bool | None) -> None:
    assert read_verdict(said) is verdict


def test_embeddings_show_the_judge_what_words_do_not(tmp_path: Path, server: Server) -> None:
    retold = "Hopping 4 pads per jump, starting at pad 1 of 31, when is the amphibian out?"

    def vector(text: str) -> list[float]:
        return [float("frog" in text or "amphibian" in text), 0.1, float("bell" in text)]

    url = {"endpoint": f"http://127.0.0.1:{server.server_port}/v1", "model": "m"}
    stage(tmp_path)
    options = DecontaminateConfig(
        fingerprints=[tmp_path / "own"],
        salt=tmp_path / "salt",
        numbers_extra=0.4,
        judge=url,
        embedding=url,
        benchmarks={"own": {"path": tmp_path / "items.jsonl", "column": "problem"}},
    )
    server.answers = [(200, vector), (200, vector), (200, "yes")]
    (verdict,) = Decontaminate(options).check_texts([retold])[0]
    assert (verdict.rule, verdict.item) == ("judge", "0") and verdict.score > 0.9
    assert [asked["path"] for asked in server.asked] == [
        "/v1/embeddings",
        "/v1/embeddings",
        "/v1/chat/completions",
    ]
    unit = {"frog": [1.0, 0.0], "amphibian": [1.0, 0.0]}

    def embed(texts: Any) -> np.ndarray:
        return np.array(
            [next((v for k, v in unit.items() if k in text), [0.0, 1.0]) for text in texts]
        )

    server.answers = [(200, "yes")]
    assert Decontaminate(options, embed).check_texts([retold])[0][0].item == "0"


def test_settings_that_do_not_go_together(tmp_path: Path) -> None:
    base: dict[str, Any] = {"fingerprints": ["fp"], "salt": "salt"}
    url = {"endpoint": "http://localhost", "model": "m"}
    cases = {
        "embedding is set, but judge is not; similarity alone": {"embedding": url},
        "judge is set, but neighbours=null": {"judge": url, "neighbours": None},
        "judge is set, but benchmarks is empty; fingerprints hold no text": {"judge": url},
        "unsure=0.7, same=0.6, few_numbers=0.8 do not ascend": {"neighbours": {"unsure": 0.7}},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            DecontaminateConfig(**base, **options)
    stage(tmp_path)
    one = tmp_path / "own"
    salt = open_salt(tmp_path / "salt")
    build("other", [("0", FROG)], salt, n=5)[0].save(tmp_path / "other", salt)
    options = {"salt": tmp_path / "salt", "fingerprints": [one, tmp_path / "other"]}
    with pytest.raises(ConfigError, match="other: n=5, but .*own has n=8; build them with one n"):
        Decontaminate(DecontaminateConfig(**options))
    with pytest.raises(ConfigError, match="two are of 'own'; give each benchmark once"):
        Decontaminate(DecontaminateConfig(**{**options, "fingerprints": [one, one]}))


def test_the_judge_reads_the_file_the_fingerprint_was_built_from(
    tmp_path: Path, server: Server
) -> None:
    judged(tmp_path, server)
    base = {
        "fingerprints": [tmp_path / "own"],
        "salt": tmp_path / "salt",
        "judge": {"endpoint": "http://localhost", "model": "m"},
    }
    file = {"path": tmp_path / "items.jsonl", "column": "problem"}
    with pytest.raises(ConfigError, match="benchmarks.own is missing; the judge reads the items"):
        Decontaminate(DecontaminateConfig(**base, benchmarks={"else": file}))
    with (tmp_path / "items.jsonl").open("a") as opened:
        opened.write(json.dumps({"problem": "new"}))
    with pytest.raises(ConfigError, match="items.jsonl: not what the fingerprint was built from"):
        Decontaminate(DecontaminateConfig(**base, benchmarks={"own": file}))
