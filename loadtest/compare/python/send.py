"""pywebpush with a requests.Session, which keeps its connections: a process a core, some threads each.

send.py WORK, where WORK is a file that compare.py writes
"""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from urllib.parse import urlsplit

import requests
from py_vapid import Vapid
from pywebpush import WebPusher, webpush

# Left to itself pywebpush signs every message. A token may be used for a day (RFC 8292); this one is used for half of it.
LIFETIME = 12 * 60 * 60
# Lines that a process is handed at once.
CHUNK = 100


class Sender:
    """What each process has."""

    def __init__(self, work):
        self.work = work
        self.vapid = Vapid.from_string(work["private_key"])
        self.session = requests.Session()
        self.session.verify = work["ca"]
        # Proxies and passwords for each host are looked for in the environment at every request otherwise.
        self.session.trust_env = False
        threads = max(1, work["in_flight"] // os.cpu_count())
        self.session.mount("https://", requests.adapters.HTTPAdapter(pool_maxsize=threads))
        self.threads = ThreadPoolExecutor(threads)
        self.tokens = {}

    def authorization(self, endpoint):
        parts = urlsplit(endpoint)
        origin = f"{parts.scheme}://{parts.netloc}"
        expires, headers = self.tokens.get(origin, (0, None))
        if expires < time.time():
            expires = int(time.time()) + LIFETIME
            headers = self.vapid.sign({"aud": origin, "sub": self.work["subject"], "exp": expires})
            self.tokens[origin] = (expires, headers)
        return headers

    def send(self, line):
        line = json.loads(line)
        subscription, payload = line["subscription"], line["payload"]
        if self.work["sign_each"]:
            webpush(
                subscription,
                payload,
                vapid_private_key=self.vapid,
                vapid_claims={"sub": self.work["subject"]},
                headers={"urgency": "normal"},
                ttl=self.work["ttl"],
                requests_session=self.session,
            )
            return
        headers = {"urgency": "normal", **self.authorization(subscription["endpoint"])}
        answer = WebPusher(subscription, self.session).send(payload, headers, self.work["ttl"])
        answer.raise_for_status()


def prepare(work):
    global sender
    sender = Sender(work)


def send(lines):
    for _ in sender.threads.map(sender.send, lines):
        pass


def chunks(path):
    with open(path) as lines:
        while chunk := list(islice(lines, CHUNK)):
            yield chunk


def main():
    with open(sys.argv[1]) as file:
        work = json.load(file)
    with ProcessPoolExecutor(initializer=prepare, initargs=(work,)) as processes:
        for path, told in ((work["warm_up"], "ready"), (work["lines"], "done")):
            for _ in processes.map(send, chunks(path)):
                pass
            print(told, flush=True)
            sys.stdin.readline()


if __name__ == "__main__":
    main()
