"""Any tokenizer behind one small interface: a Hugging Face folder or a SentencePiece model.

No code that comes with a tokenizer is ever run.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEMPLATE_FILE = "chat_template.jinja"
HF_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)

# Ling's format (inclusionAI/Ling): no separators, role names in <role> marks. Its own template
# leaves the end token to the training program; here it is part of the assistant's turn.
LING_STYLE = (
    "{%- set names = {'system': 'SYSTEM', 'user': 'HUMAN', 'assistant': 'ASSISTANT',"
    " 'tool': 'OBSERVATION'} -%}"
    "{%- for message in messages -%}"
    "{{- '<role>' + names[message.role] + '</role>' + message.content -}}"
    "{%- if message.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<role>ASSISTANT</role>' -}}{%- endif -%}"
)
LING_SYMBOLS = ("<role>", "</role>")

Span = tuple[int, int]  # characters [start, stop) of a text


class Tokenizer(ABC):
    """Text to ids and back, and chat turns to text.

    Attributes:
        eos_id, pad_id: ids of the end token and of padding; they may be the same id.
        size: highest id plus one; a model's vocabulary must be at least this.
        eos_text: the end token as text.
        special: texts that become one id each and never arise from ordinary text.
        template: Jinja source of the chat template, None when there is none.
        fingerprint: hex hash of the tokenizer's files and of the template.
    """

    eos_id: int
    pad_id: int
    size: int
    eos_text: str
    special: frozenset[str]

    def __init__(self, files: dict[str, Path], template: str | None) -> None:
        self._files = files  # name in a saved folder -> where it lies now
        self.template = template
        digest = hashlib.sha256(json.dumps(template).encode())
        for name, path in sorted(files.items()):
            digest.update(f"\0{name}\0".encode() + path.read_bytes())
        self.fingerprint = digest.hexdigest()

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text; nothing is added, and special tokens in it become their ids."""

    @abstractmethod
    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]: ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """The ids of `encode`, and the characters [start, stop) of the text each one stands for.

        Tokens that are bytes of one character all get that character. What no token claims (spaces
        trimmed, characters joined by normalization) goes to the token behind it, at the end to the
        last one, so that the ranges cover the text. A token made of nothing has an empty range.
        """
        ids, offsets = self._encode_with_offsets(text)
        covering, reached = [], 0
        for start, stop in offsets:
            covering.append((min(start, reached), stop))
            reached = max(reached, stop)
        if covering:
            covering[-1] = (covering[-1][0], len(text))
        return ids, covering

    @abstractmethod
    def decode(self, ids: Iterable[int], keep_special: bool = True) -> str:
        """Text of ids, special tokens included unless told otherwise."""

    @abstractmethod
    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool
    ) -> str: ...

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Chat turns as text, by the chat template.

        ValueError when there is no template, or it refuses these turns.
        """
        if self.template is None:
            raise ValueError(
                "the tokenizer has no chat template; name a Jinja file with chat_template=FILE"
            )
        try:
            return self._render(messages, tools, add_generation_prompt)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these turns: {error}") from None

    def save(self, folder: str | Path) -> None:
        """Copy the files; `load_tokenizer(folder)` gives a tokenizer of the same fingerprint."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in self._files.items():
            (folder / name).write_bytes(path.read_bytes())
        if self.template is not None:
            (folder / TEMPLATE_FILE).write_text(self.template, encoding="utf-8", newline="")


