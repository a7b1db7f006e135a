"""The taxonomy: our own file by numbers known beforehand, paths there and back, broken files."""

import re
from pathlib import Path

import pytest
import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.taxonomy import OTHERS, OWN_FILE, load_bisac, load_taxonomy

OWN = load_taxonomy()
SMALL = {
    "version": 1,
    "classes": [
        {"clc": "O", "id": "o", "en": "O", "zh": "数", "into": ["math"]},
        {"clc": "R", "id": "medicine", "en": "Medicine", "zh": "医"},
    ],
    "domains": [
        {
            "id": "math",
            "en": "Mathematics",
            "zh": "数学",
            "levels": [
                {
                    "id": "primary",
                    "en": "Primary",
                    "zh": "小学",
                    "topics": [
                        {"id": "algebra", "en": "Algebra", "zh": "代数", "words": ["x"]},
                        {"id": "others", "en": "Others", "zh": "其他"},
                    ],
                }
            ],
        },
        {"id": "code", "en": "Code", "zh": "代码"},
    ],
}


def write(folder: Path, tree: object) -> Path:
    file = folder / "taxonomy.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return file


def changed(**change: object) -> dict[str, object]:
    """SMALL with a topic's keys replaced; None takes one away."""
    tree = yaml.safe_load(yaml.safe_dump(SMALL))
    topic = tree["domains"][0]["levels"][0]["topics"][0]
    topic |= change
    for key in [key for key, value in change.items() if value is None]:
        del topic[key]
    return tree


def test_own_file_has_the_classes_and_topics_of_the_report() -> None:
    tree = yaml.safe_load(OWN_FILE.read_text(encoding="utf-8"))
    # The letters of the CLC: no L, M, W, Y; 22 classes.
    assert "".join(entry["clc"] for entry in tree["classes"]) == "ABCDEFGHIJKNOPQRSTUVXZ"
    # O and Q go into math, physics, chemistry and biology: 20 + 4, and code is part of T.
    assert len(OWN.domains) == 25
    assert [node.id for node in OWN.domains if node.children] == [
        "math",
        "physics",
        "chemistry",
        "biology",
        "code",
    ]
    counts = {node.path: len(node.children) for node in OWN.nodes.values() if node.children}
    assert counts == {
        "math": 4,
        "math/primary": 7,
        "math/junior_high": 5,
        "math/high_school": 17,
        "math/university": 26,
        "physics": 22,
        "chemistry": 14,
        "biology": 22,
        "code": 12,
    }
    # 20 plain classes and every topic.
    assert len(OWN.leaves()) == 20 + 7 + 5 + 17 + 26 + 22 + 14 + 22 + 12


def test_every_node_is_named_in_both_languages_and_can_be_learned() -> None:
    for path, node in OWN.nodes.items():
        assert node.en.isascii(), path
        assert re.search(r"[\u4e00-\u9fff]", node.zh), path
        if not node.children and node.id != OTHERS:
            english = [word for word in node.words if word.isascii()]
            assert len(english) >= 3 and len(node.words) > len(english), path
            assert len(set(node.words)) == len(node.words), path


def test_codes_of_the_national_standard() -> None:
    codes = [node.gbt for node in OWN.nodes["math/university"].children]
    assert len(set(codes)) == 26 and codes == sorted(codes)
    assert all(re.fullmatch(r"110\.\d\d", code) for code in codes)
    assert codes[0] == "110.11" and codes[-1] == "110.99"
    named = {n.path: n.gbt for n in OWN.nodes.values() if n.gbt.startswith("180")}
    assert named == {
        "biology/genetics": "180.31",
        "biology/botany": "180.51",
        "biology/entomology": "180.54",
        "biology/zoology": "180.57",
    }


def test_labels_and_paths_there_and_back() -> None:
    for path in OWN.nodes:
        assert OWN.path_of(OWN.labels(path)) == path
    assert OWN.labels("math/primary/algebra") == {
        "domain": "math",
        "level": "primary",
        "topic": "algebra",
    }
    assert OWN.labels("physics/optics") == {"domain": "physics", "topic": "optics"}


def test_paths_of_labels_that_are_not_all_known() -> None:
    assert OWN.path_of({}) == ""
    assert OWN.path_of({"domain": "unknown"}) == ""
    assert OWN.path_of({"domain": "math", "level": "unknown"}) == "math"
    assert OWN.path_of({"domain": "math", "topic": "primary"}) == "math"
    assert OWN.path_of({"domain": "physics", "topic": "algebra"}) == "physics"
    assert OWN.path_of({"topic": "optics"}) == ""


