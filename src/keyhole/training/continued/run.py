"""The loop of continued training: rows, steps, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from keyhole.training import checkpoint
from keyhole.training.batches import LABELS
from keyhole.training.checkpoint import Progress
from keyhole.training.continued.attention import SelectedAttention
from keyhole.training.continued.data import Row, Source
from keyhole.training.continued.settings import Settings
from keyhole.training.continued.switching import attending
from keyhole.training.objective import objective

CHECKPOINT = "checkpoint.safetensors"
_BETAS, _DECAY, _CLIP = (0.9, 0.98), 0.01, 1.0
_WARMUP, _END = 0.05, 0.1  # share of the steps, and of the learning rate that is left at the end
_RECENT, _SAVE_EVERY = 20, 120.0  # steps, seconds
_WORDING = LABELS.index("form")

Report = Callable[[dict[str, Any]], None]


class Run:
    """A model in training, with what it is told and how far it has come.

    The same settings give the same weights, wherever the run was cut.
    """

    def __init__(
        self,
        settings: Settings,
        model: PreTrainedModel,
        attention: SelectedAttention | None,
        source: Source,
        out: Path,
    ) -> None:
        self.settings, self.model, self.attention, self.source = settings, model, attention, source
        self.path = out / CHECKPOINT
        self.heads = [] if attention is None else list(attention.importance or ())
        self.trained = nn.ModuleDict({"model": model, "importance": nn.ModuleList(self.heads)})
        model.requires_grad_(settings.weights)
        self.optimizer = torch.optim.AdamW(self._groups(), betas=_BETAS, weight_decay=_DECAY)
        self.progress = Progress()
        if self.path.exists():
            self.progress = checkpoint.load(self.path, self.trained, self.optimizer)

    def to_the_end(self, report: Report | None = None) -> None:
        """Take the steps that are left; with a checkpoint every two minutes, and at the end."""
        saved = time.monotonic()
        while self.progress.step < self.settings.steps:
            loss = self._step()
            if report:
                recent = self.progress.recent
                report({"step": self.progress.step, "loss": loss, "accuracy": sum(recent) / len(recent)})
            if time.monotonic() - saved > _SAVE_EVERY:
                self.save()
                saved = time.monotonic()
        self.save()

    def save(self) -> None:
        checkpoint.save(self.path, self.trained, self.optimizer, self.progress)

    def _groups(self) -> list[dict[str, Any]]:
        groups = [{"params": list(self.model.parameters()), "rate": self.settings.lr}]
        for module in self.heads:
            # A step of the weights changes the sum of as many products.
            fan = module.weight.shape[1] ** -0.5
            weights = [part for part in (module.weight, module.bias) if part is not None]
            for parameters, share in (([module.scale], 1.0), (weights, fan)):
                rate = self.settings.head_lr * share
                groups.append({"params": parameters, "rate": rate, "weight_decay": 0.0})
        return groups

    def _step(self) -> float:
        started, step, settings = time.monotonic(), self.progress.step, self.settings
        rng = np.random.default_rng([settings.seed, step])
        length = settings.contexts[step % len(settings.contexts)]
        self.optimizer.zero_grad(set_to_none=True)
        learnt = [self._learn(self._draw(rng, length)) for _ in range(settings.batch)]
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), _CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self._share(step)
        self.optimizer.step()
        loss, accuracy = np.mean(learnt, axis=0).tolist()
        self.progress.step += 1
        self.progress.recent = [*self.progress.recent, accuracy][-_RECENT:]
        self.progress.seconds += time.monotonic() - started
        return loss

    def _draw(self, rng: np.random.Generator, length: int) -> Row:
        return Row(*(part.to(self.model.device) for part in self.source.row(rng, length)))

    def _learn(self, row: Row) -> tuple[float, float]:
        """Add a row's gradients; returns its loss, and the share of its answers that are right."""
        places = row.asked[0].nonzero()[:, 0]
        with self._switched(int(places[0])):
            out: Any = self.model(input_ids=row.tokens, logits_to_keep=places - 1, use_cache=False)
            loss, right = objective(out.logits[0].float(), row.tokens, row.asked)
            (loss / self.settings.batch).backward()
        labels = row.asked[0, places]
        answers = labels > _WORDING if bool((labels > _WORDING).any()) else labels > 0
        return loss.item(), right[answers].float().mean().item()

    def _switched(self, first: int) -> AbstractContextManager[None]:
        """With the model attending as it is trained to, where a row asks for tokens from `first` on."""
        if self.attention is None:
            return nullcontext()
        self.attention.prompt = 0 if self.settings.sparse_prompts else first
        return attending(self.model, self.attention)

    def _share(self, step: int) -> float:
        """Of the learning rate: warm-up, then a line down."""
        warmup = max(1, round(_WARMUP * self.settings.steps))
        left = 1 - step / self.settings.steps
        return min(1.0, (step + 1) / warmup) * (_END + (1 - _END) * left)
