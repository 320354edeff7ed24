import errno
import json
import os
import signal
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from isospike.errors import InputError
from isospike.report import disk
from isospike.report.files import (
    check_destination,
    check_folder,
    open_folder,
    read_manifest,
    write_file,
    write_folder,
)

A, B = {"a.txt": "old", "b.bin": b"\0"}, {"a.txt": "new"}


def names(folder):
    return {p.name for p in folder.iterdir()}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """Both ways to replace a folder."""
    if request.param == "two renames":
        monkeypatch.setattr(disk, "_rename", lambda *_: errno.ENOSYS)
    return request.param


def test_a_folder_is_written_with_the_digest_of_each_file(tmp_path):
    write_folder(tmp_path / "deep" / "out", {**A, "c.txt": lambda path: path.write_text("c")})
    assert names(tmp_path / "deep" / "out") == {"a.txt", "b.bin", "c.txt", "isospike.json"}
    assert set(read_manifest(tmp_path / "deep" / "out")) == {"a.txt", "b.bin", "c.txt"}
    check_folder(tmp_path / "deep" / "out")


def test_a_folder_of_our_own_or_an_empty_one_is_replaced(tmp_path, way):
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", A)
    write_folder(tmp_path / "out", B)
    assert names(tmp_path / "out") == {"a.txt", "isospike.json"}
    assert names(tmp_path) == {"out"}


def test_files_may_be_one_folder_deep(tmp_path, way):
    write_folder(tmp_path / "out", {**A, "1_Pooling/config.json": "{}"})
    check_folder(tmp_path / "out")
    write_folder(tmp_path / "out", {"1_Pooling/config.json": "[]"})
    check_folder(tmp_path / "out")
    (tmp_path / "out" / "1_Pooling" / "mine").touch()
    with pytest.raises(InputError, match="holding '1_Pooling/mine'"):
        write_folder(tmp_path / "out", A)


def test_a_manifest_names_nothing_outside_its_folder(tmp_path):
    write_folder(tmp_path / "out", A)
    names = dict.fromkeys(("../a", "/etc/passwd", "a/../../b", "a/b/c", ".a/b"), "0")
    (tmp_path / "out" / "isospike.json").write_text(json.dumps({"sha256": names}))
    assert read_manifest(tmp_path / "out") == {}


def test_what_somebody_else_wrote_is_left_alone(tmp_path):
    write_folder(tmp_path / "out", A)
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"got .* holding 'thesis.tex'. Choose another folder"):
        write_folder(tmp_path / "out", B)
    with pytest.raises(InputError, match=r"needs a folder, got the file .* Choose another name"):
        write_folder(tmp_path / "out" / "thesis.tex", B)
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert (tmp_path / "out" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (OSError(errno.EFBIG, "File too large"), InputError),
        (RuntimeError("Error: I/O error: File too large (os error 27)"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error, seen):
    def fail(path):
        path.write_text("half")
        raise error

    write_folder(tmp_path / "out", A)
    with pytest.raises(seen) as caught:
        write_folder(tmp_path / "out", {**B, "z": fail})
    if seen is InputError:
        assert str(caught.value).endswith("got a full disk. Free some space; what was there before "
                                          "is untouched.")  # fmt: skip
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    check_folder(tmp_path / "out")
    assert names(tmp_path) == {"out"}
    with pytest.raises(seen):
        write_folder(tmp_path / "deep" / "out", {"z": fail})
    assert names(tmp_path) == {"out"}


def test_an_error_between_the_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", A)
    rename = disk.Path.rename

    def stop(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(disk, "_rename", lambda *_: errno.ENOSYS)
    monkeypatch.setattr(disk.Path, "rename", stop)
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
    with pytest.raises(InputError, match=r"a.txt, got a folder without it"):
        check_folder(tmp_path / "out")
    for text in ("{}", "[]", "{", '{"sha256": 3}'):
        (tmp_path / "out" / "isospike.json").write_text(text)
        with pytest.raises(InputError, match="without a readable isospike.json"):
            check_folder(tmp_path / "out")


# Links, modes, places.


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through(tmp_path, there, way):
    if there:
        write_folder(tmp_path / "out", A)
        write_file(tmp_path / "file", b"old")
    for target, link, write in (
        ("out", "link", lambda p: write_folder(p, B)),
        ("file", "link to file", lambda p: write_file(p, b"new")),
    ):
        (tmp_path / link).symlink_to(target)
        write(tmp_path / link)
        assert (tmp_path / link).is_symlink()
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == {"out", "link", "file", "link to file"}


def test_what_is_replaced_gives_its_mode_and_what_is_new_that_of_the_user(tmp_path, way):
    def write_privately(path):
        path.write_text("weights")
        path.chmod(0o600)

    old = os.umask(0o027)
    try:
        write_folder(tmp_path / "out", {**A, "weights": write_privately})
        write_file(tmp_path / "file", b"old")
    finally:
        os.umask(old)
    assert mode(tmp_path / "out") == 0o750
    assert mode(tmp_path / "file") == 0o640
    assert {mode(p) for p in (tmp_path / "out").iterdir()} == {0o640}
    (tmp_path / "out").chmod(0o700)
    (tmp_path / "out" / "a.txt").chmod(0o444)
    (tmp_path / "file").chmod(0o600)
    write_folder(tmp_path / "out", B)
    write_file(tmp_path / "file", b"new")
    assert (mode(tmp_path / "out"), mode(tmp_path / "file")) == (0o700, 0o600)
    assert mode(tmp_path / "out" / "a.txt") == 0o444
    (tmp_path / "out").chmod(0o500)
    write_folder(tmp_path / "out", A)
    assert names(tmp_path) == {"out", "file"}


@pytest.mark.parametrize("filled", [True, False])
def test_the_current_folder_is_not_taken_away(tmp_path, monkeypatch, filled):
    (tmp_path / "out").mkdir()
    if filled:
        write_folder(tmp_path / "out", A)
    monkeypatch.chdir(tmp_path / "out")
    for path in (".", "../out", tmp_path / "out"):
        with pytest.raises(InputError, match="may replace, got the current folder .*such as"):
            write_folder(disk.Path(path), B)
    assert names(tmp_path / "out") == ({"a.txt", "b.bin", "isospike.json"} if filled else set())


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "loop").symlink_to("loop")
    for path, why in (
        (tmp_path / "file" / "deep" / "out", "got the file .*file. Choose another place"),
        (tmp_path / ("n" * 300), "got File name too long. Choose another place"),
        (tmp_path / "loop", "got"),
        (tmp_path / "a\0b", r"hold, got '.*a\\x00b' \(.*\). Choose another"),
        (disk.Path("/proc/self"), "got the mounted folder|holding"),
    ):
        with pytest.raises(InputError, match=why):
            check_destination(path)
    for path in (tmp_path, disk.Path(os.devnull)):
        with pytest.raises(InputError, match="save needs a file, got the (folder|device)"):
            write_file(path, b"")
    with pytest.raises(InputError, match=r"to write .*, got (Not a directory|File exists)"):
        write_file(tmp_path / "file" / "deep" / "x", b"")
    assert names(tmp_path) == {"file", "loop"}


# Others who save and read at the same time.


def test_what_a_user_adds_during_the_save_is_kept(tmp_path, way):
    def add(path):
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        path.write_text("new")

    write_folder(tmp_path / "out", A)
    with pytest.raises(InputError, match="holding 'thesis.tex'"):
        write_folder(tmp_path / "out", {"a.txt": add})
    assert (tmp_path / "out" / "thesis.tex").exists()
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert names(tmp_path) == {"out"}


def test_threads_that_save_one_folder_and_one_file_raise_nothing(tmp_path, way):
    def save(n):
        write_folder(tmp_path / "out", {"a": str(n), "b": str(n)})
        write_file(tmp_path / "file", b"%d" % n)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(64)))
    check_folder(tmp_path / "out")
    assert names(tmp_path) == {"out", "file"}


