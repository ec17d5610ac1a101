"""An exported folder gives the classifier's numbers without the encoders, and is refused when it is not what it was."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.checkpoint import exported
from flaxsent.cli import main
from flaxsent.files import sha256
from flaxsent.packing import pack, unpack
from tests.conftest import AWKWARD_TEXTS, texts_of_lengths

# Probabilities. The compiler is given the same operations, in another module.
TOLERANCE = 1e-6

TEXTS = [*AWKWARD_TEXTS, *texts_of_lengths([3, 7, 20])]
PAIRS = [*zip(TEXTS, reversed(TEXTS), strict=True)]
VARIANTS = [
    pytest.param(family, changes, marks=pytest.mark.slow)  # compiling takes its time; BERT is in other tests too
    for family, changes in [
        *((family, {}) for family in ("albert", "bart", "deberta-v2", "distilbert", "modernbert", "mpnet", "roberta")),
        ("modernbert", {"classifier_pooling": "mean"}),
        ("deberta-v2", {"conv_kernel_size": 3, "position_biased_input": True, "type_vocab_size": 2}),
        ("bert", {"problem_type": "multi_label_classification"}),
    ]
]


@pytest.fixture(scope="module", autouse=True)
def all_lower(symbolic_sizes):
    """Every test here may lower."""


@pytest.fixture(scope="module")
def bert(tiny_folder, tmp_path_factory):
    """A classifier, and the folder to which it was exported."""
    folder = tmp_path_factory.mktemp("exports") / "bert"
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    flaxsent.export(classifier, folder)
    return classifier, folder


@pytest.fixture
def copy(bert, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(bert[1], tmp_path / "copy"))


def change(folder, **changes):
    """Rewrites keys of the manifest, and the sizes and hashes of files as they are now."""
    manifest = json.loads((folder / exported.MANIFEST).read_text())
    for name in manifest["files"]:
        file = folder / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (folder / exported.MANIFEST).write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_probabilities_are_the_classifiers(tiny_folder, tmp_path, family, changes):
    classifier = flaxsent.load(tiny_folder(family, **changes), backend="native")
    flaxsent.export(classifier, tmp_path / "export")
    carried = flaxsent.load(tmp_path / "export")
    for texts, length in [(TEXTS[4:5], None), (PAIRS, 40)]:
        tokens = carried.tokenize(texts, length)
        jax.tree.map(np.testing.assert_array_equal, tokens, classifier.tokenize(texts, length))
        ours, theirs = carried.predict(carried.params, tokens), classifier.predict(classifier.params, tokens)
        assert np.ptp(np.asarray(theirs)) > 0.1, "the scores say something"
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    tokens, placement = pack(carried.tokenizer.encode(PAIRS), row_length=64, max_segments=5)
    theirs = classifier.predict_packed(classifier.params, tokens, 5)
    ours = carried.predict_packed(carried.params, tokens, 5)
    np.testing.assert_allclose(
        unpack(np.asarray(ours), placement), unpack(np.asarray(theirs), placement), atol=TOLERANCE
    )


def test_special_tokens_in_a_text_are_letters_where_that_is_asked_for(bert):
    _, folder = bert
    special, literal = (
        flaxsent.load(folder, special_tokens_in_text=choice).tokenize(["a [SEP] b"]).input_ids.tolist()
        for choice in ("special", "literal")
    )
    assert special == flaxsent.load(folder).tokenize(["a [SEP] b"]).input_ids.tolist() != literal


def test_what_is_carried_is_what_the_classifier_has(bert):
    classifier, folder = bert
    carried = flaxsent.load(folder)
    jax.tree.map(np.testing.assert_array_equal, carried.params, classifier.params)
    assert carried.config.labels == classifier.config.labels
    assert carried.config.problem_type == classifier.config.problem_type
    assert carried.tokenizer.max_length == classifier.tokenizer.max_length
    assert carried.backend == "exported"
    manifest = json.loads((folder / exported.MANIFEST).read_text())
    assert manifest["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert manifest["problem_type"] == "single_label_classification"
    assert {"flaxsent", "jax", "jaxlib", "tokenizers"} <= manifest["versions"].keys()
    assert {*manifest["files"], exported.MANIFEST} == {file.name for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "modernbert"])  # all lower by one function
def test_gradients_flow_through_it(tiny_folder, tmp_path, family):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    flaxsent.export(classifier, tmp_path / "export", platforms=["cpu"])
    carried = flaxsent.load(tmp_path / "export")
    tokens, targets = carried.tokenize(TEXTS[:6]), jnp.arange(6) % 3

    def loss(params, predict):
        return -jnp.mean(jnp.log(predict(params, tokens)[jnp.arange(6), targets]))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    ours = gradient(carried.params, carried.predict)
    theirs = gradient(classifier.params, classifier.predict)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(theirs)) > 0.1
    # Gradients of up to 10 are sums over tokens, in another order.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), ours, theirs)


WITHOUT_ENCODERS = """
import sys
for name in ("transformers", "torch", "flax", "huggingface_hub"):
    sys.modules[name] = None
