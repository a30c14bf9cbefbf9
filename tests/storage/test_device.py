import torch

from keyhole.storage import DeviceStorage, Footprint


def filled(count=9, batch=2):
    storage = DeviceStorage()
    keys, values = torch.randn(batch, 2, count, 8), torch.randn(batch, 2, count, 6)
    storage.append(keys, values)
    return storage, keys, values


def test_keys_and_values_move_together():
    storage, keys, values = filled()
    storage.append(keys[:, :, :3], values[:, :, :3])
    storage.crop(10)
    storage.reorder(torch.tensor([1, 1, 0]))
    assert storage.length == 10
    rows = [1, 1, 0]
    expected = (torch.cat([keys, keys[:, :, :1]], 2)[rows], torch.cat([values, values[:, :, :1]], 2)[rows])
    torch.testing.assert_close((storage.keys(), storage.values()), expected)


def test_views_are_no_copies():
    storage, _, _ = filled()
    assert storage.keys().data_ptr() == storage.keys().data_ptr()


def test_state_goes_round():
    storage, keys, values = filled()
    other, _, _ = filled(count=30, batch=5)
    other.restore(storage.state())
    assert other.length == 9
    torch.testing.assert_close((other.keys(), other.values()), (keys, values))


def test_two_storages_from_one_state_go_their_own_ways():
    storage, keys, values = filled()
    state = storage.state()
    first, second = DeviceStorage(), DeviceStorage()
    first.restore(state)
    second.restore(state)
    first.append(keys[:, :, :1], values[:, :, :1])
    second.append(keys[:, :, 1:2], values[:, :, 1:2])
    torch.testing.assert_close(first.keys()[:, :, 9:], keys[:, :, :1])
    torch.testing.assert_close(second.keys()[:, :, 9:], keys[:, :, 1:2])
    assert storage.length == 9


def test_footprint_counts_what_is_held():
    storage, keys, values = filled()
    held = storage.footprint
    assert held.device >= keys.nbytes + values.nbytes
    assert (held.host, held.disk) == (0, 0)


def test_footprints_add_by_tier():
    assert Footprint(1, 2, 3) + Footprint(10, 20, 30) == Footprint(11, 22, 33)
    assert Footprint(device=1) + Footprint(disk=2) == Footprint(1, 0, 2)
