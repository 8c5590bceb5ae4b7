"""One line per record, with what it is about."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from kopf import Body, ObjectLogger, OperatorSettings

from berth import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("kopf").setLevel(logging.NOTSET)


def test_a_json_line_has_time_level_logger_message_and_what_it_is_about(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    with logs.about(namespace="serving", deployment="llama"), logs.about(group="g1", incarnation=3):
        logging.getLogger("library.of.others").warning("lost %s", "it")
    line = json.loads(stream.getvalue())
    assert line.pop("time")
    assert line == {
        "level": "WARNING",
        "logger": "library.of.others",
        "message": "lost it",
        "namespace": "serving",
        "deployment": "llama",
        "group": "g1",
        "incarnation": 3,
    }


def test_hostile_text_stays_inside_its_line(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    logging.getLogger().info('"}\n{"level": "FORGED"')
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["level"] == "INFO"


def test_what_a_library_attaches_to_its_records_breaks_no_line(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("json", stream=stream)
    kopfs = ObjectLogger(body=Body({"metadata": {"name": "llama"}}), settings=OperatorSettings())
    kopfs.warning("watch ended")
    logging.getLogger("library.of.others").warning("odd", extra={"queue": ThreadPoolExecutor()})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert {**first, "time": ""} == {"level": "WARNING", "logger": "kopf.objects", "message": "watch ended", "time": ""}
    assert "ThreadPoolExecutor" in second["queue"]
    assert capsys.readouterr().err == ""


def test_every_event_that_kopf_passes_on_is_told_only_to_those_who_asked(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    logging.getLogger("kopf.objects").info("Handler 'changed' succeeded.")
    assert stream.getvalue() == ""


def test_a_trace_is_part_of_its_json_line(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger().exception("failed")
    (line,) = stream.getvalue().splitlines()
    assert "ValueError: why" in json.loads(line)["exception"]


def test_text_names_what_it_is_about_at_the_end_of_the_line(stream: io.StringIO) -> None:
    logs.configure("text", stream=stream)
    with logs.about(pool="h100"):
        logging.getLogger("berth").info("free again")
    logging.getLogger("berth").info("nothing in particular")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("INFO berth free again [pool=h100]")
    assert second.endswith("nothing in particular")


async def test_passes_at_the_same_time_keep_their_own_names(stream: io.StringIO) -> None:
    logs.configure("json", stream=stream)
    together = asyncio.Barrier(2)

    async def work(name: str) -> None:
        with logs.about(deployment=name):
            await together.wait()
            logging.getLogger().info(name)

    await asyncio.gather(work("a"), work("b"))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert sorted((line["message"], line["deployment"]) for line in lines) == [("a", "a"), ("b", "b")]


def test_debug_is_only_for_those_who_asked(stream: io.StringIO) -> None:
    logs.configure("text", stream=stream)
    logging.getLogger().debug("detail")
    assert stream.getvalue() == ""
    logs.configure("text", verbose=True, stream=stream)
    logging.getLogger().debug("detail")
    assert "detail" in stream.getvalue()
