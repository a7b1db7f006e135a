"""Where a run's numbers go beside its own folder: wandb and TensorBoard, under the same keys."""

import importlib.util
import netrc
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

import numpy as np

from megatron_ring.config import Config, ConfigError

CELL = 8  # pixels of an expert in a heat map, each way
# As report/page.js has them: nobody, a fair share, thrice as much or more.
SHARES = (0.0, 1.0, 3.0)
COLOURS = ((0x2F, 0x5F, 0xD0), (0xF3, 0xF4, 0xF6), (0xE0, 0x71, 0x2F))


class Tracker(Protocol):
    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Numbers of one step; a step may come in several calls."""

    def picture(self, step: int, name: str, fair: list[list[float]]) -> None:
        """A heat map of layers × experts, in multiples of a fair share."""

    def close(self) -> None:
        """Wait until all is written."""


def check(config: Config) -> None:
    """ConfigError when a package is missing."""
    if config.log.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "log.tensorboard=true needs a package that is not installed: pip install tensorboard"
        )


def opened(config: Config, resumed_step: int, warn: Callable[[str], None]) -> list[Tracker]:
    """Those that are switched on; earlier steps than the next to come are kept.

    ConfigError when wandb must be online and is not reached.
    """
    found: list[Tracker] = []
    if config.log.wandb != "disabled":
        found.append(Wandb(config, warn))
    if config.log.tensorboard:
        found.append(TensorBoard(config, resumed_step))
    return found


class Wandb:
    """A wandb run, online with a login; a resumed run goes on under the same id.

    Steps that a killed run had logged and that run again are the same but for their times: wandb
    keeps the first, or both.
    """

    def __init__(self, config: Config, warn: Callable[[str], None]) -> None:
        self.run = _start_wandb(config, warn)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self.run.log(numbers, step=step)

    def picture(self, step: int, name: str, fair: list[list[float]]) -> None:
        import wandb

        said = "rows are layers, columns experts; blue: nobody, white: a fair share, orange: 3 × it"
        self.run.log({name: wandb.Image(coloured(fair), caption=said)}, step=step)

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in RUN/tensorboard; of steps that run again the later ones count."""

    def __init__(self, config: Config, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(config.run.dir) / "tensorboard"
        self.writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def log(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, fair: list[list[float]]) -> None:
        self.writer.add_image(name, coloured(fair), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


def coloured(fair: list[list[float]]) -> np.ndarray:
    """uint8 [layers × CELL, experts × CELL, 3]: blue below, white at, orange above a fair share."""
    channels = [np.interp(fair, SHARES, channel) for channel in zip(*COLOURS, strict=True)]
    return np.stack(channels, -1).round().astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)


def has_wandb_login() -> bool:
    """Is there a key in the environment or, where `wandb login` puts it, in $NETRC or ~/.netrc?"""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _start_wandb(config: Config, warn: Callable[[str], None]) -> Any:
    """A wandb run that resumes under the same id; offline if need be, where that is allowed."""
    import wandb

    asked = config.log.wandb
    if asked == "offline" or (asked == "auto" and not has_wandb_login()):
        return _wandb_run(config, "offline")
    try:
        return _wandb_run(config, "online")
    except wandb.errors.Error as error:
        # Of its first line only: the others name the server, maybe with a password in its URL.
        reason = f"wandb: {type(error).__name__}: {str(error).splitlines()[0]}"
    if asked == "online":
        raise ConfigError(f"log.wandb=online, but {reason}; log.wandb=offline keeps the numbers")
    wandb.teardown()  # else the run's id is in use
    warn(f"{reason}; on with log.wandb=offline (`wandb sync` sends what {config.run.dir} keeps)")
    return _wandb_run(config, "offline")


def _wandb_run(config: Config, mode: str) -> Any:
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # else it prints the server's URL, password and all
    folder = Path(config.run.dir)
    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))
    return wandb.init(
        project=config.log.project,
        name=config.run.name or folder.name,
        id=id_file.read_text().strip(),
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=config.model_dump(),
        settings=wandb.Settings(silent=True, console="off"),
    )
