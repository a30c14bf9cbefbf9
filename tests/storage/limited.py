"""Run as a program, in a process whose memory is limited or watched; prints what came of it as JSON.

`serve PLACE BYTES` answers with so little memory for keys and values; `watch` fills and reads a disk storage.
"""

import json
import resource
import sys

import torch

import keyhole
from keyhole.attention import Logits
from keyhole.storage import make_storage
from tests.tiny import fresh_model, prompt

TOKENS = 3000
STEPS = 8
# Bytes for each token that are large beside those of everything else: 2 layers of 8 heads.
WIDE = {"num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 64, "max_position_embeddings": 4096}
KV_BYTES = TOKENS * 2 * 8 * 2 * 64 * 4
METHOD = "oracle(budget=64, sinks=4, window=32, place={})"


def status(name):
    """A field of the process, in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def tokens_of(model, place):
    with keyhole.attach(model, METHOD.format(place)) as attached:
        out = model.generate(prompt(TOKENS), max_new_tokens=STEPS, do_sample=False, prefill_chunk_size=256)
    return out[0, TOKENS:].tolist(), attached.footprint


def serve(place, spare):
    """Answer with `spare` bytes of memory beyond what a first, short answer has taken."""
    model = fresh_model("llama", **WIDE)
    with keyhole.attach(model, METHOD.format(place)):
        model.generate(prompt(600), max_new_tokens=2, do_sample=False, prefill_chunk_size=256)
    limit = status("VmData") + int(spare)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        tokens, held = tokens_of(model, place)
    except (RuntimeError, MemoryError, OSError) as error:
        return {"error": str(error)}
    return {"tokens": tokens, "held": held._asdict()}


def watch():
    """Write 256 MiB and read all of it in small parts; the memory this took at most."""
    storage, before = make_storage("disk", "auto"), status("VmRSS")
    rows = torch.randn(1, 8, 256, 64)
    for _ in range(256):
        storage.append(rows, rows)
    random = torch.Generator().manual_seed(0)
    for _ in range(500):
        slots = torch.randint(storage.length, (1, 8, 4), generator=random, dtype=torch.int32)
        storage.attend(torch.ones(1, 8, 64), slots, torch.full((1, 8), 4), Logits(0.1))
    return {"disk": storage.footprint.disk, "memory": status("VmHWM") - before}


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *arguments = sys.argv[1:]
    print(json.dumps({"serve": serve, "watch": watch}[what](*arguments)))
