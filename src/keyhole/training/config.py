"""The recipe: model shape, optimiser and the curriculum's stages."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    vocabulary: int = 4096
    hidden: int = 128
    feedforward: int = 384
    layers: int = 4
    heads: int = 8
    kv_heads: int = 2
    head_size: int = 32
    rope_base: float = 500_000.0
    max_positions: int = 16_384


@dataclass(frozen=True)
class Stage:
    """One lesson, left when the mean accuracy of its latest steps passes `until`, or after `max_steps`."""

    name: str
    kind: str
    length: int
    batch: int
    max_steps: int
    span: int = 0  # positions skip ahead up to here; 0 for consecutive positions
    lists: float = 0.0  # share of the rows given to the counting tasks
    until: float = 0.95
    lr: float = 2e-3
    lr_end: float | None = None  # linear decay over max_steps when given
    review: str = ""  # the stage that is repeated against forgetting; by default the one before
    review_every: int = 4  # every n-th step is a review


LATE = {"lr": 1e-3, "review": "lists-256", "review_every": 5}

DEFAULT_STAGES = (
    Stage("repeat", "repeat", length=64, batch=24, max_steps=6000),
    Stage("pairs", "pair", length=64, batch=24, max_steps=400),
    Stage("records", "is", length=96, batch=16, max_steps=1500),
    Stage("tasks-256", "tasks", 256, batch=12, max_steps=1000, until=2.0, review="lists-96", review_every=3),
    Stage("lists-96", "lists", length=96, batch=20, max_steps=800, until=0.9),
    Stage("lists-192", "lists", length=192, batch=10, max_steps=700, until=0.9, review="tasks-256"),
    Stage("lists-256", "lists", 256, batch=8, max_steps=300, span=8192, until=0.9, review="tasks-256"),
    Stage("tasks-512", "tasks", 512, batch=5, max_steps=250, span=4096, review="lists-256", review_every=3),
    Stage("tasks-1024", "tasks", 1024, batch=3, max_steps=400, span=16384, lists=0.15, review="lists-256"),
    Stage("polish-1024", "tasks", 1024, batch=3, max_steps=700, span=8192, lists=0.2, until=2.0, **LATE),
    Stage("tasks-2048", "tasks", 2048, batch=2, max_steps=250, span=8192, lists=0.2, until=2.0, **LATE),
    Stage("tasks-4096", "tasks", 4096, batch=1, max_steps=600, lists=0.2, until=2.0, lr_end=1e-4, **LATE),
)


@dataclass(frozen=True)
class TrainConfig:
    shape: ModelShape = ModelShape()
    stages: tuple[Stage, ...] = DEFAULT_STAGES
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    clip: float = 1.0
    window: int = 20  # steps whose mean accuracy decides that a stage is learnt
    checkpoint_seconds: float = 180.0
    log_every: int = 25
    threads: int = 2
