"""The whole way in minutes on two CPU cores: pretrain, export, fine-tune a tagger, and show what came of it.

python recipes/quickstart.py
"""

import json
import os
from pathlib import Path

import finetune_token_classification as finetune
import pretrain
import torch
from transformers import AutoTokenizer, ElectraForPreTraining
from transformers.utils import logging

from electra_hf.recipe import parse_arguments, run_recipe

ROOT = Path(__file__).parents[1]
OUTPUT = Path("outputs/quickstart")
SENTENCE = ("La knabino legas interesan libron en la ĝardeno .", "libron", "kantas")  # a noun becomes a verb


def main():
    logging.disable_progress_bar()
    os.chdir(ROOT)  # the paths in the recipe files start there
    pretrain.main(*parse_arguments(*pretrain.ARGUMENTS, argv=["--config", "recipes/quickstart/pretrain.yaml"]))
    for folder, from_scratch in (("tagger", "false"), ("untrained", "true")):
        flags = ["--output_dir", str(OUTPUT / folder), "--from_scratch", from_scratch]
        config = ["--config", "recipes/quickstart/finetune_pos.yaml", *flags]
        finetune.main(*parse_arguments(*finetune.ARGUMENTS, argv=config))
    report()


def report():
    """One small table, and a sentence with the tokens marked that the discriminator finds suspicious."""
    pretraining, tagger, untrained = (
        json.loads((OUTPUT / folder / "metrics.json").read_text()) for folder in ("pretrain", "tagger", "untrained")
    )
    majority = pretraining["eval_rtd_majority_baseline"]
    rows = [
        ("pretraining speed, tokens/s", pretraining["train_tokens_per_second"], "", ""),
        ("detection AUC, held out", pretraining["eval_rtd_auc"], "chance", 0.5),
        ("detection accuracy", pretraining["eval_rtd_accuracy"], "majority", majority),
        ("tagging accuracy", tagger["eval_accuracy"], "untrained network", untrained["eval_accuracy"]),
        ("", "", "most frequent tag", tagger["baseline_most_frequent_tag_accuracy"]),
    ]
    print("\nQuickstart")
    for name, value, baseline, baseline_value in rows:
        print(f"  {name:28} {number(value):>8}   {baseline:18} {number(baseline_value):>6}")
    if pretraining["eval_rtd_auc"] < 0.6:
        print(
            "\nThe 521 sentences of the sample show the way, but are too few to learn from context: the AUC\n"
            "is below 0.6, and chance decides between the taggers. A real run, on your text or an Esperanto corpus:\n"
            "  accelerate launch recipes/pretrain.py --config recipes/esperanto_tiny/pretrain.yaml "
            "[--corpus_files 'my_text/*.txt']"
        )
    text, original, replacement = SENTENCE
    print(f"\n'{original}' became '{replacement}'. What the discriminator finds suspicious stands in >> <<:")
    print("  " + mark_suspicious(text.replace(original, replacement)))
    print(f"\nCurves: {OUTPUT / 'pretrain' / 'curves.png'}   Tagger: {OUTPUT / 'tagger'}")


def mark_suspicious(text, share=0.2):
    """The text with its most suspicious fifth of words marked, whatever the threshold: a small model is timid."""
    folder = OUTPUT / "pretrain" / "discriminator"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), ElectraForPreTraining.from_pretrained(folder).eval()
    words = text.split()
    encoding = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoding).logits[0].tolist()
    spans = [encoding.word_to_tokens(number) for number in range(len(words))]
    suspicion = [max(logits[span.start : span.end]) for span in spans]  # a word is as strange as its strangest token
    threshold = sorted(suspicion)[-max(1, round(share * len(words)))]
    marked = [f">>{word}<<" if score >= threshold else word for word, score in zip(words, suspicion, strict=True)]
    return " ".join(marked)


def number(value):
    if value == "" or isinstance(value, str):
        return value
    return f"{value:,.0f}" if value > 1 else f"{value:.3f}"


if __name__ == "__main__":
    run_recipe(main)
