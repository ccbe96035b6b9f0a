"""The whole way in minutes on two CPU cores, offline: pretrain on the documentation of your own Python packages,
fine-tune a tagger, and show what was learned beside what is reached without learning it.

python recipes/quickstart.py [--verbose]
"""

import json
import os
import random
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from statistics import mean

import collect_documentation
import finetune_token_classification as finetune
import pretrain
import torch
from transformers import AutoTokenizer, ElectraForPreTraining
from transformers.utils import logging

from electra_hf.errors import InputError
from electra_hf.recipe import parse_arguments, run_recipe
from electra_hf.text.corpus import load_corpus

ROOT = Path(__file__).parents[1]
CONFIG = Path("recipes/quickstart")
SHOWN = 5  # sentences with a replaced word, the first of all that are measured


@dataclass
class QuickstartArguments:
    """How much is trained, where the results go, and how much is printed."""

    output_dir: str = field(default="outputs/quickstart", metadata={"help": "The folder for all results."})
    packages: list[str] = field(
        default_factory=lambda: list(collect_documentation.PACKAGES),
        metadata={"help": "Installed packages whose documentation is the text to learn from."},
    )
    share: float = field(
        default=1.0, metadata={"help": "Share of the training steps: 0.01 shows in seconds that the way works."}
    )
    verbose: bool = field(default=False, metadata={"help": "Show every number, warning and bar of the libraries."})


def main(arguments):
    os.chdir(ROOT)  # the paths in the recipe files start there
    output = Path(arguments.output_dir)
    if not arguments.verbose:
        logging.disable_progress_bar()

    text = output / "documentation.txt"
    print("1. Text: the documentation of the installed Python packages")
    if text.exists():  # a run that was stopped goes on with the text that it began with
        print(f"   {text} is there already (`make clean` removes all results)")
    else:
        collect_documentation.main(collect_documentation.DocumentationArguments(str(text), arguments.packages))

    print("2. Pretraining: a generator replaces words, a discriminator finds them")
    corpus_args = pretrain_on(text, output / "pretrain", arguments)

    print("3. Taggers: three from the pretrained network, three from the same network untrained")
    # What the untrained network reaches is due to fine-tuning alone; the difference is what pretraining gives.
    for folder, from_scratch in (("tagger", "false"), ("untrained", "true")):
        fine_tune(output, folder, from_scratch, arguments)

    report(output, corpus_args, arguments.packages)


def pretrain_on(text, output_dir, arguments):
    """Run the recipe `pretrain.py`, and return the settings of its corpus."""
    flags = ["--config", CONFIG / "pretrain.yaml", "--corpus_files", text, "--output_dir", output_dir]
    groups = parse_arguments(*pretrain.ARGUMENTS, argv=[*map(str, flags), *shown(arguments)])
    training_args = groups[-1]
    # All stages shrink by the same share, to one step at least: a stage without steps would be left out.
    for name in ("max_steps", "generator_only_steps", "warmup_steps", "discriminator_warmup_steps"):
        setattr(training_args, name, max(1, round(arguments.share * getattr(training_args, name))))
    pretrain.main(*groups)
    return groups[0]


def fine_tune(output, folder, from_scratch, arguments):
    """Run the recipe `finetune_token_classification.py`, without its report: the one at the end here says more."""
    flags = ["--config", CONFIG / "finetune_pos.yaml", "--model_name_or_path", output / "pretrain/discriminator"]
    flags += ["--output_dir", output / folder, "--from_scratch", from_scratch]
    groups = parse_arguments(*finetune.ARGUMENTS, argv=[*map(str, flags), *shown(arguments)])
    groups[-1].num_train_epochs *= arguments.share
    with nullcontext() if arguments.verbose else redirect_stdout(StringIO()):
        finetune.main(*groups)


def shown(arguments):
    return ["--log_level", "info"] if arguments.verbose else []


