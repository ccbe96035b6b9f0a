import functools
import gzip
import http.server
import threading

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification, ElectraConfig, ElectraForPreTraining

from electra_hf.errors import InputError
from electra_hf.tasks.finetuning import build_model, load_config
from electra_hf.tasks.tagging import (
    TaggingArguments,
    count_unknown_labels,
    list_labels,
    load_tagged_sentences,
    split_by_content,
    tag_most_frequently,
)
from electra_hf.text.tagged_text import TaggedSentence, read_labels, read_tagged_sentences

CONLLU = """\
# text = Iru al la lernejo
1-2\tIrual\t_\t_\t_\t_\t_\t_\t_\t_
1\tIru\tiri\tVERB\tv\t_\t0\troot\t_\t_
2\tal\tal\tADP\tp\t_\t3\tcase\t_\t_
2.1\tla\tla\tDET\td\t_\t_\t_\t_\t_
3\tlernejo\tlernejo\tNOUN\tn\t_\t1\tobl\t_\t_
"""


@pytest.fixture
def write(tmp_path):
    """Writes text or bytes to a file and returns its path as a string."""

    def make(content, name="tagged.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


def read(path):
    return [(sentence.words, sentence.tags) for sentence in read_tagged_sentences(path)]


def sentence(text, **kwargs):
    """`"la/DET kato/NOUN"` as a sentence."""
    words, tags = zip(*(pair.split("/") for pair in text.split()), strict=True)
    return TaggedSentence(list(words), list(tags), "tagged.txt", list(range(1, len(words) + 1)))


# Readers


def test_a_blank_line_ends_a_sentence_and_the_last_needs_none(write):
    path = write("La DET\nkato NOUN\n\n \nDormu VERB")
    assert read(path) == [(["La", "kato"], ["DET", "NOUN"]), (["Dormu"], ["VERB"])]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_every_line_end_is_read(write, line_end):
    assert len(read(write(line_end.join(["La DET", "kato NOUN", "", "Dormu VERB", ""])))) == 2


def test_columns_stand_between_tabs_or_any_number_of_spaces(write):
    assert read(write("La\tDET\nkato   NOUN \n")) == [(["La", "kato"], ["DET", "NOUN"])]


def test_of_several_columns_the_first_is_the_word_and_the_last_the_tag(write):
    assert read(write("-DOCSTART- -X- O\n\nZamenhof NNP B-PER\nvenis VB O\n")) == [
        (["Zamenhof", "venis"], ["B-PER", "O"])
    ]


def test_a_word_may_hold_spaces_before_the_one_tag(write):
    assert read(write("kaj CCONJ\nt. e. SYM\n")) == [(["kaj", "t. e."], ["CCONJ", "SYM"])]


def test_a_number_sign_is_a_word_outside_of_conllu(write):
    assert read(write("# SYM\n#ĝojo X\n")) == [(["#", "#ĝojo"], ["SYM", "X"])]


def test_a_byte_order_mark_is_no_part_of_the_first_word(write):
    assert read(write(b"\xef\xbb\xbfLa DET\n"))[0][0] == ["La"]


def test_unicode_separators_part_neither_lines_nor_columns(write):
    assert read(write("a\u2028b\u00a0c X\n")) == [(["a\u2028b\u00a0c"], ["X"])]


def test_the_first_line_may_be_the_one_whose_word_holds_a_space(write):
    assert read(write("Trả lời VERB\nnói VERB\nông NOUN\n")) == [(["Trả lời", "nói", "ông"], ["VERB", "VERB", "NOUN"])]


@pytest.mark.parametrize(
    "comment", ["# id 5f0 domain=eo", "# id 5f0\tdomain=eo", "# a\n# b c d e f", "#begin document 3"]
)
def test_comments_before_a_sentence_are_no_words(write, comment):
    text = f"{comment}\nla _ _ O\nNov _ _ B-LOC\n\n{comment}\n# _ _ O\nve _ _ O\n"
    if comment.startswith("# a"):
        with pytest.raises(InputError):
            read(write(text))
    else:
        assert read(write(text)) == [(["la", "Nov"], ["O", "B-LOC"]), (["#", "ve"], ["O", "O"])]


@pytest.mark.parametrize("first", [0, 1])
def test_a_first_column_of_running_numbers_is_no_word(write, first):
    text = f"{first}\tla\tDET\n{first + 1}\tkato\tNOUN\n\n{first}\tDormu\tVERB\n"
    assert read(write(text)) == [(["la", "kato"], ["DET", "NOUN"]), (["Dormu"], ["VERB"])]


def test_a_first_column_of_other_numbers_is_refused(write):
    with pytest.raises(
        InputError, match="line 2: expected words in the first column, found numbers only, here 9 after 4"
    ):
        read(write("4 la DET\n9 kato NOUN\n"))


def test_numbers_are_words_where_there_is_no_other_column(write):
    assert read(write("1 NUM\n2 NUM\n")) == [(["1", "2"], ["NUM", "NUM"])]


def test_conllu_says_how_its_words_stand_together(write):
    (sentence,) = read_tagged_sentences(
        write(
            CONLLU.replace(
                "3\tlernejo\tlernejo\tNOUN\tn\t_\t1\tobl\t_\t_",
                "3\tlernejo\tlernejo\tNOUN\tn\t_\t1\tobl\t_\tSpaceAfter=No\n4\t!\t!\tPUNCT\t_\t_\t_\t_\t_\t_",
            )
        )
    )
    assert sentence.text == "Irual lernejo!"


@pytest.mark.parametrize("name", ["tagged.conllu", "tagged.txt"])
def test_conllu_gives_words_and_upos_without_ranges_empty_nodes_and_comments(write, name):
    assert read(write(CONLLU, name)) == [(["Iru", "al", "lernejo"], ["VERB", "ADP", "NOUN"])]


def test_gzip_is_known_by_its_content(write):
    assert read(write(gzip.compress(CONLLU.encode()), "tagged.conllu.gz")) == read(write(CONLLU, "tagged.conllu"))
    assert read(write(gzip.compress(b"La DET\n"), "tagged.txt"))[0][0] == ["La"]


def test_words_remember_their_lines(write):
    assert [s.lines for s in read_tagged_sentences(write(CONLLU, "tagged.conllu"))] == [[3, 4, 6]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "La DET\nkato\n", "a.txt, line 2: expected 2 columns .* found 1: 'kato'"),
        ("a.txt", "La\tDET\nkato\tX\tNOUN\n", "a.txt, line 2: expected 2 columns .* found 3"),
        ("a.conll", "La D DET\nkato NOUN\n", "a.conll, line 2: expected 3 columns .* found 2"),
        ("a.conllu", "1 La la DET\n", "a.conllu, line 1: expected the 10 columns of CoNLL-U, parted by tabs, found 1"),
        ("a.conllu", CONLLU.replace("3\tlernejo", "x\tlernejo"), "a.conllu, line 6: expected a word's number"),
        ("a.conllu", CONLLU.replace("VERB", "_"), "a.conllu, line 3: the word 'Iru' has no tag"),
        ("a.txt", "", "a.txt holds no tagged word"),
        ("a.txt", " \n\n\t\n", "a.txt holds no tagged word"),
        ("a.txt", b"La DET\r\n\xff NOUN\n", "a.txt, line 2, byte 1: 0xff is not UTF-8"),
        ("a.txt", "La DET\n".encode("utf-16"), "a.txt: is in UTF-16"),
        ("a.txt", gzip.compress(b"La DET\n" * 99, mtime=0)[:-9], "a.txt: damaged"),
    ],
)
def test_bad_input_is_one_error_with_file_and_line(write, name, content, message):
    with pytest.raises(InputError, match=message):
        read_tagged_sentences(write(content, name))


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match="missing.txt: there is no such file"):
        read_tagged_sentences("missing.txt")


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), name=st.sampled_from(["a", "a.conllu"]))
def test_any_bytes_give_sentences_or_our_own_error(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("tagged") / name
    path.write_bytes(content)
    try:
        sentences = read_tagged_sentences(str(path))
    except InputError:
        return
    assert all(len(s.words) == len(s.tags) == len(s.lines) > 0 for s in sentences)
    assert all(word and tag for s in sentences for word, tag in zip(s.words, s.tags, strict=True))


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serves tmp_path over HTTP; returns the address and the server."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this server is no network
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_url_is_downloaded_once(serve, write):
    address, server = serve
    write("La DET\n")
    assert read(f"{address}/tagged.txt") == [(["La"], ["DET"])]
    server.shutdown()
    assert read(f"{address}/tagged.txt") == [(["La"], ["DET"])]


def test_a_url_that_is_not_there_is_named(serve):
    with pytest.raises(InputError, match=r"http.*/missing.txt: the server answered 404"):
        read_tagged_sentences(f"{serve[0]}/missing.txt")


# Hub datasets, here from a local folder


@pytest.fixture
def hub_dataset(tmp_path):
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "upos": datasets.List(datasets.ClassLabel(names=["DET", "NOUN", "_"])),
        }
    )
    rows = {"tokens": [["la", "kato", "delakato"], [], ["hundo"]], "upos": [[0, 1, 2], [], [1]]}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    return str(tmp_path / "set")


