import json
import shutil

import pytest

from megatron_ring.data.tokenizer import load_tokenizer, train_sentencepiece

from .conftest import CHATML

TEXTS = ["12 plus 7 is 19\n\nas one sees", "  two  spaces\t", "é 漢字 🙂", "<role>HUMAN</role>hi"]
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(params=["huggingface", "sentencepiece"])
def path(request, ling_folder, sentencepiece_file):
    return {"huggingface": ling_folder, "sentencepiece": sentencepiece_file}[request.param]


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(path, text):
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.size


@pytest.mark.parametrize(
    "text", [*TEXTS, "", "a<|endoftext|>é<|endoftext|>🙂b", "e\u0301 </think>\n\nx "]
)
def test_offsets_say_which_characters_a_token_stands_for(path, text):
    """Every token is a byte, a special token or a piece of text: each lies where its bytes do."""
    tokenizer = load_tokenizer(path)
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    data, begins = text.encode(), [len(text[:n].encode()) for n in range(len(text) + 1)]
    at = 0  # bytes before the token
    for i, (start, stop) in zip(ids, offsets, strict=True):
        length = len(tokenizer.decode([i]).encode()) if "\ufffd" not in tokenizer.decode([i]) else 1
        assert begins[start] <= at and at + length <= begins[stop], (i, start, stop)
        assert stop - start == 1 or tokenizer.decode([i]) == text[start:stop]
        at += length
    assert at == len(data)


def test_offsets_leave_no_character_out(make_tokenizer):
    """Where the tokenizer trims spaces and joins characters, the ranges still cover the text."""
    folder = make_tokenizer()
    file = folder / "tokenizer.json"
    changed = json.loads(file.read_text())
    changed["normalizer"] = {"type": "NFC"}
    changed["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    file.write_text(json.dumps(changed))
    tokenizer = load_tokenizer(folder)
    ids, offsets = tokenizer.encode_with_offsets("a  bc\u0327")
    assert len(ids) == 6  # a, two spaces, b, and the two bytes of c with its cedilla
    assert offsets == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 6)]


def test_special_tokens_in_a_text_are_one_id(path):
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("a<|endoftext|>b<role>")
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.eos_text == "<|endoftext|>" and tokenizer.eos_text in tokenizer.special
    assert len(tokenizer.encode("<role>")) == 1
    assert tokenizer.decode(ids) == "a<|endoftext|>b<role>"
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>b"), keep_special=False) == "ab"


def test_no_end_token_is_added(path):
    tokenizer = load_tokenizer(path)
    assert tokenizer.eos_id not in tokenizer.encode("hello")
    assert tokenizer.encode("") == []


def test_size_covers_added_tokens(ling):
    assert ling.size == 256 + 5
    assert ling.encode("<|im_end|>") == [260]


def test_saved_copy_is_the_same_tokenizer(path, tmp_path):
    tokenizer = load_tokenizer(path)
    tokenizer.save(tmp_path / "copy")
    copy = load_tokenizer(tmp_path / "copy")
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert copy.render(USER) == tokenizer.render(USER)


def test_template_file_replaces_the_template(path, tmp_path):
    file = tmp_path / "chatml.jinja"
    file.write_text(CHATML)
    tokenizer = load_tokenizer(path, file)
    rendered = tokenizer.render(USER, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.fingerprint != load_tokenizer(path).fingerprint
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").fingerprint == tokenizer.fingerprint


def test_template_beside_a_sentencepiece_model_wins(sentencepiece_file, tmp_path):
    shutil.copy(sentencepiece_file, tmp_path / "x.model")
    (tmp_path / "chat_template.jinja").write_text("{{ messages | tojson }}")
    assert load_tokenizer(tmp_path / "x.model").render(USER) == json.dumps(USER)


def test_fingerprint_is_of_the_content(ling_folder, tmp_path):
    shutil.copytree(ling_folder, tmp_path / "moved")
    base = load_tokenizer(ling_folder).fingerprint
    assert load_tokenizer(tmp_path / "moved").fingerprint == base
    config = tmp_path / "moved" / "tokenizer_config.json"
    good = config.read_text()
    for changed in (
        good.replace("HUMAN", "USER"),
        good.replace("{", '{"model_max_length": 9, ', 1),
    ):
        config.write_text(changed)
        assert load_tokenizer(tmp_path / "moved").fingerprint != base


def test_code_beside_a_tokenizer_is_not_run(ling_folder, tmp_path):
    folder = tmp_path / "with_code"
    shutil.copytree(ling_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"
    assert not (tmp_path / "ran").exists()


def test_training_is_repeatable(tmp_path):
    for name in ("a.model", "b.model"):
        train_sentencepiece(["one two three four"] * 30, tmp_path / name, vocab_size=275)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


def test_a_path_without_a_tokenizer(tmp_path):
    for path in (tmp_path, tmp_path / "missing.model"):
        with pytest.raises(ValueError) as error:
            load_tokenizer(path)
        assert str(error.value) == (
            f"tokenizer={path}: expected a folder with tokenizer.json or tokenizer_config.json, "
            "or a SentencePiece .model file"
        )


def test_missing_template_file(ling_folder, tmp_path):
    with pytest.raises(ValueError) as error:
        load_tokenizer(ling_folder, tmp_path / "no.jinja")
    assert str(error.value) == f"chat_template={tmp_path / 'no.jinja'}: No such file or directory"


def test_no_template_and_no_end_token(make_tokenizer):
    with pytest.raises(ValueError, match="no chat template; name a Jinja file with chat_template="):
        load_tokenizer(make_tokenizer(template=None)).render(USER)
    with pytest.raises(ValueError, match="the tokenizer has no eos_token; name one in its config"):
        load_tokenizer(make_tokenizer(eos=None))
