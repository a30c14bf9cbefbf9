"""A conversation about a stored document as one prompt: the document first, what was said behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from keyhole.core.errors import DamagedStoreError
from keyhole.documents.form import behind, identity_of
from keyhole.documents.opening import put_by
from keyhole.documents.store import Store

_END = "\x01end\x01"  # no template and no text has it
_ROLES = ("system", "user", "assistant")


def document_prompt(
    store: Store, tokenizer: PreTrainedTokenizerBase, name: str, messages: Sequence[Mapping[str, Any]]
) -> tuple[int, ...]:
    """See `keyhole.serving.scheduler.Scheduler.document_prompt`."""
    said = _checked(messages)
    with store.open(name, counted=False) as lease:
        form = put_by(lease)
        if form is None:
            raise DamagedStoreError(f"{name!r} lacks how it was put to the model; remove and add it again")
        facts, text = form.facts, form.tensor("text").numpy().tobytes().decode()
        ids = lease.document.tokens.tolist()
    known = identity_of(tokenizer)
    if known["tokenizer"] != facts["tokenizer"]:
        raise ValueError(f"{name!r} was read with another tokenizer than the model has now; add it again")
    if facts["chat"]:
        more = _by_template(tokenizer, said)
    else:
        more = "".join(f"{one['content']}\n" for one in said[:-1]) + said[-1]["content"] + facts["tail"]
    return (*ids, *behind(tokenizer, text, more))


def _by_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """What comes behind the document, which stands at the head of the first message."""
    first, *others = messages
    marked = [{"role": "user", "content": _END + first["content"]}, *others]
    text = str(tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True))
    return text.split(_END, 1)[1]


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages of user and assistant in turn, a system message in front of the first question."""
    said = [{"role": str(one["role"]), "content": str(one["content"])} for one in messages]
    wrong = next((one["role"] for one in said if one["role"] not in _ROLES), None)
    if wrong is not None:
        raise ValueError(f"the role {wrong!r} cannot follow a document; give {', '.join(_ROLES)}")
    if said and said[0]["role"] == "system":
        head, said = said[0]["content"], said[1:]
        if said:
            said[0] = said[0] | {"content": f"{head}\n\n{said[0]['content']}"}
    roles = [one["role"] for one in said]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError(
            f"messages behind a document are {', '.join(roles) or 'missing'}; give user and assistant in "
            "turn, the last of them the user's"
        )
    return said
