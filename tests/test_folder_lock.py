"""Folders that several processes write to."""

import threading

from mnist_ddpm.machine.folder_lock import locked_folder


def test_two_writers_take_turns(tmp_path):
    inside = threading.Event()

    def write():
        with locked_folder(tmp_path, waits=True):
            inside.set()

    second = threading.Thread(target=write)
    with locked_folder(tmp_path, waits=True):
        second.start()
        assert not inside.wait(0.1)
    second.join()
    assert inside.is_set()
