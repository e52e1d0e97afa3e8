"""The GTP client with engines that misbehave and with real ones."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lzsweep.go.gtp import Engine, GtpDeadError, GtpError, GtpRefusedError
from tests.go.engine import find_program, is_alive

SCRIPT = Path(__file__).with_name("misbehaving_engine.py")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine([sys.executable, "-I", "-S", str(SCRIPT)], timeout_s=20) as running:
        yield running


def test_answers_with_chatter_and_crlf(engine: Engine) -> None:
    assert engine.ask("echo one") == "one"
    assert engine.ask("chatter two") == "two"
    assert engine.ask("crlf") == "one\ntwo"
    assert engine.ask("echo") == ""


def test_stderr_is_kept_for_the_last_command_only(engine: Engine) -> None:
    engine.ask("notes")
    assert engine.notes.endswith("nnnend\n")
    assert len(engine.notes) == 1 << 20
    engine.ask("echo")
    assert engine.notes == ""


def test_a_refusal_leaves_the_engine_alive(engine: Engine) -> None:
    with pytest.raises(GtpRefusedError, match=r"refuses `refuse why`: why\."):
        engine.ask("refuse why")
    assert engine.ask("echo on") == "on"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("die 3", r"died \(exit code 3\) at `die 3`; its last words on stderr: out of cheese"),
        ("abort", r"died \(SIGABRT\) at `abort`; its last words on stderr: nothing"),
        ("hang", r"gave no answer within 0\.5 s at `hang`; its last words on stderr: thinking"),
        ("half", r"gave no answer within 0\.5 s at `half`"),
        ("wrong_number", r"gave answer 99 to command 1 at `wrong_number`"),
    ],
)
def test_a_broken_engine_is_reported_and_stays_dead(
    engine: Engine, command: str, message: str
) -> None:
    limit_s = 0.5 if command in ("hang", "half") else 20
    if limit_s < 1:
        engine.ask("echo")  # it has started
        message = message.replace("command 1", "command 2")
    with pytest.raises(GtpDeadError, match=message):
        engine.ask(command, timeout_s=limit_s)
    with pytest.raises(GtpDeadError, match=message):
        engine.ask("echo")
    engine.close()


def test_an_endless_answer_is_cut_off(engine: Engine) -> None:
    with pytest.raises(GtpDeadError, match="answered with more than 4194304 bytes"):
        engine.ask("flood")


def test_children_of_an_engine_die_with_it(engine: Engine) -> None:
    child = int(engine.ask("child"))
    assert is_alive(child)
    engine.close()
    deadline = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(child)


def test_closing_does_not_wait_for_one_that_will_not_go() -> None:
    engine = Engine([sys.executable, "-I", "-S", str(SCRIPT)])
    engine.ask("echo")
    with pytest.raises(GtpDeadError, match="gave no answer"):
        engine.ask("hang", timeout_s=0.2)
    start = time.monotonic()
    engine.close()
    assert time.monotonic() - start < 1
    with pytest.raises(GtpDeadError, match="gave no answer"):
        engine.ask("echo")


def test_a_closed_engine_says_so(engine: Engine) -> None:
    engine.close()
    with pytest.raises(GtpDeadError, match="was closed"):
        engine.ask("echo")


def test_no_descriptor_is_left_behind() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for command in ("echo", "die 1"):
        with Engine([sys.executable, "-I", "-S", str(SCRIPT)]) as engine:
            if command == "echo":
                engine.ask(command)
            else:
                with pytest.raises(GtpDeadError, match="died"):
                    engine.ask(command)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_missing_program_and_a_two_line_command(engine: Engine) -> None:
    with pytest.raises(GtpError, match="the engine no-such-engine cannot be started"):
        Engine(["no-such-engine"])
    with pytest.raises(ValueError, match="a GTP command must be one line"):
        engine.ask("play\nquit")


@pytest.mark.engine
def test_gnugo_plays() -> None:
    program = find_program("gnugo")
    with Engine([program, "--mode", "gtp", "--quiet", "--level", "0"]) as engine:
        assert engine.ask("name") == "GNU Go"
        engine.ask("boardsize 19")
        engine.ask("play black Q16")
        with pytest.raises(GtpRefusedError, match=r"refuses `play white Q16`: illegal move\."):
            engine.ask("play white Q16")
        assert engine.ask("genmove white")
