"""A page that shows what models see in a text: suspicious tokens, the generator's guesses, tags, labels.

python recipes/demo.py --folders outputs/quickstart/pretrain outputs/quickstart/tagger [--port 7860]
"""

import os
import shlex
import socket
import sys
import threading
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import NamedTuple

from transformers.utils import logging

from electra_hf.errors import InputError
from electra_hf.publish.facts import collect_facts, embed_pictures, summarise
from electra_hf.publish.hub import PushError, check_repo_id, push_space
from electra_hf.publish.shading import color_words, draw_bars, list_guesses, shade_tokens
from electra_hf.publish.space import write_space
from electra_hf.recipe import run_recipe
from electra_hf.tasks.inspection import (
    Guess,
    Reader,
    Token,
    classify_text,
    find_suspicion,
    gives_number,
    guess_token,
    open_reader,
    tag_words,
)

# Before gradio is imported: otherwise it looks for newer versions of itself, and reports that it is used.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}

LONGEST = 20_000  # characters: each token is a button, in the panel of each model, and a browser has to draw them all
QUICKSTART = ["outputs/quickstart/pretrain", "outputs/quickstart/tagger"]
# With this header the browser itself blocks whatever the page would ask of another host.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
INTRODUCTION = """<h1>What the model sees</h1>
<p>Type or paste a text. The darker a token, the more suspicious it is to the discriminator: its probability of having
been put there by a generator stands under the pointer. A discriminator that calls a token replaced underlines it.
Click on a token to see what the generator would put there, and on a guess to put it there. By keyboard: Tab, arrows,
Enter.</p>"""

CSS = """
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.panel { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .75rem 1rem; min-width: 0; }
.panel h3 { margin: 0; font-size: 1.05rem; } .panel p.about, .panel dt, .note { opacity: .75; font-size: .85rem; }
.panel .text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.15rem; line-height: 2.1; }
.token { all: unset; cursor: pointer; border-radius: 3px; padding: .15em .05em; position: relative;
  background: rgb(235 120 20 / calc(var(--shade) * .8)); }
.token.suspect { text-decoration: underline; text-decoration-thickness: 2px; }
.token.selected { outline: 2px solid currentColor; } .token:focus-visible { outline: 3px solid #2563eb; }
.word { position: relative; display: inline-block; line-height: 1.2; vertical-align: top; margin-bottom: .5em;
  border-radius: 3px; padding: .1em .15em; background: hsl(var(--hue) 80% 60% / .4); }
.word small { display: block; font-size: .6rem; opacity: .8; } .word:focus-visible { outline: 3px solid #2563eb; }
[data-says]:hover::after, [data-says]:focus-visible::after { content: attr(data-says); position: absolute; left: 0;
  bottom: 100%; z-index: 9; white-space: nowrap; font-size: .8rem; line-height: 1.4; padding: .1em .5em;
  border-radius: 4px; background: #111827; color: white; pointer-events: none; }
.guesses button { cursor: pointer; padding: .1em .6em; border: 1px solid var(--border-color-primary);
  border-radius: 4px; } .guesses button[aria-pressed=true] { font-weight: bold; border-width: 2px; }
.guesses td, .guesses th, .bars td, .bars th { padding: .15em .8em .15em 0; text-align: left; }
.bar { width: 10rem; } .bar i { display: block; height: .8em; background: rgb(235 120 20 / .8); }
.panel dl { margin: .5rem 0; } .panel dd { margin: 0 0 .4rem; } .panel img { max-width: 100%; background: white; }
"""
# The panels are replaced with every letter typed, so the listeners belong to the element around them.
SCRIPT = """
const marks = '[data-token], [data-tag]';
element.addEventListener('click', (event) => {
  const token = event.target.closest('[data-token]');
  if (token) trigger('click', {panel: Number(token.dataset.panel), token: Number(token.dataset.token)});
});
element.addEventListener('keydown', (event) => {
  const steps = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1};
  const mark = event.target.closest(marks);
  if (!mark || !(event.key in steps)) return;
  const all = [...mark.closest('.text').querySelectorAll(marks)];
  const next = all[all.indexOf(mark) + steps[event.key]];
  if (next) { mark.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  event.preventDefault();
});
"""
GUESS_SCRIPT = """
element.addEventListener('click', (event) => {
  const guess = event.target.closest('[data-guess]');
  if (guess) trigger('click', {guess: Number(guess.dataset.guess)});
});
"""


