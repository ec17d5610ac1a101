"""A checkpoint's files → params and config, and back: each format, each name, one error with all that does not fit."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.models import flax_auto
from flaxsent.models.config import read_config, to_json

BACKENDS = ["native", pytest.param("flax", marks=pytest.mark.flax_auto)]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder("bert"), tmp_path / "checkpoint")


def load(folder, **arguments):
    return flaxsent.load(folder, **({"backend": "native"} | arguments))


def read(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def write(folder, tensors):
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def assert_equal(params, expected):
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


# formats


@pytest.mark.parametrize("backend", BACKENDS)
def test_params_are_the_tensors_with_kernels_transposed(folder, backend):
    """Some by name, written out, so that the key table is not checked against itself."""
    params, tensors = load(folder, backend=backend).params, read(folder)
    layer = params["bert"]["encoder"]["layer"]["1"]
    for leaf, tensor in [
        (
            params["bert"]["embeddings"]["word_embeddings"]["embedding"],
            tensors["bert.embeddings.word_embeddings.weight"],
        ),
        (params["bert"]["embeddings"]["LayerNorm"]["scale"], tensors["bert.embeddings.LayerNorm.weight"]),
        (layer["attention"]["self"]["query"]["kernel"].T, tensors["bert.encoder.layer.1.attention.self.query.weight"]),
        (layer["intermediate"]["dense"]["bias"], tensors["bert.encoder.layer.1.intermediate.dense.bias"]),
        (params["classifier"]["kernel"].T, tensors["classifier.weight"]),
    ]:
        np.testing.assert_array_equal(leaf, tensor)
    assert len(jax.tree.leaves(params)) == len(tensors)


def test_safetensors_are_read_without_torch(folder):
    """Nor does a native classifier import transformers or Flax."""
    code = (
        "import sys; sys.modules['torch'] = None; import flaxsent; flaxsent.load(sys.argv[1], backend='native'); "
        "print([name for name in ('transformers', 'flax', 'torch') if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_shards_hold_what_one_file_held(folder):
    expected, tensors = load(folder).params, read(folder)
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        safetensors.numpy.save_file({name: tensors[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    assert_equal(load(folder).params, expected)


@pytest.mark.torch
def test_shards_of_pickles_hold_what_one_file_held(folder):
    import torch

    expected = load(folder).params
    tensors = {name: torch.tensor(tensor) for name, tensor in read(folder).items()}
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, held in shards.items():
        torch.save({name: tensors[name] for name in held}, folder / shard)
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: shard for shard, held in shards.items() for name in held}}))
    (folder / "model.safetensors").unlink()
    assert_equal(load(folder).params, expected)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    told = r"index\.json names files that are not there: pytorch_model-00002-of-00002\.bin; fetch them\.$"
    with pytest.raises(FileNotFoundError, match=told):
        load(folder)
    index.write_text(json.dumps({"weight_map": {name: "../elsewhere.bin" for name in names}}))
    with pytest.raises(
        flaxsent.FlaxsentError, match=r"names the shard '\.\./elsewhere\.bin'; expected the name of a \.bin"
    ):
        load(folder)


@pytest.mark.parametrize("is_encoder_alone", [False, True])
def test_flax_msgpack_holds_the_same(folder, is_encoder_alone):
    serialization = pytest.importorskip("flax.serialization")
    expected = load(folder).params
    tree = jax.tree.map(np.asarray, expected)
    (folder / "model.safetensors").unlink()
    labels = ["a", "b"] if is_encoder_alone else None
    content = serialization.msgpack_serialize(tree["bert"] if is_encoder_alone else tree)
    (folder / "flax_model.msgpack").write_bytes(content)
    params = load(folder, labels=labels).params
    assert_equal(params["bert"], expected["bert"])
    if not is_encoder_alone:
        assert_equal(params, expected)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["state dict", "parameters", "bfloat16", "legacy file"])
def test_pytorch_file_holds_the_same(folder, kind):
    import torch

    expected = load(folder, dtype="bfloat16" if kind == "bfloat16" else "float32").params
    state = {name: torch.tensor(tensor) for name, tensor in read(folder).items()}
    if kind == "parameters":
        state = {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}
    if kind == "bfloat16":
        state = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=kind != "legacy file")
    (folder / "model.safetensors").unlink()
    assert_equal(load(folder, dtype="bfloat16" if kind == "bfloat16" else "float32").params, expected)


@pytest.mark.parametrize(
    ("file", "package", "install"),
    [
        ("flax_model.msgpack", "flax.serialization", "pip install flax"),
        ("pytorch_model.bin", "torch", "pip install 'torch>=2.6', or fetch a checkpoint with model.safetensors"),
    ],
)
def test_missing_package_is_told_with_its_install_command(folder, monkeypatch, file, package, install):
    (folder / "model.safetensors").rename(folder / file)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError) as info:
        load(folder)
    assert f"{folder / file} " in str(info.value)
    assert install in str(info.value)
    assert "\n" not in str(info.value)


def test_safetensors_are_preferred_to_the_other_formats(folder):
    """The others would be refused."""
    expected = load(folder).params
    for name in ("model.safetensors.index.json", "flax_model.msgpack", "pytorch_model.bin"):
        (folder / name).write_bytes(b"damaged")
    assert_equal(load(folder).params, expected)


NAMES = ("model.safetensors", "model.safetensors.index.json", "flax_model.msgpack", "pytorch_model.bin")


@pytest.mark.parametrize("other", [*NAMES[1:], "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("age", [-100, 100])
def test_a_newer_file_that_is_not_read_is_told(folder, caplog, other, age):
    (folder / other).write_bytes(b"damaged")
    now = (folder / "model.safetensors").stat().st_mtime
    os.utime(folder / other, (now + age, now + age))
    with caplog.at_level("INFO", "flaxsent"):
        load(folder)
    told = (
        f"{folder / 'model.safetensors'} was read; {other} beside it is newer, and was not: remove the one that is old"
    )
    expected = [("INFO", told)] if age > 0 else []  # transformers reads the same one
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == expected


def test_stale_flax_weights_beside_those_that_pytorch_would_read_are_a_warning(folder, caplog):
    serialization = pytest.importorskip("flax.serialization")
    content = serialization.msgpack_serialize(jax.tree.map(np.asarray, load(folder).params))
    (folder / "flax_model.msgpack").write_bytes(content)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    os.utime(folder / "flax_model.msgpack", (0, 0))
    load(folder)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(
        f"{folder / 'flax_model.msgpack'} was read; pytorch_model.bin beside it is newer"
    )


def test_times_of_the_hubs_cache_say_nothing(folder, tmp_path, caplog):
    cache = shutil.copytree(folder, tmp_path / "snapshot", copy_function=lambda source, to: Path(to).symlink_to(source))
    (folder / "pytorch_model.bin").write_bytes(b"fetched later")
    (Path(cache) / "pytorch_model.bin").symlink_to(folder / "pytorch_model.bin")
    with caplog.at_level("INFO", "flaxsent"):
        load(cache)
    assert caplog.records == []


# dtypes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_stored_weights_of_other_dtypes_are_read_by_value(folder, stored, backend):
    tensors = {name: tensor.astype(stored) for name, tensor in read(folder).items()}
    write(folder, tensors)
    params = load(folder, backend=backend).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(params["classifier"]["kernel"].T, tensors["classifier.weight"].astype(np.float32))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", jnp.bfloat16, np.float16, jnp.dtype("float32")])
def test_dtype_is_that_of_all_params_and_logits_stay_float32(folder, dtype, backend):
    classifier = load(folder, dtype=dtype, backend=backend)
    assert {leaf.dtype for leaf in jax.tree.leaves(classifier.params)} == {jnp.dtype(dtype)}
    shape = jax.eval_shape(classifier.forward, classifier.params, classifier.tokenize(["the film", "not bad"]))
    assert (shape.dtype, shape.shape) == (jnp.float32, (2, 3))


@pytest.mark.parametrize("dtype", ["int8", "foo", "float64", "float8_e4m3fn", int, "", 3])
def test_dtype_in_which_nothing_is_computed_is_refused(folder, dtype):
    with pytest.raises(ValueError, match="pass float32, bfloat16 or float16") as info:
        load(folder, dtype=dtype)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_quantised_tensor_is_refused_by_its_dtype(folder, dtype):
    write(folder, read(folder) | {"bert.pooler.dense.weight": np.ones((36, 36), dtype)})
    with pytest.raises(ValueError, match=f"weights of dtype {np.dtype(dtype).name}; expected floats"):
        load(folder)


# names


@pytest.mark.parametrize("backend", BACKENDS)
def test_old_layer_norm_names_are_read(folder, backend):
    expected, tensors = load(folder).params, read(folder)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert len(old.keys() - tensors.keys()) == 14
    write(folder, old)
    assert_equal(load(folder, backend=backend).params, expected)


def test_buffers_and_second_names_of_pytorch_are_no_fault(folder):
    expected = load(folder).params
    write(folder, read(folder) | {"bert.embeddings.position_ids": np.arange(40)[None]})
    assert_equal(load(folder).params, expected)


def encoder_alone(folder):
    """As `BertModel.save_pretrained` writes it: without the "bert." in front, without a head."""
    prefix = "bert."
    write(folder, {name.removeprefix(prefix): tensor for name, tensor in read(folder).items() if prefix in name})


def test_encoder_alone_takes_a_new_head(folder):
    encoder = load(folder).params["bert"]
    encoder_alone(folder)
    classifier = load(folder, labels=["no", "yes"], seed=1)
    assert_equal(classifier.params["bert"], encoder)
    assert classifier.config.labels == ("no", "yes")
    kernel = classifier.params["classifier"]["kernel"]
    assert kernel.shape == (36, 2)
    assert 0.01 < kernel.std() < 0.03
    other = load(folder, labels=["no", "yes"], seed=2)
    assert (other.params["classifier"]["kernel"] != kernel).any()
    again = load(folder, labels=["no", "yes"], seed=1)
    assert_equal(again.params, classifier.params)


def test_encoder_alone_without_labels_misses_its_head(folder):
    encoder_alone(folder)
    with pytest.raises(ValueError, match=r"- classifier.weight; - classifier.bias$"):
        load(folder)


def test_new_head_takes_the_place_of_one_for_other_labels(folder):
    before = load(folder).params
    params = load(folder, labels=["no", "yes"]).params
    assert_equal(params["bert"], before["bert"])
    assert params["classifier"]["kernel"].shape == (36, 2)


def test_new_labels_draw_a_new_head_even_in_the_number_of_the_old(folder):
    """The head would answer ham and spam by what it knows of sentiment."""
    classifier, before = load(folder, labels=["bad", "so-so", "good"]), load(folder).params
    assert_equal(classifier.params["bert"], before["bert"])
    assert (classifier.params["classifier"]["kernel"] != before["classifier"]["kernel"]).all()
    assert classifier.config.labels == ("bad", "so-so", "good")


def test_a_head_is_kept_under_new_names_and_drawn_under_the_old_ones_where_that_is_asked_for(folder):
    before = load(folder)
    renamed = load(folder, labels=["bad", "so-so", "good"], new_head=False)
    assert_equal(renamed.params, before.params)
    assert renamed.config.labels == ("bad", "so-so", "good")
    assert_equal(load(folder, labels=before.config.labels).params, before.params)
    drawn = load(folder, new_head=True)
    assert (drawn.params["classifier"]["kernel"] != before.params["classifier"]["kernel"]).all()
    with pytest.raises(flaxsent.FlaxsentError, match="new_head=False keeps the layer of 3 labels; got 2"):
        load(folder, labels=["a", "b"], new_head=False)


@pytest.mark.parametrize("labels", [None, ["LABEL_0", "LABEL_1", "LABEL_2"], ["a", "b"]])
def test_problem_type_is_obeyed_and_a_typo_refused_with_labels_and_without(folder, labels):
    classifier = load(folder, labels=labels, problem_type=MULTI)
    assert classifier.config.problem_type == MULTI
    scores = classifier.postprocess(np.zeros((1, classifier.config.num_labels), np.float32))
    np.testing.assert_array_equal(scores, 0.5)  # sigmoid of 0
    jaxtyping.config.update("jaxtyping_disable", True)  # or conftest's type checks would speak first
    try:
        with pytest.raises(flaxsent.FlaxsentError, match="problem_type='multi_label': expected one of single_label_cl"):
            load(folder, labels=labels, problem_type="multi_label")
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_new_head_does_not_hide_what_the_encoder_misses(folder):
    tensors = read(folder)
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    write(folder, tensors)
    with pytest.raises(ValueError, match=r"- bert.encoder.layer.1.output.dense.weight$"):
        load(folder, labels=["no", "yes"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_mismatches_come_in_one_error_by_pytorch_name(folder, backend):
    tensors = read(folder)
    for name in ("classifier.bias", "bert.encoder.layer.2.attention.self.key.weight"):
        del tensors[name]
    tensors |= {
        "bert.encoder.layer.3.output.dense.bias": np.zeros(36, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 36), np.float32),
        "classifier.weight": np.zeros((2, 36), np.float32),
        "bert.encoder.layer.0.intermediate.dense.weight": np.zeros((36, 50), np.float32),
        "bert.embeddings.LayerNorm.weight": np.zeros((36, 1), np.float32),
    }
    write(folder, tensors)
    with pytest.raises(ValueError, match="does not fit its config") as info:
        load(folder, backend=backend)
    start, _, faults = str(info.value).partition("(- missing, + unexpected): ")
    assert start.startswith(str(folder / "model.safetensors"))
    assert sorted(faults.split("; ")) == [
        "+ bert.encoder.layer.3.output.dense.bias",
        "+ cls.seq_relationship.weight",
        "- bert.encoder.layer.2.attention.self.key.weight",
        "- classifier.bias",
        "bert.embeddings.LayerNorm.weight: expected (36,), got (36, 1)",
        "bert.encoder.layer.0.intermediate.dense.weight: expected (50, 36), got (36, 50)",
        "classifier.weight: expected (3, 36), got (2, 36)",
    ]


# saving


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_load_of_save_is_the_same(tiny_folder, tmp_path, family, backend):
    classifier = load(tiny_folder(family), backend=backend)
    flaxsent.save(classifier, tmp_path / "saved")
    again = load(tmp_path / "saved", backend=backend)
    assert_equal(again.params, classifier.params)
    texts = ["the film is not bad", ("a", "hate this so much !")]
    assert again.tokenizer.encode(texts) == classifier.tokenizer.encode(texts)
    assert (again.config.labels, again.config.problem_type) == (
        classifier.config.labels,
        classifier.config.problem_type,
    )
    before = safetensors.numpy.load_file(tiny_folder(family) / "model.safetensors")
    after = read(tmp_path / "saved")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)


def test_save_of_what_was_saved_changes_no_byte(folder, tmp_path):
    flaxsent.save(load(folder), tmp_path / "once")
    flaxsent.save(load(tmp_path / "once"), tmp_path / "twice")
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("has_map", [False, True])
def test_saved_folder_holds_these_files_only(folder, tmp_path, has_map):
    expected = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    if has_map:
        (folder / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
        expected |= {"special_tokens_map.json"}
    (folder / "training_args.bin").write_bytes(b"no part of a checkpoint")
    flaxsent.save(load(folder), tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_saved_dtype_is_that_of_the_file_and_of_its_config(folder, tmp_path, dtype):
    flaxsent.save(load(folder), tmp_path / "saved", dtype=dtype)
    assert {str(tensor.dtype) for tensor in read(tmp_path / "saved").values()} == {dtype}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["torch_dtype"] == dtype


def test_saving_in_place_replaces_a_checkpoint_and_nothing_else(folder):
    before, before_names = load(folder), {path.name for path in folder.iterdir()} - {"vocab.txt"}
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("mine")
    (folder / "README.md").write_text("mine, too")
    for name in ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (folder / name).write_bytes(b"older weights, which would contradict the new ones")
    flaxsent.save(before, folder)
    assert_equal(load(folder).params, before.params)
    assert (folder / "notes" / "todo.txt").read_text() == "mine"
    assert (folder / "README.md").read_text() == "mine, too"
    assert {path.name for path in folder.iterdir()} == before_names | {"notes", "README.md"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_saving_through_a_link_writes_where_it_leads(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    classifier = load(folder)
    bias = {"bias": classifier.params["classifier"]["bias"] + 1}
    params = classifier.params | {"classifier": classifier.params["classifier"] | bias}
    flaxsent.save(dataclasses.replace(classifier, params=params), tmp_path / "link")
    assert_equal(load(folder).params, params)
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, "link"}


def test_the_current_folder_is_not_replaced_from_under_the_shell(folder, monkeypatch):
    classifier = load(folder)
    (folder / "inner").mkdir()
    for current in (folder, folder / "inner"):
        monkeypatch.chdir(current)
        with pytest.raises(flaxsent.FlaxsentError, match="would be replaced, and the current folder is in it"):
            flaxsent.save(classifier, folder)


def test_a_save_that_fails_leaves_what_was_there(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    classifier = load(folder)
    written = []

    def write(path, content):
        written.append(path.name)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left on device"):
        flaxsent.save(classifier, folder)
    assert written, "the tokenizer comes after the weights"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
def test_a_folder_is_the_old_one_or_the_new_one_whenever_a_save_is_killed(folder):
    """Half of the calls by which a save changes the disk are before the last of a hundred thousandths of a second."""
    code = """
