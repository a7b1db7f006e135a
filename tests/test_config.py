"""Configuration: precedence, what is refused and in which words, and what is saved reads back."""

import json
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import ValidationError

from megatron_ring import config
from megatron_ring.config import (
    Config,
    ConfigError,
    ModelConfig,
    OptimConfig,
    PackConfig,
    RopeScaling,
)
from megatron_ring.config.base import Incidental, Part, content_of
from megatron_ring.config.curation import CurateConfig
from megatron_ring.config.evaluation import EvaluationConfig

GOLDEN = Path(__file__).parent / "golden" / "ling_lite_tiny"
HF = f"model.hf_config={GOLDEN}"
PACK = ["tokenizer=t", "output=o", "sources=[{path: a.jsonl}, {path: b.jsonl, weight: 2}]"]


def refused(files, overrides, cls=Config):
    """The message with which these are refused."""
    with pytest.raises(ConfigError) as error:
        config.load(cls, [str(file) for file in files], overrides)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    """A function: name and text -> the file, as a string."""

    def write_file(name, text):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_file


def test_later_wins(write):
    """default < model.hf_config < files left to right < overrides, each seen once."""
    first = write("a.yaml", f"model: {{hf_config: {GOLDEN}, rope_theta: 5}}\noptim: {{lr: 1}}")
    second = write("b.yaml", "optim: {lr: 2, eps: 3}\nmodel: {num_experts: 4}")
    got = config.load(Config, [first, second], ["optim={eps: 4}", "model.num_experts_per_tok=2"])
    assert got.optim == OptimConfig(lr=2, eps=4)  # the rest are defaults
    model = json.loads((GOLDEN / "config.json").read_text())
    expected = {key: model[key] for key in ModelConfig.model_fields if key in model}
    changed = {"rope_theta": 5, "num_experts": 4, "num_experts_per_tok": 2}
    assert got.model.model_dump() == expected | changed
    assert config.load(Config, [second, first], []).optim.lr == 1


def test_the_base_lies_below_everything(write):
    base = {"tokenizer": "base", "output": "base", "sources": [{"path": "base"}], "seed": 5}
    got = config.load(PackConfig, [write("a.yaml", "tokenizer: file")], ["output=typed"], base)
    assert (got.tokenizer, got.output) == ("file", "typed")
    assert (got.sources[0].path, got.seed) == ("base", 5)


def test_numbers_and_texts_are_read_as_typed(write):
    """1e-5 has no point: plain YAML 1.1 would call it a text."""
    file = write("a.yaml", f"model: {{hf_config: {GOLDEN}}}\noptim: {{lr: 1e-5, steps: 1e3}}")
    got = config.load(Config, [file], ["optim.eps=2e-6", "run.name=a=b", "run.dir='runs/x y'"])
    assert (got.optim.lr, got.optim.eps, got.optim.steps) == (1e-5, 2e-6, 1000)
    assert (got.run.name, got.run.dir) == ("a=b", "runs/x y")
    assert config.load(Config, [file], ["optim.steps=null"]).optim.steps is None


def test_lists_are_changed_by_index():
    got = config.load(PackConfig, [], [*PACK, "sources.0.path=c.jsonl", "sources.1.weight=0.5"])
    assert [(s.path, s.weight) for s in got.sources] == [("c.jsonl", 1), ("b.jsonl", 0.5)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown config key optim.lrr; did you mean optim.lr?"),
        ("paralel.tp=2", "unknown config key paralel; did you mean parallel?"),
        (
            "checkpoint.xyz=1",
            "unknown config key checkpoint.xyz; known keys: save_every, keep_last, async_save, "
            "verify, second_dir",
        ),
        (
            "model.num_expert=8",
            "unknown config key model.num_expert; did you mean model.num_experts?",
        ),
        (
            "optim.lr=fast",
            "optim.lr='fast': input should be a valid number, unable to parse string as a number",
        ),
        ("optim.lr=", "optim.lr=None: input should be a valid number"),
        ("run.dir=5", "run.dir=5: input should be a valid string"),
        (
            "parallel.tp=1.5",
            "parallel.tp=1.5: input should be a valid integer, got a number with a fractional part",
        ),
        (
            "parallel=2",
            "parallel=2: input should be a valid dictionary or instance of ParallelConfig",
        ),
        ("optim.lr=-1", "optim.lr=-1: input should be greater than 0"),
        ("optim.beta1=1", "optim.beta1=1: input should be less than 1"),
        ("optim.min_lr_ratio=2", "optim.min_lr_ratio=2: input should be less than or equal to 1"),
        ("run.seed=-1", "run.seed=-1: input should be greater than or equal to 0"),
        (
            "optim.schedule=linear",
            "optim.schedule='linear': input should be 'cosine' or 'constant'",
        ),
        ("model.num_experts_per_tok=9", "model: num_experts_per_tok=9 exceeds num_experts=8"),
        (
            "model.num_key_value_heads=3",
            "model: num_attention_heads=4 is not a multiple of num_key_value_heads=3",
        ),
        (
            "model.first_k_dense_replace=4",
            "model: first_k_dense_replace=4 exceeds num_hidden_layers=3",
        ),
        ("optim.lr", "override 'optim.lr' is not of the form key.path=value"),
        ("=3", "override '=3' is not of the form key.path=value"),
        ("optim..lr=3", "override 'optim..lr=3' is not of the form key.path=value"),
        (".lr=3", "override '.lr=3' is not of the form key.path=value"),
    ],
)
def test_what_is_refused_in_which_words(override, message):
    assert refused([], [HF, override]) == message


