"""What a run leaves: kept records, the report with its funnel, the card, and whose rounds they are.

kept.jsonl and report.json are the same for the same replies; card.json tells of the
run: date, machine, and what all runs paid.
"""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash
import yaml

from megatron_ring.config.base import ConfigError, content_of
from megatron_ring.config.curation.synthesis import SynthesisConfig
from megatron_ring.curation.finish import versions
from megatron_ring.curation.segment import CARD, REPORT, Paths
from megatron_ring.curation.shards import read_json, write_json, write_lines, writing
from megatron_ring.curation.synthesis import charts, funnel
from megatron_ring.curation.synthesis.making import DONE, KEPT

if TYPE_CHECKING:
    from megatron_ring.curation.synthesis.rounds import Rounds

# Keys that a finished round need not share with the next: what is wanted, and how much of it.
MAY_CHANGE = (
    "total rounds per_round topics targets expected_yield domain.difficulties taxonomy"
).split()
NO_MATTER = ("output", "data")


def check_recipe(
    config: SynthesisConfig, paths: Paths, found: dict[str, Any], tell: Callable[[str], None]
) -> str:
    """Remember what the rounds are made from; its fingerprint.

    What only says how much is wanted may be another than before, and that is told. ConfigError
    where finished rounds were made from something else.
    """
    told = dict(_flat(content_of(config)))
    told = {key: value for key, value in told.items() if key.split(".")[0] not in NO_MATTER}
    for name, one in found.items():
        told |= {f"{name}: {f[1]}": s for f, s in zip(one["files"], one["sha256"], strict=True)}
    recorded = paths.work / "recipe.json"
    old = read_json(recorded)
    if old is not None and old != told and list(paths.output.glob(f"rounds/*/{DONE}")):
        changed = [key for key in {**old, **told} if old.get(key) != told.get(key)]
        shown = [f"{key}: {_cut(old.get(key))} -> {_cut(told.get(key))}" for key in changed]
        other = [one for key, one in zip(changed, shown, strict=True) if not _may_change(key)]
        if other:
            raise ConfigError(
                f"output={config.output}: its rounds were made by another recipe "
                f"({'; '.join(other)}). Choose another output, or remove "
                f"{paths.output / 'rounds'}: replies are kept apart, and what is asked again in "
                "the same words costs nothing"
            )
        tell(f"another recipe from here on ({'; '.join(shown)}); finished rounds stay")
    write_json(recorded, told)
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())


def _may_change(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and plain values."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from _flat(one, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value:
        for index, one in enumerate(value):
            yield from _flat(one, f"{key}.{index}")
    else:
        yield key, value


def _cut(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}..."


def write(
    config: SynthesisConfig, paths: Paths, found: dict[str, Any], rounds: "Rounds"
) -> dict[str, Any]:
    """Write all files but those of rounds; the report."""
    output = paths.output
    folders = [output / f"rounds/{number + 1:02d}" for number in range(len(rounds.done))]
    write_lines(output / "kept.jsonl", _lines(folders), synced=True)
    _write_source(config, output)
    with writing(output / "recipe.yaml") as file:
        tree = config.model_dump(mode="json")
        file.write(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode())
    report = make_report(rounds)
    write_json(output / CARD, _card(config, found, rounds))
    with writing(output / "funnel.html") as file:
        file.write(charts.page(report, config.name).encode())
    write_json(output / REPORT, report)
    return report


def _lines(folders: list[Path]) -> Iterator[bytes]:
    for folder in folders:
        with (folder / KEPT).open("rb") as file:
            yield from file


def _write_source(config: SynthesisConfig, output: Path) -> None:
    """The file that tools/curate.py run takes in front of a recipe of stages."""
    source = {"path": str(output / "kept.jsonl"), "form": "record"}
    tree = {"sources": {config.name: {**source, "constants": {"kind": "reasoning"}}}}
    with writing(output / "source.yaml") as file:
        file.write(yaml.safe_dump(tree, sort_keys=False).encode())


def make_report(rounds: "Rounds") -> dict[str, Any]:
    """The funnel in all, by round, by cell; what was used of the models, by purpose."""
    cells = {}
    quotas = {quota.cell.name: quota for quota in rounds.quotas}
    names = [*quotas, *(name for done in rounds.done for name in done["cells"])]
    for name in dict.fromkeys(names):  # quotas may have been others in earlier rounds
        own = [done["cells"][name] for done in rounds.done if name in done["cells"]]
        about = {"wanted": 0}
        if name in quotas:
            about = {"wanted": quotas[name].wanted, "supply": round(quotas[name].supply, 3)}
        cells[name] = {**about, **funnel.add(own)}
    each = [funnel.add(done["cells"].values()) for done in rounds.done]
    used: dict[str, dict[str, float]] = {}
    for each_used in [rounds.used, *(done["used"] for done in rounds.done)]:
        for purpose, counts in each_used.items():
            one = used.setdefault(purpose, dict.fromkeys(counts, 0))
            for key, value in counts.items():
                one[key] += value
    wanted = sum(quota.wanted for quota in rounds.quotas)
    total = funnel.add(each)
    warnings = []
    if total["kept"] < wanted:
        warnings.append(
            f"{total['kept']:,} of {wanted:,} problems after {len(each)} rounds; raise rounds, or "
            "look at what is rejected: tools/synthesize.py show OUT"
        )
    return {
        "wanted": wanted,
        "total": total,
        "used": used,
        "rounds": [
            {"round": number, **counts, "used": done["used"], "recipe": done["recipe"]}
            for number, (counts, done) in enumerate(zip(each, rounds.done, strict=True), 1)
        ],
        "cells": cells,
        "left_out": {n: [why.reason, why.evidence] for n, why in rounds.left_out.items()},
        "input": rounds.material.counts,
        "warnings": warnings,
    }


def _card(config: SynthesisConfig, found: dict[str, Any], rounds: "Rounds") -> dict[str, Any]:
    inputs = [
        {"of": name, "source": file[0], "path": file[1], "bytes": file[2], "sha256": checksum}
        for name, one in found.items()
        for file, checksum in zip(one["files"], one["sha256"], strict=True)
    ]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": versions(),
        "inputs": inputs,
        "paid by all runs": rounds.models.paid(),
        "recipe": config.model_dump(mode="json"),
    }
