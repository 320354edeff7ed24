"""Real data: the text the package ships, passages of a text, text files of the user."""

import hashlib
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isospike.causal.cells import number
from isospike.causal.table import parse_table
from isospike.data import (
    calibration_texts,
    foreign_texts,
    passages,
    read_melodies,
    read_sequences,
    read_text,
    shakespeare,
)
from isospike.errors import InputError, RangeError
from isospike.report.reading import MAX_BYTES, read_file

WORDS = "one two three four five six seven eight nine ten eleven twelve"
texts = st.text(st.sampled_from("ab :\n"), max_size=300)


# Parity: the size and checksum of the file at its origin, karpathy/char-rnn at 6f9487a6.


def test_shakespeare_is_the_file_at_its_origin():
    text = shakespeare()
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )


# Texts to calibrate and to measure on.


def test_calibration_texts_are_of_every_length_and_all_different():
    texts = calibration_texts()
    assert len(set(texts)) == len(texts)
    assert "" in texts
    for length in (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000):
        assert sum(length / 2 < len(text) <= 2 * length for text in texts) >= 10, length
    assert sum(len(text.encode()) for text in texts) < 200_000


def test_calibration_texts_are_of_many_kinds():
    texts = calibration_texts()
    assert sum(text.endswith("?") for text in texts) > 20
    assert sum(not any(c.isalpha() for c in text) for text in texts) > 20
    assert sum(len(set(text.split())) < len(text.split()) / 10 for text in texts) >= 5
    scripts = {unicodedata.name(c, "").split()[0] for c in set("".join(texts)) if c.isalpha()}
    assert scripts > set("LATIN GREEK CYRILLIC HEBREW ARABIC DEVANAGARI THAI CJK HANGUL".split())


def test_foreign_texts_are_no_calibration_texts():
    foreign = foreign_texts()
    assert len(set(foreign)) == len(foreign)
    assert all(foreign)
    calibrated = {line for text in calibration_texts() for line in text.split("\n") if line}
    shared = {line for text in foreign for line in text.split("\n")} & calibrated
    assert all(len(line.split()) < 3 for line in shared)  # "    }" and the like


# Property: passages.


@given(texts, st.integers(1, 20), st.integers(1, 4), st.integers(0, 6))
def test_passages_are_different_lines_of_the_texts_own_words_within_the_bounds(
    text, count, min_words, more
):
    text = f"a b a b\n{text}"  # Always a passage: four words, not a speaker.
    found = passages(text, count, min_words, min_words + more)
    assert 1 <= len(found) <= count
    assert len(set(found)) == len(found)
    flat = " ".join(text.split())
    for passage in found:
        assert min_words <= len(passage.split()) <= min_words + more
        assert passage in flat


def test_passages_of_shakespeare_are_speeches_without_their_speakers():
    text = shakespeare()
    found = passages(text, 200)
    assert len(found) == 200
    assert passages(text, 200) == found
    flat = " ".join(text.split())
    speakers = {block.strip().split("\n")[0] for block in text.split("\n\n")}
    for passage in found:
        assert passage in flat
        assert not any(passage.startswith(f"{speaker} ") for speaker in speakers)


def test_the_first_passage_of_shakespeare_is_the_first_speech():
    assert passages(shakespeare(), 1) == ["Before we proceed any further, hear me speak."]


def test_passages_of_shakespeare_come_in_order_from_all_of_it():
    flat = " ".join(shakespeare().split())
    places = [flat.index(passage) for passage in passages(shakespeare(), 10)]
    assert places == sorted(places)
    for tenth, place in enumerate(places):
        assert abs(place / len(flat) - tenth / 10) < 0.05


# Hand trace: passages.


def test_a_speech_of_several_lines_becomes_one_line_and_a_short_one_is_skipped():
    text = "First Citizen:\nOne two\nthree four.\n\nAll:\nAway!\n\n\nMENENIUS:\nFive six seven.\n"
    assert passages(text, 9, min_words=3) == ["One two three four.", "Five six seven."]


def test_a_colon_in_plain_text_is_not_a_speaker():
    text = "We saw three things:\na hill, a tree, a house.\n\nThen we went home.\n\nIt was late."
    assert passages(text, 1, min_words=4) == ["We saw three things: a hill, a tree, a house."]


def test_a_text_without_blank_lines_gives_its_lines():
    text = "\nthe first line here\nthe second line here\nno\n"
    assert passages(text, 5, min_words=3) == ["the first line here", "the second line here"]


def test_a_long_paragraph_is_cut_into_consecutive_passages():
    assert passages(WORDS, 9, min_words=3, max_words=5) == [
        "one two three four five",
        "six seven eight nine ten",
    ]


def test_a_repeated_paragraph_is_one_passage():
    assert passages(f"{WORDS}\n{WORDS}\n", 2) == [WORDS]


def test_evenly_spaced_means_every_third_of_nine():
    lines = [f"line number {i} of the nine lines" for i in range(9)]
    assert passages("\n".join(lines), 3, min_words=2) == [lines[0], lines[3], lines[6]]


# Error: passages.


@pytest.mark.parametrize("text", ["", "  \n\n ", "too short\n\nalso short"])
def test_a_text_without_a_passage_is_refused(text):
    with pytest.raises(
        InputError,
        match=rf"^passages needs a paragraph or line of at least 8 words, got none in {len(text)} ",
    ):
        passages(text, 3)


