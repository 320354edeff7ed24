import os
import signal
import time

import pytest

from isospike.errors import InputError
from isospike.report import files
from isospike.report.files import check_folder, read_manifest, write_file, write_folder

A, B = {"a.txt": "old", "b.bin": b"\0"}, {"a.txt": "new"}


def names(folder):
    return {p.name for p in folder.iterdir()}


def test_a_folder_is_written_with_the_digest_of_each_file(tmp_path):
    write_folder(tmp_path / "deep" / "out", {**A, "c.txt": lambda path: path.write_text("c")})
    assert names(tmp_path / "deep" / "out") == {"a.txt", "b.bin", "c.txt", "isospike.json"}
    assert set(read_manifest(tmp_path / "deep" / "out")) == {"a.txt", "b.bin", "c.txt"}
    check_folder(tmp_path / "deep" / "out")


def test_a_folder_of_our_own_or_an_empty_one_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", A)
    write_folder(tmp_path / "out", B)
    assert names(tmp_path / "out") == {"a.txt", "isospike.json"}
    assert names(tmp_path) == {"out"}


def test_what_somebody_else_wrote_is_left_alone(tmp_path):
    write_folder(tmp_path / "out", A)
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"got .* holding 'thesis.tex'. Choose another folder"):
        write_folder(tmp_path / "out", B)
    with pytest.raises(InputError, match=r"needs a folder, got the file .* Choose another name"):
        write_folder(tmp_path / "out" / "thesis.tex", B)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error):
    def fail(path):
        path.write_text("half")
        raise error

    write_folder(tmp_path / "out", A)
    with pytest.raises(type(error)):
        write_folder(tmp_path / "out", {**B, "z": fail})
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    check_folder(tmp_path / "out")
    assert names(tmp_path) == {"out"}


def test_an_error_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", A)
    rename = files.Path.rename

    def stop(path, target):
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(files.Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "out", B)
    check_folder(tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert names(tmp_path) == {"out"}


def test_a_damaged_or_missing_file_is_named(tmp_path):
    write_folder(tmp_path / "out", A)
    (tmp_path / "out" / "a.txt").write_text("odd")
    with pytest.raises(InputError, match=r"a.txt as it was saved, got another content"):
        check_folder(tmp_path / "out")
    (tmp_path / "out" / "a.txt").unlink()
    with pytest.raises(InputError, match=r"a.txt, got No such file"):
        check_folder(tmp_path / "out")
    for text in ("{}", "[]", "{", '{"sha256": 3}'):
        (tmp_path / "out" / "isospike.json").write_text(text)
        with pytest.raises(InputError, match="without a readable isospike.json"):
            check_folder(tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_kill_9_in_mid_save_leaves_the_old_file_or_the_new_one(tmp_path):
    path, contents = tmp_path / "state", (b"a" * 300_000, b"b" * 300_000)
    write_file(path, contents[0])
    for trial in range(8):
        child = os.fork()
        if child == 0:
            while True:
                write_file(path, contents[1])
                write_file(path, contents[0])
        time.sleep(0.01 + 0.007 * trial)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert path.read_bytes() in contents
