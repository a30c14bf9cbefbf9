"""Whether a request can be served, before anything of it runs."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.core.errors import SpecError, UnknownDocumentError
from keyhole.documents.form import asked
from keyhole.documents.store import Document, Store, unknown
from keyhole.engines.transformers.cache import check_method
from keyhole.engines.transformers.sizes import position_range
from keyhole.generation.answers import options_of
from keyhole.generation.prompt import within_range
from keyhole.methods import Method, Recipe
from keyhole.methods.beyond import renumbers
from keyhole.serving.memory import MOST_METHODS, Needs
from keyhole.serving.requests import MOST_LOGPROBS, PROMPT, Request, TooLongError
from keyhole.serving.tokenizing import check_characters, longest_token


class Checks:
    """What requests are held against; one thread at a time may ask.

    Args:
        recipe: the server's; which weights a step reads is the same for all requests.
        context: tokens of prompt and answer at most; None is the model's range.
        memory: bytes that a request may hold.

    Raises:
        UnsupportedModelError: the model cannot be served, with the reason.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
        context: int | None,
        memory: int,
    ) -> None:
        self._model, self._tokenizer, self._recipe, self._context = model, tokenizer, recipe, context
        self._vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[attr-defined]
        self._check_method = lru_cache(MOST_METHODS)(partial(_check_method, model))
        self._longest = longest_token(tokenizer)
        self._memory, self._needs = memory, Needs(model)
        self._needs.of(recipe, 1)

    def recipe(self, request: Request, document: Document | None) -> Recipe:
        """The recipe that answers a request, which can be served.

        Raises:
            ValueError: it cannot; the message says why and what can be done.
            TooLongError: prompt and answer are longer than may be.
        """
        self._check_options(request)
        self._check_tokens(request, document)
        recipe = self._wanted(request, document)
        self.check_recipe(recipe)
        self._check_length(recipe, request)
        return recipe

    def needs(self, recipe: Recipe, tokens: int) -> int:
        """Bytes that a prompt and its answer, or a document, hold at most.

        Raises:
            TooLongError: more than there may ever be.
        """
        found = self._needs.of(recipe, tokens)
        if found > self._memory:
            raise TooLongError(
                f"{tokens:,} tokens would hold up to {found:,} bytes by {recipe}, and the server has "
                f"{self._memory:,}; shorten the text, or lower max_tokens"
            )
        return found

    def _check_options(self, request: Request) -> None:
        options_of(
            request.max_tokens,
            request.temperature,
            request.top_p,
            request.seed,
            request.stop,
            None,
            None,
        )
        if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
            raise ValueError(f"logprobs {request.logprobs} is out of range; give 0 to {MOST_LOGPROBS}")

    def _check_tokens(self, request: Request, document: Document | None) -> None:
        if not request.prompt:
            raise ValueError("the prompt has no tokens; give some text")
        wrong = next((token for token in request.prompt if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise ValueError(f"token id {wrong} is out of range; give 0 to {self._vocabulary - 1}")
        if document is not None:
            _check_beginning(request.prompt, document)

    def _wanted(self, request: Request, document: Document | None) -> Recipe:
        if document is not None:
            if request.recipe is not None and str(request.recipe) != document.method:
                raise ValueError(
                    f"{document.name!r} was read by {document.method}; leave the method out, or add the text "
                    f"under another name by {request.recipe}"
                )
            return Recipe.parse(document.method)
        recipe = request.recipe or self._recipe
        if any(type(stage).for_text is not Method.for_text for stage in recipe.stages):
            recipe = recipe.for_text(str(self._tokenizer.decode(list(request.prompt))))
        return recipe

    def check_recipe(self, recipe: Recipe) -> None:
        """Raise ValueError for a recipe by which this server cannot answer."""
        if _activated(recipe) != _activated(self._recipe):
            raise ValueError(
                f"{recipe} reads other weights than {self._recipe}, by which this server was started; leave "
                "the method out, or start a server for it"
            )
        self._check_method(recipe)

    def check_text(self, characters: int, recipe: Recipe, *, beyond: bool = False) -> None:
        """Raise TooLongError for a text that is too long for a recipe however it is tokenised.

        Args:
            beyond: the recipe may be changed to one that reads beyond the model's range.
        """
        most = None if beyond or renumbers(recipe) else position_range(self._model)
        check_characters(characters, most, self._longest)

    def _check_length(self, recipe: Recipe, request: Request) -> None:
        tokens = len(request.prompt) + request.max_tokens
        if self._context is not None and tokens > self._context:
            raise TooLongError(
                f"the prompt has {len(request.prompt):,} tokens and the answer up to {request.max_tokens:,}; "
                f"the server takes {self._context:,} together: shorten the prompt by "
                f"{tokens - self._context:,} tokens, or lower max_tokens"
            )
        try:
            prompt = asked(np.asarray(request.prompt[:-1]), [request.prompt[-1]])
            within_range(self._model, recipe, prompt, request.max_tokens)
        except SpecError as error:
            limit = position_range(self._model) or tokens
            more = f"; {error.__cause__}" if renumbers(recipe) else ""
            raise TooLongError(
                f"the prompt has {len(request.prompt):,} tokens and the answer up to {request.max_tokens:,}, "
                f"together beyond the model's range of {limit:,} positions: shorten the prompt by "
                f"{tokens - limit:,} tokens, lower max_tokens, or choose a method that reads longer texts, "
                f"as tokenselect(renumber=true, sparse_prefill=true){more}"
            ) from error


def _check_method(model: PreTrainedModel, recipe: Recipe) -> None:
    check_method(recipe, model)  # whose thresholds need not be kept


def check_numbers(**numbers: int | None) -> None:
    """Raise ValueError for a number of a scheduler that is out of range."""
    for name, number in numbers.items():
        least = 0 if name == "queue" else 1
        if number is not None and number < least:
            raise ValueError(f"{name} {number} is out of range; give at least {least}")


def stored_document(store: Store, name: str, model: str) -> Document:
    """The document of a name, which was read by the model of that name.

    Raises:
        UnknownDocumentError: there is none; the message names similar ones of this model.
        ValueError: it was read by another model.
    """
    held = store.documents()
    found = next((each for each in held if each.name == name and each.source != PROMPT), None)
    if found is None:
        raise unknown(name, [each.name for each in held if each.model == model and each.source != PROMPT])
    if not found.finished:
        raise UnknownDocumentError(f"{name!r} is not read to its end; add it again to go on")
    if found.model != model:
        raise ValueError(
            f"{name!r} was read by another model than the one that is served; add its text under another name"
        )
    return found


def _activated(recipe: Recipe) -> list[str]:
    """The stages that say which weights are read."""
    return [str(stage) for stage in recipe.stages if type(stage).feedforward is not Method.feedforward]


def _check_beginning(prompt: tuple[int, ...], document: Document) -> None:
    ids = document.tokens.tolist()
    if list(prompt[: len(ids)]) != ids:
        at = next(
            (place for place, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b),
            len(prompt),
        )
        raise ValueError(
            f"the prompt does not begin with the document {document.name!r}: token {at:,} differs; make it "
            "by the document's own form"
        )
    if len(prompt) == len(ids):
        raise ValueError(f"nothing follows the document {document.name!r} in the prompt; ask something")
