"""Damaged and hostile checkpoints: one clear line each; none of their code runs, nothing is fetched or written."""

import dataclasses
import json
import pickle
import shutil
import socket
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent import cli
from flaxsent.base import FlaxsentError
from flaxsent.models import flax_auto
from flaxsent.models.config import read_config

BACKENDS = ["native", pytest.param("flax", marks=pytest.mark.flax_auto)]


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch):
    """The file that hostile code makes if it runs; no test here may make it, or reach for the network."""
    attempts = []

    def connect(*arguments):
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    path = tmp_path / "hostile-code-ran"
    yield path
    assert not path.exists()
    assert not attempts


@pytest.fixture
def folder(tiny_folder, tmp_path, marker):
    """A good tiny checkpoint to be damaged, with modules in it that make the marker when they are imported."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny_folder("bert"), copy)
    (copy / "vocab.txt").unlink(missing_ok=True)
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py", "__init__.py"):
        (copy / name).write_text(f"open({str(marker)!r}, 'w')\n")
    return copy


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(folder, part, capsys, backend="native", error=(FlaxsentError, FileNotFoundError)):
    before = snapshot(folder)
    with pytest.raises(error) as info:
        flaxsent.load(folder, backend=backend)
    message = str(info.value)
    assert part in message
    assert "\n" not in message
    assert cli.main(["classify", "--model", str(folder), "hi"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"flaxsent: error: {' '.join(message.split())}\n"
    assert snapshot(folder) == before


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# config.json as a whole

CONFIG_TEXTS = {
    "empty": (b"", "config.json is not JSON"),
    "prose": (b"see the Hub", "config.json is not JSON"),
    "torn": (b'{"model_type": "bert", "vocab', "config.json is not JSON"),
    "list": (b'["bert"]', "config.json holds a list"),
    "null": (b"null", "config.json holds a NoneType"),
    "number": (b"5", "config.json holds a int"),
    "deep lists": (b"[" * 200_000, "config.json is not JSON"),
    "deep objects": (b'{"model_type":' * 200_000, "config.json is not JSON"),
    "long integer": (b'{"model_type": "bert", "vocab_size": ' + b"9" * 5000 + b"}", "config.json is not JSON"),
    "no family": (b"{}", "model_type=None"),
    "UTF-16": ('{"model_type": "bert"}'.encode("utf-16"), "is not UTF-8 text"),
    "binary": (bytes(range(256)), "config.json"),
}


@pytest.mark.parametrize("name", CONFIG_TEXTS)
def test_config_that_is_no_config_is_refused(folder, capsys, name):
    content, part = CONFIG_TEXTS[name]
    (folder / "config.json").write_bytes(content)
    assert_refused(folder, part, capsys)


# its values

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)
BAD_SIZES = [0, -1, "12", True, 12.0, None, [12], {}, 10**30, 10**12, float("inf"), float("nan")]
BAD_VALUES = {
    "model_type": ["t5", "Bert", "", 3, ["bert"], {"bert": 1}, None],
    "type_vocab_size": [0, -1, "2", True, 2.0, [2], 10**12],
    "pad_token_id": [-1, "0", True, 0.0, [0], 61, 10**12],
    "layer_norm_eps": [0, -1e-12, "1e-12", True, [1e-12], float("inf"), float("nan")],
    "initializer_range": [0, -0.02, "0.02", True, float("inf"), float("nan")],
    "hidden_dropout_prob": [1, -0.1, "0.1", True, float("nan"), [0.1]],
    "classifier_dropout": [1, -0.1, "0.1", True, float("nan")],
    "hidden_act": [3, ["gelu"], {"class_name": "evil"}, "gelu\nevil", "__import__('os')"],
    "id2label": [
        {},
        [],
        ["A", "B", "C"],
        "ABC",
        7,
        {"0": "A", "2": "C"},
        {"1": "A", "2": "B", "3": "C"},
        {"-1": "A", "0": "B", "1": "C"},
        {"zero": "A"},
        {"0": "A", "00": "B", "1": "C", "2": "D"},
        {"0": {"name": "A"}, "1": "B", "2": "C"},
        {"0": None, "1": "B", "2": "C"},
        {"9" * 5000: "A"},
    ],
    "problem_type": ["classification", 3, ["regression"], {}, True],
    "is_decoder": [True, "yes"],
    "add_cross_attention": [True],
    "pruned_heads": [{"0": [1]}],
    "position_embedding_type": ["relative_key", "relative_key_query", ["absolute"]],
    "quantization_config": [{"quant_method": "bitsandbytes"}, {}],
}
CASES = [(key, value) for key in SIZES for value in BAD_SIZES]
CASES += [(key, value) for key, values in BAD_VALUES.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=lambda value: str(value)[:30].replace("\n", " "))
def test_impossible_value_is_refused_by_the_name_of_its_key(folder, capsys, key, value):
    change_config(folder, **{key: value})
    part = "names the activation" if key == "hidden_act" and isinstance(value, str) else key
    assert_refused(folder, part, capsys)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_far_beyond_the_weights_cost_neither_time_nor_memory(folder, backend):
    huge = {"hidden_size": 9_999_999, "num_attention_heads": 3, "intermediate_size": 10**7, "vocab_size": 10**7}
    change_config(folder, max_position_embeddings=10**7, **huge)
    with pytest.raises(ValueError, match=r"embeddings.LayerNorm.bias: expected \(9999999,\), got \(36,\)"):
        flaxsent.load(folder, backend=backend)


@pytest.mark.parametrize("num_labels", [0, -3, "3", 3.0, True, 10**12])
def test_impossible_number_of_labels_is_refused(folder, capsys, num_labels):
    change_config(folder, id2label=None, num_labels=num_labels)
    assert_refused(folder, "num_labels", capsys)


def test_heads_that_do_not_divide_the_hidden_size_are_refused(folder, capsys):
    change_config(folder, num_attention_heads=5)
    assert_refused(folder, "hidden size 36, which its 5 heads do not divide", capsys)


def test_padding_beyond_the_positions_is_refused():
    """RoBERTa's positions start after the padding's id: none would be left."""
    raw = {"model_type": "roberta", "vocab_size": 99, "hidden_size": 8, "num_hidden_layers": 1}
    raw |= {"num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 20, "pad_token_id": 20}
    with pytest.raises(ValueError, match="pad_token_id=20"):
        read_config(json.dumps(raw))


# code from elsewhere

EVIL_MAP = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModelForSequenceClassification": "modeling_evil.EvilModel",
    "FlaxAutoModelForSequenceClassification": "evil/elsewhere--modeling_evil.EvilModel",
    "AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"],
}
CODE_KEYS = [
    ("auto_map", EVIL_MAP),
    ("auto_map", "modeling_evil.EvilModel"),
    ("trust_remote_code", True),
    ("trust_remote_code", "true"),
    ("_attn_implementation", "evil/kernels"),
    ("_attn_implementation", {"": "evil/kernels"}),
    ("_attn_implementation_internal", "evil/kernels"),
    ("_attn_implementation_internal", "paged|evil/kernels"),
    ("attn_implementation", "evil:run"),
    ("attn_implementation", "evil/kernels:run"),
    ("custom_pipelines", {"text-classification": {"impl": "modeling_evil.EvilPipeline"}}),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("key", "value"), CODE_KEYS)
def test_config_that_asks_for_code_is_refused(folder, capsys, key, value, backend):
    change_config(folder, **{key: value})
    assert_refused(folder, f"config.json has {key}=", capsys, backend=backend)


@pytest.mark.parametrize("key", ["_attn_implementation", "_attn_implementation_internal", "attn_implementation"])
def test_transformers_own_ways_to_attend_are_no_code_from_elsewhere(folder, key):
    """They change no number but its last bits, and flaxsent attends in its own way."""
    expected = read_config((folder / "config.json").read_text())
    for value in ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "paged|eager", None):
        change_config(folder, **{key: value})
        read = read_config((folder / "config.json").read_text())
        assert dataclasses.replace(read, json="") == dataclasses.replace(expected, json="")


@pytest.mark.flax_auto
@pytest.mark.parametrize("family", flax_auto.FAMILIES)
def test_config_class_gets_no_key_that_can_name_code(folder, family):
    """CVE-2026-4372 is out of reach even if `read_config` let a hostile file through."""
    from transformers import CONFIG_MAPPING

    config = read_config((folder / "config.json").read_text())
    raw = json.loads(config.json) | dict(CODE_KEYS) | {"_evil": 1, "_name_or_path": "evil/elsewhere"}
    hostile = dataclasses.replace(config, family=family, json=json.dumps(raw))
    kept = flax_auto._vetted(hostile, CONFIG_MAPPING[family])
    assert not [key for key in kept if key.startswith("_")]
    assert not kept.keys() & (dict(CODE_KEYS).keys() | {"name_or_path", "kwargs"})
    made = CONFIG_MAPPING[family](**kept)
    assert made._attn_implementation_internal is None
    assert not hasattr(made, "auto_map")


@pytest.mark.flax_auto
def test_flax_backend_uses_no_loader_of_transformers(folder, monkeypatch):
    """Neither config, model nor tokenizer of a folder with tokenizer.json goes through transformers' own readers."""
    import transformers
    from transformers import dynamic_module_utils

    calls = []
    for owner, name in [
        (transformers.PretrainedConfig, "from_pretrained"),
        (transformers.PretrainedConfig, "get_config_dict"),
        (transformers.PretrainedConfig, "from_json_file"),
        (transformers.AutoConfig, "from_pretrained"),
        (transformers.FlaxPreTrainedModel, "from_pretrained"),
        (transformers.FlaxAutoModelForSequenceClassification, "from_pretrained"),
        (transformers.PreTrainedTokenizerBase, "from_pretrained"),
        (transformers.AutoTokenizer, "from_pretrained"),
        (dynamic_module_utils, "get_cached_module_file"),
        (dynamic_module_utils, "get_class_in_module"),
    ]:
        monkeypatch.setattr(owner, name, lambda *arguments, name=name, **more: calls.append(name))
    seen = []
    from_config = transformers.FlaxAutoModelForSequenceClassification.from_config
    monkeypatch.setattr(
        transformers.FlaxAutoModelForSequenceClassification,
        "from_config",
        lambda config, **more: seen.append((config, more)) or from_config(config, **more),
    )
    change_config(folder, initializer_range=0.031)  # another config, for which no class has been made yet
    classifier = flaxsent.load(folder, backend="flax")
    assert seen == []
    assert classifier.forward(classifier.params, classifier.tokenize(["hi"])).shape == (1, 3)
    assert calls == []
    ((config, more),) = seen
    assert config._attn_implementation_internal is None
    assert more.keys() == {"dtype", "_do_init"}


