"""What the command lines of curation and synthesis have in common: commands, records, progress."""

import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from megatron_ring import config as configuration
from megatron_ring.config import ConfigError, Part
from megatron_ring.curation.sandbox import SandboxError

LINE_SECONDS = 10.0  # between lines of progress where there is no terminal
P = TypeVar("P", bound=Part)
Command = Callable[[Console, list[str]], int]


def run_command(
    console: Console,
    commands: Mapping[str, Command],
    arguments: list[str],
    about: str,
    more: Callable[[], None] = lambda: None,
) -> int:
    """Exit status of the command that the first argument names.

    Without one, or for --help, `about` is printed, and `more` may add to it.

    Errors of the user, and what stands in the way of a run, are printed and not raised. SIGTERM, as
    Slurm and containers send it, is an interrupt: what models were asked comes home first.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if not arguments or {"-h", "--help"} & set(arguments):
        console.print(about, markup=False, highlight=False, soft_wrap=True)
        more()
        return 0
    try:
        if arguments[0] not in commands:
            raise ConfigError(f"unknown command {arguments[0]!r}; known: {', '.join(commands)}")
        return commands[arguments[0]](console, arguments[1:])
    except (ValueError, SandboxError, OSError) as error:
        console.print(Text(f"error: {error}", style="red"), soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here", highlight=False)
        return 130


def load_recipe(cls: type[P], arguments: list[str]) -> tuple[P, bool]:
    """What FILE.yaml... [key=value ...] [--dry-run] say: the configuration, and is it a dry run?"""
    given = [argument for argument in arguments if argument != "--dry-run"]
    if unknown := [argument for argument in given if argument.startswith("-")]:
        raise ConfigError(f"unknown option {unknown[0]!r}; known: --dry-run")
    files = [argument for argument in given if "=" not in argument]
    config = configuration.load(cls, files, [one for one in given if "=" in one])
    return config, len(given) < len(arguments)


def take_options(arguments: list[str], options: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Values of `--name VALUE` by name, those of `options` where they are not given; the rest."""
    found, left = dict(options), []
    rest = iter(arguments)
    for argument in rest:
        if argument in found:
            found[argument] = next(rest, "")
            if not found[argument]:
                raise ConfigError(f"{argument} needs a value behind it")
        else:
            left.append(argument)
    if "-n" in found and not found["-n"].isdigit():
        raise ConfigError(f"-n {found['-n']!r} is no number of records")
    return found, left


def one_folder(arguments: list[str], tool: str) -> Path:
    """The folder that a command is given; `tool` wrote it."""
    if unknown := [argument for argument in arguments if argument.startswith("-")]:
        raise ConfigError(f"unknown option {unknown[0]!r}")
    if len(arguments) != 1:
        raise ConfigError(f"give one folder that {tool} run wrote, not {len(arguments)}")
    if not Path(arguments[0]).is_dir():
        raise ConfigError(f"there is no folder {arguments[0]}")
    return Path(arguments[0]).absolute()


def print_record(console: Console, record: Any) -> None:
    """A record, or what there was in place of one, long texts cut."""
    if record is None:  # a line that could not be read, an endpoint that refused: see the evidence
        return
    if not isinstance(record, dict):
        console.print(Text(cut(str(record))), soft_wrap=True)
        return
    for turn in record.get("messages", []):
        thought = turn.get("reasoning_content")
        text = f"<think>{thought}</think>{turn.get('content')}" if thought else turn.get("content")
        calls = f" {json.dumps(turn['tool_calls'])}" if turn.get("tool_calls") else ""
        line = Text.assemble((f"{turn.get('role')}: ", "cyan"), cut(f"{text or ''}{calls}"))
        console.print(line, soft_wrap=True)
    rest = {key: value for key, value in record.items() if key != "messages"}
    console.print(Text(cut(json.dumps(rest, ensure_ascii=False)), style="dim"), soft_wrap=True)


def cut(text: str, length: int = 600) -> str:
    """The beginning of a long text."""
    return text if len(text) <= length else f"{text[:length]} ... ({len(text):,} characters)"


class Watch:
    """A bar with the remaining time on a terminal, a line now and then elsewhere.

    It looks from a thread of its own, since the work is done in the one that made it.
    """

    def __init__(
        self,
        console: Console,
        name: str,
        total: int,
        count: Callable[[], int],
        beside: Callable[[int, float], str],
        unit: str = "",
    ) -> None:
        """`count` says how many of `total` are done; `beside` more, of those done since the watch
        began and of the seconds since then. `unit` is what is counted, in lines."""
        self._console, self._name, self._total = console, name, total
        self._count, self._beside, self._unit = count, beside, unit
        self._began, self._first = time.monotonic(), count()
        self._over = threading.Event()
        watch = self._draw if console.is_terminal else self._print
        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look for the last time."""
        self._over.set()
        self._thread.join()

    def _look(self) -> tuple[int, float, str]:
        done, seconds = self._count(), time.monotonic() - self._began
        return done, seconds, self._beside(done - self._first, seconds)

    def _draw(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[beside]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(
                self._name, total=self._total, completed=self._first, beside=""
            )
            while True:
                last = self._over.wait(0.5)
                done, _, beside = self._look()
                progress.update(task, completed=done, beside=beside)
                if last:
                    return

    def _print(self) -> None:
        while True:
            last = self._over.wait(LINE_SECONDS)
            done, seconds, beside = self._look()
            new = done - self._first
            left = (
                f", {(self._total - done) * seconds / new:,.0f} s left" if new and not last else ""
            )
            counted = f"{done:,} of {self._total:,}{self._unit and ' '}{self._unit}"
            line = f"{self._name}: {counted}, {beside}{left}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
            if last:
                return
