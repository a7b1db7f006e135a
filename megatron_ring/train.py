"""Train Ling-Lite on packed rows.

    python -m megatron_ring.train configs/model/ling_tiny.yaml configs/sft.yaml data.train=packed
    torchrun --nproc-per-node 8 -m megatron_ring.train FILE.yaml... key.path=value...

Arguments with "=" are overrides; the others are YAML files, merged left to right. --dry-run checks
everything that can be checked without loading the model, prints the resolved configuration and
exits; --schema prints the JSON schema of a configuration file. The run resumes from its newest
checkpoint in run.dir by itself. Told to stop (SIGTERM, SIGUSR1, SIGINT, SIGHUP), it saves and exits
with status 75.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf

from megatron_ring import config as configuration
from megatron_ring import losses, parallel, platform, signals, spikes, watchdog
from megatron_ring.config import Config, ConfigError
from megatron_ring.data.reference import Reference
from megatron_ring.data.rows import Row, Rows
from megatron_ring.losses import Head
from megatron_ring.signals import Told


def main(argv: list[str]) -> None:
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__)
        return
    if "--schema" in argv:
        print(configuration.json_schema(Config), end="")
        return
    try:
        arguments = [a for a in argv if a != "--dry-run"]
        files = [a for a in arguments if "=" not in a]
        config = configuration.load(Config, files, [a for a in arguments if "=" in a])
        device, rows = platform.prepare(), open_rows(config)
        check_start(config, rows, device)
        if "--dry-run" in argv:
            print(OmegaConf.to_yaml(OmegaConf.create(config.model_dump())), end="")
            print(f"# {rows.num_rows} rows, {total_steps(config, rows)} steps")
            return
        patience = config.run.hang_timeout * watchdog.FIRST
        groups = parallel.process_groups(config.parallel, device, config.run.seed, patience)
        with (
            signals.caught() as told,
            locked(config.run.dir, "run.dir"),
            locked(config.checkpoint.second_dir, "checkpoint.second_dir"),
            watchdog.watching(config.run) as dog,
            groups,
            dog.explaining(),
        ):
            finished = train(config, rows, device, told, dog)
            parallel.largest(0)  # launchers end all ranks when one leaves; the first writes longest
    except (ConfigError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
    if not finished:
        raise SystemExit(signals.STOPPED)


def locked(folder: str | None, key: str) -> AbstractContextManager[None]:
    """The lock of a folder of checkpoints, held by rank 0 for everyone."""
    from megatron_ring import checkpoint

    return checkpoint.locked(folder, key) if folder and parallel.is_first_rank() else nullcontext()


def open_rows(config: Config) -> Rows:
    """The packed training rows; ConfigError when they, the model and the layout do not fit."""
    if config.data.train is None:
        raise ConfigError("missing config key data.train: a folder written by tools/pack.py")
    folders = [folder for folder in (config.data.train, config.data.valid) if folder is not None]
    opened = [_open(folder, config) for folder in folders]
    for folder, rows in zip(folders, opened, strict=True):
        _check_kind(config, folder, rows)
        parallel.check_layout(config, parallel.world_size(), rows.row_tokens)
        needed = rows.tokenizer_size
        if needed > config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size={config.model.vocab_size}, but {folder} holds token ids up to "
                f"{needed - 1}; use the model's own tokenizer, or model.vocab_size={needed}"
            )
        if not sum(source["supervised"] for source in rows.manifest["sources"]):
            raise ConfigError(f"no token of {folder} is supervised: there is nothing to learn")
        if rows.row_tokens > config.model.longest:
            limit = f"model.max_position_embeddings={config.model.max_position_embeddings}"
            if config.model.rope_scaling is not None:
                limit += f" and the {config.model.longest} that model.rope_scaling makes of it"
            raise ConfigError(f"{folder} has rows of {rows.row_tokens} tokens, more than {limit}")
    return opened[0]


def check_start(config: Config, rows: Rows, device: torch.device) -> None:
    """ConfigError when a backend cannot run here, when run.init_from holds no weights or others
    than the model's, when run.dir holds another run, scores were made in another dtype, or
    benchmarks cannot be asked."""
    from megatron_ring import checkpoint, profiling, reference, trackers
    from megatron_ring.model import ling, weights
    from megatron_ring.sampling import examiner

    trackers.check(config)
    examiner.check(config)
    profiling.check(config.profile, parallel.world_size())
    dtype = platform.dtype(config.run.dtype)
    ling.choose_kernels(config, dtype, device)
    resuming = checkpoint.check_start(config, rows.fingerprint)
    if not resuming and config.run.init_from is not None:
        weights.check(config.model, weights.open_weights(config.run.init_from))
        if config.loss.head == "dpo":
            reference.check_dtype(config, Reference.open(Rows.open(rows.folder)).about)


def _open(folder: str, config: Config) -> Rows:
    """Packed rows, with their reference scores when the loss needs them."""
    try:
        rows = Rows.open(folder)
        if config.loss.head == "dpo" and rows.kind == "pairs":
            scores = Reference.open(rows)
            return rows.with_reference(scores.scores, scores.about.weights)
        return rows
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _check_kind(config: Config, folder: str, rows: Rows) -> None:
    """ConfigError when the rows are not what the loss head trains on."""
    wanted = {"sft": "chat", "dpo": "pairs"}[config.loss.head]
    if rows.kind != wanted:
        raise ConfigError(
            f"loss.head={config.loss.head} trains on rows packed with kind={wanted}; {folder} was "
            f"packed with kind={rows.kind}"
        )
    if wanted == "chat":
        return
    if config.run.init_from is None:
        raise ConfigError(
            "loss.head=dpo starts from the weights that made the reference scores: set "
            "run.init_from to that checkpoint"
        )
    unknown = set(config.loss.sources) - set(rows.sources)
    if unknown and folder == config.data.train:
        raise ConfigError(
            f"loss.sources.{min(unknown)}: {folder} has no such source; it has "
            f"{', '.join(rows.sources)}"
        )
    for source in rows.manifest["sources"]:
        settings = config.loss.sources.get(source["name"], config.loss.preference)
        if settings.format_only and source["without_format"]:
            raise ConfigError(
                f"format_only is set for source {source['name']}, but in {folder} "
                f"{source['without_format']} of its {source['pairs']} pairs have an answer without "
                "a token in a format span; leave them out, or see sources.*.format_spans when "
                "packing"
            )


def total_steps(config: Config, rows: Rows) -> int:
    """Steps of the run: optim.steps, but never beyond the plan."""
    planned = rows.num_steps(config.data.rows_per_step)
    return min(config.optim.steps or planned, planned)


def remarks(config: Config, rows: Rows, step: int, total: int) -> str:
    """What may surprise about the number of steps; "" when nothing does."""
    said = []
    if config.optim.steps is not None and config.optim.steps > total:
        said.append(
            f"optim.steps={config.optim.steps}, but the plan of {config.data.train} has {total} "
            f"steps of {config.data.rows_per_step} rows; pack more epochs for more"
        )
    if config.optim.warmup_steps >= total:
        said.append(f"optim.warmup_steps={config.optim.warmup_steps} outlasts the {total} steps")
    if step >= total:
        said.append("nothing is left to do; raise optim.steps, or choose another run.dir")
    return "\n".join(said)


class Run(NamedTuple):
    """What a run works on, and how far it is."""

    stages: list[Any]  # LingModel: this rank's model chunks
    models: list[Any]  # DistributedDataParallel around them
    optimizer: Any  # MegatronOptimizer
    progress: Any  # checkpoint.Progress
    resumed: bool
    guard: spikes.Guard
    head: Head
    held_out: list[Row]  # this rank's
    judge: Head  # of the held-out rows

    def validate(self) -> dict[str, float]:
        """What the held-out rows say; all ranks take part."""
        from megatron_ring import step

        return self.judge.report(step.evaluate(self.models, self.held_out, self.judge))


def build(config: Config, rows: Rows, device: torch.device) -> Run:
    """Model and optimizer, from the newest checkpoint or the weights to start from, and losses."""
    from megatron_ring import checkpoint, optim, recovery
    from megatron_ring.model import ling, weights

    dtype = platform.dtype(config.run.dtype)
    stages = ling.build_stages(config, dtype, device)
    if not recovery.candidates(config):  # else they would be read only to be replaced
        weights.load_first(config, stages)
    models = optim.wrap(stages, config.parallel)
    optimizer = optim.build_optimizer(models, config.optim, dtype)
    progress = checkpoint.resume(config, stages, optimizer, rows.fingerprint)
    if parallel.is_first_rank():
        configuration.save(config, Path(config.run.dir) / "config.yaml")
        checkpoint.keep_origin(config)
    resumed, progress = progress is not None, progress or checkpoint.Progress()
    total = total_steps(config, rows)
    guard = spikes.Guard(config.spikes, config.run.seed, total, progress.spikes)
    head = losses.head(config.loss, rows.sources, rows.domains)
    tensors = (stages, models, optimizer)
    return Run(*tensors, progress, resumed, guard, head, *held_out_rows(config))


def introduce(config: Config, rows: Rows, device: torch.device, run: Run, log: Any) -> None:
    """What the person watching is told before the first step, and what is checked there."""
    from megatron_ring import reference
    from megatron_ring.model import ling

    dtype, step, guard = platform.dtype(config.run.dtype), run.progress.step, run.guard
    how = "resuming after" if run.resumed else "starting at"
    log.note(f"{how} step {step} of {guard.total}: {parallel.describe()}, {device}, {dtype}")
    log.note(str(ling.choose_kernels(config, dtype, device)))
    log.note(remarks(config, rows, step - guard.total + guard.planned, guard.planned))
    if run.resumed:
        return
    if config.loss.head == "dpo":
        log.note(str(reference.check(config, run.models, run.stages, rows, run.head)))
    if run.held_out:
        log.valid(0, run.validate())


class Around(NamedTuple):
    """What accompanies the loop."""

    log: Any  # journal.Journal
    saver: Any  # saving.Saver
    profiler: Any  # profiling.Profiler
    examiner: Any  # sampling.examiner.Examiner
    told: Told
    dog: watchdog.Watchdog


def train(
    config: Config, rows: Rows, device: torch.device, told: Told, dog: watchdog.Watchdog
) -> bool:
    """The run around its loop. False when told to stop before its end."""
    from megatron_ring import journal, profiling, saving
    from megatron_ring.sampling.examiner import Examiner

    run = build(config, rows, device)
    dog.beat(run.progress.step)

    def stopping() -> bool:
        """Asked again and again while benchmarks are answered, however long it takes."""
        dog.alive()
        return bool(told.number)

    with (
        journal.opened(config, run.guard.total, run.progress.step) as log,
        saving.Saver(config, run.stages, run.optimizer, rows, log.saved) as saver,
        profiling.Profiler(config.profile, config.run.dir, log.note) as profiler,
    ):
        introduce(config, rows, device, run, log)
        told.begin()
        examiner = Examiner(config, run.stages, stopping, log)
        step, total = run.progress.step, run.guard.total
        if examiner.owes(step, total):  # a run before this one was stopped before it had asked
            log.evaluated(step, examiner.ask(step))
            if parallel.largest(told.number) and examiner.owes(step, total):
                return False
        return loop(config, rows, run, Around(log, saver, profiler, examiner, told, dog))


def loop(config: Config, rows: Rows, run: Run, around: Around) -> bool:
    """Step after step: every effect is a line of this function. False when told to stop."""
    from megatron_ring import metrics, optim, step, stopwatch
    from megatron_ring.gradient_norms import GradientNorms

    log, saver, profiler, examiner, told, dog = around
    progress, guard, head, optimizer = run.progress, run.guard, run.head, run.optimizer
    batch, rank, size = config.data.rows_per_step, parallel.data_rank(), parallel.data_size()
    meter = metrics.Meter(config, run.stages, head, progress.step)
    clock, norms = stopwatch.Stopwatch(), GradientNorms(run.models, optimizer)
    while progress.step < guard.total:
        profiler.step(progress.step + 1)
        with clock("data"):
            mine = rows.at_step(guard.batch(progress.step), batch, rank, size)
        lr = optim.lr_at(progress.updates, guard.planned, config.optim) * guard.lr_scale
        with clock("forward_backward"):
            counts, table, norm = step.gradient(run.models, optimizer, mine, head)
            loss, norm = step.agreed(table, norm, head) if guard.watches else (None, norm)
        verdict = guard.judge(progress.step, loss, norm)
        saves = (progress.step + 1) % config.checkpoint.save_every == 0
        due = saves or (progress.step + 1) % config.log.every == 0  # no line spans two starts
        if verdict.update:
            done = {"lr": lr, "grad_norm": norm} | (norms.read() if due else {})
            with clock("optimizer"):
                step.update(optimizer, lr)
            progress = progress.after(counts.tokens, counts.supervised, guard.state())
            meter.add(counts, table)
        else:
            progress = progress.after(0, 0, guard.state())
            meter.skip()
        log.tried(progress.step, guard, verdict.event, rows)
        last = verdict.stop is not None or progress.step == guard.total
        if run.held_out and (last or progress.step % config.log.valid_every == 0):
            with clock("validation"):
                log.valid(progress.step, run.validate())
        if examiner.is_due(progress.step, guard.total):
            with clock("evaluation"):
                log.evaluated(progress.step, examiner.ask(progress.step))
        stop = int(parallel.largest(told.number))  # all ranks hear it in the same step
        if meter.table is not None and (last or due or stop):
            line = {"step": progress.step} | done | meter.read(clock.read()) | guard.counts()
            log.step(line, meter.heat_map(progress.step, last))
        with clock("checkpoint"):
            if last or stop or saves:
                saver.save(progress, wait=bool(last or stop))
            saver.poll()
        dog.beat(progress.step)
        if verdict.stop:
            raise FloatingPointError(verdict.stop)
        if stop and (not last or examiner.owes(progress.step, guard.total)):
            said = f"{signals.name(stop)}: stopped after step {progress.step} of {guard.total}"
            log.note(f"{said}\nthe same command goes on from here")
            return False
    return True


def held_out_rows(config: Config) -> tuple[list[Row], Head]:
    """This rank's share of the first data.valid_rows held-out rows, and the head that judges them.

    The same rows on every layout: padding rows fill up where they do not divide by data ranks and
    pipeline stages.
    """
    if config.data.valid is None:
        return [], losses.head(config.loss, [])
    rows = _open(config.data.valid, config)
    rank, size = parallel.data_rank(), parallel.data_size()
    count, width = min(config.data.valid_rows, rows.num_rows), size * config.parallel.pp
    mine = rows.at_step(0, -(-count // width) * width, rank, size)
    kept = [row if rank + i * size < count else rows.empty_row() for i, row in enumerate(mine)]
    return kept, losses.head(config.loss, rows.sources, rows.domains)


if __name__ == "__main__":
    main(sys.argv[1:])
