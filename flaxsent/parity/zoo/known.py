"""Much-used classification checkpoints as a table: `ZOO`.

Names, families and keys are those of the published config.json and tokenizer_config.json, as far as they matter to ids
and logits; sizes are `rebuild`'s.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from flaxsent.checkpoint import weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """A published checkpoint, as far as it matters to ids and logits."""

    family: str
    vocabulary: str
    """A kind of `vocabularies.FILES`."""
    labels: Sequence[str]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Of config.json, but for sizes."""
    settings: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    """tokenizer_config.json; None: there is none."""
    tokenizer: Literal["vocabulary", "tokenizer.json", "saved"] = "tokenizer.json"
    """The files: the vocabulary alone; tokenizer.json besides; or all that transformers' `save_pretrained` writes."""
    carries: Sequence[str] = ()
    """What the file of weights has besides: "pooler", "lm_head", "position_ids", "version"."""
    weights: str = weights.SAFETENSORS


_MULTI = {"problem_type": "multi_label_classification"}
_ROBERTA = {"layer_norm_eps": 1e-5, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
_ROBERTA |= {"bos_token_id": 0, "eos_token_id": 2}
_DEBERTA_V3 = {
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "pooler_hidden_act": "gelu",
    "pooler_hidden_size": 36,
    "pooler_dropout": 0,
}
_DEBERTA_V3_SETTINGS = {"do_lower_case": False, "vocab_type": "spm", "split_by_punct": False, "sp_model_kwargs": {}}
_DEBERTA_V3_SETTINGS |= {"tokenizer_class": "DebertaV2Tokenizer", "model_max_length": 64}
_MODERNBERT = {
    "classifier_pooling": "mean",
    "global_attn_every_n_layers": 3,
    "local_attention": 8,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "norm_eps": 1e-5,
    "embedding_dropout": 0.0,
    "sparse_prediction": False,
}
_MODERNBERT_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 64,
    "clean_up_tokenization_spaces": True,
} | {f"{name.lower()}_token": f"[{name}]" for name in ("CLS", "SEP", "PAD", "UNK", "MASK")}
_NLI = ("contradiction", "neutral", "entailment")
_STARS = tuple(f"{num} star{'s' * (num > 1)}" for num in range(1, 6))
_SENTIMENT = ("negative", "neutral", "positive")
_ONE = ("LABEL_0",)
_XLM_SETTINGS = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 64}
_KLUE_SETTINGS = {
    "do_lower_case": False,
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "tokenizer_class": "BertTokenizer",
    "model_max_length": 64,
}

