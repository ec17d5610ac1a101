"""The Flax classes of transformers 4, for today: the same calls, on flaxsent's own encoders, for every native family.

`FlaxAutoModelForSequenceClassification` and `FlaxAutoModel` are for code that was written for transformers' classes,
which transformers 5 does not have; `SequenceClassifier` is an `nnx.Module` on the same params. `models/linen.py` has
the module that they hold.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from flaxsent import models
from flaxsent.base import FlaxsentError, Params
from flaxsent.checkpoint import hub, weights
from flaxsent.checkpoint.folder import config_of, float_dtype, own_files
from flaxsent.files import replacing, require
from flaxsent.models import flax_auto, linen
from flaxsent.models.config import ModelConfig, read_config, to_json

if TYPE_CHECKING:
    from flax import nnx, traverse_util
else:
    nnx = require("flax.nnx", needed_by="flaxsent.flax", extra="flax")
    traverse_util = require("flax.traverse_util", needed_by="flaxsent.flax", extra="flax")

logger = logging.getLogger(__name__)

_BY_ENVIRONMENT = {"token": "HF_TOKEN", "cache_dir": "HF_HOME", "local_files_only": "HF_HUB_OFFLINE"}
"""What transformers takes as arguments, and flaxsent as the Hub's own variables."""


