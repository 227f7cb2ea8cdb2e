"""The shapes in which a loader is called, and the verdict over each."""

from __future__ import annotations

from dataclasses import dataclass

CALL = "weight_loader(param, weight, name, shard_id, expert_id, return_success=True)"


@dataclass(frozen=True)
class Shape:
    """The body of a function of a model, and the calls found in it.

    ``param``, ``weight``, ``name``, ``shard_id`` and ``expert_id`` are the function's arguments.

    Attributes:
        calls: verdict and line inside the body, of each call but the plain ones.
        corrected: of the first call.
    """

    id: str
    body: str
    calls: tuple[tuple[str, int], ...]
    corrected: str = ""


RIGHT = CALL.replace("shard_id, expert_id", "shard_id=shard_id, expert_id=expert_id")

POSITIONAL = (
    Shape("attribute", f"weight_loader = param.weight_loader\n{CALL}", (("positional", 2),), RIGHT),
    Shape(
        "getattr",
        f'weight_loader = getattr(param, "weight_loader", default_weight_loader)\n{CALL}',
        (("positional", 2),),
        RIGHT,
    ),
    Shape(
        "cast",
        f"weight_loader = typing.cast(Callable[..., bool], param.weight_loader)\n{CALL}",
        (("positional", 2),),
        RIGHT,
    ),
    Shape(
        "annotated, in a loop",
        f"weight_loader: Callable = param.weight_loader\nfor expert_id in ids:\n    {CALL}",
        (("positional", 3),),
        RIGHT,
    ),
    Shape(
        "direct",
        "param.weight_loader(param, weight, name, shard_id, expert_id)",
        (("positional", 1),),
        "param.weight_loader(param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "of a dictionary",
        "params[name].weight_loader(params[name], weight, name, shard_id, expert_id, True)",
        (("positional", 1),),
        "params[name].weight_loader(params[name], weight, name, shard_id=shard_id, "
        "expert_id=expert_id, return_success=True)",
    ),
    Shape(
        "walrus",
        f'if (weight_loader := getattr(param, "weight_loader", None)) is not None:\n    {CALL}',
        (("positional", 2),),
        RIGHT,
    ),
    Shape(
        "walrus called at once",
        '(load := getattr(param, "weight_loader"))(param, weight, name, shard_id, expert_id)',
        (("positional", 1),),
    ),
    Shape(
        "one id only",
        "param.weight_loader(param, weight, name, shard_id, expert_id=expert_id)",
        (("positional", 1),),
        "param.weight_loader(param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "either of two",
        f"weight_loader = param.weight_loader if fused else default_weight_loader\n{CALL}",
        (("positional", 2),),
    ),
    Shape(
        "partial of the parameter",
        "load = functools.partial(param.weight_loader, param)\n"
        "load(weight, name, shard_id, expert_id)",
        (("positional", 2),),
        "load(weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "partial of the ids",
        "load = partial(param.weight_loader, param, weight, name, shard_id, expert_id)\nload()",
        (("positional", 1), ("forwarded", 2)),
        "partial(param.weight_loader, param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "helper gets the loader",
        """
        def load(loader, expert_id):
            return loader(param, weight, name, shard_id, expert_id)

        load(param.weight_loader, expert_id=expert_id)
        """,
        (("positional", 2),),
    ),
    Shape(
        "helper of a helper",
        """
        def inner(loader, target):
            loader(target, weight, name, shard_id, expert_id)

        def outer(loader, target):
            inner(target=target, loader=loader)

        outer(param.weight_loader, param)
        """,
        (("positional", 2),),
    ),
    Shape(
        "helper returns the loader",
        """
        def loader_of(tensor):
            found = getattr(tensor, "weight_loader", default_weight_loader)
            return found

        loader_of(param)(param, weight, name, shard_id, expert_id)
        """,
        (("positional", 5),),
    ),
    Shape(
        "nested lambda",
        "weight_loader = param.weight_loader\n"
        "load = lambda e: (lambda s: weight_loader(param, weight[e], name, s, e))(shard_id)\n"
        "load(expert_id)",
        (("positional", 2),),
        "weight_loader(param, weight[e], name, shard_id=s, expert_id=e)",
    ),
    Shape(
        "local function called by its name",
        """
        weight_loader = param.weight_loader

        def load(param, expert_id):
            weight_loader(param, weight, name, shard_id, expert_id)

        load(param, expert_id)
        """,
        (("positional", 4),),
    ),
    Shape(
        "kept on self",
        "self.load = param.weight_loader\nself.load(param, weight, name, shard_id, expert_id)",
        (("positional", 2),),
    ),
    Shape(
        "literal star",
        "param.weight_loader(param, weight, *(name, shard_id, expert_id))",
        (("positional", 1),),
        "param.weight_loader(param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "star for the ids",
        "param.weight_loader(param, weight, name, *ids, return_success=True)",
        (("positional", 1),),
    ),
    Shape(
        "both in one tuple assignment",
        "load, target = param.weight_loader, param\n"
        "load(target, weight, name, shard_id, expert_id)",
        (("positional", 2),),
    ),
)