import os, signal, sys, flaxsent
classifier = flaxsent.load(sys.argv[1], backend="native")
params = classifier.params | {"classifier": {name: leaf + 1 for name, leaf in classifier.params["classifier"].items()}}
left = int(sys.argv[2])
for name in ("rename", "mkdir", "fsync", "link", "unlink"):
    def counted(*arguments, call=getattr(os, name), **named):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    setattr(os, name, counted)
import dataclasses
flaxsent.save(dataclasses.replace(classifier, params=params), sys.argv[1])
"""
    first = load(folder).params["classifier"]["bias"]
    seen = set()
    for left in range(40):
        copy = Path(shutil.copytree(folder, folder.parent / f"copy{left}"))
        done = subprocess.run(
            [sys.executable, "-c", code, copy, str(left)], capture_output=True, text=True, check=False
        )
        if copy.exists():  # between two renames there is a moment when the old folder has its other name
            bias = load(copy).params["classifier"]["bias"]
            seen.add(float(bias[0] - first[0]))
        else:
            (old,) = folder.parent.glob(f".copy{left}.*.old")
            np.testing.assert_array_equal(load(old).params["classifier"]["bias"], first)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stderr
    assert left > 3
    assert sorted(seen) == pytest.approx([0.0, 1.0])


def test_an_old_folder_with_a_temperature_is_read_and_saved_without(folder, tmp_path):
    """flaxsent 0.1 divided the logits by a key of config.json; now the last layer is divided."""
    before = load(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"flaxsent_temperature": 2.5}))
    read = load(folder)
    tokens = before.tokenize(["so good", "so bad"])
    expected = before.forward(before.params, tokens) / 2.5
    np.testing.assert_allclose(read.forward(read.params, tokens), expected, rtol=1e-5)
    flaxsent.save(read, tmp_path / "saved")
    assert "flaxsent_temperature" not in (tmp_path / "saved" / "config.json").read_text()
    assert_equal(load(tmp_path / "saved").params, read.params)
    assert_equal(load(folder, new_head=True).params["bert"], before.params["bert"])


@pytest.mark.parametrize("temperature", [0, -1, "2", float("nan"), 1e9, True])
def test_an_impossible_temperature_is_refused(folder, temperature):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"flaxsent_temperature": temperature}))
    with pytest.raises(flaxsent.FlaxsentError, match=r"config.json has flaxsent_temperature=.*; expected a number"):
        load(folder)


def test_save_into_a_file_is_refused(folder):
    with pytest.raises(NotADirectoryError, match=r"config\.json"):
        flaxsent.save(load(folder), folder / "config.json")


# config.json

BERT = {
    "model_type": "bert",
    "vocab_size": 61,
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 40,
}
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def config(**changes):
    return read_config(json.dumps(BERT | changes))


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ("LABEL_0", "LABEL_1")),
        ({"num_labels": 4}, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
        ({"id2label": None, "num_labels": 1}, ("LABEL_0",)),
        ({"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}}, ("NEGATIVE", "POSITIVE")),
        ({"id2label": {"1": "POSITIVE", "0": "NEGATIVE"}}, ("NEGATIVE", "POSITIVE")),
        (
            {"id2label": {str(index): f"{index}" for index in (10, 9, 2, 1, 0, 3, 4, 5, 6, 7, 8)}},
            tuple(map(str, range(11))),
        ),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 2}, ("a", "b", "c")),
        ({"id2label": {"0": 0, "1": 1}}, ("0", "1")),
        ({"id2label": {"0": "نعم", "1": "不"}}, ("نعم", "不")),
    ],
)
def test_labels_stand_in_the_order_of_their_index(changes, labels):
    assert config(**changes).labels == labels
    assert config(**changes).num_labels == len(labels)


@pytest.mark.parametrize(
    ("changes", "problem_type"),
    [
        ({}, SINGLE),
        ({"num_labels": 1}, REGRESSION),
        ({"id2label": {"0": "score"}}, REGRESSION),
        ({"num_labels": 1, "problem_type": SINGLE}, SINGLE),
        ({"num_labels": 5}, SINGLE),
        ({"problem_type": None}, SINGLE),
        ({"problem_type": MULTI}, MULTI),
        ({"problem_type": REGRESSION}, REGRESSION),
        ({"problem_type": SINGLE}, SINGLE),
    ],
)
def test_problem_type_is_that_of_the_file_or_of_the_number_of_labels(changes, problem_type):
    assert config(**changes).problem_type == problem_type


@pytest.mark.parametrize(
    ("changes", "first_position", "max_length"),
    [
        ({}, 0, 40),
        ({"pad_token_id": 3}, 0, 40),
        ({"model_type": "roberta"}, 2, 38),
        ({"model_type": "roberta", "pad_token_id": 0}, 1, 39),
        ({"model_type": "xlm-roberta", "pad_token_id": 1}, 2, 38),
        ({"model_type": "roberta-prelayernorm", "max_position_embeddings": 514}, 2, 512),
        ({"model_type": "electra"}, 0, 40),
    ],
)
def test_roberta_families_lose_the_positions_up_to_padding(changes, first_position, max_length):
    read = config(**changes)
    assert (read.first_position, read.max_length) == (first_position, max_length)


@pytest.mark.parametrize(
    ("changes", "dropouts"),
    [
        ({}, (0.1, 0.1, 0.1)),
        ({"hidden_dropout_prob": 0.3}, (0.3, 0.1, 0.3)),
        ({"hidden_dropout_prob": 0.3, "classifier_dropout": 0}, (0.3, 0.1, 0.0)),
        ({"attention_probs_dropout_prob": 0.2, "classifier_dropout": None}, (0.1, 0.2, 0.1)),
    ],
)
def test_classifier_dropout_is_the_hidden_one_where_it_is_not_given(changes, dropouts):
    read = config(**changes)
    assert (read.hidden_dropout, read.attention_dropout, read.classifier_dropout) == dropouts


def test_new_labels_replace_all_that_the_file_says_of_them(folder, tmp_path):
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"problem_type": MULTI, "num_labels": 3, "label2id": {"LABEL_0": 0}}
    (folder / "config.json").write_text(json.dumps(raw))
    classifier = load(folder, labels=("no", "yes"))
    assert (classifier.config.labels, classifier.config.problem_type) == (("no", "yes"), SINGLE)
    flaxsent.save(classifier, tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "num_labels" not in saved
    assert saved["id2label"] == {"0": "no", "1": "yes"}
    assert saved["label2id"] == {"no": 0, "yes": 1}


def test_saved_config_keeps_the_keys_that_flaxsent_does_not_read():
    saved = json.loads(to_json(config(custom={"a": [1]}, _name_or_path="/home/somebody/secret"), dtype="float16"))
    assert saved["custom"] == {"a": [1]}
    assert saved["architectures"] == ["BertForSequenceClassification"]
    assert "_name_or_path" not in saved
    again = read_config(json.dumps(saved))
    assert (again.labels, again.problem_type) == (("LABEL_0", "LABEL_1"), SINGLE)


@pytest.mark.parametrize(
    ("family", "changes", "dtype"),
    [
        ("bert", {"hidden_act": "mish"}, "float32"),
        ("distilbert", {"activation": "relu6"}, "bfloat16"),
        ("distilbert", {}, "float16"),
        ("mpnet", {}, "float32"),
    ],
)
def test_what_only_flaxsents_own_encoder_computes_is_computed_by_it(tiny_folder, family, changes, dtype):
    classifier = flaxsent.load(tiny_folder(family, **changes), dtype=dtype)
    assert not flax_auto.uses_theirs(classifier.config, jnp.dtype(dtype))
    assert np.isfinite(classifier.forward(classifier.params, classifier.tokenize(["the film"]))).all()


def test_an_activation_that_neither_backend_computes_is_refused_without_a_way_out_that_is_none(tiny_folder):
    folder = tiny_folder("roformer", hidden_act="mish")
    for backend in (None, "flax"):
        with pytest.raises(
            flaxsent.FlaxsentError, match=r"the activation 'mish'; .*; flaxsent cannot compute this model"
        ):
            flaxsent.load(folder, backend=backend)


@pytest.mark.parametrize("key", [key for key in BERT if key != "model_type"])
def test_missing_size_is_told_by_its_key(key):
    raw = {name: value for name, value in BERT.items() if name != key}
    with pytest.raises(ValueError, match=f"config.json has {key}=None; expected an integer"):
        read_config(json.dumps(raw))


def test_config_is_hashable_and_equal_by_value():
    """So that it can be a static argument of `jit`."""
    assert hash(config()) == hash(config())
    assert config() == config()
    assert config() != config(num_labels=3)
