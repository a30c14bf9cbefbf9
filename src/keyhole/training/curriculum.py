"""Which generator makes the batch of a stage."""

import numpy as np
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.haystack import Haystack
from keyhole.training.batches import Batch, pack, repeats, skipping_positions
from keyhole.training.config import Stage, TrainConfig
from keyhole.training.lessons import build_lessons
from keyhole.training.tokenizer import BEGIN, token_id


class Curriculum:
    """Fresh batches for every stage of a recipe, from the training part of the haystack."""

    def __init__(self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.stages = config.stages
        self.begin = token_id(tokenizer, BEGIN)
        self.vocabulary = len(tokenizer)
        self.lessons = build_lessons(tokenizer, Haystack.from_environment("train"))

    def batch(self, index: int, rng: np.random.Generator) -> Batch:
        """A batch of stage `index`."""
        stage = self.stages[index]
        if stage.kind == "repeat":
            return repeats(rng, stage.batch, stage.length, self.vocabulary, self.begin)
        rows = [self._row(stage, rng) for _ in range(stage.batch)]
        return pack(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))

    def _row(self, stage: Stage, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lesson = self.lessons["lists" if rng.random() < stage.lists else stage.kind]
        row = lesson.row(rng, stage.length)
        positions = skipping_positions(rng, row.joints, stage.length, stage.span)
        return np.array(row.tokens), positions, np.array(row.asked)
