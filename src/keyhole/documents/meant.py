"""Which document a user means: by name, or by the file it was made of."""

from __future__ import annotations

import os

from keyhole.documents.paths import STDIN, source_of
from keyhole.documents.store import Document
from keyhole.documents.store.reading import unknown
from keyhole.documents.text import is_readable


def find_document(documents: list[Document], named: str) -> Document | None:
    """The stored document of a name; None: a file is meant, which is added, or compared with what is stored.

    A name comes first, unless it is also that of the very file which the document was made of.

    Raises:
        UnknownDocumentError: there is neither.
    """
    is_file = named == STDIN or is_readable(named)
    for one in documents:
        if one.name == named and not (is_file and (one.source == source_of([named]) or not one.finished)):
            return one
    if not is_file:
        what = "it is a directory" if os.path.isdir(os.path.expanduser(named)) else "no file of that name"
        raise unknown(named, [one.name for one in documents], f", and {what}")
    return None
