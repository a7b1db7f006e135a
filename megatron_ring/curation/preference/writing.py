"""What a blend leaves in its folder: pairs, the manifest that packs them, and what was left out."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_ring.config.base import ConfigError
from megatron_ring.curation.preference.blend import PARTS, Blend, Part
from megatron_ring.curation.shards import dump, write_json, write_lines, writing

LEFT_OUT, MANIFEST, REPORT = "left_out.jsonl", "pack.yaml", "report.json"


@dataclass
class Written:
    """Of the pairs of a part, counted as they are written."""

    pairs: int = 0
    reference: int = 0  # of them, whose chosen answer is the record's own
    chosen_characters: int = 0
    rejected_characters: int = 0
    overlap: float = 0.0

    def add(self, pair: dict[str, Any]) -> None:
        self.pairs += 1
        self.reference += pair["preference"]["chosen"] == "reference"
        self.chosen_characters += len(pair["chosen"])
        self.rejected_characters += len(pair["rejected"])
        self.overlap += pair["preference"]["overlap"]

    def means(self) -> dict[str, Any]:
        """Mean characters of both sides, and the chosen's mean overlap."""
        number = max(1, self.pairs)
        return {
            "chosen_is_reference": self.reference,
            "chosen_characters": round(self.chosen_characters / number),
            "rejected_characters": round(self.rejected_characters / number),
            "chosen_overlap": round(self.overlap / number, 4),
        }


def check_output(folder: Path) -> None:
    """ConfigError where writing would destroy what no blend wrote."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output={folder} is a file; name a folder")
    if (folder / MANIFEST).exists() and not (folder / LEFT_OUT).exists():
        raise ConfigError(f"output={folder} has another {MANIFEST} in it; choose another folder")
    for name in PARTS:
        if (folder / f"{name}.jsonl").exists() and not (folder / LEFT_OUT).exists():
            raise ConfigError(
                f"output={folder} has a {name}.jsonl that no blend wrote; choose another folder"
            )


def write_blend(blend: Blend) -> dict[str, Any]:
    """Write a planned blend; its report comes back.

    A file of pairs a part, left_out.jsonl, report.json and pack.yaml, each whole or not there.
    """
    folder = Path(blend.options.output)
    check_output(folder)
    report: dict[str, Any] = {"seed": blend.options.seed, "parts": {}}
    sources = []
    for name in PARTS:
        path = folder / f"{name}.jsonl"
        part = blend.parts.get(name)
        if part is None or not part.made:
            path.unlink(missing_ok=True)  # of an earlier blend
        if part is None:
            continue
        written = Written()
        if part.made:
            with writing(path, synced=True) as file:
                for pair in blend.pairs(name):
                    written.add(pair)
                    file.write(dump(pair))
            assert written.pairs == part.made, f"{written.pairs} pairs written, {part.made} planned"
            spans = {"format_spans": "format_spans"} if name == "structure" else {}
            sources.append({"path": str(path), "name": name, **spans})
        report["parts"][name] = summary(part) | written.means()
    left = (
        dump({"part": name, **one}) for name, part in blend.parts.items() for one in part.left_out
    )
    write_lines(folder / LEFT_OUT, left, synced=True)
    write_json(folder / REPORT, report)
    with writing(folder / MANIFEST) as file:
        file.write(yaml.safe_dump({"kind": "pairs", "sources": sources}, sort_keys=False).encode())
    return report


def summary(part: Part) -> dict[str, Any]:
    """Counts of a part: records read are records used and records left out, by reason."""
    reasons = Counter(one["reason"] for one in part.left_out)
    told = {
        "asked": part.asked,
        "made": part.made,
        "short": part.asked - part.made,
        "by": {rule: asdict(cell) for rule, cell in part.cells.items()},
        "records_read": part.read,
        "records_used": len(part.kept),
        "left_out": dict(reasons.most_common()),
    }
    verdicts = {"answers_judged": dict(sorted(part.verdicts.items()))} if part.verdicts else {}
    return told | verdicts
