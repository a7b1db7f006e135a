"""Options of the generation client: what is refused as typed, and a key that nobody may see."""

import json
import logging
from pathlib import Path

import pytest

from megatron_ring import config
from megatron_ring.config.base import ConfigError
from megatron_ring.config.curation.generate import GeneratorConfig
from megatron_ring.curation.generate import NoAnswerError, RefusedError, Reply
from tests.curation import scripted
from tests.curation.asking import ask, client, options

SECRET = "sk-a-key-that-nobody-may-see"
NOWHERE = "http://127.0.0.1:1/v1"


def test_the_key_is_sent_and_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "key").write_text(f"{SECRET}\n")
    (tmp_path / "wrong").write_text("sk-wrong-key\n")
    with scripted.serve(tmp_path, key=SECRET) as server:
        asked = client(server, tmp_path / "replies", key_file=str(tmp_path / "key"))
        good, bad = ask(asked, "who is it?", "what is it? [[echo_key]]")
        assert isinstance(good, Reply) and isinstance(bad, RefusedError)
        assert "I do not like Bearer (the key) at all" in str(bad)
        wrong = client(server, tmp_path / "replies", key_file=str(tmp_path / "wrong"))
        with pytest.raises(NoAnswerError, match="HTTP 401 .*wrong key"):
            ask(wrong, "and who is this?")
        asked.close(), wrong.close()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "replies").iterdir())
    told = caplog.text + "".join(capfd.readouterr()) + json.dumps(good.card) + str(bad)
    assert SECRET not in told and SECRET.encode() not in kept and b"who is it?" in kept


@pytest.mark.parametrize("key", ["sk-\N{GREEK SMALL LETTER ALPHA}", "sk-\tx", "sk-\x00"])
def test_a_key_that_no_header_can_hold(tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key)
    with pytest.raises(ConfigError, match="key_file=.*key holds characters that") as caught:
        client(NOWHERE, tmp_path / "replies", key_file=str(tmp_path / "key"))
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("concurrency=0", "concurrency=0: input should be greater than 0"),
        ("concurrency=many", "concurrency='many': input should be a valid integer"),
        ("temperature=-1", "temperature=-1: input should be greater than or equal to 0"),
        ("top_p=0", "top_p=0: input should be greater than 0"),
        ("top_p=1.5", "top_p=1.5: input should be less than or equal to 1"),
        ("max_tokens=0", "max_tokens=0: input should be greater than 0"),
        ("budget.cost=0", "budget.cost=0: input should be greater than 0"),
        (
            "budget.cost=5",
            "budget.cost=5 never stops a run whose prices are 0: set prices.input and "
            "prices.output, or limit budget.tokens",
        ),
        ("budget.requests=1.5", "budget.requests=1.5: input should be a valid integer"),
        ("prices.input=-1", "prices.input=-1: input should be greater than or equal to 0"),
        ("extra.seed=3", "extra: extra.seed: this key of a request is set by us; leave it out"),
        (
            "endpoint=localhost",
            "endpoint: 'localhost' is no address; one is http://localhost:8000/v1",
        ),
        ("endpoint=http://[x/v1", "endpoint: 'http://[x/v1' is no address"),
        ("endpoint=http:///v1", "endpoint: 'http:///v1' is no address"),
        ("endpoint=http://a:b/v1", "endpoint: 'http://a:b/v1' is no address"),
        ("endpoint=http://me:pw@a/v1", "endpoint: it holds a user's name, and is shown in logs"),
        ("send_seeds=true", "unknown config key send_seeds; did you mean send_seed?"),
    ],
)
def test_wrong_options(tmp_path: Path, typed: str, told: str) -> None:
    file = tmp_path / "client.yaml"
    file.write_text(json.dumps(options(NOWHERE, tmp_path)))
    with pytest.raises(ConfigError) as caught:
        config.load(GeneratorConfig, [str(file)], [typed])
    assert told in str(caught.value)


def test_replies_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="replies=.*/file/replies is no folder to write to: "):
        client(NOWHERE, tmp_path / "file" / "replies")
