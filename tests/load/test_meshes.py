"""How a mesh of several axes is asked for."""

from __future__ import annotations

import pytest

from harness.base.errors import BadInput, TargetUnavailable
from harness.devices.mesh import Mesh
from harness.load.meshes import mesh_sizes
from harness.load.target import Parallelism
from harness.load.targets.known_targets import meshed


@pytest.mark.parametrize(
    "mesh", ["", "data", "data=0", "data=2,data=2", "tp=2", "model=2,,data=2", "model=-1"]
)
def test_a_malformed_mesh_is_refused(mesh: str) -> None:
    with pytest.raises(BadInput, match="not a mesh"):
        mesh_sizes(mesh)


def test_two_axes_need_no_new_design() -> None:
    target = meshed("emulated", "data=2,model=4")
    assert target.devices == 8
    assert target.engine == {"tensor_parallel_size": 4, "data_parallel_size": 2}
    assert target.environment["NEW_MODEL_DESIGN"] == "0"
    assert str(target) == "emulated, 8 devices as data=2,model=4"


def test_attention_data_parallelism_is_taken_out_of_the_tensor_size() -> None:
    target = meshed("emulated", "attn_dp=2,model=2", Parallelism.EXPERT)
    assert target.engine == {"tensor_parallel_size": 4}
    assert target.strategy["attn_dp_size"] == 2
    assert target.environment["NEW_MODEL_DESIGN"] == "1"
    assert str(target).endswith("as attn_dp=2,model=2, expert")


def test_an_axis_of_experts_on_a_mesh_of_two_axes() -> None:
    target = meshed("emulated", "expert=4,2d")
    assert target.strategy["expert_parallelism"] == 4
    assert target.environment["NEW_MODEL_DESIGN"] == "0"


def test_torch_xla_has_no_mesh_of_several_axes() -> None:
    with pytest.raises(TargetUnavailable, match="torch-xla"):
        meshed("torch-xla", "data=2,model=2")
    with pytest.raises(BadInput, match="not a mesh"):
        meshed("torch-xla", "data=2,data=2")


def test_a_mesh_has_as_many_devices_as_its_axes_say() -> None:
    with pytest.raises(ValueError, match="has not 3 devices"):
        Mesh((("data", 2), ("model", 2)), ("a", "b", "c"))
