"""A vLLM and a tpu-inference of our own, a few files each, in the shapes the real ones have."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

LAYER = """
class FusedMoE:
    @overload
    def weight_loader(self, param, loaded_weight, weight_name, shard_id, expert_id): ...

    def weight_loader(
        self, param, loaded_weight, weight_name, shard_id, expert_id, return_success=False
    ):
        return True
"""

REGISTRY = """
_MODELS = {
    "TinyMoeForCausalLM": ("tiny_moe", "TinyMoeForCausalLM"),
    "OtherForCausalLM": ("other", "OtherForCausalLM"),
    "UserForCausalLM": ("user", "UserForCausalLM"),
}
"""

HOOKS = """
class LinearMethod:
    def maybe_process_weights(self, layer, param_name, args, kwargs):
        assert len(args) == 1, "the shard alone"
        shard_id = args[0]


class MoeMethod:
    def maybe_process_weights(self, layer, param_name, args, kwargs):
        expert_id = kwargs.get("expert_id")
        assert expert_id is not None
        layer.seen.add((expert_id, kwargs["shard_id"]))
"""

WRAPPER = """
def attach(model):
    def create(layer, original, name):
        def wrapper(param, loaded_weight, *args, **kwargs):
            original(param, loaded_weight, *args, **kwargs)
            layer.quant_method.maybe_process_weights(layer, name, args, kwargs)

        return wrapper
"""


def package(at: Path, name: str, files: dict[str, str]) -> Path:
    """Write a package ``name`` below ``at`` and return the directory that holds it."""
    for file, text in {"__init__.py": "", **files}.items():
        path = at / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")
    return at


def vllm(at: Path, models: dict[str, str], layer: str = LAYER) -> Path:
    """A vLLM with these files in ``model_executor/models``."""
    files = {f"model_executor/models/{name}.py": text for name, text in models.items()}
    registry = {"model_executor/models/registry.py": REGISTRY}
    return package(
        at, "vllm", {"model_executor/layers/fused_moe/layer.py": layer, **registry, **files}
    )


def tpu_inference(at: Path) -> Path:
    """A tpu-inference with the wrapper and two hooks."""
    return package(
        at,
        "tpu_inference",
        {
            "layers/vllm/quantization/unquantized.py": HOOKS,
            "models/vllm/vllm_model_loader.py": WRAPPER,
        },
    )
