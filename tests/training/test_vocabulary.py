"""A run that computes with the words of its texts alone gives what it gives with the whole table."""

import jax
import numpy as np
import pytest

import flaxsent
from flaxsent.base import Encodings
from flaxsent.data.labels import Examples
from flaxsent.training import trainer as training
from flaxsent.training.batches import Corpus
from flaxsent.training.options import TrainOptions
from flaxsent.training.trainer import Trainer, fit
from flaxsent.training.vocabulary import Vocabulary, vocabulary_of
from tests.conftest import NATIVE, others_slow

TEXTS = ["good", "bad bad", "good bad good"]
DATA = Examples(TEXTS, [1, 0, 1])


def table_of(classifier, params=None):
    node = classifier.params if params is None else params
    for name in Trainer(classifier, DATA).vocabulary.path:
        node = node[name]
    return np.asarray(node)


def whole(monkeypatch):
    monkeypatch.setattr(training, "vocabulary_of", lambda classifier, corpora: Vocabulary())


@pytest.mark.parametrize("family", others_slow(["bert", "modernbert"], NATIVE))
def test_the_rows_of_the_texts_give_the_logits_of_the_table(tiny_folder, family, monkeypatch):
    classifier = flaxsent.load(tiny_folder(family), backend="native")
    found = []
    for _ in range(2):
        trainer = Trainer(classifier, DATA)
        (plan,) = trainer._plan(0)[:1]
        found.append(np.asarray(trainer.logits(trainer.start().state.params, trainer._put_batch(trainer._train, plan))))
        whole(monkeypatch)
    ours, theirs = found
    assert np.isfinite(ours).all()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "changes",
    others_slow(
        [{"weight_decay": 0.5, "layer_decay": 0.7}], [{"weight_decay": 0.5}, {"freeze": ("*word_embeddings*",)}]
    ),
)
def test_a_run_gives_the_whole_table_as_if_it_had_computed_with_it(tiny_folder, changes, monkeypatch):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    options = TrainOptions(num_epochs=8, learning_rate=1e-2, average_decay=0.5, **changes)
    cut = fit(classifier, DATA, options=options)
    whole(monkeypatch)
    expected = fit(classifier, DATA, options=options)
    for ours, theirs in zip(jax.tree.leaves(cut.params), jax.tree.leaves(expected.params), strict=True):
        # A norm of gradients sums as many zeros less, and a row's decay is multiplied up before its numbers are.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_no_text_has_is_decayed_and_not_held(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    trainer = Trainer(classifier, DATA, options=TrainOptions(num_epochs=8, learning_rate=1e-2, weight_decay=0.5))
    trained = fit(classifier, DATA, options=trainer.options)
    others = np.setdiff1d(np.arange(classifier.config.vocab_size), trainer.vocabulary.ids)
    before, after = table_of(classifier)[others], table_of(classifier, trained.params)[others]
    ratio = after[before != 0] / before[before != 0]
    assert len(others) > 10
    assert 0.9 < ratio.min() < ratio.max() < 0.9999
    assert ratio.max() - ratio.min() < 1e-5


def test_gradient_moments_and_average_have_the_rows_of_the_texts_alone(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    trainer = Trainer(classifier, DATA)
    num_rows = -(-(len(trainer.vocabulary.ids) + 1) // 8) * 8
    large = [leaf.shape for leaf in jax.tree.leaves(trainer.start().state) if leaf.ndim and leaf.shape[0] == num_rows]
    assert num_rows < classifier.config.vocab_size
    assert large == [(num_rows, classifier.config.hidden_size)] * 4  # params, average and two moments
    every = [leaf.shape[0] for leaf in jax.tree.leaves(trainer.start().state) if leaf.ndim]
    assert classifier.config.vocab_size not in every


def test_texts_of_dev_are_scored_with_words_that_no_text_to_learn_from_has(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    dev = Examples(["hate movie", "the film"], [0, 1])
    trainer = Trainer(classifier, DATA, dev)
    assert np.isfinite(trainer.evaluate(trainer.start().state.average).loss)


def test_a_whole_table_is_looked_up_as_it_is(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    trainer = Trainer(classifier, DATA, Examples(["hate movie", "the film"], [0, 1]))
    cut = trainer.evaluate(trainer.start_params)
    assert trainer.evaluate(classifier.params).loss == cut.loss
    assert trainer.vocabulary.path


def test_a_text_without_its_row_is_not_a_number(tiny_folder):
    """Rather than another word's."""
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    trainer = Trainer(classifier, DATA)
    (plan,) = trainer._plan(0)[:1]
    batch = trainer._train.batch(plan)
    missing = int(np.setdiff1d(np.arange(classifier.config.vocab_size), trainer.vocabulary.ids)[0])
    ids = batch.tokens.input_ids.copy()
    ids[0, 1] = missing
    batch = batch._replace(tokens=batch.tokens._replace(input_ids=ids))
    assert np.isnan(np.asarray(trainer.logits(trainer.start().state.params, batch))[0, 0]).all()


def test_texts_with_all_words_keep_the_table(tiny_folder):
    classifier = flaxsent.load(tiny_folder("bert"), backend="native")
    every = [*range(classifier.config.vocab_size)]
    for ids, is_cut in ((every, False), (every[:-1], False), (every[:20], True)):
        corpus = Corpus(Encodings([ids], [[0] * len(ids)]), np.zeros(1, np.int32))
        assert bool(vocabulary_of(classifier, [corpus]).path) == is_cut
