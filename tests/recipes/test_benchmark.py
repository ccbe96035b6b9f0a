"""The benchmark on a tiny pair: it counts what it says it counts."""

import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from electra_hf.benchmarking import ROWS, format_table, tabulate, write_task
from electra_hf.contenders import CONTENDERS
from electra_hf.model.flops import flops_per_token
from electra_hf.text.packing import PackedRows
from electra_hf.text.tokenization import train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
import benchmark  # noqa: E402

NETWORK = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "embedding_size": 8}
TEXTS = [f"la {word} sidas sur la {other}" for word in "abcdef" for other in "ghijkl"]


def results(**speeds):
    extremes = {"lowest": 1.0, "highest": 9.0, "memory": 5e8, "seconds_to_first_step": 3.0}
    return {name: {"per_second": speed, **extremes} for name, speed in speeds.items()}


def test_every_row_of_the_table_has_a_contender():
    assert set(ROWS) < set(CONTENDERS)


def test_the_share_of_the_products_is_that_of_the_row_s_own_precision(tiny_config):
    config = tiny_config()
    operations = flops_per_token(config, 16)
    table = tabulate(
        results(
            stock=10.0, ours=30.0, ours_bf16=40.0, products_float32=60 * operations, products_bfloat16=160 * operations
        ),
        config,
        16,
    )
    assert [row["ratio"] for row in table] == [1.0, 3.0, 4.0]
    assert [row["share_of_products"] for row in table] == pytest.approx([1 / 6, 0.5, 0.25])
    assert "| ElectraTrainer, bf16 | 40 | 1 to 9 | 4.00 | 25% | 0.50 | 3 |" in format_table(table)


def test_the_task_holds_the_same_text_packed_and_padded(tiny_config, tmp_path):
    texts = Dataset.from_dict({"text": TEXTS})
    tokenizer = train_tokenizer(texts, vocab_size=64)
    packed = write_task(tmp_path, texts, tokenizer, tiny_config(), max_length=16, least_rows=100)
    rows, sentences = (load_from_disk(tmp_path / name) for name in ("rows", "sentences"))
    assert len(rows) == len(sentences) == 100 > len(packed)
    assert PackedRows(rows)[len(packed) + 1]["input_ids"].tolist() == packed[1]["input_ids"].tolist()
    # Ids of padded sentences, [CLS] and padding left out, joined again, begin as the packed rows do.
    joined = [id for ids in sentences["input_ids"] for id in ids if id not in (0, 2)]
    assert joined[:14] == packed[0]["input_ids"].tolist()[1:15]


@pytest.mark.slow
def test_the_recipe_times_every_row_and_writes_numbers_and_a_picture(tmp_path):
    arguments = benchmark.BenchmarkArguments(
        output_dir=str(tmp_path),
        vocab_size=512,
        max_length=48,
        generator=NETWORK,
        discriminator=NETWORK,
        batch_sizes=[4],
        rows=["stock_padded", "ours"],
        windows=2,
        window_steps=3,
    )
    benchmark.main(arguments)
    report = json.loads((tmp_path / "benchmark.json").read_text())
    answers = report["tables"]["4"]["answers"]
    assert [answer["work"] for answer in answers["ours"]] == [3 * 4 * 48] * 2
    assert all(0 < answer["work"] < 3 * 4 * 48 for answer in answers["stock_padded"])  # padding does not count
    assert report["checkpoint_stall_seconds"] > 0 and report["bare_write_seconds"] > 0
    assert report["feed_tokens_per_second"] > 0
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
