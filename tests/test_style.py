"""The house rules, enforced: who may import whom, how long things may grow, what is never done."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TOOLS = ROOT / "megatron_ring", ROOT / "tools"
FILES = sorted(PACKAGE.rglob("*.py")) + sorted(TOOLS.glob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
LONG_BY_NATURE: set[str] = set()  # "file.py:function", each agreed on in review
# Files that read the pickled index of a checkpoint, with an unpickler that knows a few names only.
MAY_PICKLE = {"megatron_ring/convert/torch_dist.py"}

# Nothing imports a part below it. A leaf knows config and libraries; layer 1 also kernels; layer 2
# has an order of its own, because saving, stepping and measuring are done to a model.
LEAVES = {
    "config",
    "kernels",
    "convert",
    "curation",
    "evaluation",
    "effects",
    "run_folder",
    "signals",
    "small_corpus",
    "think",
}
LAYER_1 = {
    "data",
    "losses",
    "parallel",
    "optim",
    "platform",
    "profiling",
    "spikes",
    "stopwatch",
    "watchdog",
}
LAYER_2 = {
    "model": set(),
    "step": {"model"},
    "writing": set(),
    "recovery": set(),
    "checkpoint": {"model", "writing", "recovery"},
    "saving": {"model", "checkpoint"},
    "metrics": {"model", "step"},
    "gradient_norms": set(),
    "trackers": set(),
    "journal": {"trackers"},
    "following": set(),
    "reference": {"model", "step"},
    "sampling": {"model", "step"},
}
MAY_IMPORT = (
    {part: {"config", "think"} for part in LEAVES}
    | {"__init__": set(), "config": set(), "think": set()}
    | {part: {"config", "think", "kernels"} for part in LAYER_1}
    | {part: LEAVES | LAYER_1 | above for part, above in LAYER_2.items()}
    | {"train": LEAVES | LAYER_1 | set(LAYER_2)}
    | {"planner": LEAVES | LAYER_1 | {"model"}}
    | {"report": {"run_folder", "spikes"}}
    | {"evaluation": {"config", "curation", "think"}}
    | {"effects": {"config", "curation", "evaluation", "run_folder"}}
)
KNOWS_MEGATRON = {
    "parallel",
    "optim",
    "platform",
    "model",
    "writing",
    "checkpoint",
    "saving",
    "step",
    "gradient_norms",
    "planner",
    "train",
}
KNOWS_NO_TORCH = {
    "__init__",
    "config",
    "curation",
    "evaluation",
    "effects",
    "signals",
    "spikes",
    "run_folder",
    "report",
    "small_corpus",
    "following",
    "think",
}


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of all that is imported; "." stands for a relative import."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
            names += ["."] * bool(node.level)
    return names


def layering(tree: ast.AST, part: str) -> list[str]:
    """What `part` of the package imports although it may not; "tools" may import the package."""
    found = imports(tree)
    wrong = ["relative import; write the full name"] * ("." in found)
    tools = {path.stem for path in TOOLS.glob("*.py")} - set(sys.stdlib_module_names)
    wrong += [f"a tool, {n}" for n in found if n.split(".")[0] in tools | {"tools"}]
    if part == "tools":
        return wrong
    own = {n.split(".")[1] for n in found if n.startswith("megatron_ring.")} - {part}
    wrong += [f"megatron_ring.{p}" for p in sorted(own - MAY_IMPORT[part])]
    outside = {n.split(".")[0] for n in found}
    wrong += ["megatron"] * ("megatron" in outside and part not in KNOWS_MEGATRON)
    wrong += ["torch"] * ("torch" in outside and part in KNOWS_NO_TORCH)
    wrong += ["megatron.training"] * any(n.startswith("megatron.training") for n in found)
    return wrong


def too_long(text: str, name: str) -> list[str]:
    lines = text.count("\n")
    wrong = [f"{name} has {lines} lines; split it by purpose"] * (lines > MAX_FILE_LINES)
    for node in functions(ast.parse(text)):
        length = node.end_lineno - node.lineno + 1
        if length > MAX_FUNCTION_LINES and f"{name}:{node.name}" not in LONG_BY_NATURE:
            wrong.append(f"{name}:{node.name} has {length} lines")
    return wrong


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def unannotated(tree: ast.AST) -> list[str]:
    """Functions with an argument or a result that has no annotation.

    Triton reads annotations of its kernels for itself: only constants have one there.
    """
    wrong = []
    for node in functions(tree):
        if "triton.jit" in map(ast.unparse, node.decorator_list):
            continue
        a = node.args
        args = a.posonlyargs + a.args + a.kwonlyargs + [x for x in (a.vararg, a.kwarg) if x]
        bare = [x.arg for x in args if x.annotation is None and x.arg not in ("self", "cls")]
        bare += ["its result"] * (node.returns is None)
        wrong += [f"{node.name}: no annotation for {', '.join(bare)}"] * bool(bare)
    return wrong


def unsafe(tree: ast.AST, name: str) -> list[str]:
    """Ways of running code that comes with a file: pickle, torch.load, trust_remote_code."""
    wrong = []
    pickles = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    if name not in MAY_PICKLE:
        wrong += [n for n in imports(tree) if n.split(".")[0] in pickles]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if keywords.get("trust_remote_code", "False") != "False":
            wrong.append("trust_remote_code")
        if ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True":
            wrong.append("torch.load without weights_only=True")
    return wrong


def part_of(path: Path) -> str:
    if path.is_relative_to(TOOLS):
        return "tools"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


every_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


@every_file
def test_file_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree, name = ast.parse(text), str(path.relative_to(ROOT))
    wrong = [f"may not import {what}" for what in layering(tree, part_of(path))]
    wrong += too_long(text, name) + unannotated(tree) + unsafe(tree, name)
    assert not wrong, f"{name}: " + "; ".join(wrong)


@pytest.mark.parametrize(
    ("part", "line", "complaint"),
    [
        ("data", "from megatron_ring.model.ling import build", "megatron_ring.model"),
        ("convert", "import megatron_ring.curation.stage", "megatron_ring.curation"),
        ("losses", "from megatron_ring.parallel import x", "megatron_ring.parallel"),
        ("think", "from megatron_ring.config import Part", "megatron_ring.config"),
        ("config", "from megatron_ring import think", "megatron_ring.think"),
        ("step", "from megatron_ring.metrics import x", "megatron_ring.metrics"),
        ("model", "from megatron_ring.step import x", "megatron_ring.step"),
        ("model", "def f():\n    from megatron_ring import train", "megatron_ring.train"),
        ("data", "from megatron.core import x", "megatron"),
        ("metrics", "import megatron.core.parallel_state as state", "megatron"),
        ("train", "from megatron.training import get_args", "megatron.training"),
        ("curation", "from torch import nn", "torch"),
        ("data", "from .rows import Rows", "relative import; write the full name"),
        ("train", "from tools.pack import main", "a tool, tools.pack.main"),
        ("tools", "import doctor", "a tool, doctor"),
    ],
)
def test_layering_is_noticed(part: str, line: str, complaint: str) -> None:
    assert layering(ast.parse(line), part) == [complaint]


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("train", "from megatron_ring.model.ling import build\nimport json, torch"),
        ("model", "from megatron_ring.model.experts import E\nfrom megatron.core import x"),
        ("data", "from megatron_ring.data.rows import Rows\nfrom megatron_ring.config import Part"),
        ("tools", "from megatron_ring import train\nfrom megatron.core import x\nimport torch"),
    ],
)
def test_allowed_imports_pass(part: str, line: str) -> None:
    assert layering(ast.parse(line), part) == []


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {part_of(path) for path in FILES} - {"tools"} <= set(MAY_IMPORT)


def test_length_is_noticed() -> None:
    assert too_long("x = 1\n" * 400, "a.py") == []
    assert too_long("x = 1\n" * 401, "a.py") == ["a.py has 401 lines; split it by purpose"]
    body = "    x = 1\n"
    assert too_long("def f():\n" + body * 59, "a.py") == []
    assert too_long("async def f():\n" + body * 60, "a.py") == ["a.py:f has 61 lines"]


def test_missing_annotations_are_noticed() -> None:
    good = "class A:\n    def f(self, x: int, *y: int, z: int = 0, **k: int) -> None: ..."
    assert unannotated(ast.parse(good)) == []
    bad = "def f(x, *y, z=0, **k): ..."
    assert unannotated(ast.parse(bad)) == ["f: no annotation for x, z, y, k, its result"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("import pickle", "pickle"),
        ("from dill import loads", "dill.loads"),
        ("AutoTokenizer.from_pretrained(p, trust_remote_code=True)", "trust_remote_code"),
        ("torch.load(p)", "torch.load without weights_only=True"),
        ("torch.load(p, weights_only=False)", "torch.load without weights_only=True"),
    ],
)
def test_unsafe_reading_is_noticed(line: str, complaint: str) -> None:
    assert unsafe(ast.parse(line), "a.py") == [complaint]


def test_safe_reading_passes() -> None:
    line = "torch.load(p, weights_only=True)\nload(p, trust_remote_code=False)"
    assert unsafe(ast.parse(line), "a.py") == []