def report(output, corpus_args, packages):
    """One small table, and sentences with the word marked that the discriminator finds most suspicious."""
    pretraining, tagger, untrained = (
        json.loads((output / folder / "metrics.json").read_text()) for folder in ("pretrain", "tagger", "untrained")
    )
    # The held-out part, which pretraining has not read. `pretrain.py` has prepared it, so it is only opened here.
    marks = mark_replaced_words(output / "pretrain/discriminator", load_corpus(corpus_args)[0]["test"]["text"])
    if not marks:
        raise InputError(
            f"packages: no held-out sentence of {' '.join(packages)} has 8 to 16 words. Name more packages."
        )
    # By chance every word of a sentence is marked equally often.
    right, chance = mean(mark.is_right for mark in marks), mean(1 / len(mark.words) for mark in marks)
    majority = pretraining["eval_rtd_majority_baseline"]
    accuracy, most_frequent = tagger["eval_accuracy_mean"], tagger["baseline_most_frequent_tag_accuracy"]
    rows = [
        ("detection AUC, held out", pretraining["eval_rtd_auc"], "chance", 0.5),
        ("detection accuracy", pretraining["eval_rtd_accuracy"], "the more frequent answer", majority),
        ("replaced words that are marked", right, "chance", chance),
        ("tagging accuracy, 3 seeds", accuracy, "untrained network", untrained["eval_accuracy_mean"]),
        ("", "", "most frequent tag of a word", most_frequent),  # a second baseline for the row above
        ("pretraining speed, tokens/s", pretraining["train_tokens_per_second"], "", ""),
    ]
    print("\nQuickstart")
    for name, value, baseline, baseline_value in rows:
        print(f"  {name:30} {number(value):>8}   {baseline:27} {number(baseline_value):>6}".rstrip())
    print(
        f"\nIn each of {len(marks)} held-out sentences one word was replaced by another, drawn from all of them.\n"
        f"The most >>suspicious<< word was the replaced one in {right:.0%}, by chance in {chance:.0%}. "
        f"The first {SHOWN}:"
    )
    for mark in marks[:SHOWN]:
        print(f"  {'right' if mark.is_right else 'wrong'}: {mark.text()}")
    print(f"\nCurves: {output / 'pretrain/curves.png'}   Tagger: {output / 'tagger'}")
    print(
        "On your own text:\n  accelerate launch recipes/pretrain.py --config recipes/quickstart/pretrain.yaml "
        "--corpus_files 'my_text/*.txt' --output_dir outputs/mine"
    )


@dataclass
class Mark:
    """A sentence with one replaced word, and the word that the discriminator marks."""

    words: list[str]
    replaced: int
    original: str
    marked: int

    @property
    def is_right(self) -> bool:
        return self.marked == self.replaced

    def text(self) -> str:
        # The note first: the marked word may be the replaced one, and its mark stands around the word alone.
        shown = list(self.words)
        shown[self.replaced] += f" [was: {self.original}]"
        shown[self.marked] = f">>{self.words[self.marked]}<<" + shown[self.marked][len(self.words[self.marked]) :]
        return " ".join(shown)


def mark_replaced_words(folder: Path, texts: list[str], at_most: int = 400) -> list[Mark]:
    """Replace one word in each of `texts` by a word of another, and mark the most suspicious word of each.

    Sentences of 8 to 16 words are taken, and only plain words are replaced, by plain words: a capital in the middle of
    a sentence, or a full stop, would give it away. The draws are the same every time.
    """
    tokenizer, model = AutoTokenizer.from_pretrained(folder), ElectraForPreTraining.from_pretrained(folder).eval()
    draw = random.Random(0)  # our own: what else draws from `random` changes no sentence here
    sentences = [words for text in texts if 8 <= len(words := text.split()) <= 16]
    # With repetitions, so that frequent words are drawn as often as they are written.
    vocabulary = [word for words in sentences for word in words if is_plain(word)]
    marks = []
    for words in sentences:
        places = [place for place, word in enumerate(words) if is_plain(word)]
        if len(marks) < at_most and places:
            place = draw.choice(places)
            # Ten draws at once: one of them at least is nearly always another word.
            others = [word for word in draw.choices(vocabulary, k=10) if word != words[place]]
            if not others:
                continue
            replaced = [*words[:place], others[0], *words[place + 1 :]]
            if suspicion := suspicion_of(replaced, tokenizer, model):
                marked = max(range(len(words)), key=suspicion.__getitem__)
                marks.append(Mark(replaced, place, words[place], marked))
    return marks


def is_plain(word):
    return word.isascii() and word.isalpha() and word.islower()


@torch.no_grad()
def suspicion_of(words, tokenizer, model):
    """How strange the model finds each word: the mean over its tokens, in logits. None for a long sentence.

    With the strangest token instead, rare words would be marked wherever they stand: they have the most tokens.
    """
    encoding = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    if encoding["input_ids"].shape[1] > model.config.max_position_embeddings:
        return None
    logits = model(**encoding).logits[0].tolist()
    spans = [encoding.word_to_tokens(number) for number in range(len(words))]
    return [mean(logits[span.start : span.end]) for span in spans]


def number(value):
    if value == "":
        return value
    # Tokens per second have no decimals; all else in the table is between 0 and 1.
    return f"{value:,.0f}" if value > 1 else f"{value:.3f}"


if __name__ == "__main__":
    run_recipe(main, QuickstartArguments)