import json, flaxsent, flaxsent.models
flaxsent.models.forward = flaxsent.models.shapes = None
carried = flaxsent.load(sys.argv[1])
tokens = carried.tokenize(["so good", ("so", "bad " * 50)])
print(json.dumps(carried.predict(carried.params, tokens).tolist()))
"""


def in_new_process(code, *arguments, **environment):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_runs_without_encoders_transformers_torch_and_flax(bert):
    classifier, folder = bert
    expected = classifier.predict(classifier.params, classifier.tokenize(["so good", ("so", "bad " * 50)]))
    # On one CPU in another process, which has JAX's default settings.
    np.testing.assert_allclose(in_new_process(WITHOUT_ENCODERS, folder), expected, rtol=0, atol=TOLERANCE)


def test_classify_and_engine_take_it(bert):
    classifier, folder = bert
    carried = flaxsent.load(folder)
    ours, theirs = (flaxsent.classify(PAIRS, each, top_k=None) for each in (carried, classifier))
    assert [one.labels for one in ours] == [one.labels for one in theirs]
    options = {"row_lengths": [64], "tokens_per_step": 128}
    with flaxsent.Engine(carried, **options) as engine, flaxsent.Engine(classifier, **options) as native:
        assert engine.shapes == native.shapes
        np.testing.assert_allclose(engine(PAIRS), native(PAIRS), rtol=0, atol=TOLERANCE)


EIGHT_DEVICES = """
import json, sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 8)
import flaxsent
texts = [("good " * (i % 37)).strip() + " bad" * (i % 2) for i in range(300)]
options = dict(row_lengths=[64], tokens_per_step=128)
carried, classifier = flaxsent.load(sys.argv[1]), flaxsent.load(sys.argv[2], backend="native")
with flaxsent.Engine(carried, **options) as ours, flaxsent.Engine(classifier, **options) as theirs:
    used = len(ours._start(ours._prepare(texts).steps[0]).sharding.device_set)
    print(json.dumps([used, float(np.abs(ours(texts) - theirs(texts)).max())]))
