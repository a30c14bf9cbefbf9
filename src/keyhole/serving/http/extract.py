"""Text of a file that a client sent, found by a process of its own with bounded time and memory.

Parsers of PDF have to be robust against every file there is, and are not: what one of them does to the
child is over when the child is.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from keyhole.documents.text import text_of
from keyhole.serving.http.errors import ApiError

_SECONDS = 120
_MEMORY = 2 << 30  # bytes
_MOST_TEXT = 64 << 20  # bytes
_UNREADABLE = 2  # exit code of the child


async def text_within(suffix: str, data: bytes) -> str:
    """The text of a file.

    Raises:
        ApiError: it has none, or takes too long or too much memory.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, suffix),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(child.communicate(data), _SECONDS)
    except TimeoutError:
        raise _refused(f"its text was not found within {_SECONDS} seconds") from None
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    if child.returncode == _UNREADABLE:
        raise _refused(output.decode(errors="replace"))
    if child.returncode:
        raise _refused("its text was not found within the time and memory that a file may take")
    return output.decode()


def _refused(why: str) -> ApiError:
    return ApiError(f"the file cannot be used: {why}", param="file", code="invalid_file")


def _limit() -> None:
    """Bound what this process may use, where the system can do that."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def _main() -> int:
    _limit()
    try:
        text = text_of("it", sys.argv[1], sys.stdin.buffer.read())
        data = text.encode()
        if len(data) > _MOST_TEXT:
            raise ValueError(f"it has more than {_MOST_TEXT:,} bytes of text")
    except (ValueError, RecursionError) as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        return _UNREADABLE
    sys.stdout.buffer.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
