"""What is minimised: cross-entropy over the asked tokens, where a list may be answered in any order."""

import torch
import torch.nn.functional as F

from keyhole.training.batches import LABELS

ANY_ORDER = torch.tensor([LABELS.index(name) for name in ("common_words", "frequent_words")])


def objective(
    logits_NV: torch.Tensor, tokens_BL: torch.Tensor, asked_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and which of the N asked tokens the most likely token is right for, a bool [N].

    `logits_NV` predict the tokens marked in `asked_BL`, in row-major order. An item of a list is right
    when it is any item that the reply has not yet named.
    """
    rows, _ = torch.nonzero(asked_BL, as_tuple=True)
    targets, labels = tokens_BL[asked_BL > 0], asked_BL[asked_BL > 0]
    losses = F.cross_entropy(logits_NV, targets, reduction="none")
    guesses = logits_NV.argmax(-1)
    right = guesses == targets
    listed = torch.nonzero(torch.isin(labels, ANY_ORDER)).flatten()
    if len(listed):
        row, label, target = rows[listed], labels[listed], targets[listed]
        same = (row[:, None] == row) & (label[:, None] == label)
        open_MM = same.triu()  # a reply's items from each one on
        scores_MM = logits_NV[listed][:, target].masked_fill(~open_MM, -torch.inf)
        losses[listed] = logits_NV[listed].logsumexp(-1) - scores_MM.logsumexp(-1)
        right[listed] = ((guesses[listed][:, None] == target) & open_MM).any(-1)
    return (_balance(labels) * losses).sum(), right


def _balance(labels_N: torch.Tensor) -> torch.Tensor:
    """Weights that sum to 1: a task weighs by the square root of its tokens, so that rare ones are heard."""
    counts = torch.bincount(labels_N)[labels_N].float()
    weights = counts.rsqrt()
    return weights / weights.sum()
