import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.storage import GrowingBuffer


def rows(start, count, batch=2):
    """Rows that tell their slot and their batch row apart from all others."""
    slots = torch.arange(start, start + count, dtype=torch.float32)
    return (slots.view(1, 1, -1, 1) + 0.25 * torch.arange(batch).view(-1, 1, 1, 1)).expand(batch, 3, -1, 5)


def poison(buffer):
    """Fill everything beyond `length` with NaN: no reader may come across it."""
    buffer._data[:, :, buffer.length :] = torch.nan


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0, 1, 2, 31, 63, 100, 256, 257, 2000]), min_size=1, max_size=8))
def test_pieces_equal_the_whole(counts):
    buffer = GrowingBuffer()
    for count in counts:
        buffer.append(rows(buffer.length, count))
        poison(buffer)
    assert buffer.length == sum(counts)
    torch.testing.assert_close(buffer.view(), rows(0, sum(counts)))


def test_tokens_one_by_one_over_several_growths():
    buffer = GrowingBuffer()
    buffer.append(rows(0, 3))
    addresses = set()
    for slot in range(3, 1200):
        buffer.append(rows(slot, 1))
        poison(buffer)
        addresses.add(buffer.view().data_ptr())
    torch.testing.assert_close(buffer.view(), rows(0, 1200))
    assert len(addresses) <= 4, "one token must not copy the whole"


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(0, 300)),
            st.tuples(st.just("crop"), st.integers(0, 600)),
            st.tuples(st.just("reorder"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        ),
        max_size=12,
    )
)
def test_any_history_equals_plain_tensors(history):
    buffer, plain = GrowingBuffer(), torch.empty(2, 3, 0, 5)
    fresh = 0
    for action, argument in [("append", 1), *history]:
        if action == "append":
            new, fresh = rows(fresh, argument), fresh + argument
            buffer.append(new)
            plain = torch.cat([plain, new], dim=2)
        elif action == "crop":
            buffer.crop(argument)
            plain = plain[:, :, :argument]
        else:
            buffer.reorder(torch.tensor(argument))
            plain = plain[argument]
        poison(buffer)
        assert buffer.length == plain.shape[2]
        torch.testing.assert_close(buffer.view(), plain)


def test_reorder_repeats_and_omits_rows():
    buffer = GrowingBuffer()
    buffer.append(rows(0, 4, batch=3))
    buffer.reorder(torch.tensor([2, 2, 0, 2]))
    torch.testing.assert_close(buffer.view(), rows(0, 4, batch=3)[[2, 2, 0, 2]])
    buffer.append(rows(4, 300, batch=4))
    assert buffer.view().shape == (4, 3, 304, 5)
    torch.testing.assert_close(buffer.view()[:, :, 4:], rows(4, 300, batch=4))


def test_repeated_rows_do_not_share_memory():
    buffer = GrowingBuffer()
    buffer.append(rows(0, 4))
    buffer.reorder(torch.tensor([0, 0]))
    buffer.append(rows(4, 1))
    assert buffer.view()[:, 0, 4, 0].tolist() == [4.0, 4.25]


@pytest.mark.parametrize("batch", [1, 3])
def test_an_emptied_buffer_takes_another_batch(batch):
    """A view of one batch row would be spread silently over the two that were there."""
    buffer = GrowingBuffer()
    buffer.append(rows(0, 9))
    buffer.crop(0)
    buffer.append(rows(0, 4, batch=batch))
    torch.testing.assert_close(buffer.view(), rows(0, 4, batch=batch))


def test_an_emptied_buffer_takes_another_type():
    buffer = GrowingBuffer()
    buffer.append(rows(0, 9))
    buffer.crop(0)
    buffer.append(rows(0, 4).bfloat16())
    assert buffer.view().dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 3, 1, 5), (2, 1, 1, 5), (2, 3, 1, 1), (3, 3, 1, 5)])
def test_rows_that_do_not_fit_are_refused(shape):
    buffer = GrowingBuffer()
    buffer.append(rows(0, 4))
    with pytest.raises(ValueError, match="2, 3"):
        buffer.append(torch.zeros(shape))
    torch.testing.assert_close(buffer.view(), rows(0, 4))


def test_crop_beyond_the_length_keeps_all():
    buffer = GrowingBuffer()
    buffer.append(rows(0, 4))
    buffer.crop(100)
    assert buffer.length == 4


def test_an_empty_buffer_says_so():
    buffer = GrowingBuffer()
    buffer.crop(0)
    buffer.reorder(torch.tensor([0]))
    assert (buffer.length, buffer.nbytes) == (0, 0)
    with pytest.raises(ValueError, match="append first"):
        buffer.view()


def test_counts_its_spare_capacity():
    buffer = GrowingBuffer()
    buffer.append(rows(0, 4))
    assert buffer.nbytes == buffer._data.numel() * 4 >= buffer.view().numel() * 4