def test_several_mistakes_are_told_at_once():
    assert refused([], [HF, "optim.lr=0", "data.tran=x"]) == (
        "unknown config key data.tran; did you mean data.train?\n"
        "optim.lr=0: input should be greater than 0"
    )


def test_a_head_must_have_a_width():
    assert refused([], [HF, "model.head_dim=null", "model.hidden_size=66"]) == (
        "model: hidden_size=66 is not a multiple of num_attention_heads=4; give head_dim or change "
        "one of them"
    )
    assert config.load(Config, [], [HF, "model.hidden_size=66"]).model.head_size == 16
    assert config.load(Config, [], [HF, "model.head_dim=null"]).model.head_size == 16  # 64 / 4


def test_missing_keys_are_named():
    assert refused([], []) == "missing config key model"
    assert refused([], PACK[:2], PackConfig) == "missing config key sources"
    keys = refused([], ["model.vocab_size=8"]).splitlines()
    without_default = set(ModelConfig.model_fields) - {
        "vocab_size",
        "head_dim",
        "first_k_dense_replace",
        "initializer_range",
        "rope_scaling",
    }
    assert set(keys) == {f"missing config key model.{key}" for key in without_default}


def test_mistakes_in_lists():
    mistake = "sources.1.pth=c"
    message = "unknown config key sources.1.pth; did you mean sources.1.path?"
    assert refused([], [*PACK, mistake], PackConfig) == message
    message = "override 'sources.2.path=c': list index out of range"
    assert refused([], [*PACK, "sources.2.path=c"], PackConfig).splitlines()[0] == message
    message = "sources=[]: list should have at least 1 item after validation, not 0"
    assert refused([], [*PACK, "sources=[]"], PackConfig) == message


def test_unreadable_files(write, tmp_path):
    assert refused([tmp_path / "a.yaml"], []) == f"there is no config file {tmp_path}/a.yaml"
    listed = write("list.yaml", "- 1")
    assert refused([listed], []) == f"config file {listed} holds no keys but ListConfig"
    broken = write("broken.yaml", "a: [1\nb: 2")
    message = refused([broken], [])
    assert message.startswith(f"cannot read config file {broken}: while parsing a flow sequence")
    assert f'in "{broken}", line 2' in message
    assert refused([tmp_path], []).startswith(f"cannot read config file {tmp_path}: ")


def test_a_value_that_is_no_yaml():
    message = refused([], [HF, "run.name=[1"])
    assert message.startswith("override 'run.name=[1': while parsing a flow sequence")
    message = refused([], [HF, "run.name=${nowhere}"])
    assert "cannot resolve the configuration: Interpolation key 'nowhere' not found" in message


def test_a_value_may_refer_to_another_key():
    got = config.load(Config, [], [HF, "data.train=rows", "data.valid=${data.train}"])
    assert got.data.valid == "rows"


def test_frozen():
    got = config.load(Config, [], [HF])
    with pytest.raises(ValidationError, match="frozen"):
        got.optim.lr = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        got.optim = OptimConfig()


def test_what_is_saved_reads_back_equal(tmp_path):
    typed = [HF, "optim.lr=1e-5", "run.name='007'", "run.dir='a: b'", "optim.steps=7"]
    got = config.load(Config, [], typed)
    config.save(got, tmp_path / "new" / "config.yaml")
    assert config.load(Config, [str(tmp_path / "new" / "config.yaml")], []) == got
    packed = config.load(PackConfig, [], PACK)
    config.save(packed, tmp_path / "pack.yaml")
    assert config.load(PackConfig, [str(tmp_path / "pack.yaml")], []) == packed


