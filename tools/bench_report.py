"""How long a report takes: to write, and to open in headless Chromium, for a run of many steps.

\b
Examples:
    python tools/bench_report.py
    python tools/bench_report.py --steps 100000 --repeats 5
    python tools/bench_report.py --steps 400 --sample DIR    only writes a made-up run folder

The run is made up: curves of the usual shapes, every key a run may log, spikes and restarts among
them. Opening is measured by the browser from the start of navigation until its load event, when
all charts of the first screen are drawn; Debian's chromium and chromium-driver are needed.
"""

import json
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from numpy.random import Generator

from megatron_ring.report import data, page

SOURCES = ("reasoning", "chat", "code")
DOMAINS = ("mathematics", "physics", "software", "law", "medicine")
PARTS = ("embedding", "attention", "router", "experts", "shared_experts", "mlp", "norm", "head")
LAYERS, EXPERTS = 27, 64
START = 1_764_000_000.0  # a moment in November 2025

app = typer.Typer(add_completion=False, rich_markup_mode=None)


def write_run(
    folder: Path, steps: int, head: str = "sft", seed: int = 0, sources: tuple[str, ...] = SOURCES
) -> Path:
    """A run folder as training leaves it, made up: metrics, events, spikes, configuration."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    every = max(steps // 40, 1)
    restart = steps // 2
    spiked = set(rng.choice(np.arange(steps // 10, steps), size=5, replace=False).tolist())
    log, diary, skipped = [], [_event(START - 60, 0, "start", steps, 0)], []
    seconds, now = rng.gamma(60, 1 / 60, steps) * 0.9, START
    for step in range(1, steps + 1):
        now += float(seconds[step - 1])
        if step == restart:
            now += 0.05 * steps
            diary.append(_event(now - 20, step - 1, "resume", steps, 1))
        if step in spiked:
            skipped.append(_spike(step, rng, sources))
            numbers = {f"spike_{k}": skipped[-1][k] for k in ("loss", "grad_norm")}
            log.append({"step": step, "time": now} | numbers)
            diary.append(
                {"time": now, "step": step, "kind": "spike", "text": f"step {step}: a spike"}
            )
            continue
        line = _training(step / steps, rng, head, sources) | {
            "step": step,
            "time": now,
            "step_seconds": float(seconds[step - 1]),
            "skipped": len(skipped),
            "queued": len(skipped) % 2,
            "dropped": 0,
            "goodput": 0.97 - 0.05 * (step >= restart),
        }
        log.append(line)
        if step % every == 0 or step == 1:
            held_out = {k: v for k, v in line.items() if k.split("/")[0] in HELD_OUT[head]}
            log.append({"step": step, "time": now} | {f"valid_{k}": v for k, v in held_out.items()})
            log.append({"step": step, "time": now, "first_layer": 2} | _map(step / steps, rng))
            diary.append({"time": now, "step": step, "kind": "saved", "text": f"step-{step:08d}"})
    diary.append({"time": now, "step": steps // 3, "kind": "warning", "text": "2 experts are dead"})
    diary.append({"time": now, "step": steps, "kind": "finished", "text": f"{steps} steps"})
    for name, lines in (("metrics", log), ("events", diary), ("spikes", skipped)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    config = {"loss": {"head": head}, "optim": {"lr": 4e-5 * 2**seed}, "run": {"seed": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


HELD_OUT = {
    "sft": ("loss", "domain_loss"),
    "dpo": ("loss", "preference_loss", "accuracy", "margin", "reward_chosen", "reward_rejected"),
}


def _event(when: float, step: int, kind: str, total: int, restart: int) -> dict[str, Any]:
    more = {"total": total, "world_size": 8, "restart": restart}
    return {"time": when, "step": step, "kind": kind, "text": f"{kind} on 8 ranks"} | more


def _spike(step: int, rng: Generator, sources: tuple[str, ...]) -> dict[str, Any]:
    """A line of spikes.jsonl."""
    return {
        "step": step,
        "batch": step - 1,
        "retry": 0,
        "loss": float(4 + 6 * rng.random()),
        "grad_norm": float(20 + 30 * rng.random()),
        "loss_median": 1.2,
        "loss_limit": 1.6,
        "grad_norm_median": 0.8,
        "grad_norm_limit": 2.1,
        "verdict": "kept",
        "again_at": step + 40,
        "lr_scale": 1.0,
        "rows": [step * 8, step * 8 + 1],
        "sources": list(sources[:2]),
    }


def _training(done: float, rng: Generator, head: str, sources: tuple[str, ...]) -> dict[str, Any]:
    """A training line but for the times; `done` is the part of the run behind it."""
    noise = rng.normal(size=40).tolist()
    lr = 4e-5 * min(done / 0.03, 0.5 * (1 + math.cos(math.pi * done)))
    norm = 0.6 + 4 * math.exp(-30 * done) + 0.1 * abs(noise[0])
    tokens = 8 * 16_384 + int(500 * noise[1])
    speed = 5_400 * (1 + 0.01 * noise[2])
    line: dict[str, Any] = {
        "lr": lr,
        "grad_norm": norm,
        "tokens": tokens,
        "supervised": int(tokens * 0.7),
        "tokens_per_second": 8 * speed,
        "tokens_per_second_per_device": speed,
        "tflops_per_device": speed * 0.02,
        "mfu": speed * 0.02 / 989,
        "memory_gib": 61.3 + 0.2 * (done > 0.1),
        "aux_loss": 1.02 + 0.2 * math.exp(-20 * done) + 0.004 * noise[3],
        "z_loss": 2.4 + 0.02 * noise[4],
        "router_entropy": 0.72 - 0.08 * done + 0.003 * noise[5],
        "load_max_over_mean": 1.6 + 2 * math.exp(-20 * done) + 0.03 * noise[6],
        "load_worst_layer": 2.4 + 4 * math.exp(-15 * done) + 0.1 * noise[7],
        "load_entropy": 0.985 - 0.05 * math.exp(-20 * done) + 0.001 * noise[8],
        "dead_experts": int(5 * math.exp(-25 * done)),
    }
    for i, part in enumerate(PARTS):
        line[f"grad_norm/{part}"] = norm * (0.15 + 0.08 * i) * (1 + 0.05 * noise[9 + i])
    parts = {"data": 0.01, "forward_backward": 0.78, "optimizer": 0.06, "checkpoint": 0.02}
    for i, (part, seconds) in enumerate((parts | {"validation": 0.03, "other": 0.01}).items()):
        line[f"seconds/{part}"] = seconds * (1 + 0.1 * abs(noise[17 + i]))
    return line | (_sft if head == "sft" else _dpo)(done, noise[23:], sources)


def _sft(done: float, noise: list[float], sources: tuple[str, ...]) -> dict[str, Any]:
    loss = 0.85 + 1.4 * math.exp(-8 * done)
    line: dict[str, Any] = {"loss": loss + 0.04 * noise[0]}
    for i, source in enumerate(sources):
        line[f"loss/{source}"] = loss * (0.8 + 0.25 * i) + 0.06 * noise[1 + i]
        line[f"tokens/{source}"] = int(9e4 * (0.6, 0.3, 0.1)[i % 3] * (1 + 0.1 * noise[4 + i]))
    for i, domain in enumerate(DOMAINS):
        line[f"domain_loss/{domain}"] = loss * (0.7 + 0.15 * i) + 0.08 * noise[7 + i]
        line[f"domain_tokens/{domain}"] = int(2e4 * (1 + 0.1 * abs(noise[12 + i % 3])))
    return line


def _dpo(done: float, noise: list[float], sources: tuple[str, ...]) -> dict[str, Any]:
    """Each number also for each source, a little apart."""

    def numbers(shift: float, noise: list[float]) -> dict[str, float]:
        margin = 2.2 * (1 - math.exp(-4 * done)) * (1 + shift) + 0.12 * noise[0]
        loss = math.log1p(math.exp(-margin))
        chosen = -0.3 * done + 0.05 * noise[1]
        return {
            "loss": loss + 0.05,
            "preference_loss": loss,
            "accuracy": min(max(0.5 + 0.42 * (1 - math.exp(-6 * done)) + 0.04 * noise[2], 0), 1),
            "margin": margin,
            "reward_chosen": chosen,
            "reward_rejected": chosen - margin,
            "logp_chosen": -180 - 4 * done + 6 * noise[3],
            "logp_rejected": -190 - 22 * done + 6 * noise[4],
            "tokens_chosen": 240 + 20 * noise[5],
            "tokens_rejected": 235 + 20 * noise[6],
            "kl": 0.02 * done + 0.001 * noise[7],
            "nll_chosen": 0.75 + 0.02 * noise[8],
            "format_share": 0.3 + 0.3 * done + 0.02 * noise[9],
            "pairs": 64 * (1 + shift),
        }

    line = numbers(0.0, noise)
    for i, source in enumerate(sources[:2]):
        own = numbers(0.2 - 0.5 * i, noise[3 + i :])
        line |= {f"{key}/{source}": value for key, value in own.items()}
    return line


def _map(done: float, rng: Generator) -> dict[str, Any]:
    """A heat map line's load: uneven at first, two experts of one layer without visits."""
    load = rng.gamma(4 + 20 * done, 1, (LAYERS, EXPERTS))
    load[3, 10:12] *= 0 if done < 0.3 else 0.5
    load[20, 40] *= 3
    return {"expert_load": (load / load.mean(1, keepdims=True)).round(3).tolist()}


