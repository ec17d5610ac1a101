"""Held to tests that nobody here wrote: the Flax tests of transformers, unchanged, on flaxsent's classes."""

import unittest

import jax
import pytest

from tests.flax import theirs

if theirs.FOLDER is None:
    pytest.skip(f"{theirs.VARIABLE} names no folder with transformers' Flax tests", allow_module_level=True)

HUB = "fetches a checkpoint from the Hub, or expects transformers' words where it cannot"
OTHER_HEAD = "is about another head, or about transformers' own function"
GENERATION = "calls encode and decode, by which text is generated; a classifier has no use for them"
NOT_OURS = {
    "test_naming_convention": "asks for a class of modules a family; flaxsent has one for all",
    "test_headmasking": "masks heads, which flaxsent refuses in one line",
    "test_checkpoint_sharding_from_hub": HUB,
    "test_checkpoint_sharding_local": HUB,
    "FlaxAutoModelTest": HUB,
    "test_encode": GENERATION,
    "test_decode": GENERATION,
    "test_use_cache_forward": GENERATION,
    "test_use_cache_forward_with_attn_mask": GENERATION,
    "test_question_answering_forward": OTHER_HEAD,
    "test_lm_forward": OTHER_HEAD,
    "test_lm_uneven_forward": OTHER_HEAD,
    "test_shift_tokens_right": OTHER_HEAD,
    ("bart", "test_forward_signature"): (
        "wants decoder_input_ids third; flaxsent has one order of arguments for all families"
    ),
}
NOT_OURS["mbart", "test_forward_signature"] = NOT_OURS["bart", "test_forward_signature"]
"""Why some are not run: by the name of the test, of its class, or of both family and test."""


def why_not(family, case, name):
    return next((NOT_OURS[key] for key in (name, case.__name__, (family, name)) if key in NOT_OURS), None)


CASES = [
    pytest.param(case, name, why_not(family, case, name), id=f"{family}-{case.__name__}-{name}")
    for family, case in theirs.cases()
    for name in unittest.TestLoader().getTestCaseNames(case)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "name", "reason"), CASES)
def test_theirs(case, name, reason):
    if reason:
        pytest.skip(f"{name.removeprefix('test_')} {reason}")
    result = unittest.TestResult()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        case(name).run(result)
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    for _, told in result.failures + result.errors:
        pytest.fail(told, pytrace=False)
