"""Settings of the running process."""

import multiprocessing.spawn as spawn
import sys

from dualflow.process import without_main_script


def test_new_processes_do_not_run_the_main_script(monkeypatch):
    """Inside the block, `multiprocessing` names no script to run; afterwards it does again."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", "script.py", raising=False)
    monkeypatch.setattr(main, "__spec__", None, raising=False)
    keys = {"init_main_from_name", "init_main_from_path"}
    with without_main_script():
        assert not keys & spawn.get_preparation_data("worker").keys()
    assert keys & spawn.get_preparation_data("worker").keys()
