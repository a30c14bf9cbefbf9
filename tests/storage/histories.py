"""What may happen to a storage, as hypothesis draws it, and plain tensors to which it happens too."""

import torch
from hypothesis import strategies as st

LENGTHS = [0, 1, 2, 31, 63, 64, 65, 100, 127, 128, 129, 300]

histories = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from(LENGTHS)),
        st.tuples(st.just("crop"), st.integers(0, 600)),
        st.tuples(st.just("reorder"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
    ),
    max_size=10,
)


def play(history, append, crop, reorder, draw):
    """Let a history happen; yields the tokens there should be after each event."""
    plain = draw(1)
    append(plain)
    yield plain
    for event, argument in history:
        if event == "append":
            new = draw(argument)
            append(new)
            plain = torch.cat([plain, new], 2)
        elif event == "crop":
            crop(argument)
            plain = plain[:, :, :argument]
        else:
            reorder(torch.tensor(argument))
            plain = plain[argument]
        yield plain


def drawing(seed=0, *, batch=2, heads=3, width=5, dtype=torch.float32):
    """A function that draws so many random tokens `[B, H, T, W]`, other ones each time."""
    random = torch.Generator().manual_seed(seed)
    return lambda count: torch.randn(batch, heads, count, width, generator=random).to(dtype)
