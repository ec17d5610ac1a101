"""A known checkpoint rebuilt small, with random weights, saved by PyTorch with what the published folder has besides.

That is unused layers, buffers, and the settings of its tokenizer.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxsent.checkpoint import weights
from flaxsent.models.config import FAMILIES
from flaxsent.parity import pytorch
from flaxsent.parity.zoo.known import Known
from flaxsent.parity.zoo.vocabularies import FILES


def rebuild(folder: Path, known: Known) -> None:
    """Writes a small checkpoint with random weights, and all that the published one carries, into an empty folder."""
    FILES[known.vocabulary](folder)
    labels = {"id2label": {str(index): label for index, label in enumerate(known.labels)}}
    sizes = FAMILIES[known.family].tiny_config | {"vocab_size": 1000, "max_position_embeddings": 64}
    with pytorch.silenced():
        pad_token_id = _write_tokenizer(folder, known)
        _write_weights(folder, known, sizes | dict(known.config) | labels | {"pad_token_id": pad_token_id})


def _write_tokenizer(folder: Path, known: Known) -> int:
    """Gives the id of the padding token."""
    from transformers import AutoTokenizer

    if known.settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(known.settings))
    (folder / "config.json").write_text(json.dumps({"model_type": known.family, **known.config}))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if known.tokenizer == "saved":
        tokenizer.save_pretrained(folder)
    elif known.tokenizer == "tokenizer.json" and not (folder / "tokenizer.json").exists():
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.pad_token_id


def _write_weights(folder: Path, known: Known, config: Mapping[str, Any]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    ours = transformers.AutoConfig.for_model(**{key: value for key, value in config.items() if key[0] != "_"})
    model = transformers.AutoModelForSequenceClassification.from_config(ours)
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            leaf.copy_(_drawn(name, tuple(leaf.shape), torch))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    base = model.base_model_prefix
    if "pooler" in known.carries:
        encoder = transformers.AutoModel.from_config(ours)
        tensors |= {f"{base}.{name}": leaf for name, leaf in encoder.state_dict().items() if "pooler." in name}
    if "lm_head" in known.carries:
        for name, leaf in transformers.AutoModelForMaskedLM.from_config(ours).state_dict().items():
            tensors.setdefault(name, leaf.clone())
    if "position_ids" in known.carries:
        tensors[f"{base}.embeddings.position_ids"] = torch.arange(ours.max_position_embeddings)[None]
    if "version" in known.carries:
        tensors |= {f"{base}.{stack}.version": torch.tensor([3.0]) for stack in ("encoder", "decoder")}
    written = {"architectures": [type(model).__name__], "torch_dtype": "float32", **config}
    (folder / "config.json").write_text(json.dumps(written))
    if known.weights == weights.PICKLE:
        torch.save(tensors, folder / weights.PICKLE)
    else:
        from safetensors.torch import save_file

        save_file({name: leaf.contiguous().clone() for name, leaf in tensors.items()}, folder / known.weights)


def _drawn(name: str, shape: tuple[int, ...], torch: Any) -> Any:
    """As large as a trained checkpoint's: LayerNorms off 1 and 0, kernels that keep the size of what they multiply."""
    drawn = torch.randn(shape)
    if name.endswith("bias"):
        return 0.2 * drawn
    if len(shape) == 1:
        return 1 + 0.3 * drawn
    if "embed" in name or "shared" in name:
        return drawn
    is_last = name.endswith(("classifier.weight", "out_proj.weight")) and "attn" not in name
    return drawn * (2 if is_last else 1) / shape[-1] ** 0.5