def test_a_reader_gets_one_save_whole_while_others_follow(tmp_path, way):
    path, stop = tmp_path / "out", threading.Event()

    def save():
        n = 0
        while not stop.is_set():
            n += 1
            write_folder(path, {name: str(n) for name in "abcd"})

    write_folder(path, dict.fromkeys("abcd", "0"))
    saver = threading.Thread(target=save)
    saver.start()
    try:
        for _ in range(100):
            with open_folder(path) as snapshot:
                got = {snapshot.place(name).read_bytes() for name in "abcd"}
                assert len(got | {snapshot.read("a")}) == 1
    finally:
        stop.set()
        saver.join()


def test_a_pipe_or_an_endless_manifest_is_no_folder_of_ours(tmp_path):
    write_folder(tmp_path / "out", A)
    manifest = tmp_path / "out" / "isospike.json"
    for replace in (os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir()):
        manifest.unlink()
        replace(manifest)
        with pytest.raises(InputError, match="without a readable isospike.json"):
            check_folder(tmp_path / "out")


# Killed.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_kill_9_anywhere_leaves_one_save_whole_and_the_next_one_sweeps(tmp_path, way):
    contents = {b"a" * 300_000, b"b" * 300_000}

    def save(content):
        write_file(tmp_path / "file", content)
        write_folder(tmp_path / "out", dict.fromkeys("xyz", content))

    save(min(contents))
    left = 0
    for trial in range(8):
        child = os.fork()
        if child == 0:
            while True:
                for content in contents:
                    save(content)
        time.sleep(0.01 + 0.007 * trial)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left += len(names(tmp_path)) - 2
        assert (tmp_path / "file").read_bytes() in contents
        if way == "exchange":
            check_folder(tmp_path / "out")
        write_folder(tmp_path / "other", A)
        if way == "two renames":
            write_folder(tmp_path / "out", A)
        assert names(tmp_path) == {"file", "out", "other"}
        check_folder(tmp_path / "out")
    assert left > 0


def test_only_what_a_dead_process_left_is_swept(tmp_path):
    mine = [".isospike-notes", ".isospike-old-x", ".out.new", ".isospike-" + 32 * "g"]
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / (".isospike-" + 32 * "0")).write_text("a file")
    dead = tmp_path / (".isospike-" + 32 * "1")
    (dead / "new").mkdir(parents=True)
    with disk.scratch(tmp_path) as alive:
        write_folder(tmp_path / "out", A)
        assert alive.exists()
    assert not dead.exists()
    assert names(tmp_path) == {*mine, ".isospike-" + 32 * "0", "out"}