ZOO: dict[str, Known] = {
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": Known(
        family="distilbert",
        vocabulary="wordpiece-uncased",
        labels=("NEGATIVE", "POSITIVE"),
        config={"finetuning_task": "sst-2", "output_past": True, "tie_weights_": True, "sinusoidal_pos_embds": False},
        settings={"model_max_length": 64, "do_lower_case": True},
        tokenizer="vocabulary",
    ),
    "lxyuan/distilbert-base-multilingual-cased-sentiments-student": Known(
        family="distilbert",
        vocabulary="wordpiece",
        labels=("positive", "neutral", "negative"),
        config={"output_past": True},
        settings={"do_lower_case": False, "model_max_length": 64, "tokenizer_class": "DistilBertTokenizer"},
    ),
    "bhadresh-savani/distilbert-base-uncased-emotion": Known(
        family="distilbert",
        vocabulary="wordpiece-uncased",
        labels=("sadness", "joy", "love", "anger", "fear", "surprise"),
        settings={"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
        weights=weights.PICKLE,
    ),
    "nlptown/bert-base-multilingual-uncased-sentiment": Known(
        family="bert",
        vocabulary="wordpiece-uncased",
        labels=_STARS,
        config={"_num_labels": 5, "directionality": "bidi", "pooler_type": "first_token_transform"},
        settings={"do_lower_case": True, "max_len": 64, "init_inputs": []},
        tokenizer="vocabulary",
        carries=("position_ids",),
        weights=weights.PICKLE,
    ),
    "ProsusAI/finbert": Known(
        family="bert",
        vocabulary="wordpiece-uncased",
        labels=("positive", "negative", "neutral"),
        config={"gradient_checkpointing": False, "position_embedding_type": "absolute", "type_vocab_size": 2},
        settings={"do_lower_case": True, "do_basic_tokenize": True, "never_split": None},
        tokenizer="vocabulary",
        carries=("position_ids",),
        weights=weights.PICKLE,
    ),
    "yiyanghkust/finbert-tone": Known(
        family="bert",
        vocabulary="wordpiece-uncased",
        labels=("Neutral", "Positive", "Negative"),
        settings=None,
        tokenizer="vocabulary",
        weights=weights.PICKLE,
    ),
    "unitary/toxic-bert": Known(
        family="bert",
        vocabulary="wordpiece-uncased",
        labels=("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"),
        config=_MULTI,
        settings={"do_lower_case": True, "model_max_length": 64},
        tokenizer="vocabulary",
        carries=("position_ids",),
    ),
    "snunlp/KR-FinBert-SC": Known(
        family="bert",
        vocabulary="wordpiece",
        labels=_SENTIMENT,
        config={"problem_type": "single_label_classification"},
        settings={"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": True},
    ),
    "cross-encoder/ms-marco-MiniLM-L6-v2": Known(
        family="bert",
        vocabulary="wordpiece-uncased",
        labels=_ONE,
        config={"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        settings={"do_lower_case": True, "model_max_length": 64},
    ),
    "textattack/bert-base-uncased-yelp-polarity": Known(
        family="bert",
        vocabulary="wordpiece-uncased",
        labels=("LABEL_0", "LABEL_1"),
        config={"finetuning_task": "yelp_polarity"},
        settings=None,
        tokenizer="vocabulary",
        carries=("lm_head",),
        weights=weights.PICKLE,
    ),
    "beomi/KcELECTRA-base": Known(
        family="electra",
        vocabulary="wordpiece",
        labels=("none", "offensive", "hate"),
        config={"embedding_size": 36, "summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
        settings={"do_lower_case": False, "tokenizer_class": "ElectraTokenizer", "model_max_length": 64},
        carries=("position_ids",),
    ),
    "bhadresh-savani/electra-base-emotion": Known(
        family="electra",
        vocabulary="wordpiece-uncased",
        labels=("sadness", "joy", "love", "anger", "fear", "surprise"),
        config={"embedding_size": 20},
        settings={"do_lower_case": True},
        weights=weights.PICKLE,
    ),
    "cardiffnlp/twitter-roberta-base-sentiment-latest": Known(
        family="roberta",
        vocabulary="byte-level",
        labels=_SENTIMENT,
        config=_ROBERTA | {"gradient_checkpointing": False},
        settings=None,
        tokenizer="vocabulary",
        carries=("pooler", "position_ids"),
        weights=weights.PICKLE,
    ),
    "FacebookAI/roberta-large-mnli": Known(
        family="roberta",
        vocabulary="byte-level",
        labels=("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
        config=_ROBERTA | {"_num_labels": 3},
        settings={"model_max_length": 64},
        carries=("pooler", "position_ids"),
    ),
    "SamLowe/roberta-base-go_emotions": Known(
        family="roberta",
        vocabulary="byte-level",
        labels=tuple(f"emotion {index}" for index in range(28)),
        config=_ROBERTA | _MULTI,
        settings={"add_prefix_space": False, "trim_offsets": True, "model_max_length": 64},
    ),
    "unitary/unbiased-toxic-roberta": Known(
        family="roberta",
        vocabulary="byte-level",
        labels=tuple(f"kind {index}" for index in range(16)),
        config=_ROBERTA | _MULTI,
        settings={"model_max_length": 64},
        tokenizer="vocabulary",
        carries=("position_ids",),
    ),
    "j-hartmann/emotion-english-distilroberta-base": Known(
        family="roberta",
        vocabulary="byte-level",
        labels=("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise"),
        config=_ROBERTA,
        settings={"add_prefix_space": False, "errors": "replace", "tokenizer_class": "RobertaTokenizer"},
        weights=weights.PICKLE,
    ),
    "openai-community/roberta-base-openai-detector": Known(
        family="roberta",
        vocabulary="byte-level",
        labels=("Fake", "Real"),
        config=_ROBERTA,
        settings=None,
        carries=("pooler", "lm_head", "position_ids"),
    ),
    "finiteautomata/bertweet-base-sentiment-analysis": Known(
        family="roberta",
        vocabulary="bertweet",
        labels=("NEG", "NEU", "POS"),
        config=_ROBERTA | {"tokenizer_class": "BertweetTokenizer"},
        settings={"normalization": True, "tokenizer_class": "BertweetTokenizer", "model_max_length": 62},
        tokenizer="vocabulary",
        weights=weights.PICKLE,
    ),
    "klue/roberta-base": Known(
        family="roberta",
        vocabulary="wordpiece-klue",
        labels=("IT과학", "경제", "사회", "생활문화", "세계", "스포츠", "정치"),
        config=_ROBERTA | {"tokenizer_class": "BertTokenizer"},
        settings=_KLUE_SETTINGS,
        carries=("pooler",),
    ),
    "cardiffnlp/twitter-xlm-roberta-base-sentiment": Known(
        family="xlm-roberta",
        vocabulary="xlm-roberta",
        labels=_SENTIMENT,
        config=_ROBERTA,
        settings=None,
        tokenizer="vocabulary",
        carries=("pooler", "position_ids"),
        weights=weights.PICKLE,
    ),
    "papluca/xlm-roberta-base-language-detection": Known(
        family="xlm-roberta",
        vocabulary="xlm-roberta",
        labels=("ar", "bg", "de", "el", "en", "es", "fr", "hi", "it", "ja", "ko"),
        config=_ROBERTA,
        settings=_XLM_SETTINGS,
        carries=("position_ids",),
    ),
    "BAAI/bge-reranker-base": Known(
        family="xlm-roberta",
        vocabulary="xlm-roberta",
        labels=_ONE,
        config=_ROBERTA,
        settings=_XLM_SETTINGS,
    ),
    "BAAI/bge-reranker-v2-m3": Known(
        family="xlm-roberta",
        vocabulary="xlm-roberta",
        labels=_ONE,
        config=_ROBERTA,
        settings=_XLM_SETTINGS,
    ),
    "cmarkea/distilcamembert-base-sentiment": Known(
        family="camembert",
        vocabulary="camembert",
        labels=_STARS,
        config=_ROBERTA,
        settings={"tokenizer_class": "CamembertTokenizer", "model_max_length": 64},
        carries=("pooler",),
    ),
    "symanto/mpnet-base-snli-mnli": Known(
        family="mpnet",
        vocabulary="wordpiece-mpnet",
        labels=_NLI,
        config={"layer_norm_eps": 1e-5, "relative_attention_num_buckets": 32, "max_position_embeddings": 66}
        | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        settings={"do_lower_case": True, "tokenizer_class": "MPNetTokenizer", "model_max_length": 64},
        carries=("pooler", "position_ids"),
        weights=weights.PICKLE,
    ),
    "textattack/albert-base-v2-yelp-polarity": Known(
        family="albert",
        vocabulary="albert",
        labels=("LABEL_0", "LABEL_1"),
        config={"embedding_size": 20, "num_hidden_groups": 1, "inner_group_num": 1, "hidden_act": "gelu_new"}
        | {"net_structure_type": 0, "gap_size": 0, "num_memory_blocks": 0, "down_scale_factor": 1},
        settings=None,
        tokenizer="vocabulary",
        carries=("lm_head",),
        weights=weights.PICKLE,
    ),
    "facebook/bart-large-mnli": Known(
        family="bart",
        vocabulary="byte-level",
        labels=_NLI,
        config={"_num_labels": 3, "add_bias_logits": False, "add_final_layer_norm": False, "classif_dropout": 0.0}
        | {"classifier_dropout": 0.0, "normalize_before": False, "normalize_embedding": True, "scale_embedding": False}
        | {"forced_eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        settings={"model_max_length": 64},
        carries=("version",),
    ),
    "MoritzLaurer/DeBERTa-v3-base-mnli-fever-anli": Known(
        family="deberta-v2",
        vocabulary="deberta-v3",
        labels=("entailment", "neutral", "contradiction"),
        config=_DEBERTA_V3,
        settings=_DEBERTA_V3_SETTINGS,
    ),
    "cross-encoder/nli-deberta-v3-base": Known(
        family="deberta-v2",
        vocabulary="deberta-v3",
        labels=("contradiction", "entailment", "neutral"),
        config=_DEBERTA_V3,
        settings=_DEBERTA_V3_SETTINGS,
        tokenizer="vocabulary",
        carries=("lm_head", "position_ids"),
        weights=weights.PICKLE,
    ),
    "mixedbread-ai/mxbai-rerank-base-v1": Known(
        family="deberta-v2",
        vocabulary="deberta-v3",
        labels=_ONE,
        config=_DEBERTA_V3,
        settings=_DEBERTA_V3_SETTINGS,
    ),
    "protectai/deberta-v3-base-prompt-injection-v2": Known(
        family="deberta-v2",
        vocabulary="deberta-v3",
        labels=("SAFE", "INJECTION"),
        config=_DEBERTA_V3,
        settings=_DEBERTA_V3_SETTINGS,
        tokenizer="saved",
    ),
    "tasksource/ModernBERT-base-nli": Known(
        family="modernbert",
        vocabulary="modernbert",
        labels=("entailment", "neutral", "contradiction"),
        config=_MODERNBERT,
        settings=_MODERNBERT_SETTINGS,
    ),
    "Alibaba-NLP/gte-reranker-modernbert-base": Known(
        family="modernbert",
        vocabulary="modernbert",
        labels=_ONE,
        config=_MODERNBERT | {"_attn_implementation_autoset": True},
        settings=_MODERNBERT_SETTINGS,
    ),
}
"""By their names on the Hub."""