def test_any_reader_of_yaml_knows_what_is_saved(tmp_path):
    """Paths are texts, also those that look like numbers."""
    typed = ["tasks={gsm8k: {file: '007'}}", "output=out", "generator.replies=out/replies"]
    typed += ["generator.model=m", "generator.endpoint=http://localhost:8000/v1"]
    got = config.load(EvaluationConfig, [], typed)
    config.save(got, tmp_path / "recipe.yaml")
    plain = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    assert plain["tasks"]["gsm8k"]["file"] == "007" and plain["output"] == "out"
    assert plain["generator"]["replies"] == "out/replies"
    assert config.load(EvaluationConfig, [str(tmp_path / "recipe.yaml")], []) == got


def test_the_schema_knows_what_the_models_know():
    """Valid JSON; every key has its type, and the description that stands in the model."""
    schema = json.loads(config.json_schema(Config))
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Config.model_fields)
    optim = schema["$defs"]["OptimConfig"]["properties"]
    assert optim["lr"]["description"] == OptimConfig.model_fields["lr"].description
    assert optim["lr"]["exclusiveMinimum"] == 0
    assert optim["schedule"]["enum"] == ["cosine", "constant"]
    model = schema["$defs"]["ModelConfig"]
    assert all(key["description"] for key in model["properties"].values())
    assert set(model["properties"]) == {*ModelConfig.model_fields, "hf_config"}


def test_the_schema_asks_no_single_file_for_everything():
    """Files are merged: an editor must mark nothing in one that holds only some of the keys."""
    schema = json.loads(config.json_schema(Config))
    assert not [part for part in (schema, *schema["$defs"].values()) if "required" in part]


@pytest.fixture
def hf_json(tmp_path):
    """A function: changes to the golden config.json (None deletes) -> folder with the changed."""

    def make(**changes):
        tree = json.loads((GOLDEN / "config.json").read_text()) | changes
        for key in [key for key, value in changes.items() if value is None]:
            del tree[key]
        (tmp_path / "config.json").write_text(json.dumps(tree))
        return tmp_path

    return make


def test_hf_config_folder_or_file(hf_json):
    folder = hf_json(hidden_size=32, norm_head=False)
    model = config.read_hf_config(folder)
    assert (model.hidden_size, model.norm_head, model.num_experts_per_tok) == (32, False, 3)
    assert config.read_hf_config(folder / "config.json") == model


@pytest.mark.parametrize("key", ["norm_head", "rms_norm_eps", "num_experts", "norm_topk_prob"])
def test_hf_config_must_say_everything(key, hf_json):
    """The authors' class has defaults for these, unlike any released model."""
    folder = hf_json(**{key: None})
    with pytest.raises(ConfigError) as error:
        config.read_hf_config(folder)
    assert str(error.value) == f"{folder}/config.json: missing config key {key}"


@pytest.mark.parametrize(
    ("key", "value", "only"),
    [
        ("model_type", "bailing_moe_v2", "'bailing_moe'"),
        ("tie_word_embeddings", True, "False"),
        ("use_bias", True, "False"),
        ("use_qkv_bias", True, "False"),
        ("norm_softmax", True, "False"),
        ("use_sliding_window", True, "False"),
        ("hidden_act", "gelu", "'silu'"),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4.0}, "None"),
    ],
)
def test_hf_config_of_another_function_is_refused(key, value, only, hf_json):
    folder = hf_json(**{key: value})
    with pytest.raises(ConfigError) as error:
        config.read_hf_config(folder)
    assert str(error.value) == (
        f"{folder}/config.json: {key}={value!r} is not implemented; only {key}={only} is"
    )


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "said",
    [
        YARN,
        {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768},
        YARN | {"rope_type": "yarn", "beta_fast": 32, "beta_slow": 1},
    ],
)
def test_yarn_of_a_hf_config(said, hf_json):
    model = config.read_hf_config(hf_json(rope_scaling=said))
    assert model.rope_scaling == RopeScaling(**YARN)
    assert (model.rope_scaling.beta_fast, model.rope_scaling.beta_slow) == (32, 1)
    assert (model.max_position_embeddings, model.longest) == (512, 131072)
    assert config.read_hf_config(hf_json()).rope_scaling is None


