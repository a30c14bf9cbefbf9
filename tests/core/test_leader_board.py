import pytest

from keyhole.core.leader_board import LeaderBoard


def test_notes_are_of_their_moment():
    board = LeaderBoard(notes=2)
    for moment, note in ((1, "a"), (2, None), (2, "c")):
        board.pin(moment, note)
    assert board.read(2) == "c"
    for moment in (1, 3):
        with pytest.raises(ValueError, match=f"nothing at {moment}: .* all layers"):
            board.read(moment)
    board.clear()
    with pytest.raises(ValueError, match="nothing at 2"):
        board.read(2)
