"""PID 1 of every pod: starts the command, tells the truth about it on a small page, ends it when it hangs.

    python3 -m berth.engine.launcher [options] -- tritonserver ...

The contract (arguments, page, exit codes) is docs/designs/006-launcher.md. One asyncio loop, no threads, standard
library only. The loop looks four times a second; whatever it decides, the end goes through `_end`: say why, kill
everything, remove what is left, exit with a code that names the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from berth.engine import contract, exposition, web
from berth.engine.contract import Exit
from berth.engine.control import Control
from berth.engine.exchange import Reader, process_alive
from berth.engine.members import Roster, join, resolve
from berth.engine.options import Options, Usage, parse, shared_memory_prefixes, with_defaults
from berth.engine.page import drain, pages
from berth.engine.supervisor import Child, become_subreaper, remove_shared_memory
from berth.engine.watch import ProgressWatch, Verdict

TICK: Final = 0.25
CANARY_PAUSE: Final = 1.0
KILL_UNLOADED_AFTER: Final = 2.0
"""A command that has not loaded yet has nobody to be polite to."""
REFUSE_AT_LEAST: Final = 1.0
"""Seconds in which who keeps a connection and uses it is told to go elsewhere, although nothing is in flight.

A Triton that stops says that it does not know its model, and nobody repeats such a request.
"""
HANDED_ON: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
MAX_MESSAGE: Final = 2048


class Launcher:
    """One life of one pod."""

    def __init__(self, options: Options, environment: Mapping[str, str], run_dir: Path) -> None:
        self._options = options
        self._environment = environment
        own_prefix = f"berth_{options.dial}_{run_dir.name}_"
        self._command = with_defaults(options.command, options.pod_ip, own_prefix) if options.command else []
        self._prefixes = shared_memory_prefixes(self._command)
        self._control = Control(run_dir / contract.CONTROL_FILE)
        self._state_reader = Reader(run_dir / contract.STATE_FILE)
        self._run_dir = run_dir
        (run_dir / contract.STATE_FILE).unlink(missing_ok=True)
        remove_shared_memory(self._prefixes)  # of a container life before this one
        self._state: dict[str, Any] = {}
        self._watch = ProgressWatch(
            hang_after=options.hang_after,
            first_token_timeout=options.first_token_timeout,
            canary_every=options.canary_every,
        )
        self._roster = Roster(options.member, options.members)
        self._joined = asyncio.Event()
        self._child: Child | None = None
        self._canary: asyncio.Task[None] | None = None
        self._next_canary = 0.0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._started = time.monotonic()
        self._first_token_at: float | None = None

    # --- life --------------------------------------------------------------------------------------------------------
    async def run(self) -> int:
        """The exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop)
        for number in HANDED_ON:
            loop.add_signal_handler(number, self._hand_on, number)
        page = await web.serve(pages(self), self._options.pod_ip, contract.PORT_PAGE)
        try:
            verdict = await (self._lead() if self._options.is_leader else self._work())
        finally:
            page.close()
        return self._end(verdict)

    async def _lead(self) -> Verdict:
        options = self._options
        if options.members > 1:
            await self._roster.listen(options.pod_ip, contract.PORT_JOIN)
            waiting = [asyncio.create_task(event.wait()) for event in (self._roster.complete, self._stop)]
            await asyncio.wait(waiting, timeout=options.join_timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            if self._stop.is_set():
                return Verdict(Exit.STOPPED, "asked to stop before the group was complete")
            if not self._roster.complete.is_set():
                missing = options.members - self._roster.joined
                return Verdict(
                    Exit.JOIN_TIMEOUT,
                    f"{missing} of {options.members} members have not joined in {options.join_timeout:g}s",
                )
        self._start_command()
        while not self._stop.is_set():
            if verdict := self._look():
                return verdict
            await self._wait_for(self._stop, TICK)
        return await self._stop_politely()

    async def _work(self) -> Verdict:
        """A worker holds its GPUs for the leader: it ends when its command, its leader or its time to join does."""
        options = self._options
        if self._command:
            self._start_command()

        async def leader() -> str:
            return await resolve(options.leader, contract.PORT_JOIN, options.hosts_file)

        member = asyncio.create_task(join(options.member, leader, contract.PORT_JOIN, self._joined))
        deadline = time.monotonic() + options.join_timeout
        while not self._stop.is_set():
            if verdict := self._command_ended():
                return verdict
            if member.done():
                return Verdict(Exit.MEMBER_LOST, str(member.exception()))
            if not self._joined.is_set() and time.monotonic() > deadline:
                return Verdict(
                    Exit.JOIN_TIMEOUT, f"no leader at {options.leader} took this member in {options.join_timeout:g}s"
                )
            await self._wait_for(self._stop, TICK)
        member.cancel()
        if self._child:
            self._child.signal(signal.SIGTERM)
            await self._command_gone(options.exit_timeout)
        return Verdict(Exit.STOPPED, "asked to stop")

    def _start_command(self) -> None:
        library = str(Path(__file__).parents[2])
        environment = {**self._environment, contract.LIB: library, contract.RUN_DIR: str(self._run_dir)}
        self._child = Child(self._command, environment)

    # --- four times a second -----------------------------------------------------------------------------------------
    def _look(self) -> Verdict | None:
        """Reads the model's state, judges it, and sends a canary if nothing else shows life."""
        if verdict := self._command_ended():
            return verdict
        if self._roster.lost and not self._control.member_lost:
            if self._options.on_member_lost == "exit":
                return Verdict(Exit.MEMBER_LOST, self._roster.lost)
            self._control.lose_member()
            self._watch.suspicious = True
        self._state = self._state_reader.read()
        if self._state.get("phase") == "failed":
            return Verdict(Exit.LOAD_FAILED, str(self._state["reason"]))
        if self._state and not process_alive(self._state["pid"]):
            flight = self._state.get("in_flight", 0)
            return Verdict(Exit.ENGINE_LOST, f"the engine's process ended with {flight} requests in flight")
        if not self._loaded:
            return None
        now = time.monotonic()
        canary_out = self._canary is not None and not self._canary.done()
        verdict = self._watch.observe(now, self._state, canary_out=canary_out)
        if verdict is None:
            if self._watch.first_token and self._first_token_at is None:
                self._first_token_at = now
            if not canary_out and not self._stop.is_set() and now >= self._next_canary and self._watch.wants_canary():
                self._next_canary = now + (CANARY_PAUSE if self._watch.first_token else TICK)
                self._canary = asyncio.create_task(self._ask_for_a_token())
        return verdict

    async def _ask_for_a_token(self) -> None:
        """Through the front door, as a client would. Without an answer the watch sees that nothing moves."""
        request = {
            "id": f"{contract.CANARY_ID}-launcher",
            "text_input": "Hello",
            "sampling_param_max_tokens": 1,
        }
        path = f"/v2/models/{contract.MODEL_NAME}/generate"
        limit = max(self._options.hang_after, self._options.first_token_timeout)
        try:
            status, _ = await web.ask(self._options.dial, contract.PORT_HTTP, "POST", path, request, seconds=limit)
        except TimeoutError:
            return
        except OSError:
            status = 0
        if status != 200 and (status or self._watch.first_token):
            self._watch.canary_failed()

    def _command_ended(self) -> Verdict | None:
        if self._child is None:
            return None
        self._child.reap()
        if self._child.code is None:
            return None
        state = self._state_reader.read()
        if state.get("phase") == "failed":
            return Verdict(Exit.LOAD_FAILED, str(state["reason"]))
        return Verdict(Exit.STOPPED, f"the command ended with code {self._child.code}")

    # --- stopping ----------------------------------------------------------------------------------------------------
    async def _stop_politely(self) -> Verdict:
        """Refuse, wait for what is in flight, then SIGTERM; a hang or a second signal cuts it short."""
        assert self._child is not None
        patience = self._options.exit_timeout if self._loaded else KILL_UNLOADED_AFTER
        if self._loaded:
            self._control.drain(0.0)
            deadline = time.monotonic() + self._options.drain_timeout
            while not self._drained and time.monotonic() < deadline and not self._hurry.is_set():
                if verdict := self._look():
                    return verdict
                await self._wait_for(self._hurry, TICK / 5)
        self._child.signal(signal.SIGTERM)
        if not await self._command_gone(patience):
            return Verdict(Exit.STOPPED, f"the command did not end within {patience:g}s of SIGTERM and was killed")
        return Verdict(Exit.STOPPED, "asked to stop")

    async def _command_gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._command_ended():
                return True
            await asyncio.sleep(TICK / 5)
        return False

    def _end(self, verdict: Verdict) -> int:
        """The one way out."""
        code = self._child.code if self._child else None
        reason, number = verdict.exit.reason, int(verdict.exit)
        if verdict.exit is Exit.STOPPED and code is not None and not self._stop.is_set():
            reason, number = contract.COMMAND_EXITED, code
        message = f"{reason}: {verdict.words}"
        print(message, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            self._options.termination_log.write_text(message[:MAX_MESSAGE])
        if self._child:
            self._child.kill()
        self._roster.close()
        remove_shared_memory(self._prefixes)
        return number

    # --- small parts -------------------------------------------------------------------------------------------------
    @property
    def _loaded(self) -> bool:
        return self._state.get("phase") == "ready"

    @property
    def _drained(self) -> bool:
        """Nothing in flight, said by a model that has seen that it must refuse, and has done so for a while."""
        until = self._control.accept_until
        if until is None or time.monotonic() < until + REFUSE_AT_LEAST:
            return False
        return self._state.get("control") == self._control.number and not self._state["in_flight"]

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _hand_on(self, number: int) -> None:
        if self._child:
            self._child.signal(number)

    async def _wait_for(self, event: asyncio.Event, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    # --- what the page shows -----------------------------------------------------------------------------------------
    @property
    def phase(self) -> str:
        if self._stop.is_set():
            return "stopping"
        if not self._options.is_leader:
            return "serving" if self._joined.is_set() else "joining"
        if self._child is None:
            return "joining"
        if not self._loaded:
            return "loading"
        if not self._watch.first_token:
            return "warming"
        return "draining" if self._control.draining else "serving"

    @property
    def control(self) -> Control:
        return self._control

    def metrics(self) -> str:
        state = self._state if self._loaded else {}
        serving, draining = self.phase == "serving", self._control.draining
        return exposition.render(state, serving=serving, draining=draining, now=time.monotonic(), wall=time.time())

    def describe(self) -> dict[str, Any]:
        now = time.monotonic()
        state, options, control = self._state, self._options, self._control

        def age(moment: float | None) -> float | None:
            return None if moment is None else round(now - moment, 3)

        first = self._first_token_at
        return {
            "phase": self.phase,
            "ready": self.phase == "serving",
            "role": options.role,
            "group": options.member.group,
            "incarnation": options.member.incarnation,
            "pool": options.pool,
            "draining": control.draining,
            "accepting": control.accept_until is None or now < control.accept_until,
            "drained": control.draining and (self._drained or not self._loaded),
            "members": options.members,
            "members_joined": self._roster.joined,
            "in_flight": state.get("in_flight", 0),
            "running": state.get("running", 0),
            "waiting": state.get("waiting", 0),
            "kv_utilization": state.get("kv_utilization", 0.0),
            "steps": state.get("steps", 0),
            "tokens": state.get("tokens", 0),
            "requests": state.get("requests", 0),
            "failures": state.get("failures", {}),
            "last_progress_age": age(self._watch.last_progress),
            "last_token_age": age(state.get("last_token")),
            "last_accepted_age": age(state.get("last_accepted")),
            "frozen_for": round(self._watch.frozen_for, 3),
            "started_age": age(self._started),
            "first_token_after": None if first is None else round(first - self._started, 3),
            "objectives": control.objectives,
            "engine": state.get("engine", ""),
            "note": state.get("note", ""),
            "pid": self._child.pid if self._child else None,
        }


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Exit code."""
    try:
        options = parse(arguments, environment)
    except Usage as error:
        print(f"{Exit.USAGE.reason}: {error}", file=sys.stderr)
        return Exit.USAGE
    if options.drain:
        return asyncio.run(drain(options.dial, options.grace, options.timeout))
    become_subreaper()
    run_dir = options.run_dir or Path(tempfile.mkdtemp(prefix="berth-", dir=_memory_backed()))
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        return asyncio.run(Launcher(options, environment, run_dir).run())
    except OSError as error:
        print(f"{Exit.USAGE.reason}: {error}", file=sys.stderr)
        return Exit.USAGE
    finally:
        if options.run_dir is None:
            shutil.rmtree(run_dir, ignore_errors=True)


def _memory_backed() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  (emptyDir in a pod)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