def test_a_hub_dataset_gives_words_and_the_names_of_its_tags(hub_dataset):
    train, test = load_tagged_sentences(TaggingArguments(dataset_name=hub_dataset))
    assert [(s.words, s.tags) for s in train] == [(["la", "kato"], ["DET", "NOUN"]), (["hundo"], ["NOUN"])]
    assert len(test) == 2


def test_a_column_that_a_hub_dataset_lacks_is_named_beside_those_it_has(hub_dataset):
    with pytest.raises(InputError, match="label_column: .*no column 'ner_tags', only tokens, upos"):
        load_tagged_sentences(TaggingArguments(dataset_name=hub_dataset, label_column="ner_tags"))


@pytest.mark.parametrize("arguments", [{}, {"train_file": "a.txt", "dataset_name": "me/pos"}])
def test_the_text_comes_from_files_or_from_a_dataset(arguments):
    with pytest.raises(InputError, match="either train_file .* or dataset_name"):
        load_tagged_sentences(TaggingArguments(**arguments))


@pytest.fixture
def write_dataset(tmp_path):
    """Writes a Hub-like dataset with these columns and returns its folder."""

    def make(tokens, upos, label=None):
        items = {"tokens": tokens, "upos": upos}
        dataset = datasets.Dataset.from_dict(items)
        if label is not None:
            dataset = dataset.cast_column("upos", datasets.List(label))
        for split in ("train", "test"):
            dataset.to_parquet(tmp_path / "own" / f"{split}.parquet")
        return str(tmp_path / "own")

    return make


