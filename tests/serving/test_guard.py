"""What every request goes through: keys, sizes, origins, and paths that lead nowhere."""

import contextlib
import hashlib
import json
import logging
import socket
import statistics
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from pydantic import ValidationError

from ideoflow.serving import connections, guard
from ideoflow.serving.api_errors import ApiError
from ideoflow.serving.guard import DEPTH, MOST_FILES, Keys, check_text
from ideoflow.serving.server_settings import ServerSettings, read_keys
from tests.serving.conftest import small

KEY, OTHER = "key-of-tests-1234567890", "another-key-0987654321"


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server that wants one of two keys."""
    from tests.serving.conftest import serve

    running = serve(tmp_path_factory.mktemp("locked") / "data", api_keys=(KEY, OTHER))
    yield running
    running.close()


WRONG = {
    "none": {},
    "another": {"Authorization": f"Bearer {KEY[:-1]}x"},
    "its beginning": {"Authorization": f"Bearer {KEY[:-1]}"},
    "more than it": {"Authorization": f"Bearer {KEY}x"},
    "another scheme": {"Authorization": f"Basic {KEY}"},
    "no scheme": {"Authorization": KEY},
    "another header": {"X-API-Key": KEY},
    "its own header": {"Api-Key": KEY},
    "a cookie": {"Cookie": f"key={KEY}"},
    "empty": {"Authorization": "Bearer"},
    "two at once": {"Authorization": f"Bearer {KEY} {OTHER}"},
    "not ASCII": {"Authorization": "Bearer schlüssel".encode()},
    "a megabyte": {"Authorization": "Bearer " + "k" * 2**20},
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_answered_401_in_openais_shape(locked, headers):
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/metrics"), ("GET", "/nowhere")):
        request = locked.http.build_request(method, path, headers=headers)
        for name in ("authorization",) if "Authorization" not in headers else ():
            request.headers.pop(name, None)
        answer = locked.http.send(request)
        assert answer.status_code == 401, (path, answer.text)
        error = answer.json()["error"]
        assert error["type"] == "authentication_error" and "Bearer" in error["message"]
        assert KEY not in answer.text


def test_each_key_opens_and_health_and_the_page_need_none(locked):
    for key in (KEY, OTHER):
        assert locked.http.get("/v1/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    for path in ("/health/live", "/health/ready", "/"):
        assert locked.http.get(path, headers={"Authorization": ""}).status_code == 200


def test_comparing_keys_takes_the_same_time_however_much_of_one_is_right():
    keys = Keys([KEY * 10, OTHER])

    def seconds(given):
        times = []
        for _ in range(300):
            start = time.perf_counter()
            assert not keys.fit(f"Bearer {given}")
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    # Digests of all keys are compared: which byte is the first wrong one cannot show. Said by the way it is done, and
    # seen here to be far from a comparison that ends at the first byte.
    nearly, nothing = seconds((KEY * 10)[:-1] + "x"), seconds("x" * len(KEY * 10))
    assert 0.2 < nearly / nothing < 5


def test_keys_are_never_in_the_log(locked, caplog):
    with caplog.at_level(logging.DEBUG):
        locked.http.get("/v1/jobs", headers={"Authorization": f"Bearer {KEY}"})
        locked.http.get(f"/v1/jobs?key={OTHER}", headers={"Authorization": "Bearer wrong-key-000000"})
    told = [record.getMessage() for record in caplog.records if record.name.startswith("ideoflow")]
    assert len(told) == 2 and not any(secret in line for line in told for secret in (KEY, OTHER, "wrong-key-000000"))
    assert KEY not in repr(locked.app.state.settings)


def test_keys_are_read_from_lines_and_commas():
    text = "one-key-123,two-key-456\n# no key\n\n three-key-789 "
    assert read_keys(text) == (
        "one-key-123",
        "two-key-456",
        "three-key-789",
    )


@pytest.mark.parametrize("key", ["short", "with space in it", "ümlaut-key-123", "x" * 513])
def test_keys_that_are_none_are_refused_without_being_shown(key):
    with pytest.raises(ValidationError, match="8 to 512 printable") as caught:
        ServerSettings(api_keys=(key,))
    assert key not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_a_public_host_needs_a_key_or_the_word(host):
    with pytest.raises(ValidationError, match="--no-auth"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, no_auth=True).host == host
    assert ServerSettings(host=host, api_keys=(KEY,)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_local_host_needs_none(host):
    assert ServerSettings(host=host).is_local


def hostile():
    """Paths, ids and names of files that want to be elsewhere."""
    steps = ["..", "%2e%2e", "..%2f", "%2e%2e%2f", "....//", "..\\", "..%5c", "%c0%ae%c0%ae", "..;", ".%00."]
    targets = ["etc/passwd", "jobs.sqlite", "lock", "pictures", "proc/self/environ"]
    prefixes = ["/v1/jobs/", "/v1/jobs/job_aaaaaaaaaaaaaaaaaaaaaa/pictures/", "/studio/", "/", "//"]
    for prefix in prefixes:
        for step in steps:
            for target in targets:
                yield f"{prefix}{step}/{step}/{step}/{step}/{step}/{target}"


def test_hostile_paths_reach_no_file(server, tmp_path):
    paths = list(hostile())
    assert len(paths) >= 200
    before = {path: path.stat().st_mtime_ns for path in Path(server.app.state.settings.data).rglob("*")}
    host, port = server.url.removeprefix("http://").split(":")
    for path in paths:
        for method in ("GET", "DELETE"):
            with socket.create_connection((host, int(port))) as line:  # clients would tidy the path up
                line.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                text = b""
                while part := line.recv(65536):
                    text += part
            status = int(text.split(b" ", 2)[1])
            assert status in (400, 404, 405, 307), (method, path, status)
            assert b"root:" not in text and b"SQLite format" not in text
    after = {path: path.stat().st_mtime_ns for path in Path(server.app.state.settings.data).rglob("*")}
    assert set(after) == set(before)


HOSTILE_IDS = [
    "job_../../../etc/passwd",
    "job_" + "a" * 21 + "/",
    "job_" + "a" * 23,
    "job_" + "ä" * 22,
    "x" * 4000,
    "%00",
    "'--",
]


@pytest.mark.parametrize("id", HOSTILE_IDS, ids=range(len(HOSTILE_IDS)))
def test_hostile_ids_are_no_jobs(server, id):
    from urllib.parse import quote

    for path in (f"/v1/jobs/{quote(id, safe='')}", f"/v1/jobs/{quote(id, safe='')}/pictures/0"):
        assert server.http.get(path).status_code == 404
    assert server.http.get("/v1/jobs", params={"after": id}).status_code == 400


@pytest.mark.parametrize("n", ["-1", "99999999999999999999", "0x0", "0/../1", "1e3"])
def test_hostile_numbers_are_no_pictures(server, n):
    job = server.wait(server.job()["id"])
    assert server.http.get(f"/v1/jobs/{job['id']}/pictures/{n}").status_code in (400, 404)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    body = json.dumps(small(caption="x" * 2**21)).encode()
    answer = server.http.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def parts():
        for _ in range(40):
            yield b"x" * 2**16

    answer = server.http.post("/v1/jobs", content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413  # without a length in its head


def test_many_parts_lift_no_limit(server):
    """A body of multipart/form-data may be larger where files belong, and nowhere else."""
    kind = {"content-type": "multipart/form-data; boundary=part"}

    def body(size):
        yield b'--part\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'
        for _ in range(size // 2**16):
            yield b"x" * 2**16

    for path, size in (
        ("/v1/jobs", 2**21),
        ("/v1/images/generations", 2**21),
        ("/v1/images/edits", MOST_FILES + 2**17),
    ):
        whole = server.http.post(path, content=b"".join(body(size)), headers=kind)
        without_length = server.http.post(path, content=body(size), headers=kind)
        for answer in (whole, without_length):
            assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large", path


def test_headers_that_are_too_large_are_refused(server):
    assert server.http.get("/v1/jobs", headers={"X-Long": "x" * 40_000}).status_code == 431


def test_json_that_is_nested_too_deeply_is_refused(server):
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        body = opening * 100_000 + "1" + closing * 100_000
        answer = server.http.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "too_deep"
    check_text(b"[" * DEPTH + b"]" * DEPTH)
    check_text(json.dumps({"caption": "[" * 1000 + '\\"' + "{" * 1000}).encode())  # brackets in a text are none
    with pytest.raises(ApiError):
        check_text(b"[" * (DEPTH + 1))
    with pytest.raises(ApiError):
        check_text(b'"a\\"b",' + b"[" * (DEPTH + 1))


def test_a_text_that_does_not_end_is_looked_through_once():
    check_text(b'"' + b'\\"' * 500_000)  # it would take hours, were each quotation mark looked at as a beginning
    check_text(b"[" * DEPTH + b'"' + b'\\"[' * 500_000)


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1"])
def test_json_that_is_not_utf8_is_refused(server, coding):
    """Python's reader takes UTF-16 for JSON too, in which no bracket is found."""
    word = "é" if coding == "latin-1" else "e"  # in UTF-16 of ASCII every byte is one of UTF-8 as well
    body = ('{"caption": "' + word + "[" * 1000 + '"}').encode(coding)
    for path in ("/v1/jobs", "/v1/images/generations", "/v1/captions/check"):
        answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "not_utf8", path


