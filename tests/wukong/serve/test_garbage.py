"""What is made at the start of a server is not looked through by later collections."""

import gc

import pytest

from wukong.serve import garbage


def test_nothing_is_collected_meanwhile_and_what_was_made_is_passed_over_later() -> None:
    class Node:
        pass

    try:
        with garbage.kept():
            assert not gc.isenabled()
            node = Node()
        assert gc.isenabled()
        assert not any(each is node for each in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(each is node for each in gc.get_objects())


def test_collection_goes_on_after_an_error_and_stays_off_where_it_was_off() -> None:
    try:
        with pytest.raises(ValueError, match="of the block"), garbage.kept():
            raise ValueError("of the block")
        assert gc.isenabled()
        gc.disable()
        with garbage.kept():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
