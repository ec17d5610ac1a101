"""The headline checkpoint, distilbert-base-uncased-finetuned-sst-2-english: its four files at their true sizes."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import flaxsent
from flaxsent.files import EMBEDDED
from tests.conftest import HAS_TORCH

pytestmark = pytest.mark.compiled_as_for_users

# float32 sums of 768 and 3072 terms in another order; logits are of size 1 to 10.
TOLERANCE = 2e-5

FILES = {"config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}
HEADLINE = "distilbert-base-uncased-finetuned-sst-2-english"
COURSE = ["I've been waiting for a HuggingFace course my whole life", "I hate this so much!"]
COURSE_IDS = [
    [101, 1045, 1005, 2310, 2042, 3403, 2005, 1037, 17662, 12172, 2607, 2026, 2878, 2166, 102],
    [101, 1045, 5223, 2023, 2061, 2172, 999, 102, 0, 0, 0, 0, 0, 0, 0],
]
CONFIG = {
    "activation": "gelu",
    "architectures": ["DistilBertForSequenceClassification"],
    "attention_dropout": 0.1,
    "dim": 768,
    "dropout": 0.1,
    "finetuning_task": "sst-2",
    "hidden_dim": 3072,
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
    "initializer_range": 0.02,
    "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
    "max_position_embeddings": 512,
    "model_type": "distilbert",
    "n_heads": 12,
    "n_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "sinusoidal_pos_embds": False,
    "tie_weights_": True,
    "vocab_size": 30522,
}


_LAYER = {
    **{f"attention.{name}_lin": (768, 768) for name in ("q", "k", "v", "out")},
    "sa_layer_norm": (768,),
    "ffn.lin1": (3072, 768),
    "ffn.lin2": (768, 3072),
    "output_layer_norm": (768,),
}
WEIGHTS = {
    "distilbert.embeddings.word_embeddings": (30522, 768),
    "distilbert.embeddings.position_embeddings": (512, 768),
    "distilbert.embeddings.LayerNorm": (768,),
    **{f"distilbert.transformer.layer.{n}.{name}": shape for n in range(6) for name, shape in _LAYER.items()},
    "pre_classifier": (768, 768),
    "classifier": (2, 768),
}
"""PyTorch's names and shapes, written out, so that flaxsent's are not checked against themselves."""


def random_tensors():
    """As large as trained ones: kernels that keep the size of what they multiply, a head for logits of 1 to 10."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in WEIGHTS.items():
        weight = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            weight = 1 + np.float32(0.3) * weight
        elif "embeddings" not in name:
            weight *= np.float32((4 if name == "classifier" else 1) / shape[1] ** 0.5)
        tensors[f"{name}.weight"] = weight
        if "_embeddings" not in name:
            tensors[f"{name}.bias"] = np.float32(0.2) * rng.standard_normal(shape[0], np.float32)
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headline")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 512, "do_lower_case": true}')
    assert (folder / "tokenizer_config.json").stat().st_size == 48
    vocabulary = json.loads((EMBEDDED / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == CONFIG["vocab_size"]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get)))
    tensors = random_tensors()
    assert sum(tensor.size for tensor in tensors.values()) == 66_955_010
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", pytest.param("flax", marks=pytest.mark.flax_auto)])
def test_its_four_files_load_and_give_the_ids_of_the_course(folder, backend):
    classifier = flaxsent.load(folder, backend=backend)
    assert {file.name for file in folder.iterdir()} == FILES, "nothing is written there"
    assert (classifier.config.labels, classifier.config.classifier_dropout) == (("NEGATIVE", "POSITIVE"), 0.2)
    assert classifier.tokenizer.max_length == 512
    tokens = classifier.tokenize(COURSE)
    assert tokens.input_ids.tolist() == COURSE_IDS
    logits = np.asarray(jax.jit(classifier.forward)(classifier.params, tokens))
    assert logits.shape == (2, 2)
    assert 1 < np.abs(logits).max() < 10
    if HAS_TORCH:
        assert np.abs(logits - pytorch_logits(folder, tokens)).max() <= TOLERANCE


def pytorch_logits(folder, tokens):
    import torch
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model.eval()(torch.tensor(tokens.input_ids), torch.tensor(tokens.attention_mask)).logits
    return logits.numpy()


@pytest.mark.slow
def test_its_four_files_are_classified_from_the_command_line(folder):
    """The whole program: what the conversion of vocab.txt makes transformers say must not reach the output."""
    code = "import sys; from flaxsent.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "classify", "--format", "jsonl", "--top-k", "2", "--model", str(folder)]
    done = subprocess.run([*command, *COURSE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    classifier = flaxsent.load(folder, backend="native")
    probs = jax.jit(lambda params, arrays: classifier.postprocess(classifier.forward(params, arrays)))(
        classifier.params, classifier.tokenize(COURSE)
    )
    for record, text, row in zip(records, COURSE, np.asarray(probs), strict=True):
        assert record["text"] == text
        scores = {score["label"]: score["score"] for score in record["scores"]}
        assert [scores["NEGATIVE"], scores["POSITIVE"]] == pytest.approx(row.tolist(), abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.hub
def test_the_real_one_gives_the_logits_of_the_course():
    try:
        classifier = flaxsent.load(HEADLINE)
    except (ConnectionError, FileNotFoundError) as err:
        pytest.skip(f"the Hub does not answer: {err}")
    logits = classifier.forward(classifier.params, classifier.tokenize(COURSE))
    np.testing.assert_allclose(logits, [[-1.4683, 1.5105], [4.1692, -3.3464]], atol=1e-3)  # printed to four places
