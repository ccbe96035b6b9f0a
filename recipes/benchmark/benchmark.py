"""How fast the pair trains on this machine: stock modules under the stock Trainer, then each of our steps added.

python recipes/benchmark/benchmark.py [--corpus_files my_text.txt] [--peers_python .venv-peers/bin/python]
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from electra_hf.errors import InputError
from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.recipe import as_dict, run_recipe
from electra_hf.text.corpus import CorpusArguments, load_corpus
from electra_hf.text.run_tokenizer import prepare_tokenizer
from machine import describe_machine
from racing import (
    choose_rows,
    measure_feed,
    measure_restart,
    measure_stall,
    race,
    start,
    summarise,
    write_task,
)
from tables import ROWS, draw_benchmark, format_table, products_of, tabulate

SAMPLE = Path(__file__).parents[1] / "quickstart/data/epo_sample_2026_500-sentences.txt"


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
    rows: list[str] | None = field(
        default=None, metadata={"help": f"Some of {', '.join(ROWS)} (default: all that can be timed here)."}
    )
    windows: int = field(default=7, metadata={"help": "Timed windows of each row, in turn."})
    window_steps: int = field(default=2, metadata={"help": "Steps of a window."})
    peers_python: str | None = field(
        default=None, metadata={"help": "Python of `make benchmark-peers`: times simpletransformers too."}
    )

    def __post_init__(self):
        self.generator = as_dict("generator", self.generator)
        self.discriminator = as_dict("discriminator", self.discriminator)
        for name in ("windows", "window_steps", "batch_sizes"):
            value = getattr(self, name)
            if min(value if isinstance(value, list) else [value]) < 1:
                raise InputError(f"{name}: expected at least 1, got {value}.")
        self.rows = choose_rows(self.rows, self.peers_python)


def main(arguments):
    # Task: one text, one tokenizer, one architecture for all
    folder, length = Path(arguments.output_dir), arguments.max_length
    task = folder / "task"
    shutil.rmtree(task, ignore_errors=True)  # with the code compiled last time: the first start is a cold one
    corpus, _ = load_corpus(CorpusArguments(corpus_files=arguments.corpus_files))
    tokenizer = prepare_tokenizer(
        folder / "tokenizer", corpus["train"], {"vocab_size": arguments.vocab_size}, max_length=length
    )
    networks = {"generator": arguments.generator, "discriminator": arguments.discriminator}
    config = ElectraPretrainingConfig.from_size("small", vocab_size=arguments.vocab_size, **networks)
    least_rows = 1_000 * max(arguments.batch_sizes)  # an epoch of 1,000 steps, whose end no window should meet
    packed = write_task(task, corpus["train"], tokenizer, config, length, least_rows)

    report = {"machine": describe_machine(), "settings": asdict(arguments), "tables": {}}
    for batch_size in arguments.batch_sizes:
        # Windows: all contenders in turn, so that what else runs on the machine meets all of them alike
        products = sorted({products_of(row) for row in arguments.rows})
        contenders = start([*arguments.rows, *products], task, batch_size, arguments.peers_python)
        answers = race(contenders.values(), arguments.windows, arguments.window_steps)
        results = {name: summarise(contender, answers[name]) for name, contender in contenders.items()}
        table = tabulate(results, config, length)
        # With every single answer, so that another statistic needs no new race.
        report["tables"][batch_size] = {"rows": table, "answers": answers}
        print(f"\n{batch_size} rows of {length} tokens a step\n{format_table(table)}\n", flush=True)

        # Beside the steps: what a checkpoint costs
        if "ours" in contenders:
            stall, write = measure_stall(contenders["ours"], task)
            report |= {"checkpoint_stall_seconds": stall, "bare_write_seconds": write}
        for contender in contenders.values():
            contender.close()

    # Beside the steps: a second start, and the way from the rows to the model
    if "ours_compiled" in arguments.rows:
        report["warm_start_seconds"] = measure_restart("ours_compiled", task, arguments.batch_sizes[0])
    report["feed_tokens_per_second"] = measure_feed(packed, arguments.batch_sizes[0])
    for name in ("checkpoint_stall_seconds", "bare_write_seconds", "warm_start_seconds", "feed_tokens_per_second"):
        print(f"{name}: {report.get(name, float('nan')):,.2f}")
    draw_benchmark(report["tables"][arguments.batch_sizes[0]]["rows"], folder / "benchmark.png")
    (folder / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments)
