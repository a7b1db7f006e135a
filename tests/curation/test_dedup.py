"""Deduplication against slow references: all pairs, sets of strings, by hand."""

import itertools
import random

import numpy as np
import pytest

from megatron_ring.config import ConfigError, build
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.curation.dedup import ExactConfig, MinHashConfig
from megatron_ring.curation import dedup
from megatron_ring.curation.record import Rejection


def record(prompt, response="yes", name="s/1"):
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"id": name, "messages": turns}


def decide(stage, records):
    summaries = [(f"s/{n}", stage.summarise(one)) for n, one in enumerate(records)]
    return stage.decide(summaries)


def test_exact_looks_beyond_case_space_and_forms():
    same = ["What is １２?", "what  is\n12?", " WHAT IS 12? "]
    different = ["What is 13?", "What is1 2?", "What is 12"]
    gone = decide(dedup.Exact(ExactConfig()), [record(text) for text in same + different])
    evidence = "same prompt as s/0"
    assert gone == {name: Rejection("duplicate", evidence) for name in ("s/1", "s/2")}


def test_exact_may_look_at_answers_and_keep_the_longest():
    records = [record("a", "short"), record("a", "much longer"), record("b"), record("a", "short")]
    both = dedup.Exact(ExactConfig(text="both"))
    assert decide(both, records) == {
        "s/3": Rejection("duplicate", "same prompt and response as s/0")
    }
    longest = dedup.Exact(ExactConfig(prefer="longest"))
    assert decide(longest, records) == {
        name: Rejection("duplicate", "same prompt as s/1") for name in ("s/0", "s/3")
    }


def test_exact_leaves_other_kinds_alone():
    records = [{**record("a"), "extra": {"kind": kind}} for kind in ("x", "y", "x", "z", "y")]
    gone = decide(dedup.Exact(ExactConfig(kinds=["x", "z"])), records)
    assert gone == {
        "s/2": Rejection("duplicate", "same prompt as s/0"),
        "s/3": Rejection("duplicate", "same prompt as s/0"),
    }


def test_words_and_shingles():
    assert dedup.words_of("Don't add x_1 to 小明的 3.5!") == [
        *("don", "t", "add", "x", "1", "to", "小", "明", "的", "3", "5")
    ]
    assert len(dedup.shingles("a b c d a b c".split(), 3)) == 4  # abc bcd cda dab, abc again
    assert len(dedup.shingles(["a"], 3)) == 1
    assert dedup.shingles(["a"], 3) != dedup.shingles(["b"], 3)


