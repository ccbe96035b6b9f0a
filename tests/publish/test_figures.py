import matplotlib.image
import pytest

from electra_hf.publish.figures import draw_curves

TRAINING = {
    "generator_loss": 5.0,
    "discriminator_loss": 0.5,
    "rtd_auc": 0.6,
    "rtd_accuracy": 0.8,
    "tokens_per_second": 9,
}


@pytest.mark.parametrize(
    "log_history",
    [
        [],
        [{"step": 10, **TRAINING}, {"step": 20, **TRAINING}, {"step": 20, "eval_rtd_auc": 0.6}],
        [{"step": 10, "loss": 1.0}],
    ],
)
def test_a_picture_is_drawn_of_whatever_was_logged(tmp_path, log_history):
    draw_curves(log_history, tmp_path / "curves.png")
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[0] > 500 and picture.std() > 0.01


def test_what_was_logged_changes_the_picture(tmp_path):
    for name, value in (("a", 0.6), ("b", 0.9)):
        draw_curves([{"step": 1, "rtd_auc": 0.5}, {"step": 2, "rtd_auc": value}], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
