"""Damaged checkpoints: seen, named, skipped; what is then trained is what would have been."""

import json
import shutil

import pytest

from megatron_ring.convert import checksums
from tests.runs import copied, lines, options, run, same_losses, steps


@pytest.fixture(scope="module")
def calm(packed, tmp_path_factory):
    """Eight undisturbed steps on two ranks, all four checkpoints kept."""
    folder = tmp_path_factory.mktemp("calm")
    run(2, options(packed, folder / "run", "parallel.ep=2"), folder / "ranks")
    return folder / "run"


def largest(folder):
    """The checkpoint's largest data file."""
    return max(folder.glob("*.distcp"), key=lambda file: file.stat().st_size)


def flip(file):
    """Change one bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flipped_byte(folder):
    file = largest(folder)
    before = checksums.of_file(file).xxh128
    flip(file)
    after = checksums.of_file(file).xxh128
    return f"{file} has checksum {after}, checksums.json says {before}"


def truncated_file(folder):
    file = largest(folder)
    size = file.stat().st_size
    cut(file)
    return f"{file} is cut short: .metadata expects {size:,} bytes, the file has {size - 100:,}"


def truncated_small_file(folder):
    file = folder / "rng.safetensors"
    size = file.stat().st_size
    cut(file)
    return f"{file} has {size - 100:,} bytes, checksums.json says {size:,}"


def missing_file(folder):
    largest(folder).unlink()
    return "distcp is missing"


def flipped_metadata(folder):
    flip(folder / ".metadata")
    return ".metadata"


def cut_ring(folder):
    cut(folder / "ring.json")
    return "ring.json is not JSON"


def no_ring(folder):
    (folder / "ring.json").unlink()
    return "there is no"


def no_checksums(folder):
    (folder / "checksums.json").unlink()
    return "checksums.json is missing"


def cut_checksums(folder):
    cut(folder / "checksums.json")
    return "checksums.json is damaged"


@pytest.mark.parametrize(
    "damage",
    [
        flipped_byte,
        truncated_file,
        truncated_small_file,
        missing_file,
        flipped_metadata,
        cut_ring,
        no_ring,
        no_checksums,
        cut_checksums,
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_line(damage, calm, packed, tmp_path, capfd):
    """The run goes on from the one before, and nothing is lost but the steps between."""
    resumed = copied(calm, tmp_path / "run", 2, 4, 6)
    message = damage(resumed / "checkpoints/step-00000006")
    run(2, options(packed, resumed, "parallel.ep=2"), tmp_path / "ranks")
    said = capfd.readouterr()
    name = resumed / "checkpoints/step-00000006"
    warnings = [line for line in said.err.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2, said.err
    assert warnings[0].startswith(f"WARNING: {name} is DAMAGED and not used: ")
    assert message in warnings[0]
    assert warnings[1] == f"WARNING: moved to {name}.damaged; delete it when you have looked at it"
    assert "resuming after step 4 of 8" in said.out
    same_losses(resumed, calm)
    # What it saves in its place is whole, byte by byte what the undisturbed run has.
    again, first = (checksums.read(x / "checkpoints/step-00000006") for x in (resumed, calm))
    data = [key for key in first if key.endswith((".distcp", ".safetensors"))]
    assert len(data) >= 3
    assert [again[key] for key in data] == [first[key] for key in data]
    assert steps(resumed)[2:4] == ["step-00000006", "step-00000006.damaged"]


def test_two_damaged_ones_and_then_none_is_left(calm, packed, tmp_path, capfd):
    resumed = copied(calm, tmp_path / "run", 2, 4, 6)
    for number in (4, 6):
        flip(largest(resumed / f"checkpoints/step-{number:08d}"))
    run(2, options(packed, resumed, "parallel.ep=2", "optim.steps=3"), tmp_path / "ranks")
    assert "resuming after step 2 of 3" in capfd.readouterr().out
    assert steps(resumed) == [
        "step-00000002",
        "step-00000003",
        "step-00000004.damaged",
        "step-00000006.damaged",
    ]
    for number in (2, 3):
        flip(largest(resumed / f"checkpoints/step-{number:08d}"))
    with pytest.raises(RuntimeError, match="all 2 checkpoints of .* are damaged") as error:
        run(1, options(packed, resumed), tmp_path / "ranks-again")
    assert "choose another run.dir to start anew" in str(error.value)
    assert "step-00000002" in steps(resumed), "nothing is renamed when there is nothing better"


def test_without_checksums_from_before(calm, packed, tmp_path, capfd):
    """Checkpoints of earlier versions load, with a remark."""
    resumed = copied(calm, tmp_path / "run", 4)
    folder = resumed / "checkpoints/step-00000004"
    (folder / "checksums.json").unlink()
    ring = json.loads((folder / "ring.json").read_text())
    del ring["checksums"]
    (folder / "ring.json").write_text(json.dumps(ring))
    run(2, options(packed, resumed, "parallel.ep=2"), tmp_path / "ranks")
    said = capfd.readouterr().err
    assert f"WARNING: {folder} is from before there were checksums; only sizes" in said
    same_losses(resumed, calm)


def test_verify_false_compares_sizes_only(calm, packed, tmp_path, capfd):
    resumed = copied(calm, tmp_path / "run", 2, 4)
    more = ["parallel.ep=2", "checkpoint.verify=false"]
    flip(resumed / "checkpoints/step-00000004/rng.safetensors")
    run(2, options(packed, resumed, *more, "optim.steps=4"), tmp_path / "ranks")
    said = capfd.readouterr()
    assert "resuming after step 4 of 4" in said.out
    assert "WARNING" not in said.err
    cut(resumed / "checkpoints/step-00000004/rng.safetensors")
    run(2, options(packed, resumed, *more, "optim.steps=2"), tmp_path / "ranks-again")
    said = capfd.readouterr()
    assert "resuming after step 2 of 2" in said.out
    assert "rng.safetensors has " in said.err


def test_a_save_that_was_cut_off_is_no_checkpoint(calm, packed, tmp_path, capfd):
    resumed = copied(calm, tmp_path / "run", 4)
    shutil.copytree(
        resumed / "checkpoints/step-00000004", resumed / "checkpoints/step-00000006.tmp"
    )
    run(2, options(packed, resumed, "parallel.ep=2"), tmp_path / "ranks")
    assert "WARNING" not in capfd.readouterr().err
    assert steps(resumed) == ["step-00000004", "step-00000006", "step-00000008"]
    assert max(lines(resumed)) == 8


def test_every_file_of_a_checkpoint_is_in_the_list_and_dealt_once(calm):
    folder = calm / "checkpoints/step-00000006"
    entries = checksums.read(folder)
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert set(entries) == files - {"checksums.json"}
    assert all(checksums.problem(folder, *entry) is None for entry in entries.items())
    for size in (1, 2, 3, 50):
        dealt = [name for rank in range(size) for name in checksums.deal(entries, rank, size)]
        assert sorted(dealt) == sorted(entries)
    loads = [sum(entries[n].num_bytes for n in checksums.deal(entries, r, 2)) for r in (0, 1)]
    assert abs(loads[0] - loads[1]) <= max(entry.num_bytes for entry in entries.values())