def make_vocabulary_only(folder, **settings):
    """A folder of which transformers' AutoTokenizer has to make the tokenizer.json."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


HOSTILE_SETTINGS = [
    {},
    {"auto_map": EVIL_MAP},
    {"auto_map": {"AutoTokenizer": "evil/elsewhere--tokenization_evil.EvilTokenizer"}, "trust_remote_code": True},
    {"tokenizer_class": "EvilTokenizer", "auto_map": EVIL_MAP},
    {"tokenizer_class": "EvilTokenizer"},
    {"tokenizer_class": "os.system"},
    {"tokenizer_class": "BertTokenizer", "name_or_path": "evil/elsewhere", "_commit_hash": "a" * 40},
    {"tokenizer_class": "BertTokenizer", "fast_tokenizer_files": ["tokenizer.99.0.0.json", "../tokenizer.1.0.json"]},
    {"tokenizer_class": "BertTokenizer", "vocab_file": "OUTSIDE"},
    {"tokenizer_class": "BertTokenizerFast", "tokenizer_file": "OUTSIDE"},
    {"tokenizer_class": "BertTokenizer", "_tokenizer_class": "EvilTokenizer", "backend": "evil"},
]


@pytest.mark.parametrize("settings", HOSTILE_SETTINGS, ids=lambda settings: "-".join(settings) or "plain")
def test_tokenizer_settings_run_no_code_and_read_no_file_elsewhere(folder, tmp_path, settings):
    """Each either gives the tokenizer of vocab.txt or is refused in one line."""
    outside = tmp_path / "outside.txt"
    outside.write_text("secret\n")
    good = flaxsent.load(folder, backend="native").tokenizer
    make_vocabulary_only(folder, **{k: str(outside) if v == "OUTSIDE" else v for k, v in settings.items()})
    tokenizer, error = tokenizer_or_error(folder)
    if error is None:
        assert b"secret" not in tokenizer.files["tokenizer.json"]
        texts = ["the film is not bad", "secret"]
        assert tokenizer.encode(texts) == good.encode(texts)
    else:
        assert "\n" not in error
        assert str(folder) in error
    assert "_class" in "".join(settings) or error is None


@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file", "merges_file", "init_inputs", "name_or_path"])
def test_a_map_of_special_tokens_reads_no_file_elsewhere(folder, tmp_path, key):
    """transformers 4 takes all that stands there for arguments of the class, after it has looked for the files."""
    outside = tmp_path / "outside.txt"
    outside.write_text("secret\n")
    good = flaxsent.load(folder, backend="native").tokenizer
    make_vocabulary_only(folder, tokenizer_class="BertTokenizer")
    value = [str(outside)] if key == "init_inputs" else str(outside)
    (folder / "special_tokens_map.json").write_text(json.dumps({key: value, "cls_token": "[CLS]"}))
    tokenizer = flaxsent.load(folder, backend="native").tokenizer
    assert b"secret" not in tokenizer.files["tokenizer.json"]
    assert tokenizer.encode(["the film"]) == good.encode(["the film"])


@pytest.mark.parametrize("auto_map", [["tokenization_evil.EvilTokenizer", None], EVIL_MAP])
def test_a_tokenizer_of_its_own_code_is_refused(folder, capsys, auto_map):
    """transformers 5 would read the tokenizer.json by its generic class instead."""
    settings = {"tokenizer_class": "EvilTokenizer", "auto_map": auto_map}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert_refused(folder, "has a tokenizer of its own code (EvilTokenizer by auto_map)", capsys)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 200_000])
def test_damaged_names_of_tokens_are_refused(folder, capsys, name, content):
    (folder / name).write_bytes(content)
    assert_refused(folder, name, capsys)


def tokenizer_or_error(folder):
    try:
        return flaxsent.load(folder, backend="native").tokenizer, None
    except ValueError as err:
        return None, str(err)


class Evil:
    """Unpickled, it makes the file of its name."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("form", ["pickle", pytest.param("zip", marks=pytest.mark.torch)])
