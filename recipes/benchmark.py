"""How fast the pair trains on this machine: stock modules under the stock Trainer, then each of our steps added.

python recipes/benchmark.py [--corpus_files my_text.txt] [--peers_python .venv-peers/bin/python]
"""

import json
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch

from electra_hf.arguments import as_dict, run_recipe
from electra_hf.benchmarking import (
    ROWS,
    Contender,
    format_table,
    measure_feed,
    race,
    summarise,
    tabulate,
    write_task,
)
from electra_hf.configuration import ElectraPretrainingConfig
from electra_hf.corpus import CorpusArguments, load_corpus
from electra_hf.errors import InputError
from electra_hf.figures import draw_benchmark
from electra_hf.tokenization import train_tokenizer_once

SAMPLE = Path(__file__).parent / "quickstart/data/epo_sample_2026_500-sentences.txt"


@dataclass
class BenchmarkArguments:
    output_dir: str = field(default="outputs/benchmark", metadata={"help": "benchmark.json, benchmark.png and logs."})
    corpus_files: list[str] = field(default_factory=lambda: [str(SAMPLE)], metadata={"help": "The text."})
    vocab_size: int = field(default=52_032, metadata={"help": "Entries of the embedding table."})
    max_length: int = field(default=128, metadata={"help": "Tokens of a row."})
    generator: dict | str | None = field(
        default_factory=lambda: {"num_hidden_layers": 3, "hidden_size": 256},
        metadata={"help": "ElectraConfig fields of the generator (default: the article's)."},
    )
    discriminator: dict | str | None = field(default=None, metadata={"help": "The same of the discriminator."})
    batch_sizes: list[int] = field(default_factory=lambda: [16], metadata={"help": "Rows of a step, one table each."})
    rows: list[str] = field(default_factory=lambda: list(ROWS), metadata={"help": f"Which of {', '.join(ROWS)}."})
    windows: int = field(default=7, metadata={"help": "Timed windows of each row, in turn."})
    window_steps: int = field(default=2, metadata={"help": "Steps of a window."})
    peers_python: str | None = field(
        default=None, metadata={"help": "Python of `make benchmark-peers`: times simpletransformers too."}
    )

    def __post_init__(self):
        self.generator = as_dict("generator", self.generator)
        self.discriminator = as_dict("discriminator", self.discriminator)
        if unknown := set(self.rows) - set(ROWS):
            raise InputError(f"rows: expected some of {', '.join(ROWS)}, got {sorted(unknown)[0]}.")


def main(arguments):
    # The task: one text, one tokenizer, one architecture for all
    folder = Path(arguments.output_dir)
    shutil.rmtree(folder / "task", ignore_errors=True)
    corpus, _ = load_corpus(CorpusArguments(corpus_files=arguments.corpus_files))
    tokenizer = train_tokenizer_once(folder / "tokenizer", corpus["train"], vocab_size=arguments.vocab_size)
    config = ElectraPretrainingConfig.from_size(
        "small",
        vocab_size=arguments.vocab_size,
        generator=arguments.generator,
        discriminator=arguments.discriminator,
    )
    least_rows = 1_000 * max(arguments.batch_sizes)
    packed = write_task(folder / "task", corpus["train"], tokenizer, config, arguments.max_length, least_rows)

    report = {
        "machine": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "tables": {},
    }
    for batch_size in arguments.batch_sizes:
        # Contenders: each in its own process, one after the other up to its first step
        python = {"simpletransformers": arguments.peers_python}
        names = [name for name in ROWS if name in arguments.rows and python.get(name, True)]
        contenders = []
        for name in [*names, "products_float32", "products_bfloat16"]:
            contenders.append(Contender(name, folder / "task", batch_size, *filter(None, [python.get(name)])))
            print(f"{name}: first step after {contenders[-1].seconds_to_first_step:.0f} s", flush=True)

        # Windows: all contenders in turn, so that what else runs on the machine meets all of them alike
        answers = race(contenders, arguments.windows, arguments.window_steps)
        results = {contender.name: summarise(answers[contender.name]) for contender in contenders}
        for contender in contenders:
            results[contender.name]["seconds_to_first_step"] = contender.seconds_to_first_step
            contender.close()

        table = tabulate(results, config, arguments.max_length)
        report["tables"][batch_size] = {"rows": table, "results": results, "answers": answers}
        print(f"\n{batch_size} rows of {arguments.max_length} tokens a step\n{format_table(table)}\n", flush=True)

    report["feed_tokens_per_second"] = measure_feed(packed, arguments.batch_sizes[0])
    print(f"host feed: {report['feed_tokens_per_second']:,.0f} tokens/s")
    (folder / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
    draw_benchmark(table, folder / "benchmark.png")


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments)