"""


@pytest.mark.slow
def test_the_engine_spreads_it_over_devices(bert, tiny_folder):
    num_devices, difference = in_new_process(EIGHT_DEVICES, bert[1], tiny_folder("bert"))
    assert num_devices == 8
    assert difference <= TOLERANCE


def test_no_texts_and_rows_that_it_does_not_take(bert):
    carried = flaxsent.load(bert[1])
    assert carried.predict(carried.params, carried.tokenize([])).shape == (0, 3)
    assert carried.predict_packed(carried.params, carried.tokenize([]), 1).shape == (0, 1, 3)
    with pytest.raises(ValueError, match="these rows have 41 tokens; this classifier takes 40 at most"):
        carried.predict(carried.params, flaxsent.Tokens(*[np.zeros((2, 41), np.int32)] * 4))
    packed = flaxsent.Tokens(*[np.full((2, 16), 2, np.int32)] * 4)
    with pytest.raises(ValueError, match="more than one text"):
        carried.predict(carried.params, packed)
    with pytest.raises(ValueError, match="num_segments=3 is more than the 2 texts"):
        carried.predict_packed(carried.params, packed, 3)


@pytest.mark.slow
def test_bfloat16_stays_bfloat16(tiny_folder, tmp_path):
    assert main(["export", str(tiny_folder("roberta")), str(tmp_path / "export"), "--dtype", "bfloat16"]) == 0
    classifier = flaxsent.load(tiny_folder("roberta"), backend="native", dtype="bfloat16")
    carried = flaxsent.load(tmp_path / "export")
    assert {leaf.dtype for leaf in jax.tree.leaves(carried.params)} == {jnp.dtype(jnp.bfloat16)}
    tokens = carried.tokenize(TEXTS)
    ours, theirs = carried.predict(carried.params, tokens), classifier.predict(classifier.params, tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.flax_auto
@pytest.mark.parametrize("family", ["bert", "bart", "roformer"])
def test_the_flax_backend_is_exported_beside_native_packed_rows(tiny_folder, tmp_path, family):
    classifier = flaxsent.load(tiny_folder(family), backend="flax")
    flaxsent.export(classifier, tmp_path / "export")
    carried = flaxsent.load(tmp_path / "export")
    assert carried.packs == classifier.packs == (family != "roformer")
    tokens = carried.tokenize(TEXTS)
    ours, theirs = carried.predict(carried.params, tokens), classifier.predict(classifier.params, tokens)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.flax_auto
def test_a_path_that_depends_on_the_length_is_refused(tiny_folder, tmp_path):
    classifier = flaxsent.load(tiny_folder("big_bird", max_position_embeddings=400), backend="flax")
    with pytest.raises(ValueError, match="flax backend's big_bird depends on the length of rows"):
        flaxsent.export(classifier, tmp_path / "export")
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_not_empty_is_left_alone(bert, tmp_path):
    classifier, folder = bert
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "file").touch()
    for taken in (folder, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="is there already; choose another folder, or delete it"):
            flaxsent.export(classifier, taken)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    flaxsent.export(classifier, tmp_path / "empty", platforms=["cpu"])
    assert json.loads((tmp_path / "empty" / exported.MANIFEST).read_text())["platforms"] == ["cpu"]


def test_an_export_that_fails_leaves_nothing(bert, tmp_path, monkeypatch):
    def full(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device"):
        flaxsent.export(bert[0], tmp_path / "export")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("platforms", ["cpu", [], ["gpu"], ["cpu", "cpu"]])
def test_unknown_platforms_are_refused(bert, tmp_path, platforms):
    with pytest.raises(ValueError, match="expected different ones of cpu, cuda, rocm, tpu"):
        flaxsent.export(bert[0], tmp_path / "export", platforms=platforms)


def test_a_folder_for_other_platforms_is_refused(bert, tmp_path):
    flaxsent.export(bert[0], tmp_path / "export", platforms=["cuda", "tpu"])
    with pytest.raises(ValueError, match=r"exported for cuda, tpu, and JAX .* cpu here; .* --platforms cuda,tpu,cpu"):
        flaxsent.load(tmp_path / "export")


def cut(name):
    def damage(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:-2])

    return damage


def flip(name):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def manifest(**changes):
    return lambda folder: change(folder, **changes)


def whole(content):
    return lambda folder: (folder / exported.MANIFEST).write_bytes(content)


def rewrite(name, content):
    """Another file, which the manifest knows."""

    def damage(folder):
        (folder / name).write_bytes(content)
        change(folder)

    return damage


def listed(**files):
    def damage(folder):
        there = json.loads((folder / exported.MANIFEST).read_text())["files"]
        change(folder, files={name: said for name, said in (there | files).items() if said is not None})

    return damage


def other_tensors(folder):
    tensors = safetensors.numpy.load_file(folder / exported.PARAMS)
    tensors["surplus"] = tensors.pop("classifier.bias")
    tensors["classifier.kernel"] = tensors["classifier.kernel"].astype(np.float16)
    safetensors.numpy.save_file(tensors, folder / exported.PARAMS)
    change(folder)


def other_function(function, *arguments):
    def damage(folder):
        params = flaxsent.load(folder).params
        ids = jax.ShapeDtypeStruct(jax.export.symbolic_shape("B, L"), jnp.int32)
        tokens = dict.fromkeys(flaxsent.Tokens._fields, ids)
        platforms = ["cpu"] if arguments else ["cpu", "cuda", "tpu"]
        made = jax.export.export(
            jax.jit(function),
            platforms=platforms,
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name) for name in arguments],
        )(params, tokens)
        (folder / exported.FORWARD).write_bytes(made.serialize())
        change(folder, platforms=platforms)

    return damage


def calls_out(params, tokens):
    return jnp.zeros((tokens["input_ids"].shape[0], 3)) + jnp.linalg.eigvals(jnp.eye(3)).real[None]


DAMAGES = {
    "function cut short": (cut(exported.FORWARD), "forward.jax_export has .* bytes; manifest.json says "),
    "parameters cut short": (cut(exported.PARAMS), "params.safetensors has .* bytes; manifest.json says "),
    "manifest cut short": (cut(exported.MANIFEST), "manifest.json is not JSON"),
    "parameters changed": (flip(exported.PARAMS), "params.safetensors has the SHA-256 .*; manifest.json says "),
    "tokenizer changed": (flip("tokenizer.json"), "tokenizer.json has the SHA-256 "),
    "function missing": (lambda folder: (folder / exported.FORWARD).unlink(), "forward.jax_export is missing"),
    "tokenizer missing": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "manifest missing": (lambda folder: (folder / exported.MANIFEST).unlink(), "has no config.json; expected"),
    "not JSON": (whole(b"\xff\x00"), "is not JSON"),
    "deep": (whole(b"[" * 100_000), "is not JSON"),
    "a list": (whole(b"[]"), "holds a list; expected an object"),
    "huge": (whole(b" " * ((1 << 24) + 1)), "has 16,777,217 bytes; expected at most 16,777,216"),
    "older format": (manifest(format=1), "has format 1; this flaxsent reads 2: export the model anew"),
    "no format": (manifest(format="2"), "has format='2'; expected an integer"),
    "no date": (manifest(readable_until="soon"), "has readable_until='soon'; expected a date"),
    "newer jax": (
        manifest(calling_convention=99),
        r"has calling convention 99, of jax .*\(JAX promises to read it until 20..-..-..\): install the other",
    ),
    "other labels": (manifest(labels=["a", "b", "c"]), "has labels=.*; its config says "),
    "other problem": (manifest(problem_type="regression"), "has problem_type='regression'; its config says "),
    "no platform": (manifest(platforms=[]), r"has platforms=\[\]; expected some of cpu"),
    "odd platform": (manifest(platforms=["cpu", ["x"]]), "has platforms=.*; expected some of cpu"),
    "fewer platforms": (manifest(platforms=["cpu"]), "is for cpu, cuda, tpu; manifest.json says cpu"),
    "hostile config": (
        manifest(config={"model_type": "bert", "auto_map": {"AutoModel": "x.y"}}),
        "manifest.json: config.json has auto_map=",
    ),
    "config of another": (manifest(config={"model_type": "nonsense"}), "has model_type='nonsense'"),
    "path out of the folder": (listed(**{"../../etc/passwd": {"bytes": 1, "sha256": ""}}), r"names the file '\.\./"),
    "absolute path": (listed(**{"/etc/passwd": {"bytes": 1, "sha256": ""}}), "names the file '/etc/passwd'"),
    "long name": (listed(**{"x" * 5000: {"bytes": 1, "sha256": ""}}), "names the file 'x{59}…"),
    "no name": (listed(**{exported.PARAMS: None}), "does not name the file 'params.safetensors'"),
    "no size": (listed(**{exported.PARAMS: {"sha256": ""}}), "says .* of params.safetensors; expected bytes and"),
    "function of noise": (rewrite(exported.FORWARD, b"noise" * 100), "is no function that jax .* reads"),
    "empty function": (rewrite(exported.FORWARD, b""), "is no function that jax .* reads"),
    "parameters of noise": (rewrite(exported.PARAMS, b"noise" * 100), "is not a whole safetensors file"),
    "tokenizer of noise": (rewrite("tokenizer.json", b"{}"), "tokenizer.json is not a tokenizer"),
    "other parameters": (
        other_tensors,
        r"\+ surplus; - classifier.bias; classifier.kernel: expected \(\(36, 3\), 'float32'\), got .*'float16'",
    ),
    "other scores": (
        other_function(lambda params, tokens: tokens["input_ids"][:, :1].astype(jnp.float32)),
        "gives no scores of 3",
    ),
    "code outside": (other_function(calls_out, "lapack_sgeev_ffi"), r"calls \['lapack_sgeev_ffi'\], which is code"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_what_was_exported_is_refused_in_one_line(copy, name, capsys):
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
        flaxsent.load(copy)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_no_folder_is_told():
    with pytest.raises(FileNotFoundError, match="/nowhere is no folder; expected a checkpoint folder"):
        flaxsent.load("/nowhere")


@pytest.mark.slow
def test_the_command_line_exports_and_classifies(bert, tiny_folder, tmp_path, capsys):
    folder, model = tmp_path / "export", tiny_folder("bert")
    assert main(["export", str(model), str(folder), "--platforms", "cpu,tpu"]) == 0
    assert "MB, for cpu, tpu" in capsys.readouterr().out
    told = []
    for source in (model, folder):
        assert main(["classify", "so good", "so bad", "--model", str(source), "--format", "jsonl"]) == 0
        told.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for one, other in zip(*told, strict=True):
        assert one["scores"][0]["label"] == other["scores"][0]["label"]
        assert one["scores"][0]["score"] == pytest.approx(other["scores"][0]["score"], abs=TOLERANCE)

    (tmp_path / "texts.txt").write_text("so good\nso bad\n\nthe film\n")
    for source, name in ((model, "native.jsonl"), (folder, "exported.jsonl")):
        files = ["--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / name)]
        assert main(["classify", *files, "--model", str(source)]) == 0
    rows = [
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("native.jsonl", "exported.jsonl")
    ]
    for one, other in zip(*rows, strict=True):
        assert (one["text"], one["label"]) == (other["text"], other["label"])
        assert one["score"] == pytest.approx(other["score"], abs=TOLERANCE)

    capsys.readouterr()
    cut(exported.PARAMS)(folder)
    for arguments in (["classify", "x", "--model", str(folder)], ["export", str(model), str(folder)]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["info", str(folder)]) == 2


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # PyTorch's own
def test_a_saved_folder_goes_to_onnx_through_pytorch(bert, tmp_path):
    """The way that the README tells."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra bench")
    pytest.importorskip("onnxscript", reason="needs the extra bench")
    import torch
    from transformers import AutoModelForSequenceClassification

    classifier, _ = bert
    flaxsent.save(classifier, tmp_path / "my-model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "my-model").eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        model,
        (),
        tmp_path / "my-model.onnx",
        kwargs={name: torch.ones((2, 8), dtype=torch.int64) for name in names},
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=dict.fromkeys(names, any_size),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "my-model.onnx", providers=["CPUExecutionProvider"])
    tokens = classifier.tokenize(TEXTS)
    (logits,) = session.run(None, {name: getattr(tokens, name).astype(np.int64) for name in names})
    # Logits of up to 10, by other kernels.
    np.testing.assert_allclose(logits, classifier.forward(classifier.params, tokens), rtol=0, atol=2e-5)


