import pytest

from dualflow.cohort import participants, write_dataset, write_subject

SEED = 3


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Two subjects, one of each site."""
    out = tmp_path_factory.mktemp("cohort")
    first, *rest = participants(6, SEED)
    subjects = [first, next(subject for subject in rest if subject.site != first.site)]
    for subject in subjects:
        write_subject(out, subject)
    write_dataset(out, subjects)
    return out, subjects