class _Model:
    """What the two classes share; a checkpoint's family decides what is computed, not a class of its own."""

    main_input_name = "input_ids"
    _has_head: ClassVar[bool]

    def __init__(
        self,
        config: Any,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
    ) -> None:
        """A model of random params, or of none with `_do_init=False`; `config` is transformers' or `ModelConfig`.

        Raises:
            FlaxsentError: flaxsent has no native encoder for the family, or as `read_config`.
        """
        if isinstance(config, ModelConfig):
            self._model_config, self._config = config, None
        else:
            self._model_config, self._config = read_config(config.to_json_string(use_diff=False)), config
        if not models.is_native(self._model_config):
            raise FlaxsentError(f"flaxsent has no native encoder for {self._model_config.family}; use transformers 4.")
        self.dtype = float_dtype(dtype)
        self.key, self.input_shape = jax.random.key(seed), input_shape
        self.module = linen.Encoder(config=self._model_config, dtype=self.dtype, has_head=self._has_head)
        self._params: Any = self.init_weights(self.key) if _do_init else None
        self._is_initialized = _do_init

    @classmethod
    def from_config(cls, config: Any, **arguments: Any) -> Any:
        """As the class itself."""
        return cls(config, **arguments)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        dtype: Any = jnp.float32,
        config: Any = None,
        _do_init: bool = True,
        from_pt: bool = False,
        ignore_mismatched_sizes: bool = False,
        revision: str | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
        **overrides: Any,
    ) -> Any:
        """The model of a folder or a Hub id; with `_do_init=False`, the model and its params, which it does not hold.

        Args:
            pretrained_model_name_or_path: it may hold safetensors, flax_model.msgpack or pytorch_model.bin, with
                `from_pt` or without; no code of it is run, with `trust_remote_code` or without.
            dtype: of the computation; the params are of the dtype in which they are stored.
            config: transformers' config to take instead of the checkpoint's.
            _do_init: False also leaves out params that the file lacks, for `init_weights` to draw.
            from_pt: taken for the sake of the call.
            ignore_mismatched_sizes: whether params of another shape than the config says are drawn anew.
            revision: branch, tag or commit on the Hub.
            trust_remote_code: taken for the sake of the call.
            seed: from which a head is drawn that the file lacks.
            overrides: keys of the config, such as `num_labels`.

        Raises: as `load`; FlaxsentError also for a key that the config does not have.
        """
        for name in overrides.keys() & _BY_ENVIRONMENT.keys():
            if overrides.pop(name):
                raise FlaxsentError(f"{name} is read from the environment; set {_BY_ENVIRONMENT[name]} instead.")
        folder = hub.find_whole(pretrained_model_name_or_path, revision=revision)
        if config is None:
            config = _overridden(config_of(folder), overrides)
        elif overrides:
            raise FlaxsentError(f"config is given, and so are its keys {', '.join(overrides)}; set them in it.")
        model = cls(config, seed=seed, dtype=dtype, _do_init=False)
        params = model._read(folder, ignore_mismatched_sizes=ignore_mismatched_sizes, draws=_do_init)
        if not _do_init:
            return model, params
        model._is_initialized = True
        model.params = params
        return model

    def _read(self, folder: Path, *, ignore_mismatched_sizes: bool, draws: bool) -> dict[str, Any]:
        """The params of a folder; a head that it lacks is drawn, or left out.

        An encoder of which a part is missing is an error, unless it is the caller who draws.
        """
        base, shapes = models.base(self._model_config), self._wrap(self._shapes)

        def read(drawn: Params) -> Params:
            return weights.read_params(folder, shapes=shapes, base=base, dtype=None, drawn=drawn)

        try:
            return self._unwrap(read({}))
        except FlaxsentError:
            missing, misshaped = weights.unfit(folder, shapes=shapes, base=base)
            encoder = {path for path, _ in weights.flatten(shapes) if path[0] == base and path[1] != "pooler"}
            lacks_encoder = bool(encoder & missing) if draws else encoder <= missing
            if not missing | misshaped or lacks_encoder or (misshaped and not ignore_mismatched_sizes):
                raise
        drawn = traverse_util.flatten_dict(self._wrap(self.init_weights(self.key)))
        params = traverse_util.flatten_dict(
            read(traverse_util.unflatten_dict({path: drawn[path] for path in missing | misshaped}))
        )
        for paths, why in ((missing, "it does not have them"), (misshaped, "the shapes did not match")):
            if paths:
                names = ", ".join(sorted(".".join(path) for path in paths))
                what = "newly drawn, and to be trained" if draws else "left out, for init_weights to draw"
                logger.warning("%s: some weights are %s, because %s: %s", folder, what, why, names)
        kept = {path: leaf for path, leaf in params.items() if draws or path not in missing}
        return self._unwrap(traverse_util.unflatten_dict(kept))

    @property
    def config(self) -> Any:
        """The config of the family in transformers, which is imported when this is first asked for."""
        if self._config is None:
            self._config = flax_auto.their_config(self._model_config)
        return self._config

    @property
    def base_model_prefix(self) -> str:
        """The branch of a classifier's params that holds the encoder."""
        return models.base(self._model_config)

    @property
    def params(self) -> Params:
        """A nested dict, for `__call__` and `save_pretrained` where these are given none.

        Raises:
            FlaxsentError: the model was made with `_do_init=False`; or what is set lacks a parameter.
        """
        self._check_initialized()
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._check_initialized()
        if missing := self.required_params - set(traverse_util.flatten_dict(_plain(params))):
            raise FlaxsentError(f"params lack {', '.join(sorted('.'.join(path) for path in missing))}.")
        self._params = _plain(params)

    def _check_initialized(self) -> None:
        if not self._is_initialized:
            raise FlaxsentError("a model with _do_init=False holds no params; keep them yourself and pass params=….")

    @property
    def params_shape_tree(self) -> dict[str, Any]:
        is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
        return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), self._shapes, is_leaf=is_shape)

    @property
    def required_params(self) -> set[tuple[str, ...]]:
        """The paths of all params."""
        return {path for path, _ in weights.flatten(self._shapes)}

    def init_weights(
        self, rng: Any, input_shape: tuple[int, ...] | None = None, params: Params | None = None
    ) -> dict[str, Any]:
        """Random params, as BERT's start; those that are in `params` are taken from there."""
        drawn = _plain(self.module.init(rng, jnp.zeros(input_shape or self.input_shape, jnp.int32))["params"])
        if params is None:
            return drawn
        given = traverse_util.flatten_dict(_plain(params))
        return traverse_util.unflatten_dict(traverse_util.flatten_dict(drawn) | given)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        *,
        params: Params | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """`linen.Outputs`, or a tuple with `return_dict=False`.

        BART's decoder reads `decoder_input_ids`, or the text one token later; it sees what `attention_mask` lets it
        see up to its token, whatever `decoder_attention_mask` is. Matrix products are of JAX's default precision.

        Raises:
            FlaxsentError: as `linen.Encoder`; or there are NumPy's ids for which there is no embedding.
        """
        return self.module.apply(
            {"params": self.params if params is None else params},
            *(input_ids, attention_mask, token_type_ids, position_ids, head_mask),
            decoder_input_ids=decoder_input_ids,
            deterministic=not train,
            output_attentions=self._or_config("output_attentions", output_attentions, False),
            output_hidden_states=self._or_config("output_hidden_states", output_hidden_states, False),
            return_dict=self._or_config("return_dict", return_dict, True),
            rngs={} if dropout_rng is None else {"dropout": dropout_rng},
        )

    def _or_config(self, name: str, given: bool | None, default: bool) -> bool:
        """What is given, or what the config says, which is not made for this."""
        if given is not None:
            return given
        return self._model_config.get(name, default) if self._config is None else getattr(self._config, name, default)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        params: Params | None = None,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
    ) -> None:
        """Writes config.json and model.safetensors with PyTorch's names: PyTorch's AutoModel opens it, so does `load`.

        Of a folder that is there, these files are replaced; others, such as a tokenizer's, stay.

        Raises:
            FlaxsentError: another format is asked for, or a push.
            OSError: the folder cannot be written; what was there still is.
        """
        if push_to_hub or not safe_serialization:
            raise FlaxsentError(
                "save_pretrained writes safetensors, here; to push, call huggingface_hub.upload_folder."
            )
        params = self.params if params is None else _plain(params)
        config = (
            self._model_config if self._config is None else read_config(self._config.to_json_string(use_diff=False))
        )
        text = to_json(config, dtype=jax.tree.leaves(params)[0].dtype.name, has_head=self._has_head)
        with replacing(Path(save_directory), owned=own_files(Path(save_directory), with_tokenizer=False)) as unfinished:
            weights.write_tensors(weights.to_tensors(params), unfinished / weights.SAFETENSORS, {"format": "pt"})
            (unfinished / "config.json").write_text(text, encoding="utf-8")

    def enable_gradient_checkpointing(self) -> None:
        """From now on, gradients keep the outputs of the layers alone and compute what is in a layer again."""
        self.module = self.module.clone(saves_memory=True)

    def to_bf16(self, params: Params, mask: Any = None) -> Any:
        """Params cast to bfloat16; of a `mask` of their structure, those where it is True."""
        return _cast(params, mask, jnp.bfloat16)

    def to_fp16(self, params: Params, mask: Any = None) -> Any:
        """Params cast to float16; of a `mask` of their structure, those where it is True."""
        return _cast(params, mask, jnp.float16)

    def to_fp32(self, params: Params, mask: Any = None) -> Any:
        """Params cast to float32; of a `mask` of their structure, those where it is True."""
        return _cast(params, mask, jnp.float32)

    @classmethod
    def can_generate(cls) -> bool:
        """No."""
        return False

    @property
    def _shapes(self) -> dict[str, Any]:
        return linen.shapes_of(self._model_config, has_head=self._has_head)

    def _wrap(self, tree: Params) -> dict[str, Any]:
        """A tree with the encoder in its branch, as a classifier's is."""
        return dict(tree) if self._has_head else {models.base(self._model_config): tree}

    def _unwrap(self, tree: Params) -> dict[str, Any]:
        return dict(tree if self._has_head else tree[models.base(self._model_config)])