def test_states_dropout_and_settled_arguments_are_refused(bert):
    carried = flaxsent.load(bert[1])
    tokens = carried.tokenize(["so good"])
    for function in (carried.hidden_states, lambda *arguments: carried.embeddings(*arguments, 1)):
        with pytest.raises(flaxsent.FlaxsentError, match="gives logits, not the states before them"):
            function(carried.params, tokens)
    with pytest.raises(flaxsent.FlaxsentError, match="has no dropout; leave the key out"):
        carried.forward(carried.params, tokens, jax.random.key(0))
    with pytest.raises(
        flaxsent.FlaxsentError, match="was exported, which settled backend and dtype; export the model an"
    ):
        flaxsent.load(bert[1], backend="native", dtype="float32")


def test_an_expired_folder_says_so_and_is_read_as_long_as_jax_reads_it(copy, caplog):
    change(copy, readable_until="2020-01-31")
    flaxsent.load(copy)
    assert "has expired: JAX promised to read it until 2020-01-31; export the model anew" in caplog.text
    (copy / exported.FORWARD).write_bytes(b"of another time")
    change(copy)
    with pytest.raises(
        flaxsent.FlaxsentError, match="it has expired, as JAX promised to read it until 2020-01-31 only"
    ):
        flaxsent.load(copy)


def test_what_is_carried_can_be_saved_as_a_checkpoint(bert, tmp_path):
    classifier, folder = bert
    flaxsent.save(flaxsent.load(folder), tmp_path / "saved")
    again = flaxsent.load(tmp_path / "saved", backend="native")
    jax.tree.map(np.testing.assert_array_equal, again.params, classifier.params)
