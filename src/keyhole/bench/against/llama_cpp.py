"""llama.cpp by the C interface that llama-cpp-python hands through; torch is not imported here."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from keyhole.bench.against.engine import Settings

_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8, "bf16": 30}  # numbers of ggml
_FLASH = {"auto": -1, "off": 0, "on": 1}
_BLOCK = 512  # tokens that are computed, and repeated where synthetic tokens are wanted
_ROUNDED = 256  # contexts are multiples of it


class LlamaCpp:
    """A model in llama.cpp, with its defaults but for threads, the context's length and what is named."""

    def __init__(self, settings: Settings, kv: str, flash: str) -> None:
        api: Any = import_module("llama_cpp.llama_cpp")
        self._api = api
        self._settings, self._kv, self._flash = settings, kv, flash
        self._silence = api.llama_log_callback(lambda *_: None)  # kept, as llama.cpp calls it later
        api.llama_log_set(self._silence, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(
            str(settings.file).encode(), api.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {str(settings.file)!r}; give a GGUF file that it reads")
        self._size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._logits, self._next = np.zeros(self._size, np.float32), 0

    def about(self) -> str:
        installed: Any = import_module("llama_cpp")
        system = self._api.llama_print_system_info().decode().strip()
        return f"llama-cpp-python {installed.__version__}; {system}"

    def start(self, capacity: int) -> None:
        if self._context is not None:
            self._api.llama_free(self._context)
        self._context = self._made(capacity)

    def read(self, ids: Sequence[int]) -> None:
        self._decode(self._context, ids)
        self._take()

    def fill(self, tokens: int) -> None:
        """A computed block again and again at later positions: what a step reads, not what it means."""
        memory = self._api.llama_get_memory(self._context)
        for state in self._blocks(tokens - 1):
            # Into a second sequence, whose cells then belong to the first.
            if not self._api.llama_state_seq_set_data(self._context, state, len(state), 1):
                raise RuntimeError(f"llama.cpp does not take a cache of {tokens} tokens")
            self._api.llama_memory_seq_cp(memory, 1, 0, -1, -1)
            self._api.llama_memory_seq_rm(memory, 1, -1, -1)
        self.step()

    def step(self) -> None:
        self._decode(self._context, [self._next])
        self._take()

    def logits(self) -> np.ndarray:
        return self._logits.copy()

    def _made(self, capacity: int) -> Any:
        params = self._api.llama_context_default_params()
        params.n_ctx = -(-capacity // _ROUNDED) * _ROUNDED
        params.n_seq_max, params.kv_unified = 2, True
        params.n_threads = params.n_threads_batch = self._settings.threads
        params.type_k = params.type_v = _TYPES[self._kv]
        params.flash_attn_type = _FLASH[self._flash]
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError(
                f"llama.cpp makes no context of {capacity} tokens with kv={self._kv}, flash={self._flash}; "
                "quantised values need flash=on and heads of a multiple of 32; else give a shorter length"
            )
        return context

    def _blocks(self, tokens: int) -> Iterator[Any]:
        """States of a sequence that hold positions 0 to `tokens`, made in a small context of their own.

        Positions are moved there, where the keys are not rotated anew before they are copied.
        """
        context, length = self._made(_BLOCK + 1), min(tokens, _BLOCK)
        memory = self._api.llama_get_memory(context)
        self._decode(context, np.random.default_rng(0).integers(self._size, size=length).tolist())
        for start in range(0, tokens, length):
            if start + length > tokens:
                self._api.llama_memory_seq_rm(memory, 0, tokens - length, -1)
            if start:
                self._api.llama_memory_seq_add(memory, 0, 0, -1, length)
            size = self._api.llama_state_seq_get_size(context, 0)
            state = (ctypes.c_uint8 * size)()
            self._api.llama_state_seq_get_data(context, state, size, 0)
            yield state
        self._api.llama_free(context)

    def _decode(self, context: Any, ids: Sequence[int]) -> None:
        step = int(self._api.llama_n_batch(context))
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            tokens = (self._api.llama_token * len(part))(*part)  # a batch points to them, so they are kept
            code = self._api.llama_decode(context, self._api.llama_batch_get_one(tokens, len(part)))
            if code:
                raise RuntimeError(f"llama.cpp does not compute {len(ids)} tokens: llama_decode says {code}")

    def _take(self) -> None:
        found = self._api.llama_get_logits_ith(self._context, -1)
        self._logits = np.ctypeslib.as_array(found, shape=(self._size,))
        self._next = int(self._logits.argmax())
