"""learn2learn at hand, without its dependency's notice."""

from __future__ import annotations

import importlib

from methods.parts.l2l import learn2learn


def test_learn2learn_is_imported_and_gym_has_nothing_to_say() -> None:
    notices = importlib.import_module("gym_notices.notices").notices
    notices["0.0"] = "a notice"
    assert learn2learn("data").TaskDataset
    assert not notices
