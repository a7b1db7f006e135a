"""What isolates, and that nothing is run where it does not."""

import os
import struct
from pathlib import Path

import pytest

from megatron_ring.curation import sandbox
from megatron_ring.curation.sandbox import Job, Limits, SandboxError, probe
from megatron_ring.curation.sandbox import isolation as isolating
from megatron_ring.curation.sandbox.work import run_job
from tests.curation.sandboxed import isolated


def test_missing_bubblewrap_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "_proven", [])
    monkeypatch.setenv("PATH", str(tmp_path))
    marker = tmp_path / "ran"
    for call in (
        lambda: sandbox.run(f"open({str(marker)!r}, 'w')"),
        lambda: sandbox.run_tests("x = 1", "assert x"),
        lambda: next(sandbox.run_many([Job(program="x")])),
    ):
        with pytest.raises(SandboxError) as error:
            call()
        assert str(error.value) == (
            "bubblewrap is not installed (no bwrap on PATH), and nothing runs without it: "
            "apt-get install bubblewrap, or dnf install bubblewrap"
        )
    assert not marker.exists()


def fake_bwrap(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sandbox, "_proven", [])
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_old_bubblewrap_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    fake_bwrap(folder, "echo bubblewrap 0.6.1", monkeypatch)
    with pytest.raises(SandboxError) as error:
        sandbox.run("1")
    assert str(error.value) == (
        f"{folder}/bwrap is version 0.6.1; 0.8 or newer is wanted: install bubblewrap of "
        "Debian 12, Ubuntu 24.04 or later"
    )


@isolated
def test_setup_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    boot = folder / "boot.py"
    boot.write_text("1 / 0")
    shut_in = sandbox.proven()
    monkeypatch.setattr(isolating, "BOOT", boot)
    with pytest.raises(SandboxError) as error:
        run_job(shut_in, Job(program="1"), Limits())
    said = str(error.value)
    assert said.startswith("the sandbox could not be set up inside: Traceback")
    assert said.endswith("ZeroDivisionError: division by zero")


def test_unable_bubblewrap_is_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    script = """[ "$1" = --version ] && echo bubblewrap 0.9.0 && exit
echo bwrap: No permissions to create new namespace >&2; exit 1"""
    fake_bwrap(folder, script, monkeypatch)
    with pytest.raises(SandboxError) as error:
        sandbox.run("1")
    said = "bubblewrap could not isolate: bwrap: No permissions to create new namespace; to allow"
    assert str(error.value).startswith(said)


@isolated
def test_bubblewrap_that_isolates_nothing_is_found_out(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """The real one, without its own network."""
    real = sandbox.proven().bubblewrap
    script = f"""for given; do
  shift
  [ "$given" = --unshare-net ] || set -- "$@" "$given"
done
exec {real} "$@\""""
    fake_bwrap(folder, script, monkeypatch)
    with pytest.raises(SandboxError) as error:
        sandbox.run("1")
    assert str(error.value) == "the sandbox does not hold; network: reached, must be refused"


def test_each_part_of_the_proof_counts() -> None:
    probe.compare(dict(probe.EXPECTED))
    for name, wanted in probe.EXPECTED.items():
        with pytest.raises(SandboxError) as error:
            probe.compare({**probe.EXPECTED, name: "x"})
        said = f"the sandbox does not hold; {name}: x, must be {wanted}"
        hint = "; Linux 5.14 or newer counts the processes of each sandbox"
        assert str(error.value) == said + (hint if name == "forks" else "")


def test_kernel_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"/proc/sys/user/max_user_namespaces": "0\n"}
    settings["/proc/sys/kernel/apparmor_restrict_unprivileged_userns"] = "1\n"
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in settings)
    monkeypatch.setattr(Path, "read_text", lambda path: settings[str(path)])
    assert isolating.why_refused("bwrap: no\n") == (
        "bubblewrap could not isolate: bwrap: no; to allow it: "
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (it is 1) and "
        "sysctl -w user.max_user_namespaces=10000 (it is 0)"
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_answers(machine: str) -> None:
    """A slow reference: the filter, step by step as the kernel goes through it."""
    program = list(struct.iter_unpack("=HBBI", isolating.filter_program(machine)))

    def answer(number: int, architecture: int, first: int = 0) -> int:
        data, at, value = {0: number, 4: architecture, 16: first}, 0, 0
        while True:
            code, yes, no, k = program[at]
            if code == 0x06:
                return k
            if code == 0x20:
                value = data[k]
            else:
                at += yes if (value == k if code == 0x15 else value >= k) else no
            at += 1

    own = isolating.ARCHITECTURE[machine]
    refused, allowed = 0x50000 + 1, 0x7FFF0000
    for number in range(460):
        wanted = refused if number in isolating.REFUSED[machine] else allowed
        if number != isolating.SOCKET[machine]:
            assert answer(number, own) == wanted
    families = [answer(isolating.SOCKET[machine], own, family) for family in range(50)]
    assert [n for n, told in enumerate(families) if told == allowed] == [1, 2, 10]
    assert answer(0, 0x40000003) == 0x80000000  # 32-bit calls have other numbers
    assert machine == "aarch64" or answer(0x40000000, own) == 0x80000000
