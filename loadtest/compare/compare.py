#!/usr/bin/env python3
"""Gives the same work to Fanfare and to other senders, and prints what it costs each. `make compare` calls it.

The work: each subscription gets a message of its own, 250 bytes, encrypted for it (aes128gcm), signed (VAPID), with TTL and
urgency. The mock push service takes it over TLS. Everybody gets the same lines of JSON, a subscription and a payload each, and a
warm-up that is not counted.

Each sender is run twice. First against a mock that decrypts and verifies every message: one broken rule and the comparison fails.
Then against one that decrypts a sample, so that it is not what is measured; it still checks every header and token, and must have
seen each subscription exactly once.

CPU and memory are read from /proc, of the sender and whatever it has started; of Fanfare only the daemon, as the application
does nothing there but write lines (1 us each, says `fanfare-load`).
"""

import argparse
import http.client
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from base64 import urlsafe_b64encode
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

HERE = Path(__file__).resolve().parent
PAYLOAD = 250
TTL = 86_400
WARM_UP = 1_000
# Messages of the run in which every one is decrypted.
CHECKED = 500
# In the run that is measured one in so many is.
SAMPLE = 50
# Subscriptions asked for at once.
BATCH = 10_000
# How long a sender may take for a run.
PATIENCE = 180


class Failure(Exception):
    """Why there is no comparison."""


@dataclass
class Sender:
    """A sender and how it is used."""

    key: str
    name: str
    command: list
    messages: int
    in_flight: int
    # Makes a VAPID token for every message, as the library does unless told otherwise; or one for 12 hours.
    sign_each: bool
    # Whether it repeats what the push service did not take.
    again: str


def others(installed):
    """The senders that are compared, as they are installed."""
    web_push = json.loads((installed / "node/node_modules/web-push/package.json").read_text())["version"]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip().lstrip("v")
    with open(HERE / "rust/Cargo.lock", "rb") as file:
        crates = {package["name"]: package["version"] for package in tomllib.load(file)["package"]}

    def both(key, name, command, messages, in_flight, again):
        return [
            Sender(key, f"{name}, signing each", command, messages, in_flight, True, again),
            Sender(key, f"{name}, signing once", command, messages, in_flight, False, again),
        ]

    script = ["node", str(HERE / "node/send.mjs"), str(installed / "node")]
    found = both("node", f"web-push {web_push}, Node {node}", script, 5_000, 64, "no")
    script = [sys.executable, str(HERE / "python/send.py")]
    found += both("python", f"pywebpush {version('pywebpush')}, Python {platform.python_version()}", script, 5_000, 16, "no")
    program = [str(installed / "rust/release/web-push")]
    found += both("web-push", f"web-push crate {crates['web-push']}, isahc {crates['isahc']}", program, 20_000, 64, "no")
    program = [str(installed / "rust/release/reqwest")]
    name = f"the same crate, reqwest {crates['reqwest']}, signing once"
    found.append(Sender("reqwest", name, program, 20_000, 128, False, "what HTTP/2 refused unread"))
    return found


class Mock:
    """A mock push service as a process of its own; it ends with the block."""

    def __init__(self, binaries, directory, verify_every, keep):
        self.ca = directory / "ca.pem"
        command = [binaries / "fanfare-mock", "--with-parent", "--ca-out", self.ca, "--keep", keep, "--verify-every", verify_every]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        if not line:
            raise Failure(f"fanfare-mock ended with {self.process.wait()} before it was ready")
        self.admin = json.loads(line)["admin"].removeprefix("http://")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.admin, timeout=60)
        try:
            connection.request(method, path, body and json.dumps(body))
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise Failure(f"the mock answered {method} {path} with {answer.status}: {text.decode(errors='replace')}")
        return json.loads(text)

    def subscriptions(self, count):
        made = []
        while len(made) < count:
            made += self.ask("POST", "/subscriptions", {"count": min(BATCH, count - len(made))})
        return made


def write_lines(path, subscriptions, first):
    """A line of work for each of these; the numbers are what the mock counts by."""
    with open(path, "w") as file:
        for seq, subscription in enumerate(subscriptions, first):
            head = f'{{"seq":{seq},"sent":{int(time.time() * 1e6)},"pad":"'
            payload = head + "x" * (PAYLOAD - len(head) - 2) + '"}'
            file.write(json.dumps({"subscription": subscription, "payload": payload}) + "\n")


