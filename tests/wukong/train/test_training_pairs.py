from wukong.train.pairs import Kept


def test_what_does_not_fit_makes_the_oldest_go() -> None:
    kept = Kept[str](10)
    for name, size in (("a", 4), ("b", 4), ("c", 4)):
        kept.keep(name, name, size)
    assert [kept.take(name) for name in "abc"] == [None, "b", "c"]
    kept.keep("d", "large", 11)
    kept.keep("e", "old", 9)
    kept.keep("e", "new", 10)
    assert kept.take("d") is None and kept.take("e") == "new"
    kept.keep("f", "f", 10)
    assert kept.take("f") == "f", "what was taken or replaced takes no room"
