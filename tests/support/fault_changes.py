"""What upstream's bugs did to tensors, calls and arrays: the changes of the fault table."""

from __future__ import annotations

from typing import Any

from tests.support.faults import EXPERTS, Tensors, is_down, is_gate_up, mapping, of_part, without

_SWAPPED = {"w1": "w3", "w3": "w1", "w2": "w2"}
_AS_STRINGS = sorted(range(EXPERTS), key=str)
_GROUPS = 2
#: By slot, the expert that stands there when one of each group comes in turn.
_DEALT = [slot % _GROUPS * (EXPERTS // _GROUPS) + slot // _GROUPS for slot in range(EXPERTS)]


def positionally(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    ids = [given.pop(name) for name in ("weight_name", "shard_id", "expert_id")]
    return load(weight, *ids, **given)


def upper_half_never(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    return load(weight, **given) if given["expert_id"] < EXPERTS // 2 else True


def gate_as_up(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    return load(weight, **given | {"shard_id": _SWAPPED[given["shard_id"]]})


def ids_as_strings(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    return load(weight, **given | {"expert_id": _AS_STRINGS[given["expert_id"]]})


def groups_in_turn(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    return load(weight, **given | {"expert_id": _DEALT.index(given["expert_id"])})


def two_exchanged(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    expert = {2: 5, 5: 2}.get(given["expert_id"], given["expert_id"])
    return load(weight, **given | {"expert_id": expert})


def wrong_offset(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    return load(weight.roll(weight.shape[0] // 4, 0), **given)


def returns_unwritten(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    return True if given["expert_id"] in (6, 7) else load(weight, **given)


def zeros(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    return load(weight.new_zeros(weight.shape) if given["expert_id"] in (6, 7) else weight, **given)


def without_last_rows(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    """All rows but the last four are written; those keep what they held."""
    expert, shard = given["expert_id"], given["shard_id"]
    held = load.parameter.data[expert]
    half = held.shape[0] // 2
    piece = {"w1": held[:half], "w3": held[half:], "w2": held}[shard][-4:]
    before = piece.clone()
    done = load(weight, **given)
    piece.copy_(before)
    return done


def padded_stride(load: Any, weight: Any, given: dict[str, Any]) -> Any:
    """The expert is read eight elements further on, for each expert before it."""
    return load(weight.flatten().roll(-8 * given["expert_id"]).view_as(weight), **given)


def stale(tensors: Tensors) -> Tensors:
    """A view kept past its life: the buffer holds the tensor of this shape that came before."""
    before: dict[Any, Any] = {}
    for name, tensor in tensors:
        held = before.get(tuple(tensor.shape))
        before[tuple(tensor.shape)] = tensor.clone()
        yield name, held if of_part(name) and held is not None else tensor


def same_numel(tensor: Any) -> Any:
    return tensor.transpose(-1, -2).contiguous().view(tensor.shape)


def interleaved(tensor: Any) -> Any:
    """Gate and up of a fused tensor in alternating rows, split in the middle all the same."""
    import torch

    axis = 2 if tensor.shape[2] < tensor.shape[1] else 1
    gate, up = tensor.chunk(2, axis)
    return torch.stack((gate, up), axis + 1).reshape(tensor.shape)


def one_bit(tensor: Any) -> Any:
    import torch

    tensor.view(torch.int16).view(-1)[777] ^= 4
    return tensor


def broken_bytes(tensor: Any) -> Any:
    import torch

    tensor.view(torch.int16).view(-1)[640:704] = torch.arange(64, dtype=torch.int16) * 257 + 11
    return tensor


def through_float16(tensor: Any) -> Any:
    import torch

    return tensor.to(torch.float16).to(torch.bfloat16)


def flushed(tensor: Any) -> Any:
    import torch

    bits = tensor.view(torch.int16)
    return torch.where((bits & 0x7F80) == 0, bits & -0x8000, bits).view(torch.bfloat16)


def after_the_first(tensors: Tensors) -> Tensors:
    """Once a fused tensor has changed the mapping, later tensors of the layer match nothing."""
    seen = False
    for name, tensor in tensors:
        if not (of_part(name) and seen):
            yield name, tensor
        seen = seen or of_part(name)


def without_a_file(tensors: Tensors) -> Tensors:
    """The file with the down projections was never listed."""
    return without(is_down)(tensors)


def none(tensors: Tensors) -> Tensors:
    """The stream is read, and all of it dropped."""
    return without(lambda name: True)(tensors)


def never_loaded(base: type[Any]) -> type[Any]:
    """A model that is built and put onto the mesh, while nothing is streamed for it."""

    class Faulty(base):  # type: ignore[misc]
        def load_weights(self, model: Any, model_config: Any) -> None:
            pass

    return Faulty


def twice(tensors: Tensors) -> Tensors:
    """A consolidated file beside the shards: every expert comes again at the end."""
    again = []
    for name, tensor in tensors:
        if of_part(name):
            again.append((name, tensor.clone()))
        yield name, tensor
    yield from again


def twice_at_once(tensors: Tensors) -> Tensors:
    for name, tensor in tensors:
        yield name, tensor
        if is_gate_up(name):
            yield name, tensor


def is_bias(name: str) -> bool:
    """Whether a tensor is a bias of the vision tower's first block."""
    return ".blocks.0." in name and name.endswith(".bias")


def one_layer_before(tensors: Tensors) -> Tensors:
    """The draft's layer counts as the decoder's last: it is given what that one holds."""
    last: dict[str, Any] = {}
    for name, tensor in tensors:
        _, _, below = name.partition(".layers.1.")
        if below:
            last[below] = tensor.clone()
        yield name, last.get(name.removeprefix("mtp.layers.0."), tensor)


def _is_of_layer_1(name: str) -> bool:
    return ".layers.1.mlp." in name


def taken_for_dense(base: type[Any]) -> type[Any]:
    """Layer 1 is built with a dense MLP, and what stands in its place is passed over."""

    class Faulty(mapping(without(_is_of_layer_1))(base)):  # type: ignore[misc]
        def load_model(self, vllm_config: Any, model_config: Any, *args: Any, **kwargs: Any) -> Any:
            model_config.hf_text_config.mlp_only_layers = [1]
            return super().load_model(vllm_config, model_config, *args, **kwargs)

    return Faulty


def backwards(tensors: Tensors) -> Tensors:
    kept = [(name, tensor.clone()) for name, tensor in tensors]
    yield from reversed(kept)


def half_is_enough(process: Any) -> Any:
    """The hook's count of a complete layer is half of what it should be."""

    class Method(process):  # type: ignore[misc]
        def maybe_process_weights(self, layer: Any, name: str, args: Any, kwargs: Any) -> None:
            super().maybe_process_weights(layer, name, args, kwargs)
            if len(layer._loaded_weights) == layer.global_num_experts * 3 // 2:
                self.process_weights_after_loading(layer)

    return Method


def with_sharding(change: Any) -> Any:
    """The experts' arrays are put onto the mesh by another sharding than they should."""

    def replacement(shard: Any) -> Any:
        def sharded(weights: Any, backend: Any, mesh: Any) -> Any:
            import jax

            done = shard(weights, backend, mesh)
            for name in ("w13_weight", "w2_weight"):
                array = getattr(done, name)
                setattr(done, name, jax.device_put(array, change(array.sharding)))
            return done

        return sharded

    return replacement


def replicated(sharding: Any) -> Any:
    from jax.sharding import NamedSharding, PartitionSpec

    return NamedSharding(sharding.mesh, PartitionSpec())


def backwards_over_the_mesh(sharding: Any) -> Any:
    from jax.sharding import Mesh, NamedSharding

    mesh = sharding.mesh
    turned = mesh.devices.ravel()[::-1].reshape(mesh.devices.shape)
    return NamedSharding(Mesh(turned, mesh.axis_names), sharding.spec)


def next_ranks_piece(process: Any) -> Any:
    """Every rank takes the piece of its neighbour."""

    def processed(**given: Any) -> Any:
        import jax.numpy as jnp

        done = process(**given)
        shift = done.w13_weight.shape[2] // given["mesh"].devices.size
        done.w13_weight = jnp.roll(done.w13_weight, shift, axis=2)
        return done

    return processed
