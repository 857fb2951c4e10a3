"""The queue of records on disk keeps their order, belongs to one run, and is sent by one process at a time."""

import json

import pytest

from dualflow.tracking.mlflow_store import RunKey
from dualflow.tracking.queue import RecordQueue, read_record, reject

KEY = RunKey("study", "unet seed 0", {"training": "a"})


def test_records_keep_their_order_across_processes(tmp_path):
    """A later process appends behind the records of the earlier one, and knows the run's id."""
    RecordQueue.open(tmp_path, KEY).append("metrics", {"step": 1}, "run id")
    queue = RecordQueue.open(tmp_path, KEY)
    queue.append("metrics", {"step": 2}, "run id")
    assert [read_record(file) for file in queue.files()] == [("metrics", {"step": 1}), ("metrics", {"step": 2})]
    assert queue.run == {"experiment": "study", "name": "unet seed 0", "tags": {"training": "a"}, "run_id": "run id"}


def test_runs_of_one_name_have_different_folders(tmp_path):
    """Their tags differ; a folder is named after the run, without characters that need quoting."""
    first = RecordQueue.open(tmp_path, KEY)
    second = RecordQueue.open(tmp_path, RunKey("study", "unet seed 0", {"training": "b"}))
    assert first.folder != second.folder
    assert first.folder.name.startswith("unet-seed-0-")


def test_an_unreadable_queue_is_no_queue(tmp_path):
    """A folder without `run.json`, or with a broken one, is ignored."""
    assert RecordQueue.load(tmp_path / "missing") is None
    for text in ("{", "[]", "[" * 100_000, "{}", '{"name": "run"}'):
        (tmp_path / "run.json").write_text(text)
        assert RecordQueue.load(tmp_path) is None
    run = {"experiment": "study", "name": "run", "tags": {}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert RecordQueue.load(tmp_path).run == run


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"call": 1, "arguments": {}}', '{"call": "end"}'])
def test_a_damaged_record_is_an_error_that_sending_expects(tmp_path, text):
    """The caller rejects the record; no other kind of error stops a training."""
    (tmp_path / "0.json").write_text(text)
    with pytest.raises((ValueError, KeyError)):
        read_record(tmp_path / "0.json")


def test_only_one_process_sends_at_a_time(tmp_path):
    """The second leaves the queue to the first."""
    first = RecordQueue.open(tmp_path, KEY)
    first.append("metrics", {}, None)
    second = RecordQueue.open(tmp_path, KEY)
    with first.draining() as first_acquired, second.draining() as second_acquired:
        assert (first_acquired, second_acquired) == (True, False)


def test_an_empty_queue_is_removed_but_rejected_records_stay(tmp_path):
    """Rejected records are not pending; only their folder remains."""
    queue = RecordQueue.open(tmp_path, KEY)
    queue.append("metrics", {"step": 1}, None)
    with queue.draining():
        queue.files()[0].unlink()
    assert not queue.folder.exists()
    queue.append("metrics", {"step": 2}, None)
    with queue.draining():
        reject(queue.files()[0])
    assert len(queue) == 0
    assert [path.name for path in queue.folder.iterdir()] == ["rejected-00000000.json"]
    queue.append("metrics", {"step": 3}, None)
    reject(queue.files()[0])
    assert len(list(queue.folder.glob("rejected-*"))) == 2


def test_a_queue_that_is_removed_while_a_record_is_appended_keeps_its_run(tmp_path, monkeypatch):
    """Another process found it empty just before."""
    queue, sender = RecordQueue.open(tmp_path, KEY), RecordQueue.open(tmp_path, KEY)

    def removed_meanwhile():
        with sender.draining():
            pass
        return RecordQueue.files(queue)

    monkeypatch.setattr(queue, "files", removed_meanwhile)
    queue.append("metrics", {"step": 1}, "run id")
    assert RecordQueue.load(queue.folder).run["run_id"] == "run id"
    assert len(RecordQueue.load(queue.folder)) == 1


def test_a_record_that_is_appended_while_its_queue_is_removed_keeps_its_run(tmp_path, monkeypatch):
    """The process that removes the queue looks once more."""
    sender = RecordQueue.open(tmp_path, KEY)
    sender.set_run_id("run id")
    empty = iter([True, False])

    def appended_afterwards():
        files = RecordQueue.files(sender)
        if next(empty):
            RecordQueue.open(tmp_path, KEY).append("metrics", {"step": 1}, "run id")
        return files

    monkeypatch.setattr(sender, "files", appended_afterwards)
    with sender.draining():
        pass
    assert RecordQueue.load(sender.folder).run["run_id"] == "run id"
    assert len(RecordQueue.load(sender.folder)) == 1