def test_pickle_that_would_run_code_is_refused(folder, capsys, marker, form):
    """By torch's weights_only where torch is installed, else for the lack of it."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    file = folder / "pytorch_model.bin"
    if form == "zip":
        import torch

        torch.save({"classifier.weight": Evil(marker)}, file)
    else:
        file.write_bytes(pickle.dumps({"classifier.weight": Evil(marker)}, protocol=2))
    assert_refused(folder, str(file), capsys, error=(FlaxsentError, ImportError))


def make_pickle(folder, state):
    import torch

    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def state_of(folder):
    import torch

    return {
        name: torch.tensor(tensor) for name, tensor in safetensors.numpy.load_file(folder / "model.safetensors").items()
    }


@pytest.mark.torch
@pytest.mark.parametrize(("version", "is_safe"), [("1.13.1", 0), ("2.5.1+cu124", 0), ("2.6.0", 1), ("2.10.0+cpu", 1)])
def test_a_pickle_needs_a_torch_in_which_weights_only_is_safe(folder, capsys, monkeypatch, version, is_safe):
    """CVE-2025-32434: before 2.6, a file could break out of it; the version is looked at before the file is."""
    import torch

    make_pickle(folder, state_of(folder))
    loads = []
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(
        torch, "load", lambda *arguments, load=torch.load, **more: loads.append(more) or load(*arguments, **more)
    )
    if is_safe:
        flaxsent.load(folder, backend="native")
        assert loads == [{"map_location": "cpu", "weights_only": True}]
    else:
        part = f"is a pickle, which torch {version} does not read safely (CVE-2025-32434): pip install 'torch>=2.6'"
        assert_refused(folder, part, capsys)
        assert loads == []


@pytest.mark.torch
def test_entries_of_a_pickle_that_are_no_tensors_are_named(folder, capsys):
    make_pickle(folder, state_of(folder) | {"epoch": 3, "optimizer": {"lr": 0.1}, 7: None, "name": "tiny"})
    told = (
        "has entries that are no tensors: epoch (int), optimizer (dict), 7 (NoneType), name (str); expected tensors by"
    )
    assert_refused(folder, told, capsys)


@pytest.mark.torch
@pytest.mark.parametrize("entry", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("is_alone", [False, True])
def test_parameters_in_an_entry_of_a_pickle_are_told_by_its_name(folder, capsys, entry, is_alone):
    state = state_of(folder)
    make_pickle(folder, {entry: state} | ({} if is_alone else {"epoch": 3, "optimizer": {"lr": 0.1}}))
    beside = "" if is_alone else " beside epoch, optimizer"
    told = (
        f"has the parameters in an entry '{entry}'{beside}; expected them alone: save what is in '{entry}' as pytorch_"
    )
    assert_refused(folder, told, capsys)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda tree: {"params": tree, "step": np.array(3)},
            "has the parameters in an entry 'params' beside step; expected them alone: save what is",
        ),
        (
            lambda tree: tree | {"step": 3, "name": "tiny"},
            "has entries that are no arrays: name, step; expected a tree",
        ),
        (
            lambda tree: tree | {"classifier": jax.tree.map(lambda leaf: leaf.astype(np.int8), tree["classifier"])},
            "has weights of dtype int8; expected floats",
        ),
    ],
    ids=["nested", "no arrays", "integers"],
)
def test_what_is_odd_in_a_msgpack_is_told_by_its_name(folder, capsys, change, told):
    serialization = pytest.importorskip("flax.serialization")
    tree = jax.tree.map(np.asarray, flaxsent.load(folder, backend="native").params)
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(change(tree)))
    assert_refused(folder, told, capsys)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["sparse", "integers"])
def test_a_tensor_of_a_pickle_that_is_no_array_of_floats_is_told(folder, capsys, kind):
    import torch

    state = state_of(folder)
    weight = state["classifier.weight"]
    state["classifier.weight"] = {
        "sparse": weight.to_sparse,
        "integers": lambda: weight.to(torch.int8),
    }[kind]()
    make_pickle(folder, state)
    told = (
        "has weights of dtype int8" if kind == "integers" else "has a tensor that cannot be read, classifier.weight ("
    )
    assert_refused(folder, told, capsys)


@pytest.mark.parametrize(("dtype", "bits"), [("F8_E4M3", 8), ("F8_E5M2", 8), ("F8_E8M0", 8), ("F6_E2M3", 6), ("F4", 4)])
def test_dtypes_that_numpy_does_not_have_are_told_with_their_tensor(folder, capsys, dtype, bits):
    header = json.dumps({"classifier.bias": {"dtype": dtype, "shape": [4], "data_offsets": [0, bits // 2]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(bits // 2)
    (folder / "model.safetensors").write_bytes(content)
    told = f"has tensors of a dtype that cannot be read: classifier.bias is {dtype}; expected floats of 16 bits or more"
    assert_refused(folder, told, capsys)


@pytest.mark.torch
@pytest.mark.parametrize("content", [[1, 2], "text", None], ids=["list", "text", "nothing"])
def test_a_pickle_of_something_else_is_refused(folder, capsys, content):
    make_pickle(folder, content)
    assert_refused(folder, f"holds a {type(content).__name__}; expected tensors by their names", capsys)


@pytest.mark.torch
@pytest.mark.parametrize("form", ["pickle", "safetensors"])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"])
def test_float8_is_read_by_value_or_refused_in_one_line(folder, capsys, form, name):
    import safetensors.torch
    import torch

    state = state_of(folder)
    state["classifier.weight"] = state["classifier.weight"].to(getattr(torch, name))
    if form == "pickle":
        make_pickle(folder, state)
    else:
        safetensors.torch.save_file(state, folder / "model.safetensors")
    expected = state["classifier.weight"].float().numpy()
    try:
        params = flaxsent.load(folder, backend="native").params
    except FlaxsentError:
        assert form == "safetensors", "torch knows them all"
        assert_refused(folder, "model.safetensors has tensors of a dtype that cannot be read", capsys)
    else:
        np.testing.assert_array_equal(params["classifier"]["kernel"].T, expected)


# weights


def torn(content):
    return content[: len(content) // 2]


def with_header(header):
    """A safetensors file of that header and nothing else."""
    return lambda content: struct.pack("<Q", len(header)) + header


def tensor_header(**changes):
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]} | changes
    return with_header(json.dumps({"classifier.bias": entry}).encode())


DAMAGED_SAFETENSORS = {
    "empty": lambda content: b"",
    "torn": torn,
    "last byte lost": lambda content: content[:-1],
    "header length of 2**64 - 1": lambda content: b"\xff" * 8 + content[8:],
    "header length of 1 GB": lambda content: struct.pack("<Q", 10**9) + content[8:],
    "header length of 0": lambda content: bytes(8) + content[8:],
    "header of garbage": lambda content: content[:8] + b"\x00" * 64 + content[72:],
    "header that is a list": with_header(b"[1]"),
    "header that nests deeply": with_header(b'{"a":' * 50_000),
    "data beyond the end": tensor_header(data_offsets=[0, 10**12], shape=[10**12 // 4]),
    "negative offsets": tensor_header(data_offsets=[-12, 0]),
    "shape that does not fit the data": tensor_header(shape=[4]),
    "unknown dtype": tensor_header(dtype="EVIL"),
    "pickle": lambda content: pickle.dumps([1]),
}


@pytest.mark.parametrize("name", DAMAGED_SAFETENSORS)
def test_damaged_safetensors_are_refused(folder, capsys, name):
    file = folder / "model.safetensors"
    file.write_bytes(DAMAGED_SAFETENSORS[name](file.read_bytes()))
    assert_refused(folder, f"{file} is not a whole safetensors file", capsys)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.bool_, np.complex64])
def test_tensors_that_are_no_floats_are_refused(folder, capsys, dtype):
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(tensors | {"classifier.weight": np.zeros((3, 36), dtype)}, file)
    assert_refused(folder, np.dtype(dtype).name, capsys)


INDEXES = {
    "parent": ({"weight_map": {"classifier.bias": "../outside/x.safetensors"}}, "'../outside/x.safetensors'"),
    "absolute": ({"weight_map": {"classifier.bias": "/outside/x.safetensors"}}, "'/outside/x.safetensors'"),
    "below": ({"weight_map": {"classifier.bias": "below/x.safetensors"}}, "'below/x.safetensors'"),
    "backslash": ({"weight_map": {"classifier.bias": "..\\x.safetensors"}}, "names the shard"),
    "line end": ({"weight_map": {"classifier.bias": "x.safetensors\n"}}, "names the shard"),
    "pickle": ({"weight_map": {"classifier.bias": "pytorch_model.bin"}}, "'pytorch_model.bin'"),
    "number": ({"weight_map": {"classifier.bias": 5}}, "names the shard 5"),
    "object": ({"weight_map": {"classifier.bias": {}}}, "is not an index of shards"),
    "mixed": ({"weight_map": {"classifier.bias": 5, "classifier.weight": "x.safetensors"}}, "is not an index"),
    "no map": ({"metadata": {}}, "is not an index of shards"),
    "list": ([["classifier.bias", "x.safetensors"]], "is not an index of shards"),
    "map is a list": ({"weight_map": ["x.safetensors"]}, "is not an index of shards"),
    "empty": ({"weight_map": {}}, "- bert.embeddings.LayerNorm.bias"),
    "missing shard": ({"weight_map": {"classifier.bias": "x.safetensors"}}, "x.safetensors"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_index_that_leads_elsewhere_is_refused(folder, capsys, name):
    index, part = INDEXES[name]
    outside = folder.parent / "outside"
    outside.mkdir()
    for place in (outside, folder / "below"):
        place.mkdir(exist_ok=True)
        shutil.copy(folder / "model.safetensors", place / "x.safetensors")
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(folder, part, capsys)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 200_000, b"\xff\xfe{"], ids=["empty", "torn", "deep", "binary"])
def test_index_that_is_not_json_is_refused(folder, capsys, content):
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_bytes(content)
    assert_refused(folder, "is not an index of shards", capsys)


def damaged_msgpack():
    import msgpack  # comes with flax

    array = {"kernel": msgpack.ExtType(1, msgpack.packb([[2, 2], "float32", bytes(16)]))}
    return {
        "empty": (b"", "is not a whole msgpack file"),
        "torn": (torn(msgpack.packb({"classifier": array})), "is not a whole msgpack file"),
        "prose": (b"see the Hub", "flax_model.msgpack"),
        "list": (msgpack.packb([1, 2]), "holds a list"),
        "leaf at the top": (msgpack.packb({"kernel": 5}), "flax_model.msgpack"),
        "number for an array": (msgpack.packb({"classifier": {"kernel": 5}}), "flax_model.msgpack"),
        "text for an array": (msgpack.packb({"classifier": {"kernel": "evil"}}), "flax_model.msgpack"),
        "numbers for names": (msgpack.packb({5: {6: 7}}, strict_types=False), "flax_model.msgpack"),
        "array of objects": (
            msgpack.packb({"a": {"b": msgpack.ExtType(1, msgpack.packb([[1], "object", bytes(8)]))}}),
            "is not a whole msgpack file",
        ),
        "array of another size": (
            msgpack.packb({"a": {"b": msgpack.ExtType(1, msgpack.packb([[9], "float32", bytes(8)]))}}),
            "is not a whole msgpack file",
        ),
        "deep": (b"\x81\xa1a" * 5000 + b"\xc0", "is not a whole msgpack file"),
    }


@pytest.mark.flax_auto
def test_damaged_msgpack_is_refused(folder, capsys):
    (folder / "model.safetensors").unlink()
    for content, part in damaged_msgpack().values():
        (folder / "flax_model.msgpack").write_bytes(content)
        assert_refused(folder, part, capsys)


def test_wrong_shapes_are_refused(folder, capsys):
    change_config(folder, intermediate_size=48)
    assert_refused(folder, "bert.encoder.layer.0.intermediate.dense.weight: expected (48, 36), got (50, 36)", capsys)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_info_tells_which_weights_are_not_finite(folder, capsys, value):
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    assert cli.main(["info", str(folder)]) == 0
    assert "all finite" in capsys.readouterr().out
    tensors["classifier.bias"][1] = value
    safetensors.numpy.save_file(tensors, file)
    assert cli.main(["info", str(folder)]) == 0
    assert "NaN or infinite values in classifier.bias\n" in capsys.readouterr().out


# the tokenizer

TOKENIZERS = {
    "empty": b"",
    "torn": b'{"version": "1.0", "truncation"',
    "list": b"[1]",
    "object": b"{}",
    "binary": bytes(range(256)),
    "deep": b"[" * 200_000,
    "unknown model": b'{"version": "1.0", "model": {"type": "Evil", "vocab": {}}}',
    "panic": b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, '
    b'"merges": [["a", "b"]], "continuing_subword_prefix": "####"}}',
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_damaged_tokenizer_is_refused(folder, capsys, name):
    (folder / "tokenizer.json").write_bytes(TOKENIZERS[name])
    assert_refused(folder, f"{folder / 'tokenizer.json'} is not a tokenizer", capsys)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 200_000])
def test_damaged_tokenizer_settings_are_refused(folder, capsys, content):
    (folder / "tokenizer_config.json").write_bytes(content)
    assert_refused(folder, "tokenizer_config.json", capsys)


@pytest.mark.parametrize("limit", [0, -5, 1, 3, -(10**30)])
def test_limit_that_leaves_no_room_for_text_is_refused(folder, capsys, limit):
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    assert_refused(folder, f"model_max_length={limit}", capsys)


@pytest.mark.parametrize("limit", [True, "512", 1e30, 10**30, 41, None, [5]])
def test_limit_that_says_nothing_leaves_that_of_the_positions(folder, limit):
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
    tokenizer = flaxsent.load(folder, backend="native").tokenizer
    assert tokenizer.max_length == 40
    assert [len(ids) for ids in tokenizer.encode(["the film " * 40]).input_ids] == [40]


def test_missing_tokenizer_is_told(folder, capsys):
    (folder / "tokenizer.json").unlink(missing_ok=True)
    assert_refused(folder, "has no tokenizer; expected tokenizer.json", capsys)


def change_tokenizer(folder, **changes):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_text_refused(folder, part, capsys, *texts):
    assert cli.main(["classify", "--model", str(folder), *texts]) == 2
    out, err = capsys.readouterr()
    assert (out.removeprefix("label\tscore\ttext\n"), err.count("\n")) == ("", 1)
    assert part in err


LETTERS = {"[PAD]": 0, "a": 1, "b": 2}
WITHOUT_UNKNOWN = {
    "BPE": ({"type": "BPE", "vocab": LETTERS, "merges": [], "unk_token": None}, "dropped"),
    "WordPiece": (
        {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
        | {"vocab": LETTERS},
        "told",
    ),
    "WordLevel": ({"type": "WordLevel", "vocab": LETTERS, "unk_token": "[UNK]"}, "told"),
    "Unigram": ({"type": "Unigram", "unk_id": None, "vocab": [["[PAD]", 0.0], ["a", -1.0], ["b", -2.0]]}, "told"),
}


@pytest.mark.parametrize("name", WITHOUT_UNKNOWN)
def test_a_letter_that_a_tokenizer_without_unknown_does_not_have_is_told(folder, capsys, name):
    """The library raises plain Exceptions, or leaves the letter out: then a text may have no tokens."""
    model, what = WITHOUT_UNKNOWN[name]
    change_tokenizer(folder, model=model, added_tokens=[], normalizer=None, pre_tokenizer=None, post_processor=None)
    assert cli.main(["classify", "--model", str(folder), "a"]) == 0
    capsys.readouterr()
    part = "the tokenizer cannot encode" if what == "told" else "text 0, 'ж', has no tokens"
    assert_text_refused(folder, part, capsys, "ж")


@pytest.mark.parametrize("texts", [[""], ["the film", " "], ["the film", "not bad", "\n"]])
def test_a_text_without_tokens_is_no_text_of_padding(folder, capsys, texts):
    change_tokenizer(folder, post_processor=None)
    part = f"text {len(texts) - 1}, {texts[-1]!r}, has no tokens, and this checkpoint adds none: leave it out."
    assert_text_refused(folder, part, capsys, *texts)
    assert cli.main(["classify", "--model", str(folder), *texts[:-1], "bad"]) == 0


def test_special_tokens_are_tokens_of_an_empty_text(folder):
    assert cli.main(["classify", "--model", str(folder), ""]) == 0


# the folder

SOURCES = {
    "empty folder": ("empty", "has no config.json"),
    "no folder": ("none/at/all", "is no folder; expected a checkpoint folder"),
    "file": ("checkpoint/config.json", "is a file; expected a checkpoint folder"),
    "weights": ("checkpoint/model.safetensors", "is a file; expected a checkpoint folder"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_no_checkpoint_folder_is_refused(folder, tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    source, part = SOURCES[name]
    assert_refused(tmp_path / source, part, capsys, error=FileNotFoundError)


@pytest.mark.parametrize(
    "source", ["./modle", "../modle", "modle/", "a/b/c", "/modle", "~/modle", ".", "..", "", "empty", "file", "no name"]
)
def test_a_mistyped_folder_is_told_at_once_and_asked_of_nobody(tmp_path, monkeypatch, capsys, source):
    """`marker` fails this test if the network is touched."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "empty" if source == ".." else tmp_path)
    assert cli.main(["classify", "--model", source, "hi"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    why = (
        "has no config.json"
        if source in (".", "..", "", "empty")
        else "is a file"
        if source == "file"
        else "is no folder"
    )
    assert why in err


def test_folder_without_weights_is_refused(folder, capsys):
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert_refused(folder, "has no weights; expected one of model.safetensors", capsys, error=FileNotFoundError)


def test_program_ends_with_2_and_one_line_on_stderr(folder):
    """The whole program, with whatever libraries write when they are imported and when it ends."""
    change_config(folder, auto_map=EVIL_MAP)
    command = [sys.executable, "-m", "flaxsent", "classify", "--model", str(folder), "hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder.parent, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "auto_map" in done.stderr