class HuggingFaceTokenizer(Tokenizer):
    """A folder with tokenizer.json, or with the files of one of transformers' own classes."""

    def __init__(self, folder: Path, template: str | None = None) -> None:
        # The class named in tokenizer_config.json may be code beside it; tokenizer.json is enough.
        fast = (folder / "tokenizer.json").exists()
        loader = PreTrainedTokenizerFast if fast else AutoTokenizer
        self._hf: PreTrainedTokenizerBase = loader.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        if template is not None:
            self._hf.chat_template = template
        if isinstance(self._hf.chat_template, dict):  # several named templates
            self._hf.chat_template = self._hf.chat_template["default"]
        files = {name: folder / name for name in HF_FILES if (folder / name).exists()}
        super().__init__(files, self._hf.chat_template)
        if self._hf.eos_token_id is None:
            raise ValueError(f"{folder}: the tokenizer has no eos_token; name one in its config")
        self.eos_id = self._hf.eos_token_id
        self.pad_id = self.eos_id if self._hf.pad_token_id is None else self._hf.pad_token_id
        self.size = max(self._hf.get_vocab().values()) + 1
        self.eos_text = self._hf.eos_token
        added = self._hf.added_tokens_decoder.values()
        self.special = frozenset(token.content for token in added if token.special)

    def encode(self, text: str) -> list[int]:
        return self._hf.encode(text, add_special_tokens=False, verbose=False)

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        if not self._hf.is_fast:
            raise ValueError(
                f"{type(self._hf).__name__} cannot tell which characters a token stands for; use a "
                "tokenizer with tokenizer.json, or sources.*.format_spans=null"
            )
        encoded = self._hf(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        return encoded["input_ids"], encoded["offset_mapping"]

    def decode(self, ids: Iterable[int], keep_special: bool = True) -> str:
        ids = [int(i) for i in ids]
        return self._hf.decode(
            ids, skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False
        )

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool
    ) -> str:
        return self._hf.apply_chat_template(
            messages, tools=tools, add_generation_prompt=prompt, tokenize=False
        )


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece .model, with the chat template beside it or Ling's style."""

    def __init__(self, file: Path, template: str | None = None) -> None:
        self._sp = sentencepiece.SentencePieceProcessor(model_file=str(file))
        beside = file.parent / TEMPLATE_FILE
        if template is None:
            template = beside.read_text(encoding="utf-8") if beside.exists() else LING_STYLE
        super().__init__({"tokenizer.model": file}, template)
        if self._sp.eos_id() < 0:
            raise ValueError(f"{file}: the model has no end token; train it with an eos_id")
        self.eos_id = self._sp.eos_id()
        self.pad_id = self._sp.pad_id() if self._sp.pad_id() >= 0 else self.eos_id
        self.size = self._sp.get_piece_size()
        self.eos_text = self._sp.id_to_piece(self.eos_id)
        self._control = {
            self._sp.id_to_piece(i): i for i in range(self.size) if self._sp.is_control(i)
        }
        self.special = frozenset(self._control)
        # SentencePiece finds user-defined symbols in text by itself, control tokens never.
        self._cut = re.compile("(" + "|".join(map(re.escape, self._control)) + ")")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(template)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._cut.split(text):
            if part in self._control:
                ids.append(self._control[part])
            elif part:
                ids += self._sp.encode(part)
        return ids

    def _encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        offsets: list[Span] = []
        start = 0
        for part in self._cut.split(text):
            if part in self._control:
                ids.append(self._control[part])
                offsets.append((start, start + len(part)))
            elif part:
                encoded = self._sp.encode_as_offset_mapping(part)
                own = encoded["offsets"]
                for i in range(len(own) - 2, -1, -1):
                    # Of the bytes of a character only the last has a range.
                    if own[i][0] == own[i][1] and self._sp.is_byte(encoded["ids"][i]):
                        own[i] = own[i + 1]
                ids += encoded["ids"]
                offsets += [(start + a, start + b) for a, b in own]
            start += len(part)
        return ids, offsets

    def decode(self, ids: Iterable[int], keep_special: bool = True) -> str:
        parts: list[str] = []
        run: list[int] = []
        for i in map(int, ids):
            if self._sp.is_control(i):
                parts += [self._sp.decode(run), self._sp.id_to_piece(i) if keep_special else ""]
                run = []
            else:
                run.append(i)
        return "".join([*parts, self._sp.decode(run)])

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool
    ) -> str:
        return self._template.render(
            messages=messages, tools=tools, add_generation_prompt=prompt, eos_token=self.eos_text
        )


def load_tokenizer(path: str | Path, chat_template: str | Path | None = None) -> Tokenizer:
    """Open a Hugging Face tokenizer folder, a SentencePiece .model, or a folder saved by `save`.

    `chat_template` names a Jinja file that replaces the tokenizer's own. ValueError when the path
    holds no tokenizer.
    """
    path = Path(path)
    template = None
    if chat_template is not None:
        try:
            template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"chat_template={chat_template}: {error.strerror}") from None
    if path.is_dir() and any((path / name).exists() for name in HF_FILES[:2]):
        return HuggingFaceTokenizer(path, template)
    file = path / "tokenizer.model" if path.is_dir() else path
    if file.is_file() and file.suffix == ".model":
        return SentencePieceTokenizer(file, template)
    raise ValueError(
        f"tokenizer={path}: expected a folder with tokenizer.json or tokenizer_config.json, "
        "or a SentencePiece .model file"
    )


def train_sentencepiece(
    texts: Iterable[str],
    file: str | Path,
    vocab_size: int,
    symbols: Iterable[str] = LING_SYMBOLS,
) -> None:
    """Train a BPE model that gives back every text exactly, and write it to `file` (.model).

    Bytes stand in for unknown characters, spaces and line breaks are kept, digits stand alone,
    and `symbols` are one token each. The end token `<|endoftext|>` is also the padding.
    """
    with open(file, "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            user_defined_symbols=[*symbols, "\n"],
            bos_id=-1,
            eos_id=1,
            eos_piece="<|endoftext|>",
            pad_id=-1,
            num_threads=1,  # the same model on every machine
            minloglevel=1,
        )


def _raise_exception(message: str) -> None:
    """What chat templates call to refuse turns."""
    raise TemplateError(message)
