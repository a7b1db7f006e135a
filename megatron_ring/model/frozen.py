"""A checkpoint opened to be read, not trained: scoring, sampling, comparing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_ring import config as configuration
from megatron_ring import parallel, platform
from megatron_ring.config import Config
from megatron_ring.convert.folder import newest, read_ring
from megatron_ring.model import weights
from megatron_ring.model.ling import LingModel, build_stages


def configure(path: str | Path, overrides: list[str], row_tokens: int | None = None) -> Config:
    """The configuration to open `path` with: its architecture, and `key.path=value` overrides.

    ConfigError when the folder is no checkpoint or the layout does not fit this launch, or rows of
    `row_tokens` do not fit the layout.
    """
    folder = newest(path)
    if weights.is_megatron(folder):
        model, _ = read_ring(folder)
    else:
        model = configuration.read_hf_config(folder)
    config = configuration.load(Config, [], overrides, base={"model": model.model_dump()})
    size = parallel.world_size() // (config.parallel.tp * config.parallel.pp) or 1
    fitting = config.model_copy(
        update={"data": config.data.model_copy(update={"rows_per_step": size * config.parallel.pp})}
    )
    parallel.check_layout(fitting, parallel.world_size(), row_tokens)
    return config


def tokenizer_folder(path: str | Path) -> Path:
    """Where a checkpoint of either kind keeps its tokenizer."""
    folder = newest(path)
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


@contextmanager
def opened(path: str | Path, config: Config, patience: float = 1800.0) -> Iterator[list[LingModel]]:
    """This rank's model chunks with the weights of `path`, in eval mode, inside process groups.

    A collective fails after `patience` seconds.
    """
    device = platform.prepare()
    with parallel.process_groups(config.parallel, device, config.run.seed, patience):
        stages = build_stages(config, platform.dtype(config.run.dtype), device)
        weights.fill(stages, weights.open_weights(path))
        for stage in stages:
            stage.eval()
        yield stages