def test_longest_document():
    """The larger of what the key says and of what YaRN makes of the original length."""
    assert config.load(Config, [], [HF]).model.longest == 512
    for original, longest in ((64, 512), (128, 512), (256, 1024)):
        scaling = YARN | {"original_max_position_embeddings": original}
        model = config.read_hf_config(GOLDEN).model_copy(
            update={"rope_scaling": RopeScaling(**scaling)}
        )
        assert model.longest == longest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"type": "linear"}, "rope_scaling.type='linear': input should be 'yarn'"),
        ({"factor": 0.5}, "rope_scaling.factor=0.5: input should be greater than or equal to 1"),
        (
            {"original_max_position_embeddings": None},
            "rope_scaling.original_max_position_embeddings=None: input should be a valid integer",
        ),
        (
            {"rope_type": "dynamic"},
            "rope_scaling: type='yarn', but rope_type='dynamic'",
        ),
        (
            {"mscale": 0.7},
            "rope_scaling: mscale=0.7 and mscale_all_dim=None: give both or none; with one alone, "
            "the authors' code and transformers compute differently",
        ),
        (
            {"mscale": 0.7, "mscale_all_dim": 1.0, "attention_factor": 2.0},
            "rope_scaling: attention_factor says what mscale would say; give one of them",
        ),
        ({"beta_fast": 0.5}, "rope_scaling: beta_fast=0.5 is below beta_slow=1.0"),
        (
            {"beta_fats": 8},
            "unknown config key rope_scaling.beta_fats; did you mean rope_scaling.beta_fast?",
        ),
    ],
)
def test_yarn_that_is_refused(change, complaint, hf_json):
    folder = hf_json(rope_scaling=YARN | change)
    with pytest.raises(ConfigError) as error:
        config.read_hf_config(folder)
    assert str(error.value) == f"{folder}/config.json: {complaint}"


def test_hf_config_that_cannot_be_read(hf_json, tmp_path):
    folder = hf_json(num_experts=0)
    with pytest.raises(ConfigError) as error:
        config.read_hf_config(folder)
    expected = f"{folder}/config.json: num_experts=0: input should be greater than 0"
    assert str(error.value) == expected

    assert refused([], ["model.hf_config=/no/where"]) == (
        "model.hf_config=/no/where: there is no /no/where"
    )
    assert refused([], ["model.hf_config=null"]) == (
        "model.hf_config=None: name a Hugging Face config.json or its folder"
    )
    file = tmp_path / "other.json"
    file.write_text("[]")
    assert refused([], [f"model.hf_config={file}"]) == f"{file} holds no keys but list"
    file.write_text('{"a": 1')
    message = f"{file} is not JSON: Expecting ',' delimiter: line 1 column 8 (char 7)"
    assert refused([], [f"model.hf_config={file}"]) == message


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{stage: exct}]", "stages.0.stage='exct' is unknown; did you mean exact?"),
        ("[{}]", "missing config key stages.0.stage"),
        (
            "[{stage: exact}, {stage: minhash, treshold: 1}]",
            "unknown config key stages.1.treshold; did you mean stages.1.threshold?",
        ),
        ("[{stage: minhash, threshold: 2}]", "stages.0.threshold=2: input should be less than or"),
    ],
)
def test_parts_told_apart_by_a_key_have_errors_with_keys_as_typed(stages, message):
    overrides = ["sources=[{path: a.jsonl}]", "output=o", f"stages={stages}"]
    with pytest.raises(config.ConfigError) as raised:
        config.load(CurateConfig, [], overrides)
    assert str(raised.value).startswith(message)


def test_an_unknown_part_without_a_near_name_lists_the_known():
    overrides = ["sources=[{path: a.jsonl}]", "output=o", "stages=[{stage: zzzz}]"]
    with pytest.raises(config.ConfigError, match="stage='zzzz' is unknown; known: exact, minhash"):
        config.load(CurateConfig, [], overrides)


class Asked(Part):
    """Some keys of it change nothing in what comes out."""

    model: str
    where: Annotated[str, Incidental()] = "here"


class Asking(Part):
    one: Asked
    many: list[Asked] = []
    named: dict[str, Asked] = {}
    folder: Path = Path("a")
    patience: Annotated[int, Incidental()] = 3


def test_content_leaves_out_what_is_incidental_at_any_depth():
    asking = Asking(
        one=Asked(model="m", where="there"),
        many=[Asked(model="n")],
        named={"x": Asked(model="o", where="away")},
        patience=5,
    )
    assert content_of(asking) == {
        "one": {"model": "m"},
        "many": [{"model": "n"}],
        "named": {"x": {"model": "o"}},
        "folder": "a",
    }
