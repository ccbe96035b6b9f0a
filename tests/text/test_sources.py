"""Finding, fetching, decompressing and unpacking: what is read, and what is refused."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_hf.errors import InputError
from electra_hf.text.downloads import download
from electra_hf.text.names import inner_name
from electra_hf.text.sources import Source, find_sources, open_texts

COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def read_all(path, name=None):
    return {name: stream.read() for name, stream in open_texts(Source(name or path.name, path))}


def make_tar(path, members, mode="w:gz"):
    """`members`: (name, bytes), or a TarInfo that is added as it is."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_compression_is_told_by_the_first_bytes_and_not_by_the_name(tmp_path, kind):
    data = "ĉu jes?\n".encode() * 1000
    for name in (f"corpus.txt.{kind}", "corpus.txt", "corpus.gz"):
        (tmp_path / name).write_bytes(COMPRESSORS[kind](data))
        assert read_all(tmp_path / name) == {name: data}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_two_compressed_streams_in_one_file_are_both_read(tmp_path, kind):
    path = tmp_path / "corpus.txt"
    path.write_bytes(COMPRESSORS[kind](b"unu\n") + COMPRESSORS[kind](b"du\n"))
    assert read_all(path) == {"corpus.txt": b"unu\ndu\n"}


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_truncated_file_is_refused_by_name(tmp_path, kind):
    path = tmp_path / f"corpus.txt.{kind}"
    path.write_bytes(COMPRESSORS[kind](bytes(range(256)) * 50)[:-9])
    with pytest.raises(InputError, match=rf"corpus\.txt\.{kind}: damaged or cut short"):
        read_all(path)


def test_a_flipped_bit_in_a_gz_is_found(tmp_path):
    data = bytearray(gzip.compress(b"unu du tri kvar kvin ses sep ok"))
    data[-6] ^= 1  # in the checksum
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        read_all(tmp_path / "a.gz")


def test_plain_text_named_gz_is_read_as_what_it_is(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"BZh ne estas bzip2\n")
    assert read_all(tmp_path / "a.gz") == {"a.gz": b"BZh ne estas bzip2\n"}