LABELS = datasets.ClassLabel(names=["DET", "NOUN", "_"])


@pytest.mark.parametrize(
    ("upos", "label"),
    [
        ([[0, -1, 1], [1]], LABELS),
        ([[0, None, 1], [1]], LABELS),
        ([[0, 2, 1], [1]], LABELS),
        ([["0", None, "1"], ["1"]], None),
        ([["0", "_", "1"], ["1"]], None),
        ([["0", "", "1"], ["1"]], None),
        ([["0", "-100", "1"], ["1"]], None),
        ([[0, -100, 1], [1]], None),
        ([[0, -1, 1], [1]], None),
    ],
)
def test_every_way_to_say_no_label_leaves_the_word_out_and_says_so(write_dataset, caplog, upos, label):
    folder = write_dataset([["la", "tre", "kato"], ["hundo"]], upos, label)
    for part in load_tagged_sentences(TaggingArguments(dataset_name=folder)):
        names = {"DET": "0", "NOUN": "1"}
        found = [(sentence.words, [names.get(tag, tag) for tag in sentence.tags]) for sentence in part]
        assert found == [(["la", "kato"], ["0", "1"]), (["hundo"], ["1"])]
    assert "1 words have no label" in caplog.text


@pytest.mark.parametrize(
    ("tokens", "upos", "message"),
    [
        (["la hundo"], [["DET", "NOUN"]], "text_column: the column 'tokens' .*Expected a list"),
        ([["la", "hundo"]], ["DET NOUN"], "label_column: the column 'upos' .*Expected a list"),
        ([["la", "hundo"]], [["DET"]], "row 1: 2 words but 1 tags"),
        ([["la"], None], [["DET"], ["NOUN"]], "row 2: 0 words but 1 tags"),
        ([[1, 2]], [["DET", "NOUN"]], "row 1: expected words as text, found a int"),
        ([["la", None]], [["DET", "NOUN"]], "row 1: expected words as text, found a NoneType"),
        ([["la"]], [[0.5]], "row 1: expected a label as text or number, found a float"),
        ([["la"]], [["_"]], "holds no tagged word"),
    ],
)
def test_a_column_of_another_kind_is_refused_by_its_name(write_dataset, tokens, upos, message):
    with pytest.raises(InputError, match=message):
        load_tagged_sentences(TaggingArguments(dataset_name=write_dataset(tokens, upos)))


