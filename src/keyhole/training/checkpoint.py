"""Training state in one safetensors file, written whole and renamed into place."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from keyhole.core.files import write_whole


@dataclass
class Progress:
    """Where a run stands. Everything random is drawn from (seed, stage, step), so this is all there is."""

    stage: int = 0
    step: int = 0  # inside the stage
    total_steps: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)  # accuracies of the stage's latest own steps
    by_task: dict[str, float] = field(default_factory=dict)  # running accuracy
    history: list[dict] = field(default_factory=list)  # one entry for each finished stage


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    tensors = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
    for name, value in model.named_parameters():
        for key, moment in optimizer.state.get(value, {}).items():
            tensors[f"optimizer.{key}.{name}"] = moment.detach().clone()
    metadata = {"progress": json.dumps(asdict(progress))}
    write_whole(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    with safe_open(path, framework="pt") as file:
        progress = Progress(**json.loads(file.metadata()["progress"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(tensors[f"model.{name}"])
            state = {key: tensors.get(f"optimizer.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            if state["step"] is not None:
                optimizer.state[value] = state
    return progress