IN_ORDER = (
    Shape("keyword", f"weight_loader = param.weight_loader\n{RIGHT}", (("keyword", 2),)),
    Shape(
        "all by keyword",
        "param.weight_loader(param=param, loaded_weight=weight, weight_name=name, "
        "shard_id=shard_id, expert_id=expert_id)",
        (("keyword", 1),),
    ),
    Shape(
        "ids that are None",
        "param.weight_loader(param, weight, weight_name=name, shard_id=None, expert_id=None)",
        (("null", 1),),
    ),
    Shape("linear", "param.weight_loader(param, weight, shard_id)", (("linear", 1),)),
    Shape("plain", "param.weight_loader(param, weight)", ()),
    Shape(
        "another contract",
        "param.weight_loader(param, weight, name, layer_name)",
        (("other", 1),),
    ),
    Shape(
        "another contract, by keyword",
        "param.weight_loader(param, weight, name, expert_id=expert_id)",
        (("other", 1),),
    ),
    Shape(
        "passed on",
        "param.weight_loader(param, weight, *args, **kwargs)",
        (("forwarded", 1),),
    ),
    Shape(
        "wrapper put in the loader's place",
        """
        original = param.weight_loader

        def converted(param, weight, name, shard_id, expert_id):
            return original(param, weight.T, name, shard_id, expert_id)

        param.weight_loader = converted
        """,
        (("wrapped", 4),),
    ),
    Shape(
        "wrapper as a lambda",
        "original = param.weight_loader\n"
        "param.weight_loader = lambda p, w, n, s, e: original(p, w, n, s, e)",
        (("wrapped", 2),),
    ),
    Shape(
        "wrapper around a loader handed in",
        """
        def around(weight_loader):
            def inner(param, weight, name, shard_id, expert_id):
                return weight_loader(param, weight, name, shard_id, expert_id)

            return inner

        around(attributes.pop("weight_loader"))
        """,
        (("wrapped", 3),),
    ),
    Shape(
        "the parent's",
        "super().weight_loader(param, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape(
        "its own",
        "self.weight_loader(param, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape(
        "a class's",
        "FusedMoE.weight_loader(self, param, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape(
        "a layer's",
        "self.block.weight_loader(self.block.w13, weight, name, shard_id, expert_id)",
        (("wrapped", 1),),
    ),
    Shape("no loader", "compute(param, weight, name, shard_id, expert_id)", ()),
    Shape(
        "the default's",
        "default_weight_loader(param, weight, name, shard_id, expert_id)",
        (),
    ),
)

UNDECIDED = (
    Shape(
        "out of a table",
        "loaders[name] = param.weight_loader\n"
        "loaders[name](param, weight, name, shard_id, expert_id)",
        (("undecided", 2),),
        "loaders[name](param, weight, name, shard_id=shard_id, expert_id=expert_id)",
    ),
    Shape(
        "out of another module",
        "find_weight_loader(param)(param, weight, name, shard_id, expert_id)",
        (("undecided", 1),),
    ),
)
