"""What the command lines of curation and synthesis share."""

import io

import pytest
from rich.console import Console

from megatron_ring.config import ConfigError
from megatron_ring.config.curation import CurateConfig
from megatron_ring.curation import console as shared
from megatron_ring.curation.sandbox import SandboxError


def plain() -> Console:
    """A console that writes into a text."""
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_long_texts_are_cut() -> None:
    assert shared.cut("a" * 600) == "a" * 600
    assert shared.cut("a" * 700) == "a" * 600 + " ... (700 characters)"


def test_options_are_taken_out_wherever_they_stand() -> None:
    given = ["-n", "3", "out", "--reason", "loop"]
    defaults = {"--reason": "", "--cell": "", "-n": "5"}
    found, left = shared.take_options(given, defaults)
    assert found == {"--reason": "loop", "--cell": "", "-n": "3"} and left == ["out"]
    assert defaults["-n"] == "5"
    with pytest.raises(ConfigError, match="^-n 'x' is no number of records$"):
        shared.take_options(["-n", "x"], defaults)
    with pytest.raises(ConfigError, match="^--cell needs a value behind it$"):
        shared.take_options(["out", "--cell"], defaults)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ValueError("too little"), 1, "error: too little\n"),
        (OSError(28, "No space left", "out/x"), 1, "error: [Errno 28] No space left: 'out/x'\n"),
        (SandboxError("no bubblewrap"), 1, "error: no bubblewrap\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on from here\n"),
    ],
)
def test_what_stands_in_the_way_is_told_not_raised(
    error: BaseException, status: int, told: str
) -> None:
    def fail(console: Console, arguments: list[str]) -> int:
        assert arguments == ["a", "b"]
        raise error

    console = plain()
    assert shared.run_command(console, {"go": fail}, ["go", "a", "b"], "") == status
    assert said(console) == told


def test_a_bug_is_no_error_of_the_user() -> None:
    def fail(console: Console, arguments: list[str]) -> int:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        shared.run_command(plain(), {"go": fail}, ["go"], "")


def test_help_and_unknown_commands() -> None:
    asked: list[str] = []
    for arguments in ([], ["--help"], ["go", "-h"]):
        console = plain()
        assert (
            shared.run_command(console, {}, arguments, "[how]", lambda: asked.append("help")) == 0
        )
        assert said(console) == "[how]\n"
    assert asked == ["help"] * 3
    console = plain()
    assert shared.run_command(console, {"go": lambda c, a: 0}, ["stop"], "") == 1
    assert said(console) == "error: unknown command 'stop'; known: go\n"


def test_the_last_line_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "LINE_SECONDS", 0.01)
    console, done = plain(), [2]
    seen: list[int] = []

    def beside(new: int, seconds: float) -> str:
        seen.append(new)
        return "as wanted"

    watch = shared.Watch(console, "reading", 5, lambda: done[0], beside, "records")
    done[0] = 5
    watch.end()
    assert said(console).splitlines()[-1] == "reading: 5 of 5 records, as wanted"
    assert seen[-1] == 3  # two were done before


def test_a_terminal_gets_a_bar() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    watch = shared.Watch(console, "reading", 5, lambda: 5, lambda new, seconds: "as wanted")
    watch.end()
    assert "5/5" in said(console) and "as wanted" in said(console)


def test_a_recipe_is_files_keys_and_perhaps_dry() -> None:
    given = ["sources.a.path=x", "--dry-run", "output=out", "stages=[]"]
    config, is_dry = shared.load_recipe(CurateConfig, given)
    assert is_dry and (config.output, config.sources[0].path) == ("out", "x")
    assert not shared.load_recipe(CurateConfig, [one for one in given if one[:2] != "--"])[1]
    with pytest.raises(ConfigError, match="^unknown option '--dryrun'; known: --dry-run$"):
        shared.load_recipe(CurateConfig, [*given, "--dryrun"])