def test_unknown_paths_name_the_part_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"no 'calculus' under math/junior_high; there: algebra, "):
        OWN.node("math/junior_high/calculus")
    with pytest.raises(ValueError, match=r"no 'maths' among the domains; there: marxism, "):
        OWN.node("maths")
    with pytest.raises(ValueError, match=r"no 'x' under medicine; there: nothing"):
        OWN.labels("medicine/x")


def test_small_file_is_read(tmp_path: Path) -> None:
    tree = load_taxonomy(write(tmp_path, SMALL))
    assert list(tree.nodes) == [
        "math",
        "math/primary",
        "math/primary/algebra",
        "math/primary/others",
        "medicine",
        "code",
    ]
    assert [node.kind for node in tree.nodes.values()] == [
        "domain",
        "level",
        "topic",
        "topic",
        "domain",
        "domain",
    ]


AT = r"domains\[0\] \(math\)\.levels\[0\] \(primary\)\.topics\[0\]"


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ([1], r"wants the keys version, classes, domains; found: \[1\]"),
        ({"version": 1}, "wants the keys version, classes, domains; found: version"),
        (SMALL | {"version": 2}, "version=2; this code reads version 1"),
        (SMALL | {"domains": []}, r"domains wants a list of at least one; found \[\]"),
        (changed(zh=None), AT + ": zh=None; every node has id, en and zh"),
        (changed(id="Al gebra"), AT + r" \(Al gebra\): id='Al gebra'; an id is of a-z"),
        (changed(id="unknown"), AT + r" \(unknown\): id='unknown'; .* not 'unknown'"),
        (changed(word=["x"]), AT + ": unknown key 'word'; known: clc, en, gbt"),
        (changed(words=[True]), "words holds True, which is no text; put it into quotes"),
        (changed(words="x"), "words wants a list of at least one; found 'x'"),
        (changed(id="others"), r"levels\[0\] \(primary\)\.topics: 'others' stands there 2 times"),
        (changed(topics=[]), "a topic has no topics below it"),
        (
            SMALL | {"classes": SMALL["classes"][:1] * 2},
            "classes: clc: 'O' stands there 2 times",
        ),
        (
            SMALL | {"classes": [SMALL["classes"][1], SMALL["classes"][1] | {"clc": "S"}]},
            "domains: 'medicine' stands there 2 times",
        ),
        (
            SMALL | {"classes": [SMALL["classes"][0] | {"into": ["maths"]}]},
            r"classes\[0\]: into names 'maths', which is not in `domains`",
        ),
        (
            SMALL | {"domains": [SMALL["domains"][0] | {"topics": []}]},
            "levels stand in a domain, which then has no topics of its own",
        ),
        (
            SMALL
            | {
                "domains": [
                    SMALL["domains"][0],
                    SMALL["domains"][1] | {"topics": [{"id": "a", "en": "a", "zh": "a"}]},
                ]
            },
            r"domains\[1\] \(code\): the last of its topics is 'a', not 'others'",
        ),
        (SMALL | {"classes": ["x"]}, r"classes\[0\].*: wants a table with id, en, zh; found 'x'"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, tree: object, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_taxonomy(write(tmp_path, tree))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the taxonomy .*nowhere.yaml"):
        load_taxonomy(tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot read the taxonomy .*bad.yaml"):
        load_taxonomy(tmp_path / "bad.yaml")


def test_bisac_codes_of_a_licensee(tmp_path: Path) -> None:
    file = tmp_path / "bisac_map.csv"
    file.write_text("topic_id,bisac_code\nphysics/optics,X1\nphysics/optics,X2\ncode,Y\n")
    assert load_bisac(file, OWN) == {"physics/optics": "X1 X2", "code": "Y"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty; its first line is topic_id,bisac_code"),
        ("topic,code\n", ":1: wants the columns topic_id,bisac_code; found 'topic,code'"),
        ("topic_id,bisac_code\nphysics\n", ":2: wants topic_id,bisac_code; found 'physics'"),
        ("topic_id,bisac_code\nphysics/opticks,X\n", ":2: .*no 'opticks' under physics"),
        ("topic_id,bisac_code\ncode,X\ncode,X\n", ":3: code,X stands there twice"),
    ],
)
def test_what_is_wrong_in_a_bisac_map_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "bisac_map.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_bisac(file, OWN)
    with pytest.raises(ConfigError, match="cannot read .*nowhere.csv"):
        load_bisac(tmp_path / "nowhere.csv", OWN)
