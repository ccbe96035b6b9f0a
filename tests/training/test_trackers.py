"""Trackers that are down, in front of a run that must not notice."""

import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK


def tracker_that_fails_at(failing, calls):
    def event(name):
        def call(self, args, state, control, **kwargs):
            calls.append(name)
            if name == failing:
                raise ConnectionError("the tracker\nis down")

        return call

    names = ("on_train_begin", "on_log", "on_evaluate", "on_save", "on_train_end")
    return type("DownCallback", (TrainerCallback,), {name: event(name) for name in names})


@pytest.fixture
def train(make_trainer, monkeypatch):
    def make(folder, tracker=None):
        if tracker:
            monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "down", tracker)
        trainer = make_trainer(
            folder=folder, report_to="down" if tracker else "none", save_steps=2, eval_strategy="steps", eval_steps=2
        )
        trainer.train()
        return trainer

    return make


@pytest.mark.parametrize("failing", ["on_train_begin", "on_log", "on_evaluate", "on_save", "on_train_end"])
def test_a_tracker_that_fails_at_any_event_is_told_once_and_the_run_is_the_same(train, caplog, failing):
    calls = []
    tracked, plain = train("tracked", tracker_that_fails_at(failing, calls)), train("plain")
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(tracked.model.state_dict()[name], weight), name
    assert [log.get("loss") for log in tracked.state.log_history] == [
        log.get("loss") for log in plain.state.log_history
    ]
    assert calls[-1] == failing and calls.count(failing) == 1  # and asked no more
    messages = [message for message in caplog.messages if "DownCallback" in message]
    assert len(messages) == 1
    assert messages[0].startswith("DownCallback failed (the tracker is down) and is left out from here on.")


def test_a_tracker_that_works_sees_every_event(train):
    calls = []
    train("tracked", tracker_that_fails_at(None, calls))
    assert {"on_train_begin", "on_log", "on_evaluate", "on_save", "on_train_end"} == set(calls)
    assert calls.count("on_save") == 2
