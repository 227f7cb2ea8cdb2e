"""Meshes of several axes: how upstream is asked for each.

tpu-inference makes a mesh of (data, model), or, with ``NEW_MODEL_DESIGN=1``, one of all its axes
(``runner/tpu_runner.py``, ``_init_mesh``). Their sizes come from vLLM's arguments and from
``additional_config["sharding"]["sharding_strategy"]`` (``layers/common/sharding.py``,
``ShardingConfigManager.from_vllm_config``): attention data parallelism and decode context
parallelism are taken out of the tensor parallel size.
"""

from __future__ import annotations

import re
from dataclasses import replace

from harness.base.bounds import shown
from harness.base.errors import BadInput
from harness.load.target import Target

_AXES = ("data", "attn_dp", "expert", "model", "dcp", "pcp")
#: A flag, not an axis: the mesh of (data, model) although another axis is asked for.
_TWO_AXES = "2d"
_DIGITS = 9  # of an axis: a mesh of fewer devices than that has too many already
_AXIS = re.compile(rf"({'|'.join(_AXES)})=([0-9]{{1,{_DIGITS}}})")
_NEEDS_NEW_DESIGN = ("attn_dp", "expert", "dcp", "pcp")


def mesh_sizes(mesh: str) -> tuple[dict[str, int], bool]:
    """The sizes ``data=2,model=2`` names, and whether the mesh is to have all of upstream's axes.

    Raises:
        BadInput: it is malformed.
    """
    words = mesh.split(",") if isinstance(mesh, str) else [""]
    flagged = _TWO_AXES in words
    found = [_AXIS.fullmatch(word) for word in words if word != _TWO_AXES]
    sizes = {match[1]: int(match[2]) for match in found if match}
    twice = len(sizes) != len(found) or words.count(_TWO_AXES) > 1
    if not sizes or None in found or twice or 0 in sizes.values():
        raise BadInput(
            f"not a mesh: {shown(mesh)}",
            where="--mesh",
            expected=f"sizes of some of {', '.join(_AXES)}, each once, of up to {_DIGITS} digits",
            hint="--mesh data=2,model=2",
        )
    return sizes, not flagged and any(axis in sizes for axis in _NEEDS_NEW_DESIGN)


def as_asked(target: Target, mesh: str) -> Target:
    """``target``, on as many devices as ``mesh`` has, with what asks upstream for that mesh.

    Raises:
        BadInput: it is malformed.
    """
    sizes, new_design = mesh_sizes(mesh)
    attn_dp, dcp = sizes.get("attn_dp", 1), sizes.get("dcp", 1)
    engine = {
        "tensor_parallel_size": sizes.get("model", 1) * attn_dp * dcp,
        "data_parallel_size": sizes.get("data", 1),
        "decode_context_parallel_size": dcp,
        "prefill_context_parallel_size": sizes.get("pcp", 1),
    }
    strategy: dict[str, int | bool] = {"expert_parallelism": sizes.get("expert", 1)}
    if attn_dp > 1:
        strategy |= {"enable_dp_attention": True, "attn_dp_size": attn_dp}
    return replace(
        target,
        mesh=mesh,
        engine={key: size for key, size in engine.items() if size > 1 or key.startswith("tensor")},
        strategy=strategy,
        environment=target.environment | {"NEW_MODEL_DESIGN": "1" if new_design else "0"},
    )