def test_what_a_client_made_up_is_not_told_whole(server):
    for change in ({"preset": "x" * 5000}, {"size": "9" * 5000}, {"adapters": {"x" * 5000: "a"}}, {"x" * 5000: 1}):
        answer = server.http.post("/v1/jobs", json=small(**change))
        assert answer.status_code == 400 and len(answer.text) < 600


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://[", "http://[zz]:1"])
def test_pages_of_others_may_not_use_it(server, origin):
    answer = server.http.post("/v1/jobs", json=small(), headers={"Origin": origin})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_origin"
    assert "access-control-allow-origin" not in answer.headers
    assert server.http.get("/v1/server", headers={"Origin": server.url}).status_code == 200


def test_a_name_that_was_made_to_point_here_is_refused(server):
    answer = server.http.get("/v1/jobs", headers={"Host": "evil.example"})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "localhost.", "127.0.0.1", "127.0.0.2", "[::1]"])
def test_every_name_of_this_machine_is_answered(server, name):
    for host in (name, f"{name}:8000"):
        assert server.http.get("/v1/jobs", headers={"Host": host}).status_code == 200


def test_names_that_were_allowed_are_answered(own_server):
    server = own_server(allowed_hosts=("studio.example",))
    for host in ("studio.example", "Studio.Example:443", "studio.example."):
        assert server.http.get("/v1/jobs", headers={"Host": host}).status_code == 200
    assert server.http.get("/v1/jobs", headers={"Host": "other.example"}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.2", "Localhost", "localhost."])
def test_any_spelling_of_a_local_host_needs_no_key(host):
    assert ServerSettings(host=host).is_local


def test_an_origin_that_was_let_in_may(own_server):
    server = own_server(cors_origins=("https://editor.example",))
    headers = {"Origin": "https://editor.example"}
    answer = server.http.get("/v1/server", headers=headers)
    assert answer.headers["access-control-allow-origin"] == "https://editor.example"
    asked = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    assert server.http.options("/v1/jobs", headers=asked).status_code == 200
    assert server.http.get("/v1/server", headers={"Origin": "https://other.example"}).status_code == 403


def test_every_answer_has_a_strict_policy(server):
    for path in ("/", "/v1/server", "/nowhere", "/health/live"):
        headers = server.http.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


def test_an_error_of_the_server_shows_no_traceback(own_server, monkeypatch):
    server = own_server(cors_origins=("https://editor.example",))
    monkeypatch.setattr(server.app.state.jobs, "page", lambda *given: 1 / 0)
    answer = server.http.get("/v1/jobs", headers={"Origin": "https://editor.example"})
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["access-control-allow-origin"] == "https://editor.example"
    assert "ZeroDivision" not in answer.text and "Traceback" not in answer.text
    assert server.http.get("/v1/server").status_code == 200


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/jobs", "GET, POST"),
        ("/v1/jobs/job_aaaaaaaaaaaaaaaaaaaaaa", "GET, DELETE"),
        ("/v1/images/generations", "POST"),
        ("/v1/server", "GET"),
        ("/studio/studio.css", "GET, HEAD"),
        ("/sdapi/v1/options", "GET, POST"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_told_which_it_does(server, path, allowed):
    answer = server.http.request("PATCH", path)
    assert answer.status_code == 405 and answer.headers["allow"] == allowed


# Connections


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def heard(line):
    """All that a connection says until it is closed: the status, and the error's code."""
    text = b""
    while part := line.recv(65536):
        text += part
    head, _, body = text.partition(b"\r\n\r\n")
    return (int(head.split()[1]), json.loads(body)["error"]["code"]) if text else None


def test_a_connection_too_many_is_told_to_come_again(own_server):
    server = own_server(max_connections=4)
    lines = [connect(server) for _ in range(5)]
    try:
        answer = httpx.get(f"{server.url}/v1/jobs")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "too_many_connections"
        assert httpx.get(f"{server.url}/health/live").status_code == 200
    finally:
        for line in lines:
            line.close()
    end = time.monotonic() + 30
    while httpx.get(f"{server.url}/v1/jobs").status_code == 503:
        assert time.monotonic() < end


def test_far_too_many_connections_are_closed(own_server, monkeypatch):
    monkeypatch.setattr(connections, "SPARE", 2)
    server = own_server(max_connections=4)
    lines = [connect(server) for _ in range(12)]
    with contextlib.suppress(ConnectionError):
        assert lines[-1].recv(10) == b""
    for line in lines:
        line.close()


def test_a_head_that_trickles_is_given_up(server, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with connect(server) as line:
        for byte in b"GET /health/live HT":
            line.sendall(bytes([byte]))
            time.sleep(0.002)
        assert heard(line) == (408, "head_too_slow")
    with connect(server) as line:
        assert heard(line) is None  # nothing was asked, nothing is answered


def test_a_body_that_trickles_is_given_up(server, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.5)
    for length in ("content-length: 1000", "transfer-encoding: chunked"):
        with connect(server) as line:
            line.sendall(f"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n".encode())
            assert heard(line) == (408, "body_too_slow")


def test_a_body_that_nobody_reads_is_not_waited_for_either(server, monkeypatch):
    monkeypatch.setattr(connections, "LAST_SECONDS", 0.5)
    with connect(server) as line:
        line.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        while line.recv(65536):
            pass


def test_what_is_no_http_is_answered_in_the_shape_of_all_errors(server):
    with connect(server) as line:
        line.sendall(b"hello there\r\n\r\n")
        assert heard(line) == (400, "bad_http")


def test_digests_of_keys_are_what_is_compared():
    keys = Keys([KEY])
    assert keys.fit(f"bearer {KEY}") and keys and not Keys([])
    assert keys._digests == [hashlib.sha256(KEY.encode()).digest()]