def test_a_text_of_speakers_only_is_refused():
    with pytest.raises(InputError, match="got none"):
        passages("A man of a rather long name, of Rome:\n\nAnother one:\n", 1, min_words=2)


@pytest.mark.parametrize("count", [0, -3])
def test_no_passages_at_all_cannot_be_asked_for(count):
    with pytest.raises(RangeError, match=rf"^passages needs count >= 1, got {count}\. "):
        passages(WORDS, count)


@pytest.mark.parametrize(("low", "high"), [(0, 5), (6, 5), (-1, -1)])
def test_bounds_on_words_that_no_passage_meets_are_refused(low, high):
    with pytest.raises(RangeError, match=rf"min_words <= max_words, got {low} and {high}\. "):
        passages(WORDS, 1, low, high)


# Property and errors: files.


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\ufeff")))
def test_read_text_gives_back_what_was_written(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "file.txt"
    path.write_bytes(f"a{text}".encode())
    assert read_text(path) == f"a{text}"
    assert read_text(str(path)) == f"a{text}"


def test_line_ends_and_the_byte_order_mark_of_other_systems_are_dropped(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(path) == "one\ntwo\nthree\n"


def test_a_missing_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"^read_text needs an existing file, got '.*nowhere'\. .*$"
    ):
        read_text(tmp_path / "nowhere")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^read_text needs a file, got the folder '.*'\. .*$"):
        read_text(tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_text_is_refused(tmp_path, content):
    path = tmp_path / "empty.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"needs some text, got the empty file '.*empty\.txt'\. "):
        read_text(path)


@pytest.mark.parametrize(
    ("content", "byte", "offset"), [(b"abc\xff", "ff", 3), (b"\xe9t\xe9", "e9", 0)]
)
def test_bytes_that_are_not_utf8_are_refused_with_their_offset(tmp_path, content, byte, offset):
    path = tmp_path / "latin.txt"
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"needs UTF-8 text, got byte 0x{byte} at offset {offset} of '.*'\. "
    ):
        read_text(path)


@pytest.mark.parametrize(("name", "reason"), [("a" * 5000, "too long"), ("a\0b", "null")])
def test_a_path_no_system_opens_is_refused(name, reason):
    with pytest.raises(InputError, match=rf"needs a readable file, got .*: .*{reason}.*\. Check"):
        read_text(name)


# ------------------------------------------------- files that are no text, or not ours to read


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tune.mid", b"MThd\0\0\0\6", "got a MIDI file in .* Let its name end in .mid"),
        ("text.gz", b"\x1f\x8b\x08\0abc", "got a gzip archive in .* Unpack it"),
        ("table.xlsx", b"PK\x03\x04abc", "got a zip archive in .* Unpack it"),
        ("text.txt", "ab\n".encode("utf-16"), "got UTF-16 in .* Save it as UTF-8"),
        ("text.txt", "ab\n".encode("utf-32"), "got UTF-32 in .* Save it as UTF-8"),
        ("text.txt", "some text".encode("utf-16-le"), "got UTF-16 or UTF-32 in"),
    ],
)
def test_what_is_no_text_is_named(name, content, says, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_text(path)


def test_a_pipe_a_device_and_a_socket_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place, kind in ((tmp_path / "pipe", "pipe"), ("/dev/zero", "device")):
        with pytest.raises(InputError, match=f"needs a plain file, got the {kind} "):
            read_text(place)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(InputError, match="needs a file of at most 256 MiB, got 256 MiB or more"):
        read_text(path)
    with pytest.raises(InputError, match="of at most 0 MiB"):
        read_file("/proc/cpuinfo", "read_text", limit=10)  # says that it has 0 bytes


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, f"[[{'1' * 5000}]]", "[[true, false]]", "[true]", '[[""]]', '{"": []}', '[""]'],
)
def test_json_that_holds_no_melody_is_refused(content, tmp_path):
    path = tmp_path / "song.json"
    path.write_text(content)
    with pytest.raises(InputError, match="read_melodies needs "):
        read_melodies(path)


def test_the_ending_json_may_be_in_capitals(tmp_path):
    path = tmp_path / "SONG.JSON"
    path.write_text("[[60, 62]]")
    assert read_sequences(path) == [["60", "62"]]


@pytest.mark.parametrize(
    "text", ["a,b\n1," + "2" * 200_000, "x" * 300_000, 'a,b\n1,"' + "2" * 200_000]
)
def test_a_table_with_an_endless_cell_is_refused(text):
    with pytest.raises(InputError, match="parse_table needs "):
        parse_table(text)


def test_a_table_may_have_lines_longer_than_a_cell_may_be():
    line = ",".join("1" * 5 for _ in range(40_000))
    assert parse_table(f"{line}\n{line}").rows.shape == (2, 40_000)


@pytest.mark.parametrize("cell", ["1" * 50_000 + "x", "1" * 50_000 + "." + "1" * 50_000 + "dx"])
def test_a_long_cell_that_is_no_number_takes_no_time(cell):
    assert number(cell, decimal_comma=False) is None
    assert number(cell, decimal_comma=True) is None


def test_an_exponent_of_fortran_is_one():
    found = [
        number(cell, decimal_comma=False) for cell in ("1.5D+03", "-.5d2", "2.d-1", "1d", "d3")
    ]
    assert found == [1500, -50, 0.2, None, None]
