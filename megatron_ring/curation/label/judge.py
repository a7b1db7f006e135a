"""A language model asked for a record's place in the taxonomy, through an OpenAI-style endpoint.

Its answer counts when it is one JSON object with a path that exists, and not otherwise.
"""

import json
import os
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from megatron_ring import think
from megatron_ring.config.curation.label import JudgeConfig
from megatron_ring.curation.endpoint import Endpoint, NoAnswerError
from megatron_ring.curation.taxonomy import Taxonomy

ASKED = """You sort questions and tasks by subject. Choose the one path that best fits what the \
text asks for. School levels are those of the Chinese curriculum. Paths, with what they stand for:

{paths}

Answer with one JSON object and nothing else:
{{"path": "<a path from the list>", "confidence": <number from 0 to 1>}}"""


@dataclass(frozen=True)
class Verdict:
    """What came of asking: a path, or in `problem` why there is none."""

    path: str = ""
    confidence: float = 0.0
    problem: str = (
        ""  # "", "not JSON", "wrong keys", "unknown path", "wrong confidence", "no answer"
    )
    detail: str = ""


class Judge:
    """Asks, checks, remembers. `counts` holds how often each outcome came in this process."""

    def __init__(self, options: JudgeConfig, taxonomy: Taxonomy) -> None:
        self.options, self.taxonomy = options, taxonomy
        self.counts: Counter[str] = Counter()
        self._silent = 0  # records in a row without an answer
        self._endpoint = Endpoint(options)
        leaves = [f"{node.path}: {node.en}" for node in taxonomy.leaves()]
        self._asked = ASKED.format(paths="\n".join(leaves))
        if options.cache:
            options.cache.mkdir(parents=True, exist_ok=True)

    def ask(self, text: str) -> Verdict:
        """Its verdict on `text`; RuntimeError when the endpoint has been silent for too long."""
        request = self.request(text)
        answer, problem = self._remembered(request)
        if answer is None:
            answer, problem = self._post(request)
            if answer is not None:
                self._remember(request, answer)
        if answer is None:
            verdict = Verdict(problem="no answer", detail=problem)
            self._silent += 1
        else:
            verdict = check(answer, self.taxonomy)
            self._silent = 0
        self.counts[verdict.problem or "answered"] += 1
        if self._silent >= self.options.give_up_after:
            raise RuntimeError(
                f"judge.endpoint={self.options.endpoint}: no answer for {self._silent} records in "
                f"a row (judge.give_up_after={self.options.give_up_after}), the last time: "
                f"{problem}. Start it again and resume, or leave out `judge`"
            )
        return verdict

    def request(self, text: str) -> dict[str, Any]:
        """What is sent: greedy, so that the same model answers the same."""
        shown = text[: self.options.max_characters]
        return {
            "model": self.options.model,
            "messages": [
                {"role": "system", "content": self._asked},
                {"role": "user", "content": f"<text>\n{shown}\n</text>"},
            ],
            "temperature": 0,
            "max_tokens": self.options.max_tokens,
        }

    def _post(self, request: dict[str, Any]) -> tuple[str | None, str]:
        """Text of the answer, or None and why there is none."""
        try:
            reply = self._endpoint.post("chat/completions", request)
            return str(reply["choices"][0]["message"]["content"] or ""), ""
        except NoAnswerError as error:
            return None, error.problem
        except (KeyError, IndexError, TypeError) as error:
            return None, f"an answer of another shape: {type(error).__name__} {error}"

    def _remembered(self, request: dict[str, Any]) -> tuple[str | None, str]:
        file = self._file(request)
        if file is None or not file.is_file():
            return None, ""
        return json.loads(file.read_text(encoding="utf-8"))["answer"], ""

    def _remember(self, request: dict[str, Any], answer: str) -> None:
        """Through a file of another name: a process that dies, or another one, sees all or none."""
        file = self._file(request)
        if file is not None:
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps({"answer": answer}, ensure_ascii=False), encoding="utf-8")
            part.replace(file)

    def _file(self, request: dict[str, Any]) -> Path | None:
        if not self.options.cache:
            return None
        spelled = json.dumps([self.options.endpoint, request], sort_keys=True)
        return self.options.cache / f"{sha256(spelled.encode()).hexdigest()}.json"


def check(answer: str, taxonomy: Taxonomy) -> Verdict:
    """The verdict that a model's text holds. The thought is not part of the answer."""
    text = think.answer_of(answer).strip()
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return Verdict(problem="not JSON", detail=text[:100])
    if not isinstance(found, dict) or set(found) != {"path", "confidence"}:
        return Verdict(problem="wrong keys", detail=text[:100])
    path, sure = found["path"], found["confidence"]
    if not isinstance(path, str) or path not in taxonomy.nodes or taxonomy.nodes[path].children:
        return Verdict(problem="unknown path", detail=str(path)[:100])
    if type(sure) not in (int, float) or not 0 <= sure <= 1:
        return Verdict(problem="wrong confidence", detail=str(sure)[:100])
    return Verdict(path, float(sure))
