"""A model asked to put something into one of a few classes, each named by one word."""

from collections.abc import Mapping
from random import Random

from megatron_ring.curation.endpoint import read_choice
from megatron_ring.curation.generate import Client, Request

FORM = """

{choices}

Answer with one of these words and nothing else: {words}."""


class Judge:
    """Greedy at first; asked once more, as the model samples by itself, where it has not chosen."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def ask(self, question: str, choices: Mapping[str, str]) -> str | None:
        """The word of `choices` (word -> what it means) that is chosen; None for none, twice.

        Models favour what they read first, so each question has an order of its own, by the
        model's seed. RefusedError when the endpoint does not take this question.
        """
        words = list(choices)
        Random(f"{self.client.options.seed} {question}").shuffle(words)
        listed = "\n".join(f"{word}: {choices[word]}" for word in words)
        text = question + FORM.format(choices=listed, words=", ".join(words))
        turn = {"role": "user", "content": text}
        for sample, temperature in enumerate((0.0, None)):
            request = Request(
                messages=(turn,), sample=sample, purpose="judge", temperature=temperature
            )
            said = await self.client.ask(request)
            if (word := read_choice(said.text, words)) is not None:
                return word
        return None
