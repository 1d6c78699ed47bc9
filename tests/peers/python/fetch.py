"""Asks for URLs over HTTP/3 with a client that nobody here wrote.

    fetch.py CLIENT CA DIR URL[@RANGE]...

The body of answer n, from 0, is written to DIR/n; for each a line "PROTOCOL STATUS BYTES" is printed,
with the protocol that the client says it used. Clients that say alt-svc begin with HTTPS, and ask
the next time as the answer before has told them. aioquic-early waits until there is a file DIR/gate.
"""

import asyncio
import pathlib
import sys

import aioquic_client


def version(number):
    """The name of what libcurl's numbers of versions mean; niquests has some of them."""
    names = {30: "HTTP/3", 31: "HTTP/3", 3: "HTTP/2", 20: "HTTP/2", 2: "HTTP/1.1", 11: "HTTP/1.1"}
    return names[int(number)]


def curl_cffi(ca, requests):
    from curl_cffi import CurlHttpVersion, requests as curl

    with curl.Session(verify=ca, http_version=CurlHttpVersion.V3ONLY) as session:
        for url, fields in requests:
            answer = session.get(url, headers=fields)
            yield version(answer.http_version), answer.status_code, answer.content


def curl_cffi_alt_svc(ca, requests):
    from curl_cffi import CurlOpt, requests as curl

    CURLALTSVC_H1, CURLALTSVC_H2, CURLALTSVC_H3 = 1 << 3, 1 << 4, 1 << 5
    known = str(pathlib.Path(sys.argv[3]) / "alt-svc")
    options = {
        CurlOpt.ALTSVC_CTRL: CURLALTSVC_H1 | CURLALTSVC_H2 | CURLALTSVC_H3,
        CurlOpt.ALTSVC: known.encode(),
    }
    for url, fields in requests:
        with curl.Session(verify=ca, curl_options=options) as session:
            answer = session.get(url, headers=fields)
            yield version(answer.http_version), answer.status_code, answer.content


def niquests(ca, requests, **only):
    import niquests

    with niquests.Session(**only) as session:
        session.trust_env = False  # else REQUESTS_CA_BUNDLE wins over verify
        session.verify = ca
        for url, fields in requests:
            answer = session.get(url, headers=fields)
            yield version(answer.http_version), answer.status_code, answer.content


def niquests_only(ca, requests):
    return niquests(ca, requests, disable_http1=True, disable_http2=True)


def aioquic(ca, requests):
    return asyncio.run(aioquic_client.fetch(ca, requests))[0]


def aioquic_version_2(ca, requests):
    return asyncio.run(aioquic_client.fetch_version_2(ca, requests))


def aioquic_early(ca, requests):
    gate = pathlib.Path(sys.argv[3]) / "gate"
    return asyncio.run(aioquic_client.fetch_early(ca, requests, gate))


def aioquic_moving(ca, requests):
    return asyncio.run(aioquic_client.fetch_moving(ca, requests))


CLIENTS = {
    "aioquic": aioquic,
    "aioquic-early": aioquic_early,
    "aioquic-moving": aioquic_moving,
    "aioquic-version-2": aioquic_version_2,
    "curl_cffi": curl_cffi,
    "curl_cffi-alt-svc": curl_cffi_alt_svc,
    "niquests": niquests_only,
    "niquests-alt-svc": niquests,
}


def main(client, ca, directory, *wanted):
    requests = []
    for what in wanted:
        url, _, span = what.partition("@")
        requests.append((url, {"Range": span} if span else {}))
    for n, (protocol, status, body) in enumerate(CLIENTS[client](ca, requests)):
        (pathlib.Path(directory) / str(n)).write_bytes(body)
        print(protocol, status, len(body), flush=True)


main(*sys.argv[1:])
