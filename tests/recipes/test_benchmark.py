"""The benchmark on a tiny pair: it counts what it says it counts."""

import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk

from electra_hf.errors import InputError
from electra_hf.model.flops import flops_per_token
from electra_hf.text.packing import PackedRows
from electra_hf.text.tokenization import train_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes/benchmark"))
import benchmark  # noqa: E402
import contenders  # noqa: E402
import machine  # noqa: E402
from racing import write_task  # noqa: E402
from tables import ROWS, draw_benchmark, format_table, needs_bfloat16, products_of, tabulate  # noqa: E402

BF16_ROWS = [row for row in ROWS if needs_bfloat16(row)]
NETWORK = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "embedding_size": 8}
TEXTS = [f"la {word} sidas sur la {other}" for word in "abcdef" for other in "ghijkl"]


def results(**speeds):
    extremes = {"lowest": 1.0, "highest": 9.0, "memory": 5e8, "seconds_to_first_step": 3.0}
    return {name: {"per_second": speed, **extremes} for name, speed in speeds.items()}


@pytest.fixture
def processor(monkeypatch):
    """Makes this machine one with bf16 instructions or without."""

    def make(has_bf16):
        monkeypatch.setattr("racing.has_fast_bfloat16", lambda: has_bf16)
        monkeypatch.setattr("racing.processor_name", lambda: "Old Processor 1.0")

    return make


def test_every_row_of_the_table_and_its_products_have_a_contender():
    assert {*ROWS, *map(products_of, ROWS)} == set(contenders.CONTENDERS)


def test_rows_in_bf16_are_those_whose_contenders_train_in_bf16():
    settings = {name: getattr(contender, "keywords", {}) for name, contender in contenders.CONTENDERS.items()}
    assert BF16_ROWS == [row for row in ROWS if settings[row].get("bf16")]
    assert {str(settings[products_of(row)]["dtype"]) for row in BF16_ROWS} == {"torch.bfloat16"}


def test_without_names_all_rows_are_timed_but_those_that_cannot_be(processor, capsys):
    processor(has_bf16=True)
    assert benchmark.BenchmarkArguments(peers_python="python").rows == list(ROWS)
    assert capsys.readouterr().out == ""
    processor(has_bf16=False)
    rows = benchmark.BenchmarkArguments().rows
    assert rows == [row for row in ROWS if row != "simpletransformers" and row not in BF16_ROWS]
    peers, bf16 = capsys.readouterr().out.splitlines()
    assert peers.startswith("Left out: simpletransformers, because peers_python is missing")
    assert bf16.startswith(f"Left out: {', '.join(BF16_ROWS)}, because this machine (Old Processor 1.0) has no")


@pytest.mark.parametrize("row", ["simpletransformers", *BF16_ROWS])
def test_a_row_that_cannot_be_timed_here_is_refused_when_it_is_named(processor, row):
    processor(has_bf16=False)
    with pytest.raises(InputError, match=f"rows: {row} cannot be timed here"):
        benchmark.BenchmarkArguments(rows=["ours", row])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ["our"]}, "rows: expected some of simpletransformers, .*, got our"),
        ({"windows": 0}, "windows: expected at least 1, got 0"),
        ({"window_steps": -1}, "window_steps: expected at least 1, got -1"),
        ({"batch_sizes": [16, 0]}, "batch_sizes: expected at least 1"),
    ],
)
def test_settings_that_would_time_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        benchmark.BenchmarkArguments(**settings)


def test_the_description_of_the_machine_names_its_processor_and_its_vectors():
    described = machine.describe_machine()
    assert json.loads(json.dumps(described)) == described
    assert described["processor"] and described["vectors"] and described["cores"] > 0


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC 7B13\nflags: x\nmodel name\t: B\n", "AMD EPYC 7B13"),
        ("processor\t: 0\nCPU part\t: 0xd40\n", ""),
    ],
)
def test_the_name_of_a_processor_is_read_where_linux_writes_it(tmp_path, cpuinfo, name):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert machine._name_in_cpuinfo(tmp_path / "cpuinfo") == name
    assert machine._name_in_cpuinfo(tmp_path / "missing") == ""


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


def test_a_table_without_bf16_rows_needs_no_products_in_bf16(tiny_config, tmp_path):
    table = tabulate(results(stock=3.0, ours=9.0, products_float32=1e9), tiny_config(), 16)
    assert [row["ratio"] for row in table] == [1.0, 3.0]
    draw_benchmark(table, tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


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
    assert set(answers) == {"stock_padded", "ours", "products_float32"}
    assert [answer["work"] for answer in answers["ours"]] == [3 * 4 * 48] * 2
    assert all(0 < answer["work"] < 3 * 4 * 48 for answer in answers["stock_padded"])  # padding does not count
    assert report["checkpoint_stall_seconds"] > 0 and report["bare_write_seconds"] > 0
    assert report["feed_tokens_per_second"] > 0
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000
