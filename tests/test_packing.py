"""Rows of arrays against a slow, obvious version that places one token after another."""

import itertools

import numpy as np
import pytest

from flaxsent.base import Encodings
from flaxsent.packing import Placement, StepShape, list_steps, pack, pack_steps, pad, select, unpack


def random_encodings(lengths, seed=0) -> Encodings:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, 1000, length).tolist() for length in lengths]
    return Encodings(
        ids,
        [[0] * (length // 2) + [1] * (length - length // 2) for length in lengths],
        first_position=2,
        pad_token_id=1,
    )


def obvious(encodings, placement, shape, first_position, pad_token_id):
    """Cell by cell, text by text, in the order of the segments."""
    cells = {name: [[fill] * shape[1] for _ in range(shape[0])] for name, fill in [("ids", pad_token_id)]}
    cells |= {name: [[0] * shape[1] for _ in range(shape[0])] for name in ("types", "positions", "segments")}
    used = [0] * shape[0]
    texts = range(len(encodings.input_ids))
    for text in sorted(texts, key=lambda text: (placement.row[text], placement.segment[text])):
        row, num_counted = placement.row[text], 0
        for offset, token in enumerate(encodings.input_ids[text]):
            is_padding = first_position > 0 and token == pad_token_id
            num_counted += not is_padding
            cells["ids"][row][used[row]] = token
            cells["types"][row][used[row]] = encodings.token_type_ids[text][offset]
            cells["positions"][row][used[row]] = pad_token_id if is_padding else first_position + num_counted - 1
            cells["segments"][row][used[row]] = placement.segment[text] + 1
            used[row] += 1
    return cells


def assert_laid_out(tokens, encodings, placement, first_position=0, pad_token_id=0):
    expected = obvious(encodings, placement, tokens.input_ids.shape, first_position, pad_token_id)
    for ours, theirs in zip(tokens, ("ids", "types", "positions", "segments"), strict=True):
        assert ours.dtype == np.int32
        assert ours.tolist() == expected[theirs]


TINY = Encodings([[7, 8], [9], [4, 5, 6]], [[0, 1], [0], [0, 0, 1]], first_position=2, pad_token_id=1)


def test_pad_of_a_tiny_example_is_this():
    tokens = pad(TINY)
    assert tokens.input_ids.tolist() == [[7, 8, 1], [9, 1, 1], [4, 5, 6]]
    assert tokens.token_type_ids.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert tokens.position_ids.tolist() == [[2, 3, 0], [2, 0, 0], [2, 3, 4]]
    assert tokens.segment_ids.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    assert tokens.attention_mask.tolist() == tokens.segment_ids.tolist()


def test_pack_of_a_tiny_example_is_this():
    """The longest begins a row; the next does not fit beside it, the last does: into the fuller row."""
    tokens, placement = pack(TINY, row_length=4)
    assert tokens.input_ids.tolist() == [[4, 5, 6, 9], [7, 8, 1, 1]]
    assert tokens.token_type_ids.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]
    assert tokens.position_ids.tolist() == [[2, 3, 4, 2], [2, 3, 0, 0]]
    assert tokens.segment_ids.tolist() == [[1, 1, 1, 2], [1, 1, 0, 0]]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert (placement.row.tolist(), placement.segment.tolist()) == ([1, 0, 0], [0, 1, 0])
    values_RSC = np.array([[[0.5], [1.5]], [[2.5], [np.nan]]])  # nobody reads what has no text
    assert unpack(values_RSC, placement).tolist() == [[2.5], [1.5], [0.5]]


def test_a_token_with_the_id_of_padding_is_not_counted_where_positions_begin_behind_it():
    ids, types = [[1, 7, 1, 1, 8], [1], [9, 1]], [[0] * 5, [0], [0, 0]]
    roberta = Encodings(ids, types, first_position=2, pad_token_id=1)
    positions = [[1, 2, 1, 1, 3], [1, 0, 0, 0, 0], [2, 1, 0, 0, 0]]
    assert pad(roberta).position_ids.tolist() == positions
    assert pack(roberta, row_length=8)[0].position_ids.tolist() == [[1, 2, 1, 1, 3, 2, 1, 1]]
    bert = Encodings(ids, types, first_position=0, pad_token_id=1)
    assert pad(bert).position_ids.tolist() == [[0, 1, 2, 3, 4], [0] * 5, [0, 1, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("max_segments", [None, 1, 3])
def test_pack_lays_out_every_text_once_and_unpack_finds_it(seed, max_segments):
    lengths = np.random.default_rng(seed).integers(1, 65, 200).tolist()
    encodings = random_encodings(lengths, seed)
    tokens, placement = pack(encodings, row_length=64, max_segments=max_segments)
    places = list(zip(placement.row.tolist(), placement.segment.tolist(), strict=True))
    assert len(set(places)) == len(places)
    assert max_segments is None or placement.segment.max() < max_segments
    assert (tokens.segment_ids > 0).sum() == sum(lengths)
    assert_laid_out(tokens, encodings, placement, first_position=2, pad_token_id=1)

    num_segments = int(placement.segment.max()) + 1
    values = np.zeros((len(tokens.input_ids), num_segments, 1), np.float32)
    for text, (row, segment) in enumerate(places):
        values[row, segment] = text
    assert unpack(values, placement)[:, 0].tolist() == list(range(len(lengths)))


@pytest.mark.parametrize("length", [None, 7, 9])
def test_pad_is_one_text_a_row(length):
    encodings = random_encodings([3, 1, 7])
    tokens = pad(encodings, length=length)
    assert tokens.input_ids.shape == (3, length or 7)
    placement = Placement(row=np.arange(3), segment=np.zeros(3, int))
    assert_laid_out(tokens, encodings, placement, first_position=2, pad_token_id=1)


LENGTHS = {
    "sentences": np.clip(np.random.default_rng(0).normal(25, 12, 872), 3, 66).astype(int).tolist(),
    "uniform": np.random.default_rng(1).integers(1, 129, 300).tolist(),
    "halves and a bit": [65] * 20 + [63] * 20,
    "full": [128] * 7,
    "single tokens": [1] * 1000,
    "one": [5],
}
"""In rows of 128. The first are as SST-2's dev sentences: 25 tokens on average, 3 to 66."""


@pytest.mark.parametrize("name", LENGTHS)
def test_pack_uses_as_few_rows_as_best_fit_decreasing_can(name):
    """Which takes at most 11/9 of the fewest and one more (Johnson 1974)."""
    lengths = LENGTHS[name]
    tokens, _ = pack(random_encodings(lengths), row_length=128)
    fewest = -(-sum(lengths) // 128)
    assert fewest <= len(tokens.input_ids) <= 11 / 9 * fewest + 1
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [row for row in range(len(free)) if free[row] >= length]
        if not fits:
            free.append(128)
            fits = [len(free) - 1]
        free[min(fits, key=free.__getitem__)] -= length
    assert len(tokens.input_ids) == len(free)
    assert sorted(128 - tokens.attention_mask.sum(axis=-1)) == sorted(free)


def test_packed_rows_of_sentences_hold_97_percent_real_tokens():
    encodings = random_encodings(LENGTHS["sentences"])
    tokens, _ = pack(encodings, row_length=128)
    assert tokens.attention_mask.mean() >= 0.97
    assert pad(encodings).attention_mask.mean() < 0.5, "what padding would hold"


@pytest.mark.parametrize("max_segments", [1, 2, 5])
def test_max_segments_bounds_the_texts_of_a_row_and_costs_no_row_that_it_need_not(max_segments):
    tokens, _ = pack(random_encodings([1] * 10), row_length=128, max_segments=max_segments)
    assert tokens.segment_ids.max() == max_segments
    assert len(tokens.input_ids) == 10 / max_segments


def test_no_texts_give_no_rows():
    assert pad(Encodings([], [], 0)).input_ids.shape == (0, 1)
    assert pad(Encodings([], [], 0), length=8).input_ids.shape == (0, 8)
    tokens, placement = pack(Encodings([], [], 0), row_length=8)
    assert tokens.input_ids.shape == (0, 8)
    assert unpack(np.zeros((0, 1, 3), np.float32), placement).shape == (0, 3)


def test_select_keeps_the_order_asked_for():
    encodings = random_encodings([1, 2, 3])
    chosen = select(encodings, [2, 0, 2])
    assert chosen.input_ids == [encodings.input_ids[index] for index in (2, 0, 2)]
    assert chosen.token_type_ids == [encodings.token_type_ids[index] for index in (2, 0, 2)]


def test_texts_that_do_not_fit_are_refused():
    encodings = random_encodings([5])
    with pytest.raises(ValueError, match="length=4 is less than the 5 tokens"):
        pad(encodings, length=4)
    with pytest.raises(ValueError, match="row_length=4 is less than the 5 tokens"):
        pack(encodings, row_length=4)
    with pytest.raises(ValueError, match="max_segments=0 leaves no room"):
        pack(random_encodings([5]), row_length=8, max_segments=0)


SHAPES = [StepShape(8, 16, 4), StepShape(4, 32, 8), StepShape(2, 64, 16)]


@pytest.mark.parametrize("seed", range(5))
def test_steps_hold_every_text_once_where_they_say(seed):
    rng = np.random.default_rng(seed)
    encodings = random_encodings(np.minimum(rng.geometric(0.06, 300), 64), seed)
    steps = pack_steps(encodings, SHAPES)
    assert sorted(itertools.chain.from_iterable(step.texts.tolist() for step in steps)) == list(range(300))
    for step in steps:
        shape = (step.shape.num_rows, step.shape.row_length)
        expected = obvious(select(encodings, step.texts.tolist()), step.placement, shape, 2, 1)
        assert [array.tolist() for array in step.tokens] == [
            expected[name] for name in ("ids", "types", "positions", "segments")
        ]
        assert step.tokens.segment_ids.max() <= step.shape.num_segments
    real = sum(map(len, encodings.input_ids)) / sum(step.tokens.input_ids.size for step in steps)
    assert real > 0.9, "three thousand tokens in steps of 128"


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_text_of_more_tokens_than_a_step_has_otherwise_is_a_row_by_itself(is_packed):
    encodings = random_encodings([9000, *[30] * 40, 9000])
    steps = [*list_steps(encodings, longest=16384, is_packed=is_packed)]
    assert sorted(itertools.chain.from_iterable(step.texts.tolist() for step in steps)) == list(range(42))
    assert [(step.shape.num_rows, step.shape.row_length) for step in steps[:2]] == [(1, 12288)] * 2
    assert all(step.tokens.input_ids.size <= 8192 for step in steps[2:])


def test_texts_go_to_the_shortest_rows_that_take_them_and_fill_longer_ones():
    encodings = random_encodings([33, 17, *[16] * 12])
    steps = pack_steps(encodings, SHAPES)
    assert [(step.shape.row_length, len(step.texts)) for step in steps] == [(64, 6), (16, 8)]
    assert pack_steps(random_encodings([]), SHAPES) == []
    with pytest.raises(ValueError, match="a text of 65 tokens is longer than the rows of 64"):
        pack_steps(random_encodings([65]), SHAPES)


@pytest.mark.parametrize(
    ("lengths", "is_shorter"),
    [
        ([40], False),  # one of them would leave a third of a row of 64 empty
        ([45, 30], False),
        ([16, 20, 28], False),
        ([20], True),
        ([4, 30, 50, 60], True),  # short ones fill up what long ones leave
    ],
)
def test_rows_of_64_are_there_where_they_are_filled(lengths, is_shorter):
    """Attention takes a CPU half as long in them, but places without a token take all of the time."""
    encodings = random_encodings(np.random.default_rng(0).choice(lengths, 3000).tolist())
    found, without = (
        pack_steps(encodings, shapes)
        for shapes in ([StepShape(16, 64, 8), StepShape(8, 128, 16)], [StepShape(8, 128, 16)])
    )
    assert {step.shape.row_length for step in found} == {64 if is_shorter else 128}
    num_found, num_without = (sum(step.tokens.input_ids.size for step in steps) for steps in (found, without))
    assert num_found <= num_without / 0.97


def test_few_texts_take_the_rows_that_they_fill_best():
    shapes = [StepShape(1, 64, 8), StepShape(1, 128, 16)]
    for lengths, row_lengths in (([20, 20], [64]), ([40, 40], [64, 64]), ([100, 20, 60], [128, 64])):
        assert [step.shape.row_length for step in pack_steps(random_encodings(lengths), shapes)] == row_lengths
