"""Holds a running admin API to its description.

    check_openapi.py URL          every operation is asked for, with the description's own examples
    check_openapi.py URL pages    only those of any process: metrics, health, readiness, status
    check_openapi.py URL copy     those, and what an edge reads from its copy of the state

The description must be valid OpenAPI 3.1. Each answer must have a status that is described, and a body that fits
the described schema. Prints the operations, one a line, with the status of each.
"""
import json
import sys
import urllib.error
import urllib.parse
import urllib.request

from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

url, only = sys.argv[1], sys.argv[2] if sys.argv[2:] else ""
METHODS = ["put", "post", "get", "delete"]
# These end what the others need, so that they come last.
LAST = ["/v1/cluster/remove", "/v1/cluster/leave"]


def ask(method, path, headers=None, body=None):
    request = urllib.request.Request(url + path, method=method.upper(), headers=headers or {}, data=body)
    try:
        answer = urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        kind = (answer.headers.get("content-type") or "").split(";")[0]
        # A stream has no end: its first line is enough.
        data = answer.readline() if path.startswith("/v1/watch") else answer.read()
        return answer.status, kind, data


def resolved(value):
    while "$ref" in value:
        place = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        value = place
    return value


def fits(schema, value):
    # References are into the description, so the schema is given all of it.
    whole = {"components": document["components"], **schema}
    Draft202012Validator(whole).validate(value)


def check(path, method, operation, shared):
    target, query = path, []
    for parameter in shared + operation.get("parameters", []):
        if "example" not in parameter:
            continue
        text = str(parameter["example"])
        if parameter["in"] == "path":
            target = target.replace("{%s}" % parameter["name"], urllib.parse.quote(text))
        elif parameter["in"] == "query":
            query.append((parameter["name"], text))
    if query:
        target += "?" + urllib.parse.urlencode(query)
    headers, body = {}, None
    if "requestBody" in operation:
        kind, content = next(iter(operation["requestBody"]["content"].items()))
        example = content["example"]
        body = (example if isinstance(example, str) else json.dumps(example)).encode()
        headers["content-type"] = kind
        if not isinstance(example, str):
            fits(content["schema"], example)
    status, kind, data = ask(method, target, headers, body)
    described = operation["responses"].get(str(status))
    assert described, f"{method} {target}: {status} is not described: {data[:300]}"
    content = resolved(described).get("content")
    # There may be no line of what is lines.
    empty = not data and content and "application/x-ndjson" in content
    assert bool(content) == bool(data) or empty, f"{method} {target}: {status} with the body {data[:300]}"
    if data:
        assert kind in content, f"{method} {target}: {kind} is not described"
        schema = content[kind]["schema"]
        if kind == "application/json":
            fits(schema, json.loads(data))
        elif kind == "application/x-ndjson":
            for line in data.splitlines():
                fits(schema, json.loads(line))
    print(method, path, status)
    return status


def asked(path, method, operation):
    copied = only == "copy" and method == "get" and path.startswith("/v1/state")
    return not only or copied or operation["tags"] == ["process"]


status, kind, data = ask("get", "/v1/openapi.json")
assert (status, kind) == (200, "application/json"), (status, kind)
document = json.loads(data)
validate(document)
operations = [
    (path, method, item[method], item.get("parameters", []))
    for path, item in document["paths"].items()
    for method in METHODS
    if method in item and asked(path, method, item[method])
]
operations.sort(key=lambda found: (METHODS.index(found[1]), found[0] in LAST and 1 + LAST.index(found[0])))
# What removes is asked for behind everything that reads; the last ones behind all.
operations.sort(key=lambda found: found[0] in LAST)
for found in operations:
    status = check(*found)
    assert status < 400 or found[0] in LAST, f"{found[1]} {found[0]} was answered {status}"
