"""Errors of the system, in the words of what was asked for."""

import pytest

from sagewai_ops.fs.os_errors import asked_for


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (
            "/s/.sagewai-20261129T030217Z-e5aeb9.tar.zst.partial",
            "/s/sagewai-20261129T030217Z-e5aeb9.tar.zst",
        ),
        ("/units/.backup.service.eaf77078.partial", "/units/backup.service"),
        ("/srv/.home.restore-20261129T030224234644Z/data/note", "/srv/home/data/note"),
        ("/srv/home/.sagewai-ops-restore-20261129T030224234644Z/data", "/srv/home"),
        ("/s/.sagewai-20261129T030221Z-d9c50d.staging/data/.sagewai-ops-partial", "/s"),
        ("/dev/shm/.sagewai-20261129T030229Z-a83f94.drill/.home.restore-1", "/dev/shm"),
        ("/srv/home/.sagewai-ops-lock", "/srv/home/.sagewai-ops-lock"),
        ("/srv/.hidden/home", "/srv/.hidden/home"),
        ("/", "/"),
        ("name", "name"),
    ],
)
def test_working_files_are_shown_as_what_was_asked_for(path: str, shown: str) -> None:
    """A person knows neither the partial file nor the directory that is renamed later."""
    assert asked_for(path) == shown
