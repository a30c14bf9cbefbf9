"""How far methods hold beyond a model's range; docs/how-to/beyond-range.md has commands and figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from keyhole.engines.transformers.sizes import position_range
from keyhole.evaluation.stretch import Held, Stretch, hold, stretch
from keyhole.evaluation.texts import text_named, texts
from keyhole.generation import load_model
from keyhole.methods import Recipe
from keyhole.methods.beyond import beyond_recipe

_ROOM = 64  # positions within the range that are left for what follows


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    model, tokenizer = load_model(asked.model)
    model.to(getattr(torch, asked.dtype))
    limit = position_range(model)
    assert limit is not None, "the model's configuration states no range"
    text = _text(asked.text)[asked.skip :]
    for tokens in map(int, asked.tokens.split(",")):
        whole = stretch(tokenizer, text[: 12 * tokens], tokens, asked.following)
        within = Stretch(whole.tokens[:, -(limit - _ROOM) :], whole.following)
        last = [("dense, the newest tokens that fit", Recipe.parse("dense"), within)] if asked.within else []
        wanted = [(name, Recipe.parse(name), whole) for name in asked.methods.split(";") if name]
        for name, recipe, given in last + [w for w in wanted if w[1].retrieval is None]:
            (held,) = hold(model, tokenizer, [recipe], given)
            _write(asked, name, tokens, held)
        selecting = [(name, recipe) for name, recipe, _ in wanted if recipe.retrieval is not None]
        recipes = [beyond_recipe(recipe, limit, tokens + _ROOM) for _, recipe in selecting]
        found = hold(model, tokenizer, recipes, whole)
        for recipe, held in zip(recipes, found, strict=True):
            _write(asked, str(recipe), tokens, held)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", default="all", help="A text file, or shipped texts joined by +, or all.")
    parser.add_argument("--skip", type=int, default=0, help="Characters of it to leave out first.")
    parser.add_argument("--tokens", default="12288,24576")
    parser.add_argument("--following", type=int, default=32, help="Tokens whose loss is measured.")
    parser.add_argument("--methods", default="tokenselect;pqcache;quest", help="Separated by semicolons.")
    parser.add_argument("--within", action="store_true", help="Also read the newest tokens that fit.")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="Append a line for each method to this file.")
    return parser.parse_args()


def _text(asked: str) -> str:
    if Path(asked).is_file():
        return Path(asked).read_text(encoding="utf-8", errors="ignore")
    named = texts() if asked == "all" else [text_named(name) for name in asked.split("+")]
    return "\n\n".join(text.text for text in named)


def _write(asked: argparse.Namespace, method: str, tokens: int, held: Held) -> None:
    line = {"text": Path(asked.text).name, "tokens": tokens, "dtype": asked.dtype, "method": method}
    line |= {"loss": round(held.loss, 4), **held._asdict()}
    print(json.dumps(line), flush=True)
    if asked.json is not None:
        with asked.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
