"""What every request goes through: keys, sizes, origins, and paths that lead nowhere."""

import hashlib
import json
import logging
import socket
import statistics
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from ideoflow.serving.api_errors import ApiError
from ideoflow.serving.guard import DEPTH, Keys, check_depth
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


def test_headers_that_are_too_large_are_refused(server):
    assert server.http.get("/v1/jobs", headers={"X-Long": "x" * 40_000}).status_code == 431


def test_json_that_is_nested_too_deeply_is_refused(server):
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        body = opening * 100_000 + "1" + closing * 100_000
        answer = server.http.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "too_deep"
    check_depth(b"[" * DEPTH + b"]" * DEPTH)
    check_depth(json.dumps({"caption": "[" * 1000 + '\\"' + "{" * 1000}).encode())  # brackets in a text are none
    with pytest.raises(ApiError):
        check_depth(b"[" * (DEPTH + 1))
    with pytest.raises(ApiError):
        check_depth(b'"a\\"b",' + b"[" * (DEPTH + 1))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_pages_of_others_may_not_use_it(server, origin):
    answer = server.http.post("/v1/jobs", json=small(), headers={"Origin": origin})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_origin"
    assert "access-control-allow-origin" not in answer.headers
    assert server.http.get("/v1/server", headers={"Origin": server.url}).status_code == 200


def test_a_name_that_was_made_to_point_here_is_refused(server):
    answer = server.http.get("/v1/jobs", headers={"Host": "evil.example"})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "wrong_host"


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
    server = own_server()
    monkeypatch.setattr(server.app.state.jobs, "page", lambda *given: 1 / 0)
    answer = server.http.get("/v1/jobs")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "ZeroDivision" not in answer.text and "Traceback" not in answer.text
    assert server.http.get("/v1/server").status_code == 200


def test_digests_of_keys_are_what_is_compared():
    keys = Keys([KEY])
    assert keys.fit(f"bearer {KEY}") and keys and not Keys([])
    assert keys._digests == [hashlib.sha256(KEY.encode()).digest()]