def test_a_hub_dataset_that_cannot_be_read_is_one_message(tmp_path):
    (tmp_path / "train.csv").write_text('a,b\n1,"2\n3,4,5,6\n')
    for name in (str(tmp_path), "me/nowhere", "a" * 5000, "\0", "~nosuchuser", "http://[bad", "/dev/zero"):
        with pytest.raises(InputError, match="dataset_name") as raised:
            load_tagged_sentences(TaggingArguments(dataset_name=name))
        assert len(str(raised.value)) < 1_500


@pytest.mark.parametrize("setting", ["train_file", "test_file", "labels_file", "dataset_name", "text_column"])
def test_an_empty_setting_is_refused_by_its_name(setting):
    with pytest.raises(InputError, match=f"{setting}: is empty"):
        TaggingArguments(**{setting: " "})


# Split


def test_adding_sentences_moves_none_across_and_equal_ones_stay_together():
    sentences = [sentence(f"vorto{i % 50}/NOUN") for i in range(100)]
    train, test = split_by_content(sentences, 0.3)
    more_train, more_test = split_by_content(sentences + [sentence(f"nova{i}/ADJ") for i in range(100)], 0.3)
    assert len(train) + len(test) == 100
    assert {s.words[0] for s in train} & {s.words[0] for s in test} == set()
    assert {s.words[0] for s in train} <= {s.words[0] for s in more_train}
    assert {s.words[0] for s in test} <= {s.words[0] for s in more_test}


def test_the_share_held_out_is_near_the_one_asked_for():
    _, test = split_by_content([sentence(f"vorto{i}/NOUN") for i in range(2000)], 0.1)
    assert 150 < len(test) < 250


@pytest.mark.parametrize("share", [0, 1, -0.1])
def test_a_share_must_leave_something_on_both_sides(share):
    with pytest.raises(InputError, match="test_share"):
        split_by_content([sentence("la/DET")], share)


def test_a_split_that_leaves_a_side_empty_is_an_error():
    with pytest.raises(InputError, match="leaves no sentence"):
        split_by_content([sentence("la/DET")], 0.5)


# Labels


def test_labels_keep_the_order_of_their_file(write):
    assert read_labels(write("VERB\nADJ\r\n\n NOUN \n")) == ["VERB", "ADJ", "NOUN"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("A\nA\n", "line 2: the label 'A' stands in line 1"),
        ("A B\n", "line 1: expected one label"),
        ("\n", "no label"),
    ],
)
def test_a_labels_file_that_is_none_is_refused(write, content, message):
    with pytest.raises(InputError, match=message):
        read_labels(write(content))


def test_without_a_labels_file_the_labels_are_those_of_the_training_part():
    assert list_labels([sentence("kato/NOUN la/DET"), sentence("la/DET")]) == ["DET", "NOUN"]


def test_a_label_that_the_labels_file_lacks_is_named_with_its_line(write):
    with pytest.raises(InputError, match="tagged.txt, line 2: the label 'NOUN' is not in .*labels.txt"):
        list_labels([sentence("la/DET kato/NOUN")], write("DET\n", "labels.txt"))


def test_a_label_of_the_test_alone_is_counted_and_no_error():
    assert count_unknown_labels([sentence("la/DET ho/INTJ ve/INTJ")], ["DET"]) == {"INTJ": 2}


def test_a_test_of_unknown_labels_alone_is_an_error():
    with pytest.raises(InputError, match="no word has a label that the model knows"):
        count_unknown_labels([sentence("ho/INTJ")], ["DET"])


def test_the_baseline_gives_a_word_its_most_frequent_tag_and_a_new_word_the_commonest():
    train = [sentence("la/DET kato/NOUN kaj/X hundo/NOUN"), sentence("kaj/CCONJ"), sentence("kaj/CCONJ")]
    assert tag_most_frequently(train, [sentence("la/DET birdo/NOUN kaj/CCONJ")]) == [["DET", "NOUN", "CCONJ"]]


def test_the_commonest_tag_is_counted_over_words_not_over_entries():
    train = [sentence("a/X a/X a/X b/Y c/Y")]
    assert tag_most_frequently(train, [sentence("d/X")]) == [["X"]]


# The network


