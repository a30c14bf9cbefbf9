"""A model in vLLM on a CPU, one request at a time, in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from keyhole.bench.against.engine import Settings

_SPACE = 4  # GiB for keys and values, which vLLM reserves when it starts
_MOST_TOKENS = 1 << 20  # a request is ended by the next one, not by its own limit


class Vllm:
    """A model in vLLM with its defaults, but for threads and what is named.

    It reads the directory that Keyhole makes of a GGUF file, as vLLM itself reads none. It takes no keys and
    values from outside, and tells no logits.
    """

    def __init__(self, settings: Settings, dtype: str, eager: str) -> None:
        # Read when vLLM, and torch in it, are imported.
        os.environ |= {
            "OMP_NUM_THREADS": str(settings.threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": str(_SPACE),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        import torch

        from keyhole.bench.case import DTYPES

        torch.set_num_threads(settings.threads)
        folder = _directory(settings.file, DTYPES[dtype])
        vllm: Any = import_module("vllm")
        self._vllm = vllm
        self._model = vllm.LLM(
            model=folder,
            dtype=dtype,
            enforce_eager=eager == "on",
            enable_prefix_caching=False,
            max_num_seqs=1,
        )
        self._engine, self._dtype, self._eager = self._model.llm_engine, dtype, eager
        self._requests, self._held = 0, ""

    def about(self) -> str:
        return f"vllm {self._vllm.__version__}, {self._dtype}, enforce_eager {self._eager}"

    def start(self, capacity: int) -> None:
        most = self._model.model_config.max_model_len
        if capacity > most:
            raise ValueError(f"vLLM holds {most} tokens of this model, not {capacity}; give shorter lengths")
        if self._held:
            self._engine.abort_request([self._held])
            self._engine.step()

    def read(self, ids: Sequence[int]) -> None:
        self._requests += 1
        params = self._vllm.SamplingParams(temperature=0, max_tokens=_MOST_TOKENS, ignore_eos=True)
        prompt = {"prompt_token_ids": list(ids)}
        self._held = self._engine.add_request(str(self._requests), prompt, params)
        self.step()

    def fill(self, tokens: int) -> None:
        raise ValueError(f"vLLM takes no synthetic tokens; give --prompt {tokens}, or shorter lengths")

    def step(self) -> None:
        """Let the engine work until it gives a token: several calls where a prompt comes in pieces."""
        while not any(output.outputs[0].token_ids for output in self._engine.step()):
            pass

    def logits(self) -> None:
        return None


def _directory(file: Path, dtype: Any) -> str:
    from keyhole.generation.gguf import converted

    found = converted(file, dtype)
    if not isinstance(found, Path):
        raise ValueError(f"{str(file)!r} could not be converted for vLLM; free space below KEYHOLE_HOME")
    return str(found)
