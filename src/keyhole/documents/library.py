"""Documents that are read once and asked for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.documents.adding import Adding, add_document, as_before, check_as_stored
from keyhole.documents.answering import Asking, answer
from keyhole.documents.conversation import Conversation
from keyhole.documents.meant import find_document
from keyhole.documents.models import Models, model_name
from keyhole.documents.opening import Opened, open_document, opened_by, put_by
from keyhole.documents.paths import STDIN, default_store, name_of, source_of
from keyhole.documents.reading import Progress
from keyhole.documents.recipes import stored_recipe
from keyhole.documents.store import Collected, Document, Report, Stats, Store, check_ttl
from keyhole.documents.text import check_text, read_texts
from keyhole.generation.loading import Loaded
from keyhole.generation.reader import Answer, AnswerRecorder
from keyhole.methods import Method, Recipe

Files = str | Path | Sequence[str | Path]


class Library:
    """Documents in a store on disk, each read once by a model; any number of processes may share it.

    Args:
        path: of the store; by default `KEYHOLE_STORE`, else the user's data directory.
        quota: bytes that the store may take; by default a tenth of what is free on its disk.
        notice: called with what a user should know, as text.

    Attributes:
        models: those by which documents are read, by name.

    Raises:
        ValueError: the path or the quota cannot be used.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        quota: int | None = None,
        notice: Callable[[str], object] | None = None,
    ) -> None:
        self.path = Path(path).expanduser() if path is not None else default_store()
        self.store = Store(self.path, quota)
        self.models = Models(self.store.path.with_name(f"{self.store.path.name}.models.json"))
        self._notice = notice or (lambda _: None)

    def add(
        self,
        files: Files | None = None,
        *,
        text: str | None = None,
        name: str | None = None,
        model: str | Path | PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        method: str | Method | Recipe = "pqcache",
        kv_dtype: str | None = None,
        chat: bool | None = None,
        beyond_range: bool = False,
        pinned: bool | None = None,
        ttl: float | None = None,
        progress: Progress | None = None,
    ) -> Document:
        """Read files, or a text, into the store; what is stored already of it is not read again.

        An interrupted reading goes on from its last block when the same is added again.

        Args:
            files: text, Markdown, HTML or PDF, several as one document; "-" is stdin.
            name: by default that of the first file.
            model: a directory, hub name or GGUF file; a loaded model needs its `tokenizer`. By default the
                embedded model.
            method: by which it is read, kept and asked.
            kv_dtype: how keys and values are stored: "full", "int8", "int4", "int3" or "int2"; by default as
                `method` says.
            chat: use the tokenizer's chat template; by default if there is one.
            beyond_range: take a method that reads beyond the model's range, where the document is longer.
            pinned: never evicted. None: as the document of this name was, False for a new one.
            ttl: seconds after its last use at which it may go. None: as it was, never for a new one.
            progress: called with what is being done, tokens done, and tokens in all.

        Raises:
            ValueError: a file cannot be read, an option is out of range, or the document is beyond the
                model's range.
            QuotaError: it is larger than the store may be.
        """
        recipe = stored_recipe(method, kv_dtype)
        called = name_of(name, None if files is None else _listed(files))
        if (files is None) == (text is None):
            raise ValueError("give either files or text")
        text = read_texts(_listed(files)) if text is None and files is not None else text or ""
        if not text.strip():
            raise ValueError("the document is empty; give some text")
        check_text("the document", text)
        check_ttl(ttl)
        source = source_of(_listed(files)) or "text"
        known = self._known_as(model, tokenizer)
        adding = Adding(
            called, text, known, recipe, chat, source, beyond_range, pinned, ttl, named=name is not None
        )
        return add_document(self.store, self.models, adding, progress)

    def open(self, name: str, *, place: str | None = None) -> Opened:
        """A document's cache, to be continued by its model; close it, or use it in a with-block.

        Args:
            place: "disk" attends to keys and values where they are stored, "host" and "device" load them;
                by default "disk" for methods that select and "device" for others.

        Raises:
            UnknownDocumentError: there is no finished document of that name.
        """
        return open_document(self.store, self.models, name, place)

    def ask(
        self,
        document: str | Path,
        question: str,
        *,
        place: str | None = None,
        exact: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stream: Callable[[str], object] | None = None,
        progress: Progress | None = None,
        recorder: AnswerRecorder | None = None,
        **added: Any,
    ) -> Answer:
        """Answer a question about a document; a file that is not stored yet is added first.

        Methods that select read by selection for the question's tokens, too, one selection for up to 32 of
        them. The call that reads the last of them gives the first token of the answer.

        Args:
            document: a name, or a file.
            place: as in `open`.
            exact: let the question's tokens read the whole document; its last one selects for itself.
            stream: called with pieces of the answer as they are generated.
            recorder: a `keyhole.view.Recorder`, which makes a record of what was read.
            added: as in `add`, where the file is not stored yet.
        """
        asking = Asking.of(
            max_new_tokens, temperature, top_p, seed, stop, stream, exact=exact, recorder=recorder
        )
        name = self._added(document, progress, added)
        with self._opened(name, place, progress) as opened:
            return answer(opened, opened.ids, question, asking)

    def chat(self, document: str | Path, *, place: str | None = None, **added: Any) -> Conversation:
        """A conversation about a document; close it, or use it in a with-block."""
        progress = added.pop("progress", None)
        name = self._added(document, progress, added)
        return Conversation(self._opened(name, place, progress), lambda opened: self._again(opened, place))

    def documents(self) -> list[Document]:
        """All documents, those among them whose reading was interrupted."""
        return self.store.documents()

    def document(self, name: str) -> Document:
        """One document as it is listed.

        Raises:
            UnknownDocumentError: there is none of that name.
        """
        return self.store.document(name)

    def remove(self, name: str) -> int:
        """Forget a document; returns the bytes that became free."""
        return self.store.remove(name)

    def verify(self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Report:
        """Read everything that is stored and compare it with what was written."""
        return self.store.verify(repair=repair, progress=progress)

    def gc(self) -> Collected:
        """Remove what no document needs."""
        return self.store.gc()

    def stats(self) -> Stats:
        """Sizes and counts of the store."""
        return self.store.stats()

    def _known_as(
        self, model: str | Path | PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None
    ) -> str:
        """The name under which a model is known here, the same from every working directory."""
        if isinstance(model, PreTrainedModel):
            if tokenizer is None:
                raise ValueError("a loaded model needs its tokenizer; give `tokenizer`")
            named = str(model.name_or_path or type(model).__name__)
            self.models.put(named, Loaded(model, tokenizer))
            return named
        return model_name(model)

    def _added(self, document: str | Path, progress: Progress | None, added: dict[str, Any]) -> str:
        """The name of a document; a file that is not stored as it is now is read for that."""
        found = find_document(self.store.documents(), str(document))
        if found is not None:
            model, tokenizer = added.pop("model", None), added.pop("tokenizer", None)
            known = found.model if model is None else self._known_as(model, tokenizer)
            check_as_stored(found, known, **added)
            return found.name
        if str(document) == STDIN:
            added = {"name": "stdin"} | added
        return self.add(document, progress=progress, **(self._as_before(document) | added)).name

    def _as_before(self, file: str | Path) -> dict[str, Any]:
        """How a file was added, if it was."""
        for one in self.store.documents():
            if one.finished and one.source == source_of([str(file)]) and str(file) != STDIN:
                with self.store.open(one.name, counted=False) as lease:
                    said = put_by(lease)
                chat = None if said is None else bool(said.facts["chat"])
                return {"method": one.method, "model": one.model or None, "name": one.name, "chat": chat}
        return {}

    def _again(self, opened: Opened, place: str | None) -> Opened:
        """An open document as it was at its beginning."""
        return opened_by(self.store, self.models, opened.lease, place)

    def _opened(self, name: str, place: str | None, progress: Progress | None) -> Opened:
        """A document, read again first where it would be put to the model otherwise now."""
        opened = self.open(name, place=place)
        drift = opened.drift()
        if drift is None:
            return opened
        if not drift.again:
            self._notice(drift.said)
            return opened
        self._notice(f"read again from token {drift.token:,}: {drift.said}")
        opened.close()
        add_document(self.store, self.models, as_before(opened), progress)
        return self.open(name, place=place)


def _listed(files: Files | None) -> list[str]:
    if files is None:
        return []
    return [str(files)] if isinstance(files, (str, Path)) else [str(file) for file in files]
