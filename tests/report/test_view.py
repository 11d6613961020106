"""The server of a run directory: this machine alone, this directory alone, no tables unless asked."""

import http.client
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaletot_jax.errors import ConfigError, StaleRunError
from scaletot_jax.report.view import HOST, allowed, files_of, main, server


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    top = tmp_path_factory.mktemp("view")
    (top / "secret.html").write_text("outside")
    run = top / "run"
    for name in (
        "report/report.html",
        "metrics.json",
        "teach/store.sqlite",
        "teach/chains.parquet",
        "sft/steps.jsonl",
        ".lock",
    ):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"<p>{name}</p>")
    (run / "report" / "link.html").symlink_to(top / "secret.html")
    return run


@pytest.fixture(scope="module")
def port(workdir):
    with server(workdir) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        yield serving.server_address[1]
        serving.shutdown()
        thread.join()


def ask(port, path, method="GET", host=None):
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request(method, path, headers={"Host": host or f"{HOST}:{port}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_it_listens_on_this_machine_alone(workdir):
    with server(workdir) as serving:
        assert serving.server_address[0] == "127.0.0.1"


def test_pages_and_json_with_their_types(port):
    status, headers, body = ask(port, "/report/report.html?x=1")
    assert (status, headers["Content-Type"], body) == (200, "text/html; charset=utf-8", b"<p>report/report.html</p>")
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    status, headers, body = ask(port, "/metrics.json", "HEAD")
    assert (status, headers["Content-Type"], body) == (200, "application/json; charset=utf-8", b"")
    assert ask(port, "/metrics.json", "POST")[0] == 501


def test_the_first_page_lists_what_is_served(port):
    status, _, body = ask(port, "/")
    assert status == 200 and b'href="/report/report.html"' in body and b"metrics.json" in body
    for hidden in (b"parquet", b"sqlite", b"jsonl", b".lock", b"link.html"):
        assert hidden not in body


@pytest.mark.parametrize(
    "path",
    [
        "/teach/chains.parquet", "/teach/store.sqlite", "/.lock", "/../secret.html", "/%2e%2e/secret.html", "/report/../../secret.html",
        "/report/%2e%2e%2f%2e%2e%2fsecret.html", "//etc/hostname", "/etc/hostname", "/report/link.html", "/report", "/report/", "/absent.html",
        "/metrics.json%00.html", "/..%5csecret.html",
    ],
)  # fmt: skip
def test_nothing_else_is_served(port, path):
    status, _, body = ask(port, path)
    assert status == 404 and b"outside" not in body and body == b"404 Not Found\n"


def test_another_host_is_refused(port):
    for host in ("evil.example", f"evil.example:{port}", HOST, "127.0.0.1:1"):
        assert ask(port, "/metrics.json", host=host)[0] == 421
    assert ask(port, "/metrics.json", host=f"localhost:{port}")[0] == 200


def test_tables_where_they_are_asked_for(workdir):
    assert allowed(workdir.resolve(), "teach/chains.parquet", True) is not None
    assert (
        allowed(workdir.resolve(), "report/link.html", True) is None
        and allowed(workdir.resolve(), ".lock", True) is None
    )
    listed = [path.as_posix() for path in files_of(workdir.resolve(), True)]
    assert listed == [
        "metrics.json",
        "report/report.html",
        "sft/steps.jsonl",
        "teach/chains.parquet",
        "teach/store.sqlite",
    ]


@given(st.text(alphabet="./\\abc%\x00", max_size=30))
def test_no_path_leaves_the_run_directory(workdir, name):
    found = allowed(workdir.resolve(), name, True)
    assert found is None or found.is_relative_to(workdir.resolve())


def test_a_run_without_a_report_and_a_port_that_is_taken_are_refused(tmp_path, workdir, port, capsys):
    with pytest.raises(StaleRunError, match="there is no report"):
        server(tmp_path)
    with pytest.raises(ConfigError, match="port"):
        server(workdir, port)
    with pytest.raises(StaleRunError, match="there is no report"):
        main(["--workdir", str(tmp_path)])
