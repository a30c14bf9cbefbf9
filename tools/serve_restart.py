"""A document is stored by a server, which is then started again and asked: how long until the first token?

    python tools/serve_restart.py --model DIR --tokens 32768

Exit code 1: the document was read again, or an answer came later than asked. The range of the model must be
as long as the document and a question.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen

from transformers import AutoTokenizer

from keyhole.evaluation.texts import texts
from keyhole.models import default_model

Body = dict[str, object]


def main() -> int:
    options = _options()
    text, well = _text(options.model, options.tokens), True
    with tempfile.TemporaryDirectory() as store:
        with _server(options, store) as address:
            began = time.monotonic()
            stored = next(_events(f"{address}/v1/documents", {"name": "book", "text": text, "stream": False}))
            print(f"read and stored {stored['tokens']} tokens in {time.monotonic() - began:.1f} s")
        with _server(options, store) as address:
            for question in ("Who is the captain?", "What is the ship called?"):
                seconds, cached = _ask(address, question)
                print(f"{question} first token after {seconds:.2f} s, {cached} tokens from the store")
                well = well and cached == stored["tokens"] and seconds <= options.seconds
    return int(not well)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(default_model()), help="directory of a model")
    parser.add_argument("--method", default="pqcache(budget=0.05)")
    parser.add_argument("--tokens", type=int, default=8192, help="of the document")
    parser.add_argument("--seconds", type=float, default=2.0, help="until the first token, at most")
    return parser.parse_args()


def _text(model: str, tokens: int) -> str:
    """English prose of so many tokens."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    words = "\n\n".join(text.text for text in texts())
    ids = tokenizer(words, add_special_tokens=False, verbose=False).input_ids[:tokens]
    return str(tokenizer.decode(ids))


@contextlib.contextmanager
def _server(options: argparse.Namespace, store: str) -> Iterator[str]:
    """The address of a server that runs inside the with-block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "keyhole.cli", "serve", "--model", options.model, "--store", store]
    process = subprocess.Popen([*command, "--method", options.method, "--port", str(port)])
    try:
        _wait(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError), urlopen(f"{address}/health"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server ended with {process.returncode}")


def _ask(address: str, question: str) -> tuple[float, int]:
    """Seconds until the first token of an answer, and tokens that came from the store."""
    asked: Body = {
        "messages": [{"role": "user", "content": question}],
        "model": next(_events(f"{address}/v1/models"))["data"][0]["id"],
        "max_tokens": 8,
        "stream": True,
        "stream_options": {"include_usage": True},
        "x_keyhole": {"document": "book"},
    }
    began, first, cached = time.monotonic(), 0.0, 0
    for event in _events(f"{address}/v1/chat/completions", asked):
        if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
            first = time.monotonic() - began
        if event.get("usage"):
            cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
    return first, cached


def _events(url: str, body: Body | None = None) -> Iterator[dict]:
    """The JSON objects of an answer, one or a stream of them."""
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"})) as answer:
        for line in answer:
            text = line.decode().removeprefix("data: ").strip()
            if text.startswith("{"):
                yield json.loads(text)


if __name__ == "__main__":
    sys.exit(main())