@pytest.fixture
def discriminator(tmp_path):
    config = ElectraConfig(
        vocab_size=20, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    ElectraForPreTraining(config).save_pretrained(tmp_path / "discriminator")
    return tmp_path / "discriminator"


def build(folder, from_scratch=False):
    return build_model(
        AutoModelForTokenClassification, str(folder), load_config(str(folder), ["DET", "NOUN"]), from_scratch
    )


def test_a_tagger_has_the_encoders_weights_and_the_names_of_its_labels(discriminator):
    tagger, encoder = build(discriminator), ElectraForPreTraining.from_pretrained(discriminator)
    assert tagger.config.id2label == {0: "DET", 1: "NOUN"}
    assert tagger.config.label2id == {"DET": 0, "NOUN": 1}
    for name, weight in encoder.electra.named_parameters():
        assert tagger.electra.get_parameter(name).equal(weight), name


def test_from_scratch_has_the_same_shape_and_other_weights(discriminator):
    tagger, random = build(discriminator), build(discriminator, from_scratch=True)
    shapes = {name: weight.shape for name, weight in tagger.named_parameters()}
    assert {name: weight.shape for name, weight in random.named_parameters()} == shapes
    weight = "electra.embeddings.word_embeddings.weight"
    assert not tagger.get_parameter(weight).equal(random.get_parameter(weight))


def test_a_folder_that_is_not_a_model_is_an_error(tmp_path):
    with pytest.raises(InputError, match="model_name_or_path: .* neither a folder with a model"):
        load_config(str(tmp_path), ["DET"])


def test_a_model_without_its_weights_is_an_error(discriminator):
    (discriminator / "model.safetensors").unlink()
    with pytest.raises(InputError, match="model.safetensors"):
        build(discriminator)


def test_a_damaged_model_is_an_error(discriminator):
    path = discriminator / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="model_name_or_path"):
        build(discriminator)


def test_the_folder_of_the_pair_is_refused_with_the_way_to_its_discriminator(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "pair")
    with pytest.raises(InputError, match="recipes/export.py"):
        load_config(str(tmp_path / "pair"), ["DET"])


# Running text of a dataset


@pytest.fixture
def japanese(tmp_path):
    """A dataset of two sentences with their text, and ranges as Universal Dependencies on the Hub has them."""
    rows = {
        "tokens": [["食べ", "た", "。"], ["du", "de", "le", "pain"], ["la", "kato"]],
        "upos": [["VERB", "AUX", "PUNCT"], ["_", "ADP", "DET", "NOUN"], ["DET", "NOUN"]],
        "text": ["食べた。", "du pain", "tute alia"],
        "original": ["食べ た。", "du  pain", "la kato"],
        "number": [1, 2, 3],
    }
    for split in ("train", "test"):
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "ja" / f"{split}.parquet")
    return str(tmp_path / "ja")


def test_a_column_with_the_text_says_how_words_stand_together(japanese, caplog):
    train, test = load_tagged_sentences(TaggingArguments(dataset_name=japanese))
    assert [s.text for s in train] == [s.text for s in test] == ["食べた。", "du pain", None]
    assert [s.spans for s in train] == [[(0, 2), (2, 3), (3, 4)], [(0, 2), (0, 2), (3, 7)], None]
    assert "[train]: the text of 1 rows, row 3 first, does not hold their words" in caplog.text
    train, _ = load_tagged_sentences(TaggingArguments(dataset_name=japanese, running_text_column="original"))
    assert [s.text for s in train] == ["食べ た。", "du  pain", "la kato"]


def test_running_text_can_be_left_alone(japanese, write):
    train, test = load_tagged_sentences(TaggingArguments(dataset_name=japanese, running_text=False))
    assert {(s.text, s.spans) for s in [*train, *test]} == {(None, None)}


def test_a_test_part_is_read_as_the_training_part_was(write):
    plain = write("La DET\nkato NOUN\n")
    train, test = load_tagged_sentences(TaggingArguments(plain, write(CONLLU, "tagged.conllu")))
    assert train[0].spans is None and test[0].spans is None


@pytest.mark.parametrize(("column", "message"), [("nenio", "no column 'nenio'"), ("number", "Expected text")])
def test_a_column_that_holds_no_text_is_refused(japanese, column, message):
    with pytest.raises(InputError, match=f"running_text_column: .*{message}"):
        load_tagged_sentences(TaggingArguments(dataset_name=japanese, running_text_column=column))
