"""A GTP engine that does what its commands say, right or wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time


def main() -> None:
    for line in sys.stdin:
        number, command, *rest = line.split()
        argument = rest[0] if rest else ""
        answer = f"={number} {argument}\n\n"
        if command == "quit":
            print(answer, end="", flush=True)
            return
        if command == "ignore_quit":
            print(answer, end="", flush=True)
            time.sleep(1000)
        if command == "die":
            print("out of cheese", file=sys.stderr, flush=True)
            sys.exit(int(argument))
        if command == "abort":
            os.abort()
        if command == "hang":
            print("thinking", file=sys.stderr, flush=True)
            time.sleep(1000)
        if command == "child":
            # The child keeps our pipes open after us.
            child = subprocess.Popen(["sleep", "1000"])
            answer = f"={number} {child.pid}\n\n"
        if command == "half":
            print(f"={number} half", flush=True)
            time.sleep(1000)
        if command == "flood":
            print("=" + "x" * (5 << 20), flush=True)
        if command == "chatter":
            print("hello\n\nthere", flush=True)
        if command == "notes":
            print("n" * (2 << 20) + "end", file=sys.stderr, flush=True)
        if command == "refuse":
            answer = f"?{number} {argument}\n\n"
        if command == "wrong_number":
            answer = "=99 x\n\n"
        if command == "crlf":
            answer = f"={number} one\r\ntwo\r\n\r\n"
        print(answer, end="", flush=True)


if __name__ == "__main__":
    main()