@dataclass
class DemoArguments:
    """What to show, and where."""

    folders: list[str] = field(
        default_factory=lambda: list(QUICKSTART),
        metadata={"help": "Runs or models to show side by side (default: what the quickstart made)."},
    )
    port: int = field(default=7860, metadata={"help": "The port of the page."})
    host: str = field(
        default="127.0.0.1", metadata={"help": "Where to listen. 0.0.0.0 lets other machines see the page."}
    )
    space: str | None = field(
        default=None, metadata={"help": "Push a Hugging Face Space of this name (me/name) with the page instead."}
    )
    public: bool = field(default=False, metadata={"help": "Let everybody see the Space. Default: private."})

    def __post_init__(self):
        if not 0 < self.port < 65_536:
            raise InputError(f"port: expected a number from 1 to 65535, got {self.port}.")
        if not self.folders:
            raise InputError("folders: give at least one folder of a run or of a model.")


class Shown(NamedTuple):
    """A model on the page, its name there, and a line about it."""

    name: str
    reader: Reader
    about: str


def main(arguments):
    import_gradio()  # first: a missing package is reported before models are loaded, or a folder is written
    if arguments.space:
        publish(arguments)
    else:
        show(arguments.folders, arguments.host, arguments.port)


def show(folders, host, port):
    """Serve the page until a signal comes. Raises `InputError` before any model is loaded where it cannot listen."""
    listening = listen(host, port)
    serve(open_all(folders), listening)


def publish(arguments):
    """Write the folder of the Space, and push it: exit code 3 where only that failed."""
    check_repo_id(arguments.space, "space")  # before anything is loaded or written
    models = [shown.reader.folder for shown in open_all(arguments.folders)]
    space = write_space(Path("outputs/space", arguments.space.partition("/")[2]), arguments.space, models, __file__)
    print(f"written: {space}")
    # The command to push again: it is shown where the push fails.
    again = ["python", "recipes/demo.py", "--folders", *arguments.folders, "--space", arguments.space]
    again += ["--public"] * arguments.public
    try:
        print(f"pushed and verified: {push_space(space, arguments.space, shlex.join(again), not arguments.public)}")
    except PushError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)


def import_gradio():
    """Gradio, where it is installed. Raises `InputError` where it is not."""
    try:
        import gradio  # an extra: the other recipes do without it
    except ImportError as error:
        raise InputError(
            f"The page needs Gradio ({error}). Install it with `make demo`, or pip install 'electra-hf[demo]'."
        ) from None
    return gradio


def listen(host, port):
    """A socket of our own, so that a port in use is reported before any model is loaded."""
    listening = None
    try:
        # Through getaddrinfo, since the host may be a name, or an address of IPv4 or IPv6.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        # Without this the port stays taken for a while after a page that has just ended.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, UnicodeError) as error:  # UnicodeError: the part of a host's name is too long
        if listening:
            listening.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The page cannot listen on {host}, port {port}: {reason}. Give another --port, or another --host."
        ) from None
    return listening


def open_all(folders):
    """The models of the folders, each with a name that no other one has. Raises `InputError`."""
    if folders == QUICKSTART and not any(Path(folder).is_dir() for folder in folders):
        raise InputError(
            f"There is no {folders[0]} yet. Make it with `make quickstart`, or give your own folders with --folders."
        )
    logging.disable_progress_bar()  # of weights that are loaded in a moment
    paths = [Path(folder).resolve() for folder in dict.fromkeys(folders)]
    names = name_folders(paths)
    # dict.fromkeys: a folder that is named twice is shown once.
    readers = [open_reader(folder) for folder in dict.fromkeys(folders)]
    return [Shown(name, reader, summarise(reader.folder)) for name, reader in zip(names, readers, strict=True)]


