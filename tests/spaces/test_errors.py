import pytest

from spaces.errors import without_credentials


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no answer at http://me:secret@host:5000/api", "no answer at http://***@host:5000/api"),
        ("postgresql+psycopg://u:p%40ss@db/n?sslmode=off", "postgresql+psycopg://***@db/n?sslmode=off"),
        ("mysql://db/n?user=me&password=secret&ssl=1", "mysql://db/n?user=***&password=***&ssl=1"),
        ("ask ann@example.org or see http://host/a@b", "ask ann@example.org or see http://host/a@b"),
        ("two: s3://k:v@a/x, 'http://token@b'", "two: s3://***@a/x, 'http://***@b'"),
    ],
)
def test_credentials_are_taken_out_of_addresses(text, told):
    assert without_credentials(text) == told
