"""The call-contract audit: which calls hide an expert's ids from a loader hook.

It reads the sources of a vLLM and of a tpu-inference, and imports neither. The contract comes
from tpu-inference: its hook reads ``expert_id`` and ``shard_id`` from the keyword arguments
(``layers/vllm/quantization/unquantized.py``, 0.21 to 0.32). vLLM #42521, #42671 and #42716 fixed
the calls of 0.21 that passed them by position; the pattern came back in 0.32.
"""