def name_folders(paths):
    """The shortest ends of the paths that are all different: pretrain and tagger, or a/pretrain and b/pretrain."""
    for length in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}. {path}" for number, path in enumerate(paths, 1)]


def serve(shown, listening):
    """Answer on the socket, and say where the page is."""
    import uvicorn  # comes with gradio

    host, port = listening.getsockname()[:2]
    app = make_app(shown)
    print(f"The page is at http://{f'[{host}]' if ':' in host else host}:{port}   (Ctrl+C ends it)", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    # In a thread, uvicorn leaves signals to us. In the main thread it would take them, and wait for every browser to
    # close the page.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        thread.join()
    except SystemExit as end:  # a signal; there is nothing to save, and an orderly end would wait for threads
        sys.stdout.flush()
        os._exit(end.code)


def make_app(shown):
    """The page as an application that `uvicorn` serves."""
    gradio = import_gradio()
    from fastapi import FastAPI

    # Without its pages of documentation, which load scripts from another host.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def keep_to_this_host(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    # Fonts of the reader's own machine: any other one would be fetched from another host.
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page = make_page(gradio, shown)
    return gradio.mount_gradio_app(app, page, "/", css=CSS, theme=theme, footer_links=[], ssr_mode=False)


def make_page(gradio, shown):
    """The parts of the page and what happens to them."""
    names = [model.name for model in shown]
    start = example_text(shown)
    with gradio.Blocks(title="What the model sees", analytics_enabled=False) as page:
        gradio.HTML(INTRODUCTION, js_on_load=None)
        text = gradio.Textbox(start, label="Text", lines=3, max_lines=12, interactive=True, elem_id="text")
        chosen = gradio.CheckboxGroup(names, value=names, label="Models side by side", elem_id="models")
        panels = gradio.HTML(read(shown, start, names), js_on_load=SCRIPT, elem_id="readings")
        guesses = gradio.HTML("", js_on_load=GUESS_SCRIPT, elem_id="guesses")
        facts = gradio.HTML(describe(shown, names), js_on_load=None, elem_id="facts")
        choices = gradio.State(None)  # each visitor has one

        def reread(text, names, choices):
            return read_again(shown, text, names, choices)

        def show_guesses(text, names, event: gradio.EventData):
            return guess(shown, text, names, event.panel, event.token)

        def put(choices, event: gradio.EventData):
            return put_guess(shown, choices, event.guess)

        # "always_last": letters that are typed while an answer is on its way are answered together, after it.
        quiet = {"show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        gradio.on([text.change, chosen.change], reread, [text, chosen, choices], [panels, guesses, choices], **quiet)
        chosen.change(lambda names: describe(shown, names), chosen, facts, **quiet)
        panels.click(show_guesses, [text, chosen], [panels, guesses, choices], **quiet)
        # This sets the text alone; the change of the text then renews the panels.
        guesses.click(put, choices, [text, guesses, choices], **quiet)
    return page


def example_text(shown):
    """A sentence of the tagged test, which no model here has learned from; empty where there is none."""
    for model in shown:
        predictions = model.reader.folder / "predictions.tsv"
        if predictions.is_file():
            sentence = predictions.read_text(encoding="utf-8").split("\n\n")[0]
            rows = [row.split("\t") for row in sentence.split("\n") if row]
            # The first line of the file may be its header.
            return " ".join(row[0] for row in rows if row != ["word", "gold", "predicted"])
    return ""


def read(shown, text, names, panel=None, start=None):
    """The panels of the chosen models; the token at `start` of panel number `panel` is framed."""
    parts = [] if len(text) <= LONGEST else [f'<p class="note">Only the first {LONGEST:,} characters are read.</p>']
    # Numbered among all models, chosen or not: a click gives the number of its panel back to `guess`.
    for number, model in enumerate(shown):
        if model.name in names:
            name, about = escape(model.name), escape(model.about)
            seen = read_with(model.reader, text[:LONGEST], number, start if number == panel else None)
            head = f'<h3>{name}</h3><p class="about">{about}</p>'
            parts.append(f'<section class="panel" data-model="{name}">{head}{seen}</section>')
    return f'<div class="panels">{"".join(parts)}</div>'


def read_with(reader, text, number, selected):
    """What one model sees in the text."""
    if not text.strip():
        return '<p class="note">No text yet.</p>'
    if reader.kind == "detector":
        return f'<div class="text">{shade_tokens(text, find_suspicion(reader, text), number, selected)}</div>'
    if reader.kind == "tagger":
        labels = [str(reader.model.config.id2label[index]) for index in sorted(reader.model.config.id2label)]
        return f'<div class="text">{color_words(text, tag_words(reader, text), labels)}</div>'
    values, length, seen = classify_text(reader, text)
    cut = f'<p class="note">It read the first {seen} of {length} tokens.</p>' if seen < length else ""
    return draw_bars(values, in_percent=not gives_number(reader.model)) + cut


@dataclass
class Choices:
    """What stands below the panels after a click on a token: its guesses, and which of them the text holds now."""

    panel: int
    token: Token
    text: str  # as it was
    guesses: list[Guess]
    chosen: int | None = None

    @property
    def options(self):
        """(text, start of the piece) for every guess, and at the end for the piece that was there."""
        return [*((guess.text, guess.start) for guess in self.guesses), (self.text, self.token.start)]

    def now(self):
        """The text that the page shows, and where the piece stands in it."""
        return self.options[-1 if self.chosen is None else self.chosen]


def read_again(shown, text, names, choices):
    """The page after a change of the text or of the models. Guesses stay while the text is the one that they made."""
    if choices and text == choices.now()[0] and shown[choices.panel].name in names:
        return read(shown, text, names, choices.panel, choices.now()[1]), show_choices(shown, choices), choices
    return read(shown, text, names), "", None


def guess(shown, text, names, panel, token):
    """The page after a click on a token: its panel with the token framed, and the guesses."""
    reader, text = shown[panel].reader, text[:LONGEST]  # cut as in `read`, so that the tokens have the same numbers
    tokens = find_suspicion(reader, text)
    if token >= len(tokens):  # the text has changed since the click
        return read(shown, text, names), "", None
    panels = read(shown, text, names, panel, tokens[token].start)
    if reader.generator is None:
        return panels, '<p class="note">No generator lies beside this discriminator, so nothing guesses.</p>', None
    choices = Choices(panel, tokens[token], text, guess_token(reader, text, tokens[token]))
    return panels, show_choices(shown, choices), choices


def show_choices(shown, choices):
    """The table of guesses, with its heading."""
    piece = choices.text[choices.token.start : choices.token.end]
    heading = f"{shown[choices.panel].name}: in place of “{piece}”, suspected with {choices.token.probability:.1%}"
    table = list_guesses(piece, choices.guesses, choices.chosen)
    return f'<div class="panel"><h3>{escape(heading)}</h3>{table}</div>'


def put_guess(shown, choices, chosen):
    """The page after a click on a guess: the text with it."""
    choices.chosen = chosen
    return choices.now()[0], show_choices(shown, choices), choices


def describe(shown, names):
    """What the page is looking at: the facts and pictures of every chosen model."""
    parts = []
    for model in shown:
        if model.name in names:
            facts = "".join(
                f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
                for name, value in collect_facts(model.reader.folder)
            )
            pictures = "".join(
                f'<p>{title}</p><img alt="{title}" src="{data}">'
                for title, data in embed_pictures(model.reader.folder)
            )
            parts.append(f'<section class="panel"><h3>{escape(model.name)}</h3><dl>{facts}</dl>{pictures}</section>')
    return f'<h2>What you are looking at</h2><div class="panels">{"".join(parts)}</div>'


if __name__ == "__main__":
    run_recipe(main, DemoArguments)
