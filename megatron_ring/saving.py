"""Saving while training goes on, and copies to a second place.

A save has three parts. `Saver.save` copies weights and optimizer state (the loop waits), a thread
writes and hashes them, and at a step boundary that all ranks agree on, once all have written,
the checkpoint is completed and becomes visible by a rename. No collective runs in a thread, and a
crash at any moment leaves the checkpoints before it as they are.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from megatron.core.optimizer import MegatronOptimizer

from megatron_ring import checkpoint, parallel
from megatron_ring.config import Config
from megatron_ring.convert import checksums
from megatron_ring.convert.folder import STEP, checkpoints_of
from megatron_ring.data.rows import Rows
from megatron_ring.model.ling import LingModel


class Saver:
    """The run's saves, one at a time; leaving the `with` block waits for the last.

    `note` takes a checkpoint's step and a line for the run's log. Errors of a save are
    CheckpointErrors, on all ranks, at the next call.
    """

    def __init__(
        self,
        config: Config,
        stages: list[LingModel],
        optimizer: MegatronOptimizer,
        rows: Rows,
        note: Callable[[int, str], None],
    ) -> None:
        self.config, self.stages, self.optimizer, self.rows = config, stages, optimizer, rows
        self.note = note
        second = config.checkpoint.second_dir
        self.copier = Copier(config) if second and parallel.is_first_rank() else None
        self._save: checkpoint.Save | None = None
        self._thread = threading.Thread()
        self._began = self.blocked = 0.0  # of this save: when, and seconds the loop has waited

    def save(self, progress: checkpoint.Progress, wait: bool = False) -> None:
        """Begin the checkpoint of `progress.step`; with `wait`, it is complete on return.

        An earlier one that is still being written is waited for.
        """
        self.wait()
        self._began, self.blocked = time.monotonic(), 0.0
        self._save = checkpoint.begin(self.config, self.stages, self.optimizer, progress, self.rows)
        if self._save is None:
            return
        self._thread = threading.Thread(target=self._save.write, name="save", daemon=True)
        self._thread.start()
        self.blocked += time.monotonic() - self._began
        if wait or not self.config.checkpoint.async_save:
            self.wait()

    @property
    def under_way(self) -> bool:
        """Is a checkpoint being written?"""
        return self._save is not None

    def poll(self) -> None:
        """At a step boundary, on all ranks: complete the save if everybody has written."""
        self._say_of_copies()
        if self._save is None:
            return
        began = time.monotonic()
        written = parallel.all_agree(not self._thread.is_alive())
        self.blocked += time.monotonic() - began
        if written:
            self.wait()

    def wait(self) -> None:
        """Complete the save that is under way, if there is one. Collective."""
        if self._save is None:
            return
        began = time.monotonic()
        self._thread.join()
        save, self._save = self._save, None
        save.publish(self.copier.busy_with() if self.copier else [])
        if self.copier:
            self.copier.offer(save.final)
        now = time.monotonic()
        self.blocked += now - began
        self.note(
            _step(save.final),
            f"saved {save.final.name} in {now - self._began:.1f} s, of which training waited "
            f"{self.blocked:.1f} s",
        )

    def _say_of_copies(self) -> None:
        for step, line in self.copier.news() if self.copier else []:
            self.note(step, line)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A gradient that is not finite stops all ranks at the same step; of another error the
        # other ranks may know nothing, and would not be there to complete a save with.
        if kind is None or issubclass(kind, FloatingPointError):
            self.wait()
            if self.copier:
                self.copier.close()
            self._say_of_copies()


class Copier:
    """Copies complete checkpoints to checkpoint.second_dir in a thread of rank 0.

    A copy is read back and compared with the checksums before it gets its name. What goes wrong is
    told and tried again with the next checkpoint; it does not end the run.
    """

    def __init__(self, config: Config) -> None:
        self.parent = Path(str(config.checkpoint.second_dir)) / "checkpoints"
        self.keep_last = config.checkpoint.keep_last
        self._changed = threading.Condition()
        self._wanted: Path | None = None
        self._current: Path | None = None
        self._closing = False
        self._news: list[tuple[int, str]] = []
        for newest in checkpoints_of(config.run.dir)[-1:]:  # a kill may have come between
            self.offer(newest)
        self._thread = threading.Thread(target=self._work, name="copy", daemon=True)
        self._thread.start()

    def offer(self, folder: Path) -> None:
        """Copy this one next; one that waits for its turn is left out, being older."""
        with self._changed:
            self._wanted = folder
            self._changed.notify()

    def busy_with(self) -> list[Path]:
        """Checkpoints that must not be deleted now."""
        with self._changed:
            return [path for path in (self._current, self._wanted) if path is not None]

    def news(self) -> list[tuple[int, str]]:
        """What happened since the last call: a checkpoint's step, and a line, "" for none."""
        with self._changed:
            said, self._news = self._news, []
        return said

    def close(self) -> None:
        """Wait until what was offered is copied."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._current = None
                self._changed.wait_for(lambda: self._wanted is not None or self._closing)
                if self._wanted is None:
                    return
                self._current, self._wanted = self._wanted, None
                folder = self._current
            began = time.monotonic()
            try:
                new = copy_checked(folder, self.parent / folder.name)
                for old in checkpoints_of(self.parent.parent)[: -self.keep_last]:
                    checkpoint.delete(old)
                seconds = time.monotonic() - began
                news = f"copied {folder.name} to {self.parent} in {seconds:.1f} s" * new
            except (OSError, ValueError) as error:
                news = f"WARNING: {folder.name} could not be copied to {self.parent}: {error}"
            with self._changed:
                self._news.append((_step(folder), news))


def _step(checkpoint_folder: Path) -> int:
    return int(checkpoint_folder.name.removeprefix(STEP))


def copy_checked(source: Path, target: Path) -> bool:
    """Copy a checkpoint; `target` appears only when its files, read back, have their checksums.

    False when it is there already. ValueError names the first file that differs: either side may
    be at fault.
    """
    if target.exists():
        return False
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name, entry in checksums.read(source).items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            with checksums.HashingStream(temporary / name) as stream:
                for block in checksums.blocks(source / name):
                    stream.write(block)
                stream.finish()
            problem = checksums.problem(temporary, name, entry)
            if problem is not None:
                raise ValueError(problem)
        shutil.copyfile(source / checksums.FILE, temporary / checksums.FILE)
        checksums.sync_folder(temporary)
        temporary.rename(target)
        checksums.sync_folder(target.parent)
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already when all went well