def browser() -> Any:
    """Headless Chromium under selenium; FileNotFoundError where Debian's packages are missing."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        missing = "chromium" if program is None else "chromium-driver"
        raise FileNotFoundError(f"no {missing} here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument("--disable-dev-shm-usage")  # 64 MB of it, in most containers
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def resize(chrome: Any, width: int, height: int) -> None:
    """The page's own size, without the window around it."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def seconds_to_open(chrome: Any, file: Path) -> float:
    """From the start of navigation until the first screen's charts are on it."""
    chrome.get("about:blank")
    chrome.get(file.resolve().as_uri())
    # Two frames later what the load event has left is painted.
    painted = "const done = arguments[0]; const two = () => requestAnimationFrame(() => "
    painted += "requestAnimationFrame(() => done(performance.now())))"
    waiting = "; const plots = () => [...document.querySelectorAll('.plot')].filter((e) => "
    waiting += "e.getBoundingClientRect().top < innerHeight); const look = () => plots().every("
    waiting += "(e) => e.querySelector('.main-svg')) ? two() : setTimeout(look, 5); look();"
    return chrome.execute_async_script(painted + waiting) / 1000


@app.command(help=__doc__)
def main(
    steps: Annotated[int, typer.Option(help="steps of the made-up run")] = 100_000,
    repeats: Annotated[int, typer.Option(help="times the page is opened")] = 5,
    sample: Annotated[Path | None, typer.Option(help="write the run here, and stop")] = None,
    head: Annotated[str, typer.Option(help="sft or dpo")] = "sft",
    seed: Annotated[int, typer.Option(help="of the made-up numbers")] = 0,
) -> None:
    if sample is not None:
        print(f"wrote {write_run(sample, steps, head, seed)}")
        return
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run", steps, head, seed)
        size = (run / "metrics.jsonl").stat().st_size / 2**20
        began = time.perf_counter()
        text = page.render(data.read([run]), "bench")
        took = time.perf_counter() - began
        file = Path(folder) / "report.html"
        file.write_text(text, encoding="utf-8")
        print(f"{steps:,} steps, metrics.jsonl of {size:.0f} MiB: page written in {took:.1f} s")
        print(f"page: {file.stat().st_size / 2**20:.1f} MiB, of it data {_data_mib(text):.1f} MiB")
        chrome = browser()
        try:
            resize(chrome, 1440, 900)
            found = [seconds_to_open(chrome, file) for _ in range(repeats)]
        finally:
            chrome.quit()
    print(f"opened in {min(found):.2f} to {max(found):.2f} s ({repeats} times)")


def _data_mib(text: str) -> float:
    return (text.index("</script>", text.index('id="data">')) - text.index('id="data">')) / 2**20


if __name__ == "__main__":
    app()
