"""Near-duplicates planted in real text: how many of them prepare_shards.py leaves out, and what else.

python recipes/benchmark/plant_near_duplicates.py --corpus_files … --output_dir FOLDER

A document is 20 sentences in a row. Of most documents there is a copy in which some words are replaced by others of
the corpus, either here and there or in one passage.
"""

import json
import random
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path

from electra_hf.recipe import run_recipe
from electra_hf.text.corpus import CorpusArguments, load_corpus
from electra_hf.text.near_duplicates import shingles_of
from electra_hf.text.prepared import read_arrow
from electra_hf.text.shard_job import ShardArguments, begin, plan_job
from electra_hf.text.stages import STAGES, run_task, stages_of

SENTENCES = 20  # in a document
COPIES = 500  # of each kind
UNRELATED = 2000  # documents without a copy
KINDS = list(product((0.05, 0.1, 0.2, 0.3), ("here and there", "in one passage")))
SIMILARITIES = (0.3, 0.5, 0.7, 0.8)


@dataclass
class PlantArguments:
    """Where the text is, and where the jobs go."""

    corpus_files: list[str] = field(metadata={"help": "Text with enough sentences, as for prepare_shards.py."})
    output_dir: str = field(metadata={"help": "A new folder."})


def main(arguments):
    folder, chance = Path(arguments.output_dir), random.Random(0)
    splits, _ = load_corpus(CorpusArguments(arguments.corpus_files, test_share=0))
    sentences = iter(splits["train"]["text"])
    number = len(KINDS) * COPIES
    originals = [" ".join(islice(sentences, SENTENCES)) for _ in range(number + UNRELATED)]
    words = " ".join(originals).split()
    kinds = KINDS * COPIES
    copies = [change(text, *kind, words, chance) for text, kind in zip(originals, kinds, strict=False)]
    similarity_of = [jaccard(*pair) for pair in zip(originals, copies, strict=False)]
    folder.mkdir(parents=True)
    for name, texts in (("1-originals", originals), ("2-copies", copies)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    left_out = {similarity: find_left_out(folder, similarity, originals, copies) for similarity in SIMILARITIES}
    for kind in KINDS:
        own = [place for place in range(number) if kinds[place] == kind]
        shares = [sum(place in left_out[s][1] for place in own) / COPIES for s in SIMILARITIES]
        mean = sum(similarity_of[place] for place in own) / COPIES
        print(f"| {kind[0]:.0%} of the words, {kind[1]} | {mean:.2f} |", " | ".join(f"{s:.1%}" for s in shares), "|")
    for similarity, (lost, found) in left_out.items():
        similar = {place for place, true in enumerate(similarity_of) if true >= similarity}
        print(
            f"{similarity}: {len(lost)} documents are left out that are no copies, {len(found & similar)} of the "
            f"{len(similar)} copies that are this similar, and {len(found - similar)} copies that are less"
        )


def change(text, share, way, words, chance):
    changed = text.split()
    number = round(share * len(changed))
    start = chance.randrange(len(changed) - number + 1)
    here_and_there = chance.sample(range(len(changed)), number)
    for place in here_and_there if way == "here and there" else range(start, start + number):
        changed[place] = chance.choice(words)
    return " ".join(changed)


def jaccard(one, other):
    one, other = shingles_of(one), shingles_of(other)
    return len(one & other) / len(one | other)


def find_left_out(folder, similarity, originals, copies):
    """The places of the originals and of the copies that a job does not keep."""
    shards = ShardArguments(str(folder / f"{similarity}"), tasks=2, near_duplicates=similarity)
    corpus = CorpusArguments([str(folder / "*.jsonl")], text_unit="document", test_share=0)
    job = plan_job(shards, corpus, {}, max_length=128)
    begin(job)
    for stage in stages_of(job)[: stages_of(job).index("texts") + 1]:
        for task in range(STAGES[stage].tasks(job)):
            run_task(job, stage, task)
    kept = {text for output in job.outputs("texts") for text in read_arrow(output / "train.arrow", "kept")["text"]}
    return [{place for place, text in enumerate(texts) if text not in kept} for texts in (originals, copies)]


if __name__ == "__main__":
    run_recipe(main, PlantArguments)
