import threading

import pytest

from isospike.progress import shown_by, update


def test_progress_reaches_the_innermost_listener_and_no_one_after_it():
    outer, inner = [], []
    update("load", 0, 1)
    with shown_by(lambda *at: outer.append(at)):
        update("load", 1, 1)
        with shown_by(lambda *at: inner.append(at)):
            update("measure", 2, 3)
        update("save", 0, 1)
    update("save", 1, 1)
    assert outer == [("load", 1, 1), ("save", 0, 1)]
    assert inner == [("measure", 2, 3)]


def test_a_listener_is_gone_after_an_error():
    seen = []
    with pytest.raises(KeyboardInterrupt), shown_by(lambda *at: seen.append(at)):
        raise KeyboardInterrupt
    update("load", 0, 1)
    assert seen == []


def test_another_thread_is_not_heard():
    seen = []
    with shown_by(lambda *at: seen.append(at)):
        thread = threading.Thread(target=update, args=("work", 1, 2))
        thread.start()
        thread.join()
    assert seen == []
