import pytest

from dualflow.cohort import participants, write_dataset, write_subject

SEED = 3


@pytest.fixture(scope="session")
def cohort(tmp_path_factory):
    """Two subjects, one of each site."""
    out = tmp_path_factory.mktemp("cohort")
    first, *rest = participants(6, SEED)
    people = [first, next(person for person in rest if person.site != first.site)]
    for person in people:
        write_subject(out, person)
    write_dataset(out, people)
    return out, people
