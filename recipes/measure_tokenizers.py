"""How well each type of tokenizer serves a language: a Markdown table for a folder of texts, one file per language.

python recipes/measure_tokenizers.py --folder texts [--tokenizer_types unigram] [--vocab_size 8000] [--train_lines 700]

The first lines of a file train the tokenizer, the others measure it. With --tagged_files FILE instead of a folder: how
many words have the same tokens for a tagger as in pretraining. LANGUAGES.md holds what it printed for us.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from electra_hf.errors import InputError
from electra_hf.recipe import run_recipe
from electra_hf.tasks.alignment import encode_words
from electra_hf.text.characters import clean_characters
from electra_hf.text.readers import read_sentences
from electra_hf.text.sources import find_sources
from electra_hf.text.tagged_text import read_tagged_sentences
from electra_hf.text.tokenization import load_tokenizer, measure_tokenizer, train_tokenizer

# key: (title, format, which of two values is the worse one)
COLUMNS = {
    "tokens_per_character": ("tokens / character", "{:.3f}", max),
    "fertility": ("tokens / word", "{:.2f}", max),
    "unknown": ("characters in [UNK] %", "{:.2f}", max),
    "unseen": ("of them unseen %", "{:.2f}", max),
    "changed": ("words changed %", "{:.2f}", max),
    "whole": ("whole %", "{:.1f}", min),
    "whole_of_seen": ("whole, all characters seen %", "{:.1f}", min),
}


@dataclass
class MeasureArguments:
    """Which texts, and which tokenizers."""

    folder: str | None = field(default=None, metadata={"help": "Text files, one per language, a sentence a line."})
    tagged_files: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Instead: CoNLL-U files. Each trains tokenizers on its running text and is measured itself."
        },
    )
    tokenizer_types: list[str] = field(
        default_factory=lambda: ["wordpiece", "bpe", "unigram"], metadata={"help": "What to train and measure."}
    )
    vocab_size: int = field(default=8_000, metadata={"help": "Entries of each."})
    train_lines: int = field(default=700, metadata={"help": "Lines of each file that train; the others measure."})
    tokenizers: str | None = field(
        default=None, metadata={"help": "Measure existing ones, FOLDER/TYPE/LANGUAGE, instead of training any."}
    )


ARGUMENTS = (MeasureArguments,)


def main(args):
    # One of the two, since they end in different tables.
    if bool(args.folder) == bool(args.tagged_files):
        raise InputError("Give either folder (texts of languages) or tagged_files (CoNLL-U).")
    if args.tagged_files:
        return print_words(args)
    languages = read_languages(args.folder, args.train_lines)
    for tokenizer_type in args.tokenizer_types:
        rows = {}
        for language, (train, test) in languages.items():
            if args.tokenizers:
                tokenizer = load_tokenizer(Path(args.tokenizers) / tokenizer_type / language)
            else:
                tokenizer = train_tokenizer(train, args.vocab_size, tokenizer_type)
            rows[language] = measure(tokenizer, test, set("".join(train)))
        print(format_table(tokenizer_type, rows), flush=True)  # a table at a time, also into a file


def print_words(args):
    """A table of the share of words with the same tokens in running text and in a tagger, word by word and not."""
    print("| file | type | words | same tokens, word by word | same tokens, running text | begin inside a token |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.tagged_files:
        sentences = [sentence for sentence in read_tagged_sentences(name) if sentence.spans]
        # Without spans a tagger encodes the same sentences word by word.
        single = [replace(sentence, spans=None) for sentence in sentences]
        if not sentences:
            raise InputError(f"{name}: does not say how its words stand together (# text, SpaceAfter=No).")
        for tokenizer_type in args.tokenizer_types:
            texts = [sentence.text for sentence in sentences]
            tokenizer = train_tokenizer(texts, args.vocab_size, tokenizer_type)
            counts, running = Counter(), tokens_of_words(sentences, tokenizer)
            by_word = encode_words(single, tokenizer)
            in_text = encode_words(sentences, tokenizer, counts)
            shares = [same_share(running, [ids for words in read for ids in words]) for read in (by_word, in_text)]
            inside = counts["words_with_shared_token"] / len(running)
            numbers = " | ".join(f"{share:.3f}" for share in (*shares, inside))
            print(f"| {Path(name).name} | {tokenizer_type} | {len(running):,} | {numbers} |", flush=True)


def tokens_of_words(sentences, tokenizer):
    """The ids of the tokens that cover some of each word, where the running text is encoded as in pretraining."""
    words = []
    for sentence in sentences:
        encoding = tokenizer(sentence.text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = list(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True))
        # Every token that covers a character of the word. One token may reach over the border of two words.
        words += [[i for i, (a, b) in tokens if a < end and start < b] for start, end in sentence.spans]
    return words


def same_share(before, after):
    return sum(a == b for a, b in zip(before, after, strict=True)) / len(before)


def read_languages(folder, train_lines):
    """{language: (training texts, held-out texts)}, cleaned as a corpus is."""
    languages = {}
    # `find_sources` wants a folder for downloads; files of a local folder need none that stays.
    with tempfile.TemporaryDirectory() as downloads:
        for source in find_sources([folder], Path(downloads)):
            # Measured on what a run would read, so that an invisible character counts for no tokenizer or for all.
            texts = map(clean_characters, read_sentences(source, "text", "strict", Counter()))
            texts = [text for text in texts if text]
            if len(texts) <= train_lines:
                raise InputError(
                    f"{source.name} has {len(texts)} lines, none beyond the {train_lines} of train_lines."
                )
            languages[source.path.name.partition(".")[0]] = texts[:train_lines], texts[train_lines:]
    return languages


def measure(tokenizer, texts, seen):
    """The row of a table. `seen` holds the characters of the training text.

    Whole is a sentence that decoding gives back, blanks aside. Unseen are the characters inside an [UNK] that holds a
    character which the training text does not have.
    """
    backend, unk = tokenizer.backend_tokenizer, tokenizer.unk_token_id
    scores = measure_tokenizer(tokenizer, texts)
    # Without blanks: scripts that have none would look worse by a sixth.
    num_characters = sum(len(text.replace(" ", "")) for text in texts)
    num_tokens = num_unseen = 0
    # Sentences of known characters apart: with others in it, a tokenizer without bytes cannot give a sentence back.
    whole, whole_of_seen = [], []
    for text, encoding in zip(texts, backend.encode_batch(texts, add_special_tokens=False), strict=True):
        pairs = zip(encoding.offsets, encoding.ids, strict=True)
        unknown = [text[start:end] for (start, end), i in pairs if i == unk]
        # No tokenizer can know a character that its text did not have. What is left is the tokenizer's own doing.
        num_unseen += sum(len(piece) for piece in unknown if set(piece) - seen)
        num_tokens += len(encoding.ids)
        # Blanks are not compared: decoders put them differently, and no spelling depends on that.
        whole.append(backend.decode(encoding.ids).replace(" ", "") == text.replace(" ", ""))
        if not set(text) - seen:
            whole_of_seen.append(whole[-1])
    return {
        "tokens_per_character": num_tokens / num_characters,
        "fertility": scores["fertility"],
        "unknown": 100 * scores["unknown_character_share"],
        "unseen": 100 * num_unseen / num_characters,
        "changed": 100 * scores["changed_word_share"],
        "whole": 100 * sum(whole) / len(whole),
        "whole_of_seen": 100 * sum(whole_of_seen) / max(len(whole_of_seen), 1),
    }


def format_table(tokenizer_type, rows):
    """A Markdown table, a language a line, and the worst of each column at the end."""
    rows = rows | {
        # An average over languages would hide the one that a tokenizer cannot serve.
        "worst": {name: worst(row[name] for row in rows.values()) for name, (_, _, worst) in COLUMNS.items()}
    }
    head = [tokenizer_type, *(title for title, _, _ in COLUMNS.values())]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *(form.format(row[key]) for key, (_, form, _) in COLUMNS.items())] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


if __name__ == "__main__":
    run_recipe(main, *ARGUMENTS)
