"""The two files between model and launcher."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from berth.engine.control import Control
from berth.engine.exchange import Reader, Writer, parent_of, process_alive


def test_a_reader_sees_the_newest_whole_document(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    reader, writer = Reader(path), Writer(path)
    assert reader.read() == {}
    for number in range(3):
        writer.write({"number": number})
        assert reader.read() == reader.read() == {"number": number}
    path.unlink()
    assert reader.read() == {}


def test_nonsense_keeps_the_last_good_document(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    reader = Reader(path)
    Writer(path).write({"a": 1})
    assert reader.read() == {"a": 1}
    for text in ("", "{", "[1]"):
        path.with_suffix(".new").write_text(text)
        path.with_suffix(".new").replace(path)
        assert reader.read() == {"a": 1}


def test_control_counts_changes_and_keeps_the_earlier_end_of_grace(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "control.json")
    control = Control(tmp_path / "control.json")
    assert reader.read() == {"number": 0, "accept_until": None, "member_lost": False, "objectives": {}}
    control.drain(10)
    control.drain(1)
    control.drain(60)
    assert reader.read()["number"] == 2
    assert 0 < reader.read()["accept_until"] - time.monotonic() <= 1
    control.resume()
    control.resume()
    control.set_objectives({"time_to_first_token": 1.0})
    control.set_objectives({"time_to_first_token": 1.0})
    control.lose_member()
    assert reader.read() == {
        "number": 5,
        "accept_until": None,
        "member_lost": True,
        "objectives": {"time_to_first_token": 1.0},
    }


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_alive(child.pid)
    assert parent_of(child.pid) == os.getpid()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process_alive(child.pid)
    child.communicate()
    assert not process_alive(child.pid)
    assert parent_of(child.pid) is None


def test_threads_that_write_the_same_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "file")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: writer.write({"a": number}), range(400)))
    assert Reader(tmp_path / "file").read()["a"] in range(400)
