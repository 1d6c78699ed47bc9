"""Asks for URLs over HTTP/3 with Chromium, and nothing else: fetch() of a page of the same server.

    chromium.py PROFILE CA DIR URL[@RANGE]...

The body of answer n, from 0, is written to DIR/n; for each a line "PROTOCOL STATUS BYTES" is printed,
with the protocol that the browser says it used (PerformanceResourceTiming.nextHopProtocol). PROFILE is
an empty folder.

Chromium takes an authority of our own over QUIC only for servers that it is told to ask so
(--origin-to-force-quic-on) and whose key it is told (--ignore-certificate-errors-spki-list). The
certificate is checked here before its key is passed on.
"""

import base64
import hashlib
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

FETCH = """(async () => {
  performance.clearResourceTimings();
  const answer = await fetch(URL, {headers: HEADERS, cache: "no-store"});
  const body = new Uint8Array(await answer.arrayBuffer());
  let timing;
  while (!(timing = performance.getEntriesByType("resource").at(-1)))
    await new Promise(next => setTimeout(next, 1));
  let text = "";
  for (let at = 0; at < body.length; at += 8192)
    text += String.fromCharCode(...body.subarray(at, at + 8192));
  return {status: answer.status, protocol: timing.nextHopProtocol, body: btoa(text)};
})()"""


def key_hash(ca, host, port):
    """The hash of the server's public key, as Chromium wants it; fails unless `ca` vouches for it."""
    context = ssl.create_default_context(cafile=ca)
    with socket.create_connection((host, port)) as tcp:
        with context.wrap_socket(tcp, server_hostname=host) as tls:
            der = tls.getpeercert(binary_form=True)
    key = x509.load_der_x509_certificate(der).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(spki).digest()).decode()


class Browser:
    """A headless Chromium, driven through its debugging pipe (file descriptors 3 and 4)."""

    def __init__(self, profile, *options):
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        command = [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}",
            *options, "about:blank",
        ]

        # The shell puts the pipes where Chromium looks for them.
        line = ["sh", "-c", f'exec "$@" 3<&{to_child} 4>&{from_child}', "sh", *command]
        self._process = subprocess.Popen(line, pass_fds=(to_child, from_child))
        os.close(to_child)
        os.close(from_child)
        self._unread, self._count = b"", 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.say("Browser.close")
        self._process.wait()

    def say(self, method, session=None, **parameters):
        """Sends a command and returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self):
        while b"\0" not in self._unread:
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self._unread += data
        message, self._unread = self._unread.split(b"\0", 1)
        return json.loads(message)


def main(profile, ca, directory, *wanted):
    parts = urlsplit(wanted[0])
    options = [
        f"--origin-to-force-quic-on={parts.netloc}",
        f"--ignore-certificate-errors-spki-list={key_hash(ca, parts.hostname, parts.port)}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with Browser(profile, *options) as browser:
        target = browser.say("Target.createTarget", url="about:blank")["targetId"]
        session = browser.say("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = browser.say("Page.navigate", session, url=f"https://{parts.netloc}/v2/")
        if "errorText" in page:
            raise RuntimeError(page["errorText"])
        for n, what in enumerate(wanted):
            url, _, span = what.partition("@")
            fields = json.dumps({"Range": span} if span else {})
            code = FETCH.replace("URL", json.dumps(url), 1).replace("HEADERS", fields, 1)
            said = browser.say(
                "Runtime.evaluate", session, expression=code, awaitPromise=True, returnByValue=True
            )
            if "exceptionDetails" in said:
                raise RuntimeError(said["exceptionDetails"])
            answer = said["result"]["value"]
            body = base64.b64decode(answer["body"])
            (pathlib.Path(directory) / str(n)).write_bytes(body)
            protocol = {"h3": "HTTP/3"}.get(answer["protocol"], answer["protocol"])
            print(protocol, answer["status"], len(body), flush=True)


main(*sys.argv[1:])
