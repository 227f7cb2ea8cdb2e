"""Whether the head is the embedding, by what config.json says of it at two places.

Released models and transformers go by the top of config.json, so that decides here, and in vLLM for
Qwen3-VL (``config/vllm.py``, ``with_hf_config``, 0.26). Qwen3.5 it builds by ``text_config``
(``models/qwen3_5.py``, 0.22 to 0.32).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
_KEY = "tie_word_embeddings"


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the head is the embedding."""
    return bool(config.get(_KEY))


def contradict(config: Mapping[str, Any]) -> bool:
    """Whether config.json says one thing at its top and another in ``text_config``."""
    return is_tied(config) != is_tied(config.get("text_config", {}))


def ties_text(config: Mapping[str, Any]) -> str:
    """What config.json says, at both places."""
    top, text = (
        json.dumps(each[_KEY]) if _KEY in each else "absent"
        for each in (config, config.get("text_config", {}))
    )
    return f"{_KEY} is {top}, that of text_config {text}"