class FlaxAutoModelForSequenceClassification(_Model):
    """`from_pretrained(…)(**tokens).logits`, of every family that flaxsent has natively.

    >>> from flaxsent.files import EMBEDDED
    >>> import numpy as np
    >>> model = FlaxAutoModelForSequenceClassification.from_pretrained(EMBEDDED)
    >>> model(np.array([[101, 2061, 2204, 102]])).logits.shape
    (1, 2)
    """

    _has_head = True


class FlaxAutoModel(_Model):
    """The encoder: `.last_hidden_state`, and `.pooler_output` where the classifier of the family has a pooler."""

    _has_head = False


class SequenceClassifier(nnx.Module):
    """The same params and numbers as a module of nnx, for `nnx.jit`, `nnx.grad`, `nnx.Optimizer`, `nnx.split`.

    Args:
        params: those of `load` or of `FlaxAutoModelForSequenceClassification`; they become `nnx.Param`s.
        config: `load(…).config`.
        dtype: of the computation.
        partition: gives the names of the axes of a mesh, or None, for the path of a parameter and its shape: rules by
            which `nnx.get_partition_spec` shards.
    """

    def __init__(
        self,
        params: Params,
        *,
        config: ModelConfig,
        dtype: Any = jnp.float32,
        partition: Callable[[tuple[str, ...], tuple[int, ...]], tuple[str | None, ...] | None] | None = None,
    ) -> None:
        self.config, self.dtype = config, float_dtype(dtype)

        def variable(path: tuple[str, ...], leaf: Any) -> Any:
            names = None if partition is None else partition(path, leaf.shape)
            return nnx.Param(leaf if names is None else nnx.with_partitioning(lambda: leaf, names)())

        leaves = traverse_util.flatten_dict(_plain(params))
        held = traverse_util.unflatten_dict({path: variable(path, leaf) for path, leaf in leaves.items()})
        self.params = nnx.data(held)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        *,
        rngs: Any = None,
    ) -> jax.Array:
        """Logits in float32 `[B, C]`; `rngs`, an `nnx.Rngs` or a key, switches dropout on."""
        key = rngs.dropout() if isinstance(rngs, nnx.Rngs) else rngs
        tokens = linen.tokens_of(input_ids, attention_mask, token_type_ids, position_ids, config=self.config)
        key = None if key is None else linen.typed_key(key)
        return linen.outputs(self.pure_params(), tokens, key, config=self.config, dtype=self.dtype).logits

    def pure_params(self) -> dict[str, Any]:
        """The nested dict of arrays, for `forward`, `save` and the Flax classes."""
        return jax.tree.map(lambda one: one[...], self.params, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _overridden(own: ModelConfig, overrides: Mapping[str, Any]) -> ModelConfig:
    """A config with other values for some keys; a number of labels that is not its own takes the labels away."""
    if not overrides:
        return own
    theirs, raw = flax_auto.their_config(own), json.loads(own.json)
    if odd := [name for name in overrides if not hasattr(theirs, name)]:
        raise FlaxsentError(
            f"{', '.join(odd)}: neither an argument of from_pretrained nor a key of {own.family}'s config."
        )
    if overrides.get("num_labels", own.num_labels) != own.num_labels:
        raw = {name: value for name, value in raw.items() if name not in ("id2label", "label2id")}
    raw |= {name: value for name, value in overrides.items() if name != "num_labels" or "id2label" not in raw}
    return read_config(json.dumps(raw, default=str))


def _plain(params: Params) -> dict[str, Any]:
    """Dicts, where there may be Flax's frozen ones."""
    return {name: _plain(node) if isinstance(node, Mapping) else node for name, node in params.items()}


def _cast(params: Params, mask: Params | None, dtype: Any) -> dict[str, Any]:
    params = _plain(params)
    mask = jax.tree.map(lambda _: True, params) if mask is None else _plain(mask)
    return jax.tree.map(lambda leaf, is_cast: leaf.astype(dtype) if is_cast else leaf, params, mask)
