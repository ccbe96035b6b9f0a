"""`recipes/demo.py`: the page in a real browser beside the model's own numbers, and what it refuses.

The tests of the browser need Chromium (Debian: apt-get install chromium), those of the page Gradio (`make demo`).
"""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

import browser
import pytest
import torch
import yaml
from hub_client import TOKEN, client_environment
from hub_server import Hub
from PIL import Image
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForTokenClassification,
)

from electra_hf.publish.cards import fill_discriminator_card, fill_generator_card, fill_tagger_card
from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ["The small dog runs through the long street .", "She reads a book , and he does not read ."]
TEXT = "The dog reads a long book ."
TAGS = {0: "NOUN", 1: "VERB", 2: "DET"}
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="no Gradio here: pip install 'electra-hf[demo]'"
)
needs_browser = pytest.mark.skipif(browser.PATH is None, reason="no Chromium here: apt-get install chromium")


def save_model(model_class, folder, tokenizer, seed, **settings):
    torch.manual_seed(seed)
    size = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ElectraConfig(
        vocab_size=len(tokenizer), intermediate_size=16, max_position_embeddings=32, initializer_range=0.7, **size,
        **settings,
    )  # fmt: skip
    model_class(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def make_folders(place):
    """What the quickstart leaves, with random weights: pretrain/ with both networks, tagger/, and their records."""
    tokenizer = train_tokenizer(SENTENCES * 20, vocab_size=128, model_max_length=32)
    run = place / "pretrain"
    save_model(ElectraForPreTraining, run / "discriminator", tokenizer, seed=1)
    save_model(ElectraForMaskedLM, run / "generator", tokenizer, seed=2)
    (run / "metrics.json").write_text('{"eval_rtd_auc": 0.8125, "train_tokens": 4096000, "train_runtime": 90.0}')
    splits = {"train": {"sentences": 1234, "characters": 56789}}
    (run / "corpus.json").write_text(json.dumps({"sources": [{"name": "docs/words.txt"}], "splits": splits}))
    Image.new("RGB", (40, 30), "green").save(run / "curves.png")
    fill_discriminator_card(run)
    fill_generator_card(run)
    save_model(ElectraForTokenClassification, place / "tagger", tokenizer, seed=3, id2label=TAGS)
    tagger = place / "tagger"
    (tagger / "metrics.json").write_text('{"eval_accuracy": 0.75, "baseline_most_frequent_tag_accuracy": 0.5}')
    (tagger / "predictions.tsv").write_text("She\tNOUN\tNOUN\nreads\tVERB\tNOUN\n\nThe\tDET\tDET\n")
    Image.new("RGB", (40, 30), "blue").save(tagger / "confusion.png")
    fill_tagger_card(tagger)
    return run, tagger


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("models"))


# What is refused


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@needs_gradio
def test_a_folder_that_is_none_is_refused(run_recipe, tmp_path):
    done = run_recipe("demo.py", "--folders", tmp_path / "none", "--port", free_port())
    assert done.returncode == 2 and f"{tmp_path / 'none'}: there is no such folder" in done.stderr


@needs_gradio
def test_a_folder_without_a_model_is_refused(run_recipe, folders, tmp_path):
    done = run_recipe("demo.py", "--folders", folders[1], tmp_path, "--port", free_port())
    assert done.returncode == 2 and f"{tmp_path} holds no model" in done.stderr


