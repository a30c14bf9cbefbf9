"""The training loop: stages, gates, checkpoints."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from keyhole.evaluation.haystack import Haystack
from keyhole.training import checkpoint
from keyhole.training.batches import LABELS, Batch
from keyhole.training.checkpoint import Progress
from keyhole.training.config import Stage, TrainConfig
from keyhole.training.curriculum import Curriculum
from keyhole.training.forward import answer_logits
from keyhole.training.model import export, new_model
from keyhole.training.objective import objective
from keyhole.training.tokenizer import build_tokenizer

FORM = LABELS.index("form")
Report = Callable[[dict], None]


def train(config: TrainConfig, out: Path, *, report: Report | None = None) -> Path:
    """Run the recipe in `out`, going on from its checkpoint if there is one; returns the model folder.

    `report` receives a dict for every log line: stage, step, loss, accuracy, seconds.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(config.threads)
    tokenizer = _tokenizer(config, out)
    run = _Run(config, out, tokenizer, report)
    run.to_the_end()
    return export(run.model, tokenizer, out / "model")


def _tokenizer(config: TrainConfig, out: Path) -> PreTrainedTokenizerBase:
    folder = out / "tokenizer"
    if not folder.exists():
        sentences = Haystack.from_environment("train").sentences
        build_tokenizer(sentences, config.shape.vocabulary).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


class _Run:
    """One training run: model, optimiser, progress, and the file they are saved in."""

    def __init__(
        self, config: TrainConfig, out: Path, tokenizer: PreTrainedTokenizerBase, report: Report | None
    ):
        self.config = config
        self.report = report
        self.path = out / "checkpoint.safetensors"
        self.model = new_model(config.shape, tokenizer, config.seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.progress = Progress()
        if self.path.exists():
            self.progress = checkpoint.load(self.path, self.model, self.optimizer)
        self.curriculum = Curriculum(config, tokenizer)
        self.saved_at = time.monotonic()

    def to_the_end(self) -> None:
        while self.progress.stage < len(self.config.stages):
            self.one_step()
            if time.monotonic() - self.saved_at > self.config.checkpoint_seconds:
                self.save()
        self.save()

    def save(self) -> None:
        checkpoint.save(self.path, self.model, self.optimizer, self.progress)
        self.saved_at = time.monotonic()

    def one_step(self) -> None:
        started = time.monotonic()
        progress, config = self.progress, self.config
        stage = config.stages[progress.stage]
        lesson = self._lesson(stage)
        rng = np.random.default_rng([config.seed, progress.stage, progress.step])
        batch = self.curriculum.batch(lesson, rng)
        loss, right = self._learn(batch, self._rate(stage))
        progress.step += 1
        progress.total_steps += 1
        progress.seconds += time.monotonic() - started
        self._note(right, batch.asked[batch.asked > 0], own=lesson == progress.stage)
        if progress.step % config.log_every == 0:
            self._log(stage, loss)
        if self._learnt(stage):
            self._leave(stage)

    def _lesson(self, stage: Stage) -> int:
        """The stage this step's batch is from: the current one, or the one under review."""
        current, step = self.progress.stage, self.progress.step
        if current == 0 or step % stage.review_every != stage.review_every - 1:
            return current
        names = [other.name for other in self.config.stages]
        return names.index(stage.review) if stage.review else current - 1

    def _rate(self, stage: Stage) -> float:
        lr = stage.lr
        if stage.lr_end is not None:
            lr += (stage.lr_end - stage.lr) * self.progress.step / stage.max_steps
        return lr * min(1.0, (self.progress.total_steps + 1) / self.config.warmup_steps)

    def _learn(self, batch: Batch, lr: float) -> tuple[float, torch.Tensor]:
        asked = batch.asked > 0
        logits = answer_logits(self.model, batch.tokens, batch.positions, asked)
        loss, right = objective(logits, batch.tokens, batch.asked)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return loss.item(), right

    def _note(self, right: torch.Tensor, labels: torch.Tensor, *, own: bool) -> None:
        progress = self.progress
        if own:
            answers = right[labels > FORM].float().mean().item()
            progress.recent = [*progress.recent, answers][-self.config.window :]
        for label in labels.unique().tolist():
            accuracy = right[labels == label].float().mean().item()
            before = progress.by_task.get(LABELS[label], accuracy)
            progress.by_task[LABELS[label]] = before + 0.05 * (accuracy - before)

    def _learnt(self, stage: Stage) -> bool:
        recent = self.progress.recent
        full = len(recent) == self.config.window
        passed = full and sum(recent) / len(recent) >= stage.until
        return passed or self.progress.step >= stage.max_steps

    def _log(self, stage: Stage, loss: float) -> None:
        progress = self.progress
        accuracy = sum(progress.recent) / max(1, len(progress.recent))
        if not self.report:
            return
        self.report(
            {
                "stage": stage.name,
                "step": progress.step,
                "total_steps": progress.total_steps,
                "seconds": round(progress.seconds, 1),
                "loss": round(loss, 4),
                "accuracy": round(accuracy, 4),
                **{task: round(value, 3) for task, value in progress.by_task.items()},
            }
        )

    def _leave(self, stage: Stage) -> None:
        progress = self.progress
        self._log(stage, float("nan"))
        accuracy = sum(progress.recent) / max(1, len(progress.recent))
        progress.history.append(
            {
                "stage": stage.name,
                "steps": progress.step,
                "total_steps": progress.total_steps,
                "seconds": round(progress.seconds, 1),
                "accuracy": round(accuracy, 4),
            }
        )
        progress.stage, progress.step, progress.recent = progress.stage + 1, 0, []
        progress.by_task = {}
        self.save()