def test_zip_is_refused_with_the_way_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "unu")
    with pytest.raises(InputError, match="Unpack it"):
        read_all(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_a_decompression_bomb_is_stopped(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("electra_hf.text.sources.ALWAYS_ALLOWED", 1 << 18)
    (tmp_path / "bomb").write_bytes(COMPRESSORS[kind](bytes(4 << 20)))
    with pytest.raises(InputError, match="decompression bomb"):
        read_all(tmp_path / "bomb")


def test_a_bomb_inside_an_archive_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("electra_hf.text.sources.ALWAYS_ALLOWED", 1 << 18)
    path = make_tar(tmp_path / "a.tar", [("a.txt", lzma.compress(bytes(4 << 20)))], mode="w")
    with pytest.raises(InputError, match="a.txt: inflates"):
        read_all(path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_of_a_leipzig_archive_only_the_sentences_are_read(tmp_path, mode):
    members = [("x/x-words.txt", b"1\tla\t9\n"), ("x/x-sentences.txt", b"1\tJes.\n"), ("x/LICENSE", b"CC")]
    path = make_tar(tmp_path / "x.archive", members, mode)
    assert read_all(path) == {"x.archive: x/x-sentences.txt": b"1\tJes.\n"}


def test_a_zst_archive_is_read(tmp_path):
    tar = make_tar(tmp_path / "x.tar", [("x-sentences.txt", b"1\tJes.\n")], "w").read_bytes()
    (tmp_path / "x.tar.zst").write_bytes(COMPRESSORS["zst"](tar))
    assert list(read_all(tmp_path / "x.tar.zst").values()) == [b"1\tJes.\n"]


def test_of_another_archive_every_txt_is_read_compressed_ones_too(tmp_path):
    members = [
        ("b.txt", b"du"),
        ("deep/a.txt.gz", gzip.compress(b"unu", mtime=0)),
        ("a.pdf", b"%PDF"),
        ("._b.txt", b"\x00\x05"),
    ]
    assert read_all(make_tar(tmp_path / "x.tar.gz", members)) == {
        "x.tar.gz: b.txt": b"du",
        "x.tar.gz: deep/a.txt.gz": b"unu",
    }


def test_an_archive_without_text_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no .txt among its 1 files"):
        read_all(make_tar(tmp_path / "x.tar.gz", [("a.pdf", b"%PDF")]))


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "bad",
    [
        ("../a.txt", b"x"),
        ("deep/../../a.txt", b"x"),
        ("/etc/a.txt", b"x"),
        special("link.txt", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.txt", tarfile.LNKTYPE, "fine-sentences.txt"),
        special("null.txt", tarfile.CHRTYPE),
        special("disk.txt", tarfile.BLKTYPE),
        special("pipe.txt", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: bad.name if isinstance(bad, tarfile.TarInfo) else bad[0],
)
def test_one_bad_member_refuses_the_whole_archive(tmp_path, bad):
    path = make_tar(tmp_path / "x.tar.gz", [("fine-sentences.txt", b"1\tJes.\n"), bad])
    texts = open_texts(Source("x.tar.gz", path))
    with pytest.raises(InputError, match="x.tar.gz: refused"):
        next(texts)  # before the first, harmless member is handed out


@pytest.mark.parametrize("share", [0.999, 0.6, 0.3])
def test_a_truncated_archive_is_refused_at_any_place(tmp_path, share):
    members = [(f"{i}.txt", bytes(range(256)) * 20) for i in range(5)]
    for mode in ("w", "w:gz"):
        path = make_tar(tmp_path / "x.tar", members, mode)
        # A tar ends in kilobytes of zeros: cut into its content.
        content = path.read_bytes()
        size = 5 * (512 + 5120) if mode == "w" else len(content)
        path.write_bytes(content[: int(size * share)])
        with pytest.raises(InputError, match="damaged or cut short"):
            read_all(path)


def test_a_damaged_header_in_the_middle_is_not_the_end_of_the_archive(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("a.txt", b"unu"), ("b.txt", b"du")], "w")
    content = bytearray(path.read_bytes())
    content[1024 + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_all(path)


def test_paths_globs_and_folders_mix_and_every_file_comes_once(tmp_path):
    for name in ("a.txt", "b.txt", "deep/c.jsonl.gz", "deep/notes.pdf", "deep/.hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_sources([str(tmp_path / "b.txt"), str(tmp_path / "*.txt"), str(tmp_path)], tmp_path)
    assert [source.path.name for source in found] == ["b.txt", "a.txt", "c.jsonl.gz"]


def test_a_folder_with_leipzig_sentences_gives_these_without_the_word_lists(tmp_path):
    for name in ("x/x-words.txt", "x/x-sentences.txt", "x/y.tar.gz", "z/plain.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_sources([str(tmp_path)], tmp_path)
    assert [source.path.name for source in found] == ["x-sentences.txt", "y.tar.gz", "plain.txt"]


def test_a_path_that_exists_is_no_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert len(find_sources([str(tmp_path / "a[1].txt")], tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.txt", "no such file"),
        ("no*where", "no such file"),
        ("ftp://host/a", "only http"),
        ("http://", "only http"),
    ],
)
def test_what_cannot_be_found_is_named(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_sources([name], tmp_path)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no corpus file"):
        find_sources([str(tmp_path)], tmp_path)


def test_the_inner_name_has_no_compression_suffix():
    assert [inner_name(name) for name in ("A.TXT.GZ", "a.jsonl", "a.tar.zst", ".gz")] == [
        "a.txt",
        "a.jsonl",
        "a.tar",
        ".gz",
    ]


class Server(ThreadingHTTPServer):
    """Serves `files`, answers ranges, and breaks a response off after `cut_after` bytes, `cuts` times."""

    files, etag, cuts, cut_after, knows_ranges = {}, '"1"', 0, 0, True

    def __init__(self):
        self.requests = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.command, asked))
        asked = asked if server.knows_ranges else None
        body = server.files.get(self.path.split("?")[0])
        if body is None:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if with_body and server.cuts:
            server.cuts -= 1
            self.wfile.write(body[start : start + server.cut_after])
            self.close_connection = True
        elif with_body:
            self.wfile.write(body[start:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("electra_hf.text.downloads.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this server is no network
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def leipzig_archive(tmp_path):
    lines = "".join(f"{i}\tFrazo {i}.\n" for i in range(1, 500)).encode()
    return make_tar(
        tmp_path / "local.tar.gz", [("x/x-words.txt", b"1\tla\n"), ("x/x-sentences.txt", lines)]
    ).read_bytes()


def test_a_leipzig_archive_is_fetched_once(tmp_path, server):
    server.files = {"/corpora/x.tar.gz": leipzig_archive(tmp_path)}
    for _ in range(2):
        (source,) = find_sources([f"{server.url}/corpora/x.tar.gz"], tmp_path / "downloads")
    ((name, content),) = read_all(source.path, source.name).items()
    assert name == f"{server.url}/corpora/x.tar.gz: x/x-sentences.txt" and content.startswith(b"1\tFrazo 1.\n")
    assert [command for command, _ in server.requests] == ["HEAD", "GET"]
    assert not list((tmp_path / "downloads").glob("*.incomplete"))


def test_a_cut_connection_is_resumed_where_it_broke(tmp_path, server):
    body = leipzig_archive(tmp_path)
    server.files, server.cuts, server.cut_after = {"/x.tar.gz": body}, 2, 300
    assert download(f"{server.url}/x.tar.gz", tmp_path).read_bytes() == body
    assert server.requests[1:] == [("GET", None), ("GET", "bytes=300-"), ("GET", "bytes=600-")]


@pytest.fixture
def half_done(tmp_path, server):
    """A download that stopped for good after 300 bytes, as when the machine went down."""
    server.files, server.cuts, server.cut_after = {"/x.tar.gz": leipzig_archive(tmp_path)}, 99, 0
    with pytest.raises(InputError, match="Start again to go on where it stopped"):
        download(f"{server.url}/x.tar.gz", tmp_path / "downloads")
    (part,) = (tmp_path / "downloads").glob("*.incomplete")
    part.write_bytes(server.files["/x.tar.gz"][:300])
    server.cuts = 0
    server.requests.clear()
    return f"{server.url}/x.tar.gz", tmp_path / "downloads"


def test_the_next_start_resumes_what_the_last_one_left(server, half_done):
    assert download(*half_done).read_bytes() == server.files["/x.tar.gz"]
    assert server.requests == [("HEAD", None), ("GET", "bytes=300-")]


def test_a_server_without_ranges_is_asked_for_the_whole_again(server, half_done):
    server.knows_ranges = False
    assert download(*half_done).read_bytes() == server.files["/x.tar.gz"]


def test_a_file_that_changed_on_the_server_is_not_joined_to_the_old_half(server, half_done):
    server.files["/x.tar.gz"] = b"tute nova " * 200
    server.etag = '"2"'
    assert download(*half_done).read_bytes() == b"tute nova " * 200


def test_a_missing_page_is_one_clear_error_and_leaves_no_file(tmp_path, server):
    with pytest.raises(InputError, match=r"/nowhere.txt: the server answered 404"):
        download(f"{server.url}/nowhere.txt?key=secret", tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".txt"]


def test_a_server_that_is_not_there_is_one_clear_error(tmp_path, server):
    with pytest.raises(InputError, match="cannot be fetched"):
        download("http://127.0.0.1:9/a.txt", tmp_path)


def test_a_password_in_the_url_is_not_in_the_name(tmp_path, server):
    server.files = {"/a.txt": b"Jes.\n"}
    url = server.url.replace("http://", "http://me:secret@") + "/a.txt?signature=secret"
    (source,) = find_sources([url], tmp_path)
    assert source.name == f"{server.url}/a.txt" and "secret" not in str(source.path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 4096), st.binary(min_size=1, max_size=40), st.sampled_from(["tar", "gz", "xz"]))
def test_a_damaged_archive_gives_bytes_or_an_input_error(tmp_path, at, damage, kind):
    path = make_tar(tmp_path / "x.tar", [("x-sentences.txt", b"1\tJes.\n" * 80), ("é" * 120, b"longa nomo")], "w")
    content = path.read_bytes() if kind == "tar" else COMPRESSORS[kind](path.read_bytes())
    at %= len(content)
    path.write_bytes(content[:at] + damage + content[at + len(damage) :])
    try:
        texts = read_all(path)
    except InputError as error:
        assert "x.tar" in str(error)
    else:
        assert all(isinstance(text, bytes) for text in texts.values())


# Whatever a user names: regular files, or one message


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder with everything that a folder can hold, as the working folder."""
    folder = tmp_path / "tree"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "one.txt").write_text("unu")
    (folder / "a" / "b" / "two.txt").write_text("du")
    (folder / "a" / "b" / "up").symlink_to(folder)  # round and round
    (folder / "linked").symlink_to(folder / "a")
    (folder / "odd").mkdir()
    os.mkfifo(folder / "odd" / "pipe.txt")
    (folder / "odd" / "self.txt").symlink_to("self.txt")
    (folder / "odd" / "broken.txt").symlink_to("nowhere")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("tri")
    monkeypatch.chdir(folder)
    return folder


def test_linked_folders_are_followed_and_each_file_comes_once(tree, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "three.txt").write_text("tri")
    (tree / "a" / "more").symlink_to(elsewhere)
    for name in ("a", "a/**", "a/**/*.txt", str(tree / "a" / "**" / "*.txt"), "linked"):
        if name in ("a", "linked"):
            shutil.rmtree(tree / "odd", ignore_errors=True)
        assert {source.path.name for source in find_sources([name], tmp_path)} >= {"one.txt", "two.txt", "three.txt"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd/pipe.txt", "pipe.txt: neither a file nor a folder"),
        ("odd/pi*", "pipe.txt: neither a file nor a folder"),
        ("/dev/zero", "/dev/zero: neither a file nor a folder"),
        ("odd/self.txt", "self.txt: a link that leads nowhere"),
        ("odd/b*.txt", "broken.txt: a link that leads nowhere"),
        ("odd", "a link that leads nowhere"),
        ("a" * 5000, "no such file|too long"),
        ("*/" + "a" * 5000, "no such file|too long"),
        ("~nosuchuser/a.txt", "~nosuchuser/a.txt: there is no such file"),
        ("a\0b", "no such file|cannot be looked up"),
        ("\ud800", "no such file|cannot be looked up"),
        ("", "A path is empty"),
        (" \t", "A path is empty"),
    ],
)
def test_what_is_no_regular_file_is_one_message(tree, tmp_path, name, message):
    with pytest.raises(InputError, match=message) as raised:
        find_sources([name], tmp_path)
    assert len(str(raised.value)) < 1_000 and str(raised.value).isprintable()


def test_a_name_that_is_not_utf8_is_read_and_shown_escaped(tree, tmp_path):
    (source,) = find_sources(["caf*"], tmp_path)
    assert source.name == "caf\\udce9.txt" and read_all(source.path) == {source.path.name: b"tri"}


def test_a_pipe_that_is_given_as_a_source_is_not_waited_for(tree):
    for path in (tree / "odd" / "pipe.txt", tree, tree / "nowhere"):
        with pytest.raises(InputError):
            next(open_texts(Source("x", path)))


NAMES = st.lists(
    st.sampled_from(
        ["a", "b", "odd", "one.txt", "*", "**", "?", "[ab]", "[", ".", "~", "\0", "\udce9", "é", "/", "/", "//"]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES | st.text(max_size=20))
def test_any_string_names_regular_files_or_is_refused(tree, tmp_path, name):
    if name.startswith(("/", "~")) or ".." in name:
        return  # not ours to look through
    try:
        sources = find_sources([name], tmp_path)
    except InputError as error:
        assert str(error).isprintable()
    else:
        assert sources and all(source.path.is_file() and source.name.isprintable() for source in sources)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a", "a.conllu"])
def test_a_web_page_is_no_text_unless_its_name_says_so(tmp_path, name):
    page = b"<!DOCTYPE html>\n<html>Please log in</html>\n"
    (tmp_path / name).write_bytes(gzip.compress(page) if name.endswith("gz") else page)
    with pytest.raises(InputError, match="web page"):
        read_all(tmp_path / name)
    (tmp_path / "a.html").write_bytes(page)
    assert read_all(tmp_path / "a.html") == {"a.html": page}