@needs_gradio
def test_a_port_in_use_is_refused_before_any_model_is_loaded(run_recipe, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run_recipe("demo.py", "--folders", tmp_path / "none", "--port", port)
    assert done.returncode == 2 and f"cannot listen on 127.0.0.1, port {port}: Address already in use" in done.stderr
    assert "--port" in done.stderr and "none" not in done.stderr


@needs_gradio
@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1", "a" * 70])
def test_a_host_that_is_not_this_machine_is_refused(run_recipe, folders, host):
    done = run_recipe("demo.py", "--folders", *folders, "--host", host, "--port", free_port())
    assert done.returncode == 2 and f"cannot listen on {host}" in done.stderr


@pytest.mark.parametrize("port", ["0", "-1", "65536", "x"])
def test_a_port_that_is_no_port_is_refused(run_recipe, folders, port):
    done = run_recipe("demo.py", "--folders", *folders, f"--port={port}")
    assert done.returncode == 2 and "port" in done.stderr


def test_without_gradio_the_message_says_how_to_install_it(run_recipe, folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    done = run_recipe("demo.py", "--folders", *folders)
    assert done.returncode == 2 and "make demo" in done.stderr and "electra-hf[demo]" in done.stderr


@needs_gradio
def test_before_a_quickstart_the_message_says_how_to_make_one(run_recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run_recipe("demo.py", "--port", free_port())
    assert done.returncode == 2 and "make quickstart" in done.stderr


@needs_gradio
def test_a_space_of_a_model_that_was_never_pushed_is_refused_with_the_command(
    run_recipe, folders, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    done = run_recipe("demo.py", "--folders", *folders, "--space", "me/page")
    assert done.returncode == 2 and "python recipes/push.py --folder" in done.stderr
    assert not (tmp_path / "outputs").exists()


@needs_gradio
@pytest.mark.parametrize("name", ["page", "me/", "a/b/c", "me/ü"])
def test_a_space_that_has_no_name_on_the_hub_is_refused(run_recipe, folders, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    done = run_recipe("demo.py", "--folders", *folders, "--space", name)
    assert done.returncode == 2 and "space: " in done.stderr and not (tmp_path / "outputs").exists()


def load_recipe():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "recipes/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_are_named_by_the_ends_of_their_paths_that_tell_them_apart():
    name = load_recipe().name_folders
    assert name([Path("/a/pretrain"), Path("/a/tagger")]) == ["pretrain", "tagger"]
    assert name([Path("/a/x/pretrain"), Path("/a/y/pretrain")]) == ["x/pretrain", "y/pretrain"]
    assert name([Path("/a/pretrain")]) == ["pretrain"]


# The Space


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path / "hub", {TOKEN: "me"}).start()
    yield hub
    hub.stop()


PUSH = """
import sys
from electra_hf.publish.hub import push_folder
for folder, name in zip(sys.argv[1::2], sys.argv[2::2]):
    push_folder(folder, name)
"""


@needs_gradio
@pytest.mark.slow
def test_a_space_holds_all_it_needs_to_show_the_pushed_models(hub, tmp_path):
    run, tagger = make_folders(tmp_path)
    environment = client_environment(hub, tmp_path / "home") | {"GRADIO_SERVER_PORT": str(free_port())}
    call = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 200}
    names = [run / "discriminator", "me/tiny-discriminator", run / "generator", "me/tiny-generator", tagger, "me/pos"]
    subprocess.run([sys.executable, "-c", PUSH, *map(str, names)], check=True, **call)
    demo = [sys.executable, str(ROOT / "recipes/demo.py"), "--folders", str(run), str(tagger), "--space", "me/page"]
    done = subprocess.run(demo, **call)
    assert done.returncode == 0, done.stderr
    assert "pushed and verified" in done.stdout
    space = hub.repositories["spaces", "me/page"]
    assert space.private and not (tmp_path / "outputs/space/page/electra_hf/__pycache__").exists()
    # As a Space runs it: the files of the repository and nothing else.
    place = tmp_path / "as-a-space"
    for entry in space.entries(space.resolve("main")):
        (place / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (place / entry.path).write_bytes(space.read(entry.oid))
    card = yaml.safe_load((place / "README.md").read_text().split("---")[1])
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["sdk_version"] == version("gradio")
    assert card["models"] == ["me/tiny-discriminator", "me/tiny-generator", "me/pos"]
    assert f"torch=={version('torch').partition('+')[0]}\n" in (place / "requirements.txt").read_text()
    environment.pop("PYTHONPATH", None)
    app = subprocess.Popen([sys.executable, "app.py"], cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
    assert "The page is at http://0.0.0.0" in app.stdout.readline()
    with urllib.request.urlopen(f"http://127.0.0.1:{environment['GRADIO_SERVER_PORT']}/", timeout=60) as answer:
        shown = answer.read().decode()
    app.kill(), app.wait()
    assert "tiny-discriminator" in shown and "1,234 sentences" in shown and "0.812" in shown

    # A second push goes on the first; a public one is refused while the Space is private.
    assert subprocess.run(demo, **call).returncode == 0
    done = subprocess.run([*demo, "--public"], **call)
    assert done.returncode == 3 and "the repository is private, and the push asked for public" in done.stderr
    assert done.stderr.rstrip().endswith("--space me/page --public")
    # Its owner edited the card: it is kept. Somebody else's folder is not written over.
    (tmp_path / "outputs/space/page/README.md").write_text("mine")
    done = subprocess.run(demo, **call)
    assert done.returncode == 2 and "not ours to overwrite" in done.stderr


# The page


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    """The page in a browser, and its address."""
    if importlib.util.find_spec("gradio") is None or browser.PATH is None:
        pytest.skip("no Gradio or no Chromium here")
    port = free_port()
    command = [sys.executable, "recipes/demo.py", "--folders", *map(str, folders), "--port", str(port)]
    with open(tmp_path_factory.mktemp("page") / "log", "w+") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        assert f"http://127.0.0.1:{port}" in server.stdout.readline()
        chromium = browser.Browser(tmp_path_factory.mktemp("chromium"))
        yield chromium, f"http://127.0.0.1:{port}/"
        server.terminate()  # while a browser looks at it
        assert server.wait(30) == 143
        chromium.close()
        log.seek(0)
        assert "Traceback" not in log.read()


@pytest.fixture
def fresh(page):
    """The page as it opens, and the browser's log of this test alone."""
    chromium, address = page
    chromium.resize(1200, 1000)
    chromium.requests.clear(), chromium.messages.clear()
    chromium.open("about:blank", "true")
    chromium.open(address, "document.querySelectorAll('#readings .token, #readings .word').length > 3")
    yield chromium
    strangers = [url for url in chromium.requests if not url.startswith((address, "data:", "blob:", "about:"))]
    assert strangers == [] and len(chromium.requests) > 10
    assert chromium.messages == []


def type_text(chromium, text):
    chromium.click("#text textarea")
    chromium.write(text)
    wait_for_text(chromium, text)


def wait_for_text(chromium, text):
    joined = json.dumps(text)
    chromium.wait(f"document.querySelector('#readings .panel .text')?.textContent === {joined}")


def suspicion(folder, text):
    """Pieces of the text and probabilities, by the model's own code."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "discriminator")
    model = ElectraForPreTraining.from_pretrained(folder / "discriminator").eval()
    inputs = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    spans = inputs.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        probabilities = model(**inputs).logits[0].sigmoid().tolist()
    return [text[start:end] for start, end in spans[1:-1]], probabilities[1:-1]


class TestInABrowser:
    pytestmark = [pytest.mark.slow, needs_gradio, needs_browser]

    def test_the_shaded_tokens_have_the_model_s_own_probabilities(self, fresh, folders):
        type_text(fresh, TEXT)
        pieces, probabilities = suspicion(folders[0], TEXT)
        assert fresh.find(".token", "textContent") == pieces
        shown = list(map(float, fresh.find(".token", "dataset.probability")))
        assert shown == pytest.approx(probabilities, abs=2e-6)
        darkest = max(0.5, *probabilities)
        shades = list(map(float, fresh.find(".token", "style.getPropertyValue('--shade')")))
        assert shades == pytest.approx([probability / darkest for probability in probabilities], abs=2e-3)
        assert (
            len(
                set(
                    fresh.evaluate("[...document.querySelectorAll('.token')].map(e => getComputedStyle(e).background)")
                )
            )
            > 3
        )

    def test_the_probability_stands_under_the_pointer(self, fresh, folders):
        type_text(fresh, TEXT)
        fresh.point("[data-token='2']")
        says = fresh.evaluate("getComputedStyle(document.querySelector('[data-token=\"2\"]'), '::after').content")
        assert says == f'"{suspicion(folders[0], TEXT)[1][2]:.1%} replaced"'

    def test_the_words_have_the_tagger_s_own_tags(self, fresh, folders):
        type_text(fresh, TEXT)
        tokenizer = AutoTokenizer.from_pretrained(folders[1])
        model = AutoModelForTokenClassification.from_pretrained(folders[1]).eval()
        inputs = tokenizer(TEXT.split(), is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        firsts = [inputs.word_to_tokens(number).start for number in range(len(TEXT.split()))]
        assert fresh.find(".word", "dataset.tag") == [TAGS[logits[first].argmax().item()] for first in firsts]
        shown = list(map(float, fresh.find(".word", "dataset.probability")))
        assert shown == pytest.approx([logits[first].softmax(-1).max().item() for first in firsts], abs=2e-6)

    def test_a_click_shows_the_generator_s_guesses_and_a_click_on_one_puts_it_there(self, fresh, folders):
        type_text(fresh, TEXT)
        pieces, _ = suspicion(folders[0], TEXT)
        place = pieces.index("reads") if "reads" in pieces else 2
        fresh.click(f"[data-token='{place}']")
        fresh.wait("document.querySelectorAll('[data-guess]').length > 3")
        tokenizer = AutoTokenizer.from_pretrained(folders[0] / "generator")
        generator = AutoModelForMaskedLM.from_pretrained(folders[0] / "generator").eval()
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        ids[0, place + 1] = tokenizer.mask_token_id
        with torch.no_grad():
            probabilities = generator(input_ids=ids).logits[0, place + 1].softmax(-1)
        ranked = [tokenizer.convert_ids_to_tokens(index) for index in probabilities.argsort(descending=True).tolist()]
        ranked = [token.removeprefix("##") for token in ranked if not re.fullmatch(r"\[[\w]+\]", token)]
        shown = [piece.removeprefix("-") for piece in fresh.find("[data-guess]", "textContent")]
        assert shown == [*ranked[:8], pieces[place]]
        before = fresh.find(".token", "dataset.probability")
        fresh.click("[data-guess='0']")
        fresh.wait("!!document.querySelector('[data-guess=\"0\"][aria-pressed=true]')")
        text = fresh.evaluate("document.querySelector('#text textarea').value")
        assert text != TEXT and ranked[0] in text
        wait_for_text(fresh, text)
        shown = list(map(float, fresh.find(".token", "dataset.probability")))
        assert shown == pytest.approx(suspicion(folders[0], text)[1], abs=2e-6)
        assert fresh.find(".token", "dataset.probability") != before
        assert ranked[0] in fresh.find(".token.selected", "textContent")[0]
        fresh.click("[data-guess='8']")  # back
        wait_for_text(fresh, TEXT)
        assert fresh.find(".token", "dataset.probability") == before

    def test_typing_after_a_guess_takes_the_guesses_away(self, fresh):
        type_text(fresh, TEXT)
        fresh.click("[data-token='1']")
        fresh.wait("document.querySelectorAll('[data-guess]').length > 3")
        type_text(fresh, "Another book .")
        fresh.wait("document.querySelectorAll('[data-guess]').length === 0")

    def test_models_are_switched_off_and_on(self, fresh):
        assert fresh.find("#readings .panel", "dataset.model") == ["pretrain", "tagger"]
        fresh.click("#models input[type=checkbox]")
        fresh.wait("document.querySelectorAll('#readings .panel').length === 1")
        assert fresh.find("#readings .panel", "dataset.model") == ["tagger"]
        fresh.wait("document.querySelectorAll('#facts .panel').length === 1")
        fresh.click("#models input[type=checkbox]")
        fresh.wait("document.querySelectorAll('#readings .panel').length === 2")
        assert fresh.find("#readings .panel", "dataset.model") == ["pretrain", "tagger"]

    def test_it_opens_with_a_sentence_of_the_test_and_says_what_it_looks_at(self, fresh):
        assert fresh.evaluate("document.querySelector('#text textarea').value") == "She reads"
        facts = fresh.evaluate("document.querySelector('#facts').innerText")
        for fact in (
            "0.812 (by chance: 0.500)",
            "1,234 sentences, 56,789 characters (words.txt)",
            "0.750",
            "at most 32 tokens",
        ):
            assert fact in facts, facts
        assert fresh.find("#facts img", "alt") == ["Curves of the training", "What is taken for what, on the test"]
        assert fresh.wait("[...document.querySelectorAll('#facts img')].every(e => e.naturalWidth === 40)")

    def test_a_narrow_window_scrolls_in_one_direction_alone_with_the_panels_below_each_other(self, fresh):
        fresh.resize(360, 740, mobile=True)
        type_text(fresh, TEXT)
        assert fresh.evaluate("document.documentElement.scrollWidth") <= 360
        first, second = fresh.find("#readings .panel", "getBoundingClientRect().top")
        assert second > first
        fresh.resize(1200, 1000)
        tops = "[...document.querySelectorAll('#readings .panel')].map(e => e.getBoundingClientRect().top)"
        fresh.wait(f"new Set({tops}).size === 1")

    def test_the_keyboard_alone_is_enough(self, fresh):
        fresh.evaluate("document.querySelector('#text textarea').focus()")
        fresh.write(TEXT)
        wait_for_text(fresh, TEXT)
        press_until(fresh, "Tab", "document.activeElement.dataset.token === '0'")
        for _ in range(2):
            fresh.press("ArrowRight")
        assert fresh.evaluate("document.activeElement.dataset.token") == "2"
        fresh.press("ArrowLeft")
        assert fresh.evaluate("document.activeElement.dataset.token") == "1"
        fresh.press("Enter")
        fresh.wait("document.querySelectorAll('[data-guess]').length > 3")
        press_until(fresh, "Tab", "document.activeElement.dataset.guess === '1'")
        fresh.press("Enter")
        fresh.wait("!!document.querySelector('[data-guess=\"1\"][aria-pressed=true]')")
        assert fresh.evaluate("document.querySelector('#text textarea').value") != TEXT

    def test_a_text_is_never_markup(self, fresh):
        text = "<img src=x onerror=\"document.title='stolen'\"> <b>dog</b> & ' \""
        type_text(fresh, text)
        assert fresh.evaluate("document.querySelectorAll('#readings .text img, #readings .text b').length") == 0
        assert fresh.evaluate("document.title") != "stolen"

    def test_a_long_text_is_read_to_its_end(self, fresh, folders):
        text = " ".join(["The dog reads a long book ."] * 20)
        fresh.evaluate("document.querySelector('#text textarea').focus()")
        fresh.call("Input.insertText", text="")
        fresh.evaluate("document.activeElement.select()")
        fresh.call("Input.insertText", text=text)
        wait_for_text(fresh, text)
        assert len(fresh.find(".token", "textContent")) > 100 and len(fresh.find(".word", "textContent")) == 140

    def test_the_page_forbids_itself_every_other_host(self, page):
        chromium, address = page
        chromium.open(address, "document.readyState === 'complete'")
        script = "fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => 'refused')"
        assert chromium.evaluate(script) == "refused"
        assert any("Content Security Policy" in message for message in chromium.messages)


def press_until(chromium, key, condition, most=60):
    for _ in range(most):
        chromium.press(key)
        if chromium.evaluate(condition):
            return
    raise AssertionError(f"{condition} never came")
