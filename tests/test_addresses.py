import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_hf.addresses import public_text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("https://h.org/a.txt", "https://h.org/a.txt"),
        ("https://u:p@h.org:80/a.txt?sig=S", "https://h.org:80/a.txt"),
        ("see https://h.org/a.gz?sig=S, and (https://h.org/b#c).", "see https://h.org/a.gz, and (https://h.org/b)."),
        ('{"a":"https://h/a?x=1","b":"https://u:p@h/b"}', '{"a":"https://h/a","b":"https://h/b"}'),
        ("s3://key:sec/ret?@bucket/a", "s3://bucket/a"),
        ("http://h:8080/a@b/c", "http://h:8080/a@b/c"),
        ("https://h/models@main/x", "https://h/models@main/x"),
        ("what? me@home.org: a path/b#c", "what? me@home.org: a path/b#c"),
    ],
)
def test_an_address_loses_what_only_its_server_may_read(text, public):
    assert public_text(text) == public


PLAIN = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6)
ODD = st.text(
    st.characters(
        codec="ascii", exclude_characters=" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f@", categories=["L", "N", "P", "S"]
    )
)


@given(PLAIN, ODD, PLAIN, st.booleans())
def test_no_password_stays_whatever_letters_it_has(user, password, host, in_a_sentence):
    address = f"https://{user}:SECRET{password}@{host}.org/a.txt?sig=SECRET"
    text = f"see {address} here" if in_a_sentence else address
    assert "SECRET" not in public_text(text)
    assert public_text(text).endswith("a.txt here" if in_a_sentence else "a.txt")
    assert public_text(public_text(text)) == public_text(text)
