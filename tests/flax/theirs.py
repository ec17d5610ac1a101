"""A namespace in which the Flax tests of transformers find flaxsent's classes in the place of transformers' own.

Their files are not part of this repository: a folder with `tests/`, as transformers' repository had it until June 2025
(before "Deprecate TF + JAX", which removed the tests and left the classes), is named by an environment variable. They
are imported unchanged; what is put around them is said here.
"""

import functools
import importlib
import logging
import os
import sys
import types
import unittest
from pathlib import Path

import numpy as np
import pytest

VARIABLE = "FLAXSENT_TRANSFORMERS_FLAX_TESTS"
FOLDER = os.environ.get(VARIABLE)

FAMILIES = {
    "albert": "Albert",
    "bart": "Bart",
    "bert": "Bert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "mbart": "MBart",
    "roberta": "Roberta",
    "xlm_roberta": "XLMRoberta",
}
"""Those that transformers had Flax tests for, and flaxsent has natively."""


def classes():
    """For each family, a name of its own for both of flaxsent's classes: `FlaxBertModel`, …"""
    from flaxsent.flax import FlaxAutoModel, FlaxAutoModelForSequenceClassification

    kinds = {"Model": FlaxAutoModel, "ForSequenceClassification": FlaxAutoModelForSequenceClassification}
    return {
        family: {f"Flax{name}{kind}": type(f"Flax{name}{kind}", (base,), {}) for kind, base in kinds.items()}
        for family, name in FAMILIES.items()
    }


def shift_tokens_right(input_ids, pad_token_id, decoder_start_token_id=None):
    """By which the tests of BART and mBART make the ids of the decoder; with transformers 4, its own."""
    ids = np.asarray(input_ids)
    last = (ids != pad_token_id).sum(axis=-1, keepdims=True) - 1
    start = np.take_along_axis(ids, last, -1) if decoder_start_token_id is None else decoder_start_token_id
    return np.concatenate([np.broadcast_to(start, (len(ids), 1)), ids[:, :-1]], axis=-1)


def put(patch, name, **attributes):
    """Sets attributes of a module; one that is not there is made, and has a class for every name that is asked for."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        module = types.ModuleType(name)
        module.__path__ = []
        module.__getattr__ = lambda attribute: type(attribute, (), {})
        patch.setitem(sys.modules, name, module)
    for attribute, value in attributes.items():
        patch.setitem(vars(module), attribute, value)


def cases():
    """`(family, TestCase)` of the files that are there; their `all_model_classes` are reduced to flaxsent's."""
    import transformers
    from transformers.models.auto import get_values

    from flaxsent.flax import FlaxAutoModel, FlaxAutoModelForSequenceClassification

    ours, configs = classes(), {}
    for family in FAMILIES:
        configs[family] = transformers.CONFIG_MAPPING[family.replace("_", "-")]
    mappings = {
        f"FLAX_MODEL_{kind}MAPPING": {configs[family]: [*ours[family].values()][index] for family in FAMILIES}
        for index, kind in enumerate(("", "FOR_SEQUENCE_CLASSIFICATION_"))
    }
    everywhere = {name: one for of_family in ours.values() for name, one in of_family.items()} | mappings
    autos = {cls.__name__: cls for cls in (FlaxAutoModel, FlaxAutoModelForSequenceClassification)}
    found = []
    with pytest.MonkeyPatch.context() as patch:
        put(patch, "timeout_decorator")
        # First: on import it puts a new `transformers` in the place of the old one.
        put(patch, "transformers.testing_utils", require_flax=lambda test: test)
        others = {"FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING": {}}
        put(patch, "transformers", **everywhere, **autos, **others, is_flax_available=lambda: True)
        put(patch, "transformers.utils", cached_property=functools.cached_property)
        names = {"FLAX_WEIGHTS_NAME": "flax_model.msgpack", "FLAX_WEIGHTS_INDEX_NAME": "flax_model.msgpack.index.json"}
        put(patch, "transformers.modeling_flax_utils", **names)
        put(patch, "transformers.models.auto.modeling_flax_auto", **autos)
        is_made = "modeling_flax" not in str(getattr(sys.modules["transformers.modeling_flax_utils"], "__file__", ""))
        for family in FAMILIES:
            shift = {"shift_tokens_right": shift_tokens_right} if is_made and "bart" in family else {}
            put(patch, f"transformers.models.{family}.modeling_flax_{family}", **ours[family], **shift)
        package = types.ModuleType("transformers_flax_tests")
        package.__path__ = [str(Path(FOLDER) / "tests")]
        patch.setitem(sys.modules, package.__name__, package)
        for family in (*FAMILIES, "auto"):
            name = f"{package.__name__}.models.{family}.test_modeling_flax_{family}"
            if not (Path(FOLDER) / "tests" / "models" / family / f"test_modeling_flax_{family}.py").is_file():
                continue
            module = importlib.import_module(name)
            for case in vars(module).values():
                if isinstance(case, type) and issubclass(case, unittest.TestCase) and case.__module__ == name:
                    if hasattr(case, "all_model_classes"):
                        case.all_model_classes = tuple(ours[family].values())
                    found.append((family, case))
        common = sys.modules[f"{package.__name__}.test_modeling_flax_common"]
        # They listen to transformers' logger; flaxsent has its own.
        common.logging = types.SimpleNamespace(get_logger=lambda name: logging.getLogger("flaxsent"))
        assert get_values(mappings["FLAX_MODEL_MAPPING"])
    return found
