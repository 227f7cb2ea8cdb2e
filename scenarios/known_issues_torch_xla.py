"""Known issues that the torch-xla target alone shows: what cannot be built or cut there."""

from __future__ import annotations

from harness.causes import Cause
from harness.known import KnownIssue, Nature, Owner

ON_TORCH_XLA: tuple[KnownIssue, ...] = (
    KnownIssue(
        id="narrowed-to-fit-beside-the-canary",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="_narrow_expert_data_for_padding cuts an expert of the wrong layout to the smaller "
        "of the two sizes on 0.21 too, seen where no hook ends the load before",
        threads=(),
        stacks=("0.21",),
        scenarios=("vl-axes-swapped",),
        causes=(Cause.WRONG_CORNER,),
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="tied-head-lost",
        owner=Owner.VLLM,
        nature=Nature.BUG,
        reason="what text_config ties is tied, whatever the files hold: a checkpoint's own lm_head "
        "reaches no parameter",
        threads=("vllm#51063", "vllm#51665"),
        stacks=("0.21", "0.22", "0.26"),
        scenarios=("decoder-ties-contradict",),
        causes=(Cause.TIED,),
        at="no parameter holds lm_head.weight",
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="no-fp8-on-the-host",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="a model of an FP8 release cannot be built on a CPU, where torch-xla has it "
        "streamed to: there is no kernel for its linear layers",
        threads=(),
        stacks=("0.26",),
        scenarios=("vl-fp8", "mtp-fp8"),
        causes=(Cause.UNEXPLAINED,),
        error="ValueError",
        message="Failed to find a kernel that can implement the ScaledMM linear layer",
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="no-fp8-out-of-tree",
        owner=Owner.VLLM,
        nature=Nature.MISSING,
        reason="a model of an FP8 release cannot be built on torch-xla's host: the table of "
        "kernels for its linear layers has no row for a platform out of the tree",
        threads=(),
        stacks=("0.21", "0.22"),
        scenarios=("vl-fp8", "mtp-fp8"),
        causes=(Cause.UNEXPLAINED,),
        error="KeyError",
        message="PlatformEnum.OOT",
        targets=("torch-xla",),
    ),
    KnownIssue(
        id="uneven-on-torch-xla",
        owner=Owner.HARNESS,
        nature=Nature.MISSING,
        reason="the torch-xla target cuts an axis only where the devices divide it",
        threads=(),
        stacks=("0.21", "0.22", "0.26"),
        scenarios=("vl-6-experts-whole", "vl-uneven-width"),
        causes=(Cause.UNEXPLAINED,),
        error="ValueError",
        message="4 devices do not divide axis",
        targets=("torch-xla",),
    ),
)
