"""Fine-tuning: the loss and its gradient against PyTorch, and that a run learns, repeats and keeps its input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxsent
from flaxsent import train
from flaxsent.records import LabelledTexts, read_labelled
from tests.conftest import NATIVE, texts_of_lengths


@pytest.fixture
def optax_promotion():
    """optax (0.2.8) mixes Python floats with integer counters, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


TEXTS = texts_of_lengths([1, 7, 12, 30])
LABELS = np.array([0, 2, 1, 1], np.int32)


@pytest.mark.torch
@pytest.mark.parametrize("family", NATIVE)
def test_loss_and_gradient_without_dropout_equal_pytorch(tiny_folder, family):
    import torch
    from transformers import AutoModelForSequenceClassification

    classifier = flaxsent.load(tiny_folder(family), backend="native")
    batch = train.Batch(classifier.tokenize(TEXTS), LABELS)
    value, gradient = jax.value_and_grad(train.loss)(classifier.params, batch, None, forward=classifier.forward)

    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder(family), attn_implementation="eager").eval()
    inputs = {"input_ids": batch.tokens.input_ids, "attention_mask": batch.tokens.attention_mask}
    out = model(**{name: torch.tensor(value) for name, value in inputs.items()}, labels=torch.tensor(LABELS).long())
    out.loss.backward()
    assert abs(float(value) - out.loss.item()) <= 1e-5
    ours = flaxsent.checkpoint.to_tensors(gradient)
    for name, parameter in model.named_parameters():
        theirs = parameter.grad.numpy()
        # Relative to the largest entry: float32 sums over a few hundred terms in another order. The gradient of the
        # keys' biases is 0 in exact arithmetic, so it has no scale of its own.
        scale = max(np.abs(theirs).max(), 1e-2)
        assert np.abs(ours[name] - theirs).max() <= 1e-4 * scale, name


def test_texts_that_fill_a_batch_up_count_for_nothing(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    alone = train.Batch(classifier.tokenize(TEXTS, length=40), LABELS)
    filled = train.Batch(
        classifier.tokenize([*TEXTS, TEXTS[0]], length=40), np.append(LABELS, np.int32(-1)).astype(np.int32)
    )
    losses = [train.loss(classifier.params, batch, None, forward=classifier.forward) for batch in (alone, filled)]
    assert abs(float(losses[0]) - float(losses[1])) <= 1e-6


def toy_data(num: int) -> LabelledTexts:
    """A text is labelled by the word it has: good, bad or neither."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, num).tolist()
    fillers = texts_of_lengths(rng.integers(1, 4, num).tolist())
    words = ("so", "good good", "bad bad")
    clean = [" ".join(word for word in text.split() if word not in ("good", "bad")) for text in fillers]
    return LabelledTexts([f"{words[label]} {text}" for label, text in zip(labels, clean, strict=True)], labels)


def test_fit_learns_repeats_itself_and_leaves_its_input_alone(tiny_folder, optax_promotion):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native", labels=["none", "good", "bad"], seed=1)
    before = jax.tree.map(np.array, classifier.params)
    data, told = toy_data(300), []
    options = train.TrainOptions(learning_rate=1e-3, batch_size=20, num_epochs=3, average_decay=0.9)
    trained = train.fit(classifier, data, data, options=options, report=told.append)
    assert train.accuracy(trained, toy_data(100)) > 0.9 > train.accuracy(classifier, toy_data(100))
    assert told[-1].startswith("epoch 3 dev accuracy")
    jax.tree.map(np.testing.assert_array_equal, before, classifier.params)
    again = train.fit(classifier, data, options=options)
    jax.tree.map(np.testing.assert_array_equal, trained.params, again.params)


def test_length_bucketed_batches_hold_every_text_once_and_texts_of_like_length():
    lengths = np.random.default_rng(0).integers(3, 60, 1000).tolist()
    encodings = flaxsent.types.Encodings([[0] * length for length in lengths], [[0] * length for length in lengths], 0)
    batches = list(train.length_bucketed(encodings, 16, np.random.default_rng(0), pool=20))
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    padding = sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)
    assert padding / sum(lengths) < 0.1


def test_schedule_rises_and_falls_and_decay_spares_biases_and_norms(optax_promotion):
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "LayerNorm": {"scale": jnp.ones(2)}}
    options = train.TrainOptions(learning_rate=0.1, warmup=0.5, weight_decay=0.5)
    optimizer = train.make_optimizer(options, 4)
    state, sizes = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        sizes.append(-float(updates["dense"]["kernel"][0, 0]))
        assert (
            float(jnp.abs(updates["dense"]["bias"]).max()) == 0 == float(jnp.abs(updates["LayerNorm"]["scale"]).max())
        )
    np.testing.assert_allclose(sizes, [0, 0.025, 0.05, 0.025], rtol=1e-6)  # learning rate times weight decay


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.tsv", "sentence\tlabel\n", "has the columns sentence, label; expected text and label"),
        ("x.tsv", "text\tlabel\na\t0\nb\n", "row 3 has 1 columns; expected 2"),
        ("x.csv", "text,label\na,maybe\n", "row 2 has the label 'maybe'"),
        ("x.tsv", "text\tlabel\n", "has no rows"),
        ("x.tsv", "", "expected text and label"),
        ("x.json", "{}", "expected a .tsv or .csv file"),
    ],
)
def test_broken_labelled_files_are_named_with_the_row(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_labelled(tmp_path / name, label2id={"NEGATIVE": 0, "POSITIVE": 1})


def test_invalid_utf8_is_named_with_the_row_before_it(tmp_path):
    (tmp_path / "x.tsv").write_bytes(b"text\tlabel\ngood\t1\n\xff\t0\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_labelled(tmp_path / "x.tsv", label2id={"NEGATIVE": 0, "POSITIVE": 1})


def test_labels_are_names_or_indices_and_tsv_keeps_quotation_marks(tmp_path):
    (tmp_path / "x.tsv").write_text('text\tlabel\n"so" it is\t1\nb\tNEGATIVE\n')
    data = read_labelled(tmp_path / "x.tsv", label2id={"NEGATIVE": 0, "POSITIVE": 1})
    assert data == LabelledTexts(['"so" it is', "b"], [1, 0])
