"""What prompts ask for, by their words and by a classifier."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from keyhole.core.errors import SpecError
from keyhole.methods import METHODS
from keyhole.methods.prompt_task import AGGREGATION, LOCALISATION, classified, task_of
from tests.evaluation.small_text import byte_tokenizer

TEXT = "The harbour was quiet and the boats lay still beside the old stone pier. " * 60


@pytest.mark.parametrize(
    "instruction",
    [
        "Answer the question based on the given passages. Only give me the answer.\nQuestion: Who built it?",
        "What is the pass key? The pass key is",
        "When did the boat leave?",
        "Which of these ports is the oldest?",
        "According to the text, where was the pier?",
        "",
    ],
)
def test_asking_for_something_in_the_text(instruction):
    assert task_of(f"{TEXT}\n{instruction}") == LOCALISATION
    assert task_of(f"{instruction}\n{TEXT}") == LOCALISATION


@pytest.mark.parametrize(
    "instruction",
    [
        "Write a one-page summary of all the news.",
        "Summarize the above in a few sentences.\nSummary:",
        "Please complete the code given below.\nNext line of code:",
        "How many different paragraphs are there?",
        "Translate this into French.",
        "Classify the text above.",
    ],
)
def test_asking_for_something_made_of_all_of_it(instruction):
    assert task_of(f"{TEXT}\n{instruction}") == AGGREGATION
    assert task_of(f"{instruction}\n{TEXT}") == AGGREGATION


def test_the_end_counts_first_and_words_in_the_middle_do_not():
    assert task_of(f"Summarize this.\n{TEXT}\nWho built the pier?") == LOCALISATION
    assert (
        task_of(f"{TEXT}\nSummarize who, when and where; summary, overview, report:\n{TEXT}") == LOCALISATION
    )
    assert task_of("") == LOCALISATION
    assert task_of("\u00e9" * 3) == LOCALISATION


def classifier(path, *, favours, labels=("a", "b"), positions=600):
    """A tiny one that always gives the label of that number."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=positions,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    model = BertForSequenceClassification(config)
    # Both below zero: a rectifier would make them equal, and the first win.
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.full((len(labels),), -5.0)
    model.classifier.bias.data[favours] = -1.0
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("labels", "favours", "task"),
    [
        (("a", "b"), 0, LOCALISATION),
        (("a", "b"), 1, AGGREGATION),
        (("aggregation", "localisation"), 0, AGGREGATION),
        (("Aggregation", "Localization"), 1, LOCALISATION),
    ],
)
def test_a_classifier_decides(tmp_path, labels, favours, task):
    folder = classifier(tmp_path / f"{labels[0]}{favours}", favours=favours, labels=labels)
    for text in ("short", TEXT):
        assert classified(text, folder) == task
    method = METHODS["windowkv"](task="auto", classifier=folder)
    settled = method.for_text(TEXT)
    assert (settled.task, settled.classifier) == (task, None)


@pytest.mark.parametrize(("positions", "given"), [(600, 512), (40, 40), (41, 41)])
def test_a_classifier_is_given_both_ends(tmp_path, monkeypatch, positions, given):
    """One for fewer positions than the paper's 512 gets no more than fit."""
    folder, seen = classifier(tmp_path, favours=1, positions=positions), []
    forward = BertForSequenceClassification.forward

    def noting(self, input_ids):
        seen.append(byte_tokenizer().decode(input_ids[0]))
        return forward(self, input_ids=input_ids)

    monkeypatch.setattr(BertForSequenceClassification, "forward", noting)
    text = "begin" + TEXT + "end"
    assert classified(text, folder) == AGGREGATION
    half = given // 2
    assert seen == [text[:half] + text[half - given :]]


def test_a_classifier_of_nothing(tmp_path):
    assert classified("", classifier(tmp_path, favours=1)) == LOCALISATION


def test_what_is_no_classifier(tmp_path):
    with pytest.raises(SpecError, match="cannot load the classifier"):
        classified(TEXT, str(tmp_path / "nothing"))
    folder = classifier(tmp_path / "three", favours=0, labels=("a", "b", "c"))
    with pytest.raises(SpecError, match="3 labels"):
        classified(TEXT, folder)
