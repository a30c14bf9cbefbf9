"""What `keyhole train` does, for a new model and for one that is trained further."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from keyhole.cli import console, early
from keyhole.cli.calibrate.prompts import texts_of
from keyhole.cli.inputs import find_source, read_text
from keyhole.core.model_files import split_name
from keyhole.training.continued.settings import FULL, Settings, selection_term

_QUICK_STEPS = 3
_OPTIONS = {"source": "--from"}  # where the option is not called like the field


@dataclass(frozen=True)
class Further:
    """The options that only continued training has, as they were given."""

    source: str | None
    text: list[Path] | None
    tasks: bool
    steps: int | None
    context: list[int] | None
    batch: int | None
    lr: float | None
    head_lr: float | None
    sparse_prompts: bool
    head_only: bool

    def settings(self, selection: str | None, seed: int, *, quick: bool) -> Settings | None:
        """What to train a model further by; None where a new one is trained.

        Raises:
            ValueError: options that do not fit each other, a selection, a model or a file that is not there.
        """
        if selection is None:
            self._refuse()
            return None
        found = find_source(self.source)
        if split_name(found)[1] is not None:
            raise ValueError(f"--from {self.source!r}: packed weights are not trained; leave their form out")
        texts = [str(path.expanduser().resolve()) for path in self.text or ()]
        settings = Settings(
            selection=selection,
            source=None if self.source is None else str(found),
            texts=tuple(texts),
            tasks=self.tasks or (self.source is None and not texts),
            steps=_QUICK_STEPS if quick else self.steps or 300,
            contexts=tuple(self.context or (4096,)),
            batch=self.batch or 1,
            lr=_rate("--lr", 1e-4 if self.lr is None else self.lr),
            head_lr=_rate("--head-lr", 0.05 if self.head_lr is None else self.head_lr),
            sparse_prompts=self.sparse_prompts,
            weights=not self.head_only,
            seed=seed,
        )
        if selection_term(selection).name != FULL:
            early.check_method(selection)
        settings.check()
        for path in texts:
            read_text(path)
        return settings

    def _refuse(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) not in (None, False, [])]
        if given:
            name = _OPTIONS.get(given[0], "--" + given[0].replace("_", "-"))
            raise ValueError(
                f"{name} is for training a model further; give --selection full, infllm_v2 or nosa with it"
            )


def train_further(settings: Settings, out: Path, *, threads: int | None, quiet: bool) -> None:
    import torch

    from keyhole.training.continued.start import train_further as run

    if threads is not None:
        torch.set_num_threads(threads)
    texts = [] if settings.tasks else texts_of([Path(path) for path in settings.texts])
    with console.progress(quiet) as report:
        folder = run(
            settings,
            find_source(settings.source),
            texts,
            out,
            report=lambda line: report(
                f"loss {line['loss']:.3f}, {line['accuracy']:.0%} right", line["step"], settings.steps
            ),
        )
    console.stdout().print(str(folder), highlight=False, soft_wrap=True)


def train_small(out: Path, *, seed: int, quick: bool, threads: int | None, quiet: bool) -> None:
    from keyhole.training.config import TrainConfig
    from keyhole.training.trainer import train as run

    config = TrainConfig(seed=seed)
    if quick:
        stages = tuple(
            replace(stage, max_steps=min(stage.max_steps, _QUICK_STEPS)) for stage in config.stages
        )
        config = replace(config, stages=stages, log_every=1)
    if threads is not None:
        config = replace(config, threads=threads)
    longest = {stage.name: stage.max_steps for stage in config.stages}
    with console.progress(quiet) as report:
        folder = run(
            config,
            out,
            report=lambda line: report(
                f"{line['stage']}: {line['accuracy']:.0%} of answers right",
                line["step"],
                longest[line["stage"]],
            ),
        )
    console.stdout().print(str(folder), highlight=False, soft_wrap=True)


def _rate(option: str, value: float) -> float:
    if not (math.isfinite(value) and 0 < value <= 1):
        raise ValueError(f"{option} {value:g} is out of range; give a number above 0, up to 1")
    return value