def slow_jaccard(one, other, ngram):
    """Of sets of tuples of words."""
    sets = []
    for text in (one, other):
        words = dedup.words_of(text)
        sets.append({tuple(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def corpus(seed, count=120):
    """Texts of 5 to 80 words, half of them others with some words changed."""
    rng = random.Random(seed)
    texts = []
    for n in range(count):
        if n % 2 and texts:
            words = rng.choice(texts).split()
            for _ in range(rng.randint(0, 4)):
                words[rng.randrange(len(words))] = str(rng.randint(0, 99))
        else:
            words = [str(rng.randint(0, 400)) for _ in range(rng.randint(5, 80))]
        texts.append(" ".join(words))
    return texts


def slow_clusters(texts, ngram, threshold):
    """Connected parts of the graph of all similar pairs."""
    cluster = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if slow_jaccard(texts[i], texts[j], ngram) >= threshold and cluster[i] != cluster[j]:
            old, new = max(cluster[i], cluster[j]), min(cluster[i], cluster[j])
            cluster = [new if one == old else one for one in cluster]
    return cluster


@pytest.mark.parametrize("ngram", [1, 3, 5])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_minhash_finds_what_all_pairs_find(ngram, threshold):
    """64 bands of two rows miss a pair at 0.5 once in 10^8; the rest is exact similarity."""
    texts = corpus(seed=ngram)
    options = MinHashConfig(ngram=ngram, threshold=threshold, bands=64)
    gone = decide(dedup.MinHash(options), [record(text) for text in texts])
    clusters = slow_clusters(texts, ngram, threshold)
    wanted = {f"s/{n}": f"s/{first}" for n, first in enumerate(clusters) if n != first}
    assert {name: one.evidence.split("kept: ")[1] for name, one in gone.items()} == wanted
    assert wanted and all(one.reason == "near_duplicate" for one in gone.values())
    for name, one in gone.items():
        similarity, other = (
            one.evidence.split(", from")[0].removeprefix("similarity ").split(" to ")
        )
        texts_of = [texts[int(n[2:])] for n in (name, other)]
        assert float(similarity) == pytest.approx(slow_jaccard(*texts_of, ngram), abs=6e-4)


def test_signatures_estimate_similarity():
    """Agreeing hashes are binomial around the similarity (Broder 1997): 4 sigma of 4096 hashes."""
    stage = dedup.MinHash(MinHashConfig(permutations=4096, bands=4096, ngram=1))
    for common in (10, 30, 90):
        words = [str(n) for n in range(200)]
        one, other = words[:100], words[100 - common : 200 - common]
        bands = [
            dedup._decode(stage.summarise(record(" ".join(text)))[0], np.uint64)
            for text in (one, other)
        ]
        true = common / (200 - common)
        sigma = (true * (1 - true) / 4096) ** 0.5
        assert abs((bands[0] == bands[1]).mean() - true) < 4 * sigma


def test_chains_go_together_and_keep_one():
    """b is similar to a and to c, which are not similar to each other."""
    words = [str(n) for n in range(20)]
    a, b, c = words[:16], words[2:18], words[4:20]  # 14 of 18, 14 of 18; 12 of 20
    options = MinHashConfig(ngram=1, threshold=0.7, bands=64)
    texts = [" ".join(one) for one in (a, c, b)]
    gone = decide(dedup.MinHash(options), [record(text) for text in texts])
    assert set(gone) == {"s/1", "s/2"}
    assert all(one.evidence.endswith("kept: s/0") for one in gone.values())
    assert gone["s/1"].evidence.startswith("similarity 0.778 to s/2, from 0.7 they are one")
    assert gone["s/2"].evidence.startswith("similarity 0.778 to s/0, from 0.7")
    longest = MinHashConfig(ngram=1, threshold=0.7, bands=64, prefer="longest")
    records = [record(text, "y" * n) for n, text in enumerate(texts)]
    assert set(decide(dedup.MinHash(longest), records)) == {"s/0", "s/1"}


def test_a_bucket_compares_with_all_of_a_cluster():
    """The last is similar to the second alone, which is with the first already."""
    sets = {n: np.arange(2 * n, 2 * n + 16) for n in range(3)}
    clusters = dedup._Clusters()
    dedup._join_similar([0, 1, 2], sets, clusters, 0.7)
    assert list(clusters.all()) == [[0, 1, 2]]
    assert clusters.links[2] == (1, 14 / 18)


def test_texts_without_words_are_nobodys_duplicates():
    stage = dedup.MinHash(MinHashConfig())
    assert stage.summarise(record("???")) is None
    assert decide(stage, [record("???"), record("!"), record("")]) == {}
    assert set(decide(stage, [record("???"), record("a"), record("A!")])) == {"s/2"}


def test_many_equal_records_are_quick():
    """A bucket of 3000: the time of comparing all with all would be minutes."""
    stage = dedup.MinHash(MinHashConfig())
    gone = decide(stage, [record("the same text in all of these records")] * 3000)
    assert len(gone) == 2999


def test_seed_and_order_decide_as_told():
    texts = corpus(seed=7)
    records = [record(text) for text in texts]
    one = decide(dedup.MinHash(MinHashConfig(threshold=0.6)), records)
    assert one == decide(dedup.MinHash(MinHashConfig(threshold=0.6)), records)
    summaries = [
        dedup.MinHash(MinHashConfig(seed=seed)).summarise(records[0])[0] for seed in (0, 1)
    ]
    assert summaries[0] != summaries[1]


def test_bands_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError) as raised:
        tree = {"stages": [{"stage": "minhash", "bands": 7}], "output": "x"}
        build(CurateConfig, {**tree, "sources": [{"path": "a.jsonl"}]})
    message = "stages.0: bands=7 do not divide permutations=128; choose a divisor"
    assert str(raised.value) == message