def vapid():
    """A fresh key pair, as browsers and senders write it."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    private = key.private_numbers().private_value.to_bytes(32, "big")
    public, private = (urlsafe_b64encode(part).rstrip(b"=").decode() for part in (public, private))
    return {"subject": "mailto:ops@example.com", "public_key": public, "private_key": private}


def processes(pid):
    """A process and whatever it has started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end between the listing and the look.
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in (task / "children").read_text().split():
                found += processes(int(child))
    return found


def usage(pid):
    """Seconds of CPU used, user and system, and bytes of memory at most, of a process and whatever it has started."""
    ticks = memory = 0
    for one in processes(pid):
        # The second field is a name in parentheses and may hold anything; utime and stime are fields 14 and 15.
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
        for line in Path(f"/proc/{one}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                memory += int(line.split()[1]) * 1024
    return ticks / os.sysconf("SC_CLK_TCK"), memory


def await_word(process, word, name):
    """Waits until the sender says that it has come so far."""
    readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
    if not readable:
        raise Failure(f"{name} is not {word} after {PATIENCE} s")
    said = process.stdout.readline().strip()
    if said != word:
        process.wait()
        raise Failure(f"{name} ended with {process.returncode} before it was {word}; what it said is above")


def run(sender, messages, verify_every, binaries):
    """Lets a sender do its work once; what it cost, and what the mock has seen of it."""
    with tempfile.TemporaryDirectory(prefix="fanfare-compare-") as directory:
        directory = Path(directory)
        total = WARM_UP + messages
        with Mock(binaries, directory, verify_every, total) as mock:
            subscriptions = mock.subscriptions(total)
            warm_up, lines, work = (directory / name for name in ("warm-up", "lines", "work"))
            write_lines(warm_up, subscriptions[:WARM_UP], 0)
            write_lines(lines, subscriptions[WARM_UP:], WARM_UP)
            orders = {"ca": str(mock.ca), "warm_up": str(warm_up), "lines": str(lines), "in_flight": sender.in_flight, "ttl": TTL}
            work.write_text(json.dumps({**orders, **vapid(), "sign_each": sender.sign_each}))

            command = [*sender.command, str(work)]
            # A group of its own, so that what it has started ends with it.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
            try:
                await_word(process, "ready", sender.name)
                cpu_before, _ = usage(process.pid)
                begin = time.monotonic()
                process.stdin.write("\n")
                process.stdin.flush()
                await_word(process, "done", sender.name)
                elapsed = time.monotonic() - begin
                cpu, memory = usage(process.pid)
                process.stdin.write("\n")
                process.stdin.flush()
                process.wait(timeout=PATIENCE)
            except Failure as failure:
                broken = mock.ask("GET", "/counters")["violations"]
                raise Failure("; ".join([str(failure), *broken[:3]])) from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            counters = mock.ask("GET", "/counters")
            received = mock.ask("GET", "/received?after=0")
    return {
        "messages": messages,
        "cpu_us": (cpu - cpu_before) * 1e6 / messages,
        "messages_per_second": messages / elapsed,
        "peak_memory_bytes": memory,
        "http": seen(sender, total, verify_every, counters, received),
        "connections": counters["origins"][0]["connections"],
        "tokens": counters["tokens"],
    }


def seen(sender, total, verify_every, counters, received):
    """Fails unless the mock has seen what was ordered; otherwise the version of HTTP that it came over."""
    taken = {one["subscription"] for one in received if 200 <= (one["status"] or 0) < 300}
    must_be = [
        ("messages arrived", counters["requests"], total),
        ("subscriptions got theirs", len(taken), total),
        ("messages came twice", counters["repeats"], 0),
        ("rules were broken", counters["violation_count"], 0),
    ]
    if verify_every == 1:
        must_be.append(("messages were decrypted and verified", counters["verified"], total))
    wrong = [f"{found} {what}, not {wanted}" for what, found, wanted in must_be if found != wanted]
    if counters["origins"][0]["connections"] > sender.in_flight:
        wrong.append(f"it does not keep its connections: there were {counters['origins'][0]['connections']}")
    if wrong:
        raise Failure("; ".join([f"{sender.name}: " + ", ".join(wrong), *counters["violations"][:3]]))
    versions = {one["version"] for one in received}
    return " and ".join(sorted(versions)).replace("HTTP/", "").replace("2.0", "2")


def load(binaries, *arguments):
    """What fanfare-load measures."""
    command = [str(binaries / "fanfare-load"), *(str(argument) for argument in arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Failure(f"`{' '.join(command)}` ended with {done.returncode}")
    return json.loads(done.stdout)


def say(text, end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


def measure(options):
    """A row for each, and what machine this is."""
    binaries, share = options.binaries, 10 if options.quick else 1
    if not (binaries / "fanfare-load").exists():
        raise Failure(f"there is no {binaries}/fanfare-load: `make build` first")
    about = subprocess.run([str(binaries / "fanfare"), "--version"], capture_output=True, text=True, check=True)
    fanfare = "Fanfare " + about.stdout.split()[-1]
    kept = {"http": "2", "on_disk": "yes", "again": "yes"}
    rows, machine = [], {}

    def own(name, what, messages, *arguments):
        say(f"{name}: {messages:,} messages ... ", end="")
        result = load(binaries, what, *arguments, "--verify-every", SAMPLE)
        row = {
            "sender": name,
            "messages": messages,
            "cpu_us": result["daemon_cpu"]["us_per_message"],
            "messages_per_second": result["messages_per_second"],
            "peak_memory_bytes": result["daemon_peak_rss_bytes"],
            **kept,
        }
        machine.update(result["machine"])
        say(f"{row['cpu_us']:.0f} us each, {row['messages_per_second']:,.0f} a second")
        rows.append(row)

    name, messages = f"{fanfare}, a line each", 100_000 // share
    say(f"{name}: {CHECKED} messages, all decrypted ... ", end="")
    load(binaries, "one-to-one", "--messages", CHECKED, "--subscriptions", CHECKED)
    say("good")
    own(name, "one-to-one", messages, "--messages", messages, "--subscriptions", messages, "--body", PAYLOAD)
    messages = 200_000 // share
    own(f"{fanfare}, a campaign", "campaign", messages, "--recipients", messages, "--body", PAYLOAD)

    for sender in others(options.installed):
        if options.only and sender.key not in options.only:
            continue
        say(f"{sender.name}: {CHECKED} messages, all decrypted ... ", end="")
        run(sender, CHECKED, 1, binaries)
        messages = sender.messages // share
        say(f"good\n{sender.name}: {messages:,} messages ... ", end="")
        row = run(sender, messages, SAMPLE, binaries)
        say(f"{row['cpu_us']:.0f} us each, {row['messages_per_second']:,.0f} a second")
        rows.append({"sender": sender.name, **row, "on_disk": "no", "again": sender.again})
    for row in rows:
        row["times_fanfare"] = row["cpu_us"] / rows[0]["cpu_us"]
    return rows, machine


HEADS = ["", "CPU a message", "times Fanfare", "a second", "memory", "HTTP", "on disk first", "tries again"]


def cells(row):
    """A row of the table."""
    return [
        row["sender"],
        f"{row['cpu_us']:,.0f} us",
        f"{row['times_fanfare']:.1f}",
        f"{round(row['messages_per_second'], -2 if row['messages_per_second'] >= 10_000 else -1):,.0f}",
        f"{row['peak_memory_bytes'] / 1e6:.0f} MB",
        row["http"],
        row["on_disk"],
        row["again"],
    ]


def table(rows, markdown):
    body = [cells(row) for row in rows]
    if markdown:
        lines = ["| " + " | ".join(line) + " |" for line in [HEADS, *body]]
        return "\n".join([lines[0].replace("|  |", "| |"), "|---" * len(HEADS) + "|", *lines[1:]])
    widths = [max(len(line[column]) for line in [HEADS, *body]) for column in range(len(HEADS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [HEADS, *body])


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--binaries", type=Path, required=True, help="where fanfare, fanfare-mock and fanfare-load lie")
    flags.add_argument("--installed", type=Path, required=True, help="what loadtest/compare/install has filled")
    flags.add_argument("--only", action="append", choices=["node", "python", "web-push", "reqwest"], help="not all the others")
    flags.add_argument("--quick", action="store_true", help="a tenth of the messages: whether it works, not what it costs")
    how = flags.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="JSON instead of a table")
    how.add_argument("--markdown", action="store_true", help="the table as docs/measurements.md has it")
    options = flags.parse_args()
    try:
        rows, machine = measure(options)
    except (Failure, OSError) as failure:
        say(f"\ncompare: {failure}")
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=2))
    else:
        print(table(rows, options.markdown))
        memory = machine["memory_bytes"] / 1e9
        say(f"\n{machine['cpu']}, {machine['cores']} cores, {memory:.1f} GB, Linux {machine['kernel']}; all of it shared with the mock")
    return 0


if __name__ == "__main__":
    sys.exit(main())
