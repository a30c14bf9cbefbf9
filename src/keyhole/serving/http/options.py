"""`x_keyhole`: what a request may say beyond OpenAI's API."""

from __future__ import annotations

from dataclasses import dataclass, replace

from keyhole.core.errors import SpecError
from keyhole.methods import Recipe
from keyhole.methods.option_kinds import Directory
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields

_LONGEST_NAME = 200


@dataclass(frozen=True)
class Options:
    """What a request says about its method and its document; see `keyhole.serving.requests.Request`."""

    recipe: Recipe | None = None
    document: str | None = None
    exact: bool = False
    record: bool = False

    def behind(self, document: str | None, param: str) -> Options:
        """With the document that a message names, if one does.

        Raises:
            ApiError: another one is named here.
        """
        if document is None:
            return self
        if self.document not in (None, document):
            raise ApiError("one request names two documents; name one", param=param, code="invalid_value")
        return replace(self, document=document)


def options_of(fields: Fields, *, records: bool = False) -> Options:
    """Read `x_keyhole`; `records` says whether one may be asked for."""
    own = fields.inner("x_keyhole")
    if own is None:
        return Options()
    found = Options(
        recipe=method_of(own),
        document=own.text("document", most=_LONGEST_NAME),
        exact=own.flag("exact"),
        record=own.flag("record") if records else False,
    )
    if not records:
        own.only("record", False)
    own.finish()
    return found


def method_of(fields: Fields) -> Recipe | None:
    """The method that a client names.

    Raises:
        ApiError: it cannot be read, or it names a directory, as none of this machine is the client's to name.
    """
    text = fields.text("method")
    if text is None:
        return None
    try:
        recipe = Recipe.parse(text)
    except (SpecError, ValueError, TypeError) as error:
        raise ApiError(str(error), param=fields.name("method"), code="invalid_method") from error
    for stage in recipe.stages:
        for name, (option, default) in stage.options().items():
            if isinstance(option, Directory) and getattr(stage, name) != default:
                raise ApiError(
                    f"{stage.name}: {name} names a directory of the server; only --method may say that",
                    param=fields.name("method"),
                    code="invalid_method",
                )
    return recipe
