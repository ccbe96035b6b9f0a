"""Downloads: what a server may answer, and what of it is taken."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.text.downloads import download, download_all, looks_like_html, public_name
from electra_hf.text.sources import find_sources

BODY = b"".join(b"Frazo %d.\n" % number for number in range(100))


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.answers[path]` says: a function of the start that was asked for, to an answer."""

    def do_HEAD(self):
        self.respond(None)

    def do_GET(self):
        asked = self.headers.get("Range")
        self.respond(int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0)

    def respond(self, start):
        self.server.requests.append((self.command, start))
        status, headers, body = self.server.answers[self.path](start)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("electra_hf.text.downloads.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this server is no network
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers, server.requests = {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def partial(content_range, body, etag=None):
    return 206, {"Content-Range": content_range} | ({"ETag": etag} if etag else {}), body


def cut_first(rest):
    """An answer that breaks off after 300 bytes, and then what `rest` says for the start that is asked for."""

    def answer(start):
        if start:
            return rest(start)
        return (
            200,
            {"Content-Length": str(len(BODY)), "ETag": '"1"'},
            BODY if answer.whole or start is None else BODY[:300],
        )

    answer.whole = False
    return answer


@pytest.mark.parametrize(
    "other",
    [
        lambda start: partial(f"bytes 0-{len(BODY) - 1}/{len(BODY)}", BODY),
        lambda start: partial(f"bytes {start - 50}-{len(BODY) - 1}/{len(BODY)}", BODY[start - 50 :]),
        lambda start: partial(f"bytes {start}-{len(BODY)}/{len(BODY) + 1}", BODY[start:] + b"x"),
        lambda start: partial("bytes */1000", BODY[start:]),
        lambda start: partial("nonsense", BODY[start:]),
        lambda start: (206, {}, BODY[start:]),
        lambda start: partial(f"bytes {start}-{len(BODY) - 1}/{len(BODY)}", BODY[start:], etag='"2"'),
    ],
    ids=["from the start", "too early", "another total", "unsatisfied", "nonsense", "no range", "another version"],
)
def test_another_part_than_was_asked_for_is_never_joined(server, tmp_path, other):
    answer = server.answers["/a.txt"] = cut_first(other)
    with pytest.raises(InputError, match="/a.txt: cannot be fetched .*another part"):
        download(f"{server.url}/a.txt", tmp_path)
    answer.whole = True  # the server has come to its senses
    server.requests.clear()
    assert download(f"{server.url}/a.txt", tmp_path).read_bytes() == BODY
    assert server.requests[1] == ("GET", 0)


def test_the_part_that_was_asked_for_is_joined(server, tmp_path):
    server.answers["/a.txt"] = cut_first(
        lambda start: partial(f"bytes {start}-{len(BODY) - 1}/{len(BODY)}", BODY[start:], '"1"')
    )
    assert download(f"{server.url}/a.txt", tmp_path).read_bytes() == BODY
    assert server.requests == [("HEAD", None), ("GET", 0), ("GET", 300)]


PAGE = b"\n<!DOCTYPE html>\n<html><body>Please log in</body></html>\n"


@pytest.mark.parametrize(
    ("kind", "body"),
    [("text/html; charset=utf-8", b"Please log in\n"), ("text/plain", PAGE), ("application/gzip", PAGE.lower())],
)
@pytest.mark.parametrize("name", ["/a.txt", "/a.txt.gz", "/a.tar.gz", "/a"])
def test_a_web_page_where_text_was_asked_for_is_refused_and_not_kept(server, tmp_path, kind, body, name):
    server.answers[name] = lambda start: (200, {"Content-Type": kind}, body)
    with pytest.raises(InputError, match=f"{name}: the server sent a web page .*log-in.*give its path"):
        download(server.url + name, tmp_path)
    server.answers[name] = lambda start: (200, {"Content-Type": "text/plain"}, BODY)
    assert download(server.url + name, tmp_path).read_bytes() == BODY


def test_a_web_page_is_fetched_where_the_name_asks_for_one(server, tmp_path):
    server.answers["/a.html"] = lambda start: (200, {"Content-Type": "text/html"}, PAGE)
    assert download(f"{server.url}/a.html", tmp_path).read_bytes() == PAGE


@pytest.mark.parametrize(
    "start", [b"<html>", b"\xef\xbb\xbf<!doctype HTML public", b"<?xml version='1'?>\n<html ", b"<!-- a --> <head>"]
)
def test_the_starts_of_web_pages_are_known(start):
    assert looks_like_html(start)


@pytest.mark.parametrize("start", [b"", b"<p>", b"html", b"<htmlx>", b"<?xml version='1'?><doc>", b"a <html>"])
def test_other_starts_are_text(start):
    assert not looks_like_html(start)


@pytest.mark.parametrize("damage", [lambda body: b"", lambda body: body[:-1], lambda body: b"x" + body[1:]])
def test_a_download_that_changed_on_the_disk_is_fetched_again(server, tmp_path, caplog, damage):
    server.answers["/a.txt"] = lambda start: (200, {}, BODY)
    path = download(f"{server.url}/a.txt", tmp_path)
    path.write_bytes(damage(BODY))
    assert download(f"{server.url}/a.txt", tmp_path).read_bytes() == BODY
    assert "changed since it was fetched" in caplog.text
    server.requests.clear()
    download(f"{server.url}/a.txt", tmp_path)
    assert server.requests == []


def test_many_downloads_make_one_progress_bar_and_leave_no_locks(server, tmp_path, capfd):
    for number in range(30):
        server.answers[f"/{number}.txt"] = lambda start: (200, {}, BODY)
    datasets.enable_progress_bars()
    for _ in range(2):
        download_all([f"{server.url}/{number}.txt" for number in range(30)], tmp_path)
    assert capfd.readouterr().err.count("\r") < 10
    assert not list(tmp_path.glob("*.lock")) and len(list(tmp_path.glob("*.txt"))) == 30


@pytest.mark.parametrize("bad", ["[bad", "host:port/a", "host:99999/a", "a b\0c/", "\udcff/a", "[::1/a", "a" * 70_000])
def test_a_malformed_address_is_one_message_that_tells_no_secret(tmp_path, monkeypatch, bad):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("electra_hf.text.downloads.time.sleep", lambda seconds: None)
    monkeypatch.setattr("electra_hf.text.downloads.TIMEOUT", 0.001)
    with pytest.raises(InputError) as raised:
        find_sources([f"http://me:secret@{bad}?key=secret"], tmp_path)
    assert "secret" not in str(raised.value) and len(str(raised.value)) < 1_000


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.text("abc:/[]@?#%. \0", max_size=40), st.sampled_from(["http", "https", "ftp", "file"]))
def test_any_address_has_a_name_without_secrets_or_is_refused(rest, scheme):
    try:
        name = public_name(f"{scheme}://{rest}")
    except InputError as error:
        name = str(error)
    assert name.isprintable() and len(name) < 1_000


def test_a_long_name_at_the_end_of_an_address_fits_on_the_disk(server, tmp_path):
    path = f"/{'a' * 4_000}.txt.gz"
    server.answers[path] = lambda start: (200, {}, gzip.compress(BODY))
    assert gzip.decompress(download(server.url + path, tmp_path).read_bytes()) == BODY
