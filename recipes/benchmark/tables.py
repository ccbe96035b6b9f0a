"""The rows of a benchmark as a table and as a picture."""

from pathlib import Path

from matplotlib.figure import Figure

from electra_hf.model.flops import flops_per_token

# How the contenders of `contenders.py` are called, in the order of the table. "+" adds to the row above.
ROWS = {
    "simpletransformers": "simpletransformers 0.70.8",
    "stock_padded": "stock modules and Trainer, padded sentences",
    "stock": "stock modules and Trainer, packed rows",
    "selected_only": "+ logits at selected positions only",
    "own_pair": "+ select, mask and sample in the forward pass",
    "ours": "+ ElectraTrainer (keeps freed memory on a CPU)",
    "ours_compiled": "+ torch_compile",
    "ours_bf16": "ElectraTrainer, bf16",
    "ours_bf16_compiled": "ElectraTrainer, bf16, torch_compile",
    "bare": "bare loop",
    "bare_compiled": "bare loop, torch.compile",
    "bare_bf16_compiled": "bare loop, bf16, torch.compile",
}


def needs_bfloat16(row: str) -> bool:
    """Whether a row of the table trains in bf16."""
    return "bf16" in row


def products_of(row: str) -> str:
    """The contender that multiplies matrices in the precision that a row trains in."""
    return "products_bfloat16" if needs_bfloat16(row) else "products_float32"


def tabulate(results: dict[str, dict], config, max_length: int) -> list[dict]:
    """The rows of the table: real tokens per second, ratio to the first row, share of the matrix-product rate.

    The operations counted are those that the pair needs on packed rows (`flops_per_token`), whatever a contender
    computes beside them; the rate is that of fp32, or of bf16 where the row trains in it.
    """
    names = [name for name in ROWS if name in results]  # without the matrix products, which are no row
    first = results[names[0]]["per_second"]
    table = []
    for name in names:
        result = results[name]
        # Measured in the same turns as the row, so that a busy machine slows both.
        products = results[products_of(name)]["per_second"]
        share = result["per_second"] * flops_per_token(config, max_length) / products
        row = {"name": ROWS[name], **result, "ratio": result["per_second"] / first, "share_of_products": share}
        table.append(row)
    return table


def format_table(table: list[dict]) -> str:
    """The table as Markdown."""
    lines = [
        "| | tokens/s | lowest to highest | ratio | share of products | memory, GB | first step, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        lines.append(
            f"| {row['name']} | {row['per_second']:,.0f} | {row['lowest']:,.0f} to {row['highest']:,.0f} "
            f"| {row['ratio']:.2f} | {row['share_of_products']:.0%} | {row['memory'] / 1e9:.2f} "
            f"| {row['seconds_to_first_step']:.0f} |"
        )
    return "\n".join(lines)


def draw_benchmark(table: list[dict], path):
    """Draw the rows of a table (`tabulate`) as bars: tokens per second, lowest to highest window."""
    # Not through pyplot, which keeps a figure until it is closed.
    figure = Figure(figsize=(9, 1 + 0.45 * len(table)), layout="constrained")
    axis = figure.subplots()
    speeds = [row["per_second"] for row in table]
    spread = [
        [row["per_second"] - row["lowest"] for row in table],
        [row["highest"] - row["per_second"] for row in table],
    ]
    axis.barh([row["name"] for row in table], speeds, xerr=spread, capsize=3)
    for place, row in enumerate(table):
        axis.annotate(f"  {row['ratio']:.1f}×", (row["highest"], place), va="center", fontsize=9)
    axis.invert_yaxis()  # the first row at the top, as in the table
    axis.margins(x=0.12)  # room for the ratio behind the longest bar
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("real tokens per second: median, lowest and highest window")
    figure.savefig(Path(path), dpi=110)
