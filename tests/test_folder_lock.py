"""Folders that several processes write to."""

import threading

from mnist_ddpm.machine.folder_lock import exclusive_writer


def test_two_writers_take_turns(tmp_path):
    inside = threading.Event()

    def write():
        with exclusive_writer(tmp_path):
            inside.set()

    second = threading.Thread(target=write)
    with exclusive_writer(tmp_path):
        second.start()
        assert not inside.wait(0.1)
    second.join()
    assert inside.is_set()
