"""Child processes say how they ended, can be paused and restarted, and get only what they were given."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from berth.local.processes import ChildProcess, ProcessFailed
from tests.support.cluster import eventually


def child(folder: Path, body: str, environment: dict[str, str] | None = None) -> ChildProcess:
    command = [sys.executable, "-c", body]
    return ChildProcess("child", command, directory=folder, log=folder / "logs" / "child.log", environment=environment)


async def ended(process: ChildProcess) -> bool:
    return not process.running


async def says(process: ChildProcess, text: str) -> bool:
    return text in process.log_tail()


async def test_the_log_has_the_output_of_all_its_lives(tmp_path: Path) -> None:
    process = child(tmp_path, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    for _ in range(2):
        process.start()
        await eventually(lambda: ended(process))
    assert sorted(process.log_tail().split()) == ["err", "err", "out", "out"]
    assert process.exit_code == 3


async def test_a_failure_names_the_process_its_end_and_its_last_lines(tmp_path: Path) -> None:
    process = child(tmp_path, "[print(f'line{i}') for i in range(100)]; raise SystemExit(7)")
    process.start()
    await eventually(lambda: ended(process))
    with pytest.raises(ProcessFailed, match=r"(?s)^child gave up \(exit code 7\).*child\.log.*line99$") as failed:
        raise process.failure("gave up")
    assert "line80" not in str(failed.value)


async def test_only_the_given_environment_and_folder_reach_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "not for children")
    process = child(tmp_path, "import os; print(os.getcwd(), dict(os.environ))", {"LC_ALL": "C"})
    process.start()
    await eventually(lambda: ended(process))
    assert process.log_tail() == f"{tmp_path} {{'LC_ALL': 'C'}}"


async def test_stop_lets_the_child_say_goodbye(tmp_path: Path) -> None:
    body = "import signal; signal.signal(15, lambda *_: exit('bye')); print('up', flush=True); signal.pause()"
    process = child(tmp_path, body)
    process.start()
    await eventually(lambda: says(process, "up"))
    await process.stop()
    assert process.exit_code == 1
    assert "bye" in process.log_tail()


async def test_a_child_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    body = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause()"
    process = child(tmp_path, body)
    process.start()
    await eventually(lambda: says(process, "up"))
    await process.stop(grace=0.1)
    assert process.exit_code == -signal.SIGKILL


async def test_a_paused_child_does_nothing_and_can_be_killed(tmp_path: Path) -> None:
    process = child(tmp_path, "import time\nwhile True: print('tick', flush=True); time.sleep(0.01)")
    process.start()
    await eventually(lambda: says(process, "tick"))
    process.pause()
    await eventually(lambda: stopped(process))
    size = process.log.stat().st_size
    process.resume()
    await eventually(lambda: grown(process, size))
    process.pause()
    process.kill()
    assert process.exit_code == -signal.SIGKILL


async def stopped(process: ChildProcess) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


async def grown(process: ChildProcess, size: int) -> bool:
    return process.log.stat().st_size > size


async def test_kill_and_stop_of_an_ended_child_do_nothing(tmp_path: Path) -> None:
    process = child(tmp_path, "")
    process.kill()
    process.start()
    await eventually(lambda: ended(process))
    process.kill()
    await process.stop()
    assert process.exit_code == 0
