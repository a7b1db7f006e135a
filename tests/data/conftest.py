"""Small tokenizers made on the spot, in which every byte is a token."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from megatron_ring.data.tokenizer import load_tokenizer, train_sentencepiece

SPECIAL = ["<|endoftext|>", "<role>", "</role>", "<|im_start|>", "<|im_end|>"]

# Ling-lite's own template says the same in other words: role marks, no separators, no end token.
LING = (
    "{% for message in messages %}{% set role = message['role'] | upper %}"
    "{% if role == 'USER' %}{% set role = 'HUMAN' %}{% endif %}"
    "{{ '<role>' + role + '</role>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory):
    """A function: chat template and end token -> folder of a Hugging Face tokenizer."""

    def make(template: str | None = LING, eos: str | None = "<|endoftext|>") -> Path:
        folder = tmp_path_factory.mktemp("tokenizer")
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {piece: i for i, piece in enumerate(alphabet)}
        tokenizer = Tokenizer(models.BPE(vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
        tokenizer.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
        config |= {"pad_token": eos, "chat_template": template}
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture(scope="session")
def ling_folder(make_tokenizer):
    return make_tokenizer()


@pytest.fixture(scope="session")
def ling(ling_folder):
    """Ling's template; the end token is the padding too."""
    return load_tokenizer(ling_folder)


@pytest.fixture(scope="session")
def sentencepiece_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("sentencepiece") / "small.model"
    lines = [f"{a} plus {b} is {a + b}\nas one sees, " * 2 for a in range(12) for b in range(12)]
    train_sentencepiece(lines, file, vocab_size=300)
    return file
