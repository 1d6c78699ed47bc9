"""Runs the cases of aioquic's interop program against one server.

    interop.py EXAMPLES CA HOST PORT CASE...

EXAMPLES is the folder examples of aioquic's source archive, whose interop.py has a list of servers of
its own; that is not used. The certificate is checked with CA. For each case a line "CASE RESULT" is
printed, where RESULT are the letters that the program gives (see its class Result), or - for none,
and after it what went wrong, if anything has.
"""

import asyncio
import ssl
import sys


async def run(module, case, ca, host, port):
    from aioquic.h3.connection import H3_ALPN
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.logger import QuicLogger

    configuration = QuicConfiguration(
        alpn_protocols=H3_ALPN,
        is_client=True,
        quic_logger=QuicLogger(),
        verify_mode=ssl.CERT_REQUIRED,
    )
    configuration.load_verify_locations(ca)
    server = module.Server(
        "tested", host, port=port, retry_port=port, path="/v2/", push_path="/v2/"
    )
    wrong = ""
    try:
        await getattr(module, f"test_{case}")(server, configuration)
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    names = [flag.name for flag in module.Result if flag in server.result]
    return "".join("3" if name == "three" else name for name in names) or "-", wrong


def main(examples, ca, host, port, *cases):
    # Not this file, which has the same name.
    sys.path[0] = examples
    import interop

    interop.SERVERS.clear()
    for case in cases:
        letters, wrong = asyncio.run(run(interop, case, ca, host, int(port)))
        print(case, letters, wrong.replace("\n", " "), flush=True)


main(*sys.argv[1:])
