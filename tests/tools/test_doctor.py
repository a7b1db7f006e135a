"""The doctor: what it concludes from a machine, and that nothing missing or broken stops it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import doctor

ROOT = Path(__file__).parents[2]
BARE = doctor.Machine(
    python="3.11.7",
    cores=2,
    memory_gib=24,
    disk_free_gib=70,
    packages=dict.fromkeys(doctor.PACKAGES) | {"torch": "2.13.0", "megatron-core": "0.16.1"},
)
H200 = doctor.Gpu("H200", 139.8, (9, 0))


def run(*args: str, **env: str) -> str:
    command = [sys.executable, "tools/doctor.py", *args]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_cpu_machine() -> None:
    said = " ".join(doctor.about_compute(BARE))
    assert "the CPU with fp32, gloo" in said and "attention.backend=sdpa" in said
    assert "At most 2 processes" in said and "70 GiB are free" in said
    assert doctor.about_software(BARE) == []


def test_gpu_that_torch_cannot_use() -> None:
    said = doctor.about_compute(dataclasses.replace(BARE, driver_gpus=["NVIDIA A100"]))[0]
    assert said == (
        "There is a NVIDIA A100, but torch cannot use it (built for CUDA none): "
        "remove .venv and run `make install`."
    )


@pytest.mark.parametrize(
    ("count", "verdict"),
    [(1, "140 GiB: full fine-tuning of Ling-Lite keeps 302 GB"), (8, "1118 GiB: Ling-Lite fits")],
)
def test_gpus(count: int, verdict: str) -> None:
    machine = dataclasses.replace(
        BARE, gpus=[H200] * count, nccl="2.29.7", varlen=True, grouped_mm=True
    )
    first, second = doctor.about_compute(machine)
    assert f"{count} × H200 with bf16, attention.backend=varlen" in first
    assert "experts.backend=torch (grouped_mm), NCCL 2.29.7" in first
    assert second.startswith(verdict)


def test_triton_wants_a_c_compiler() -> None:
    packages = BARE.packages | {"triton": "3.6.0"}
    machine = dataclasses.replace(BARE, gpus=[H200], varlen=True, packages=packages)
    said = doctor.about_compute(machine)
    assert "experts.backend=triton" in said[0]
    assert said[1].startswith("Triton cannot start its kernels: it needs a C compiler and Python.h")
    ready = dataclasses.replace(machine, c_compiler=True)
    assert not any("C compiler" in line for line in doctor.about_compute(ready))


def test_a_compiler_without_headers_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "mycc", "exit 0")
    monkeypatch.setenv("CC", str(tmp_path / "mycc"))
    paths = {"include": str(tmp_path)}
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: paths)
    assert not doctor.can_compile_c()
    (tmp_path / "Python.h").touch()
    assert doctor.can_compile_c()


def test_older_gpu_has_no_bf16() -> None:
    machine = dataclasses.replace(BARE, gpus=[doctor.Gpu("V100", 32, (7, 0))], varlen=True)
    first = doctor.about_compute(machine)[0]
    assert "fp32 (no bf16 before Ampere), attention.backend=sdpa, experts.backend=loop" in first


def test_missing_and_untested_packages() -> None:
    none = dataclasses.replace(BARE, packages=dict.fromkeys(doctor.PACKAGES))
    assert [s.split(":")[0] for s in doctor.about_software(none)] == [
        "torch is missing",
        "megatron-core is missing, so nothing can train",
    ]
    other = dataclasses.replace(BARE, packages=BARE.packages | {"megatron-core": "0.14.0"})
    assert doctor.about_software(other) == [
        "megatron-core 0.14.0 is untested here; 0.16.1 and 0.19.2 are tested."
    ]


def test_wandb_key_is_seen_but_never_shown(tmp_path: Path) -> None:
    secret = "5ecret" * 6
    for args in ([], ["--json"]):
        said = run(*args, WANDB_API_KEY=secret)
        assert secret not in said and "wandb: logged in" in said
    rc = tmp_path / "netrc"
    rc.write_text(f"machine api.wandb.ai\n login user\n password {secret}\n")
    said = run("--json", WANDB_API_KEY="", NETRC=str(rc))
    assert secret not in said and json.loads(said)["wandb_login"] is True
    rc.write_text("nonsense")
    assert json.loads(run("--json", WANDB_API_KEY="", NETRC=str(rc)))["wandb_login"] is False


def test_broken_torch_is_reported_not_raised(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open')")
    said = run(PYTHONPATH=str(tmp_path))
    assert "torch does not import: OSError: libcudart.so.13: cannot open" in said


def test_programs_that_fail_hang_or_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor.output_of("sinfo") is None
    program(tmp_path, "sinfo", "echo gpu 2 nodes; exit 1")
    assert doctor.output_of("sinfo") is None
    program(tmp_path, "sinfo", "echo gpu 2 nodes")
    assert doctor.output_of("sinfo") == ["gpu 2 nodes"]
    (tmp_path / "sinfo").write_text("not a program")
    assert doctor.output_of("sinfo") is None
    here = dataclasses.replace(BARE, slurm=["gpu 2 nodes"])
    assert "Slurm: gpu 2 nodes." in doctor.about_logging(here)
    assert any(
        "no partition" in s for s in doctor.about_logging(dataclasses.replace(here, slurm=[]))
    )


def test_little_disk_is_said() -> None:
    said = doctor.about_logging(dataclasses.replace(BARE, disk_free_gib=0.28))
    assert "Only 0.3 GiB of disk are free: checkpoints may not fit." in said
