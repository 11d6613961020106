"""The command as it is typed, on loopback: numbers, refusals, slow clients, reload under load."""

import http.client
import json
import os
import signal
import socket
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving.conftest import TOKEN

from scaletot_jax.population.exemplars import read_exemplars
from scaletot_jax.population.model import seal_model
from scaletot_jax.population.score import Options, score_table
from scaletot_jax.serving.answers import ARROW

pytestmark = pytest.mark.xdist_group("serve")
AUTH = {"authorization": f"Bearer {TOKEN}"}
JSON = AUTH | {"content-type": "application/json"}


def ask(server, method, path, body=b"", headers=AUTH):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def predict(server, table, query="", **headers):
    body = json.dumps({"rows": table.to_pylist()}).encode()
    return ask(server, "POST", f"/v1/predict{query}", body, JSON | headers)


def failure(answer, status):
    assert answer[0] == status, answer
    error = json.loads(answer[2])["error"]
    assert set(error) == {"what", "where", "why", "do"} and set(error["where"]) == {"row", "field"} and error["what"]
    return error


@pytest.fixture(scope="module")
def scored(models, rows, tmp_path_factory):
    """What ``scaletot score --model`` says of the same rows, by fingerprint."""
    folder = tmp_path_factory.mktemp("scored")
    pq.write_table(rows.append_column("user_id", pa.array([f"u{i}" for i in range(50)])), folder / "users.parquet")
    out = {}
    for i, model in enumerate(models):
        score_table(model.directory, folder / "users.parquet", folder / f"out{i}", Options(batch_rows=64))
        out[model.fingerprint] = pq.read_table(folder / f"out{i}" / "part-00000.parquet").drop_columns(
            ["row", "user_id"]
        )
    return out


def same(found, table):
    for name in table.column_names:
        wanted = np.asarray(table[name].to_pylist(), np.float64)
        step = 2.0**-10 if name == "embedding" else 1e-6  # of float16 the last place
        np.testing.assert_allclose(found[name], wanted, rtol=step, atol=min(step, 1e-6), err_msg=name)


def test_rows_get_the_numbers_of_score(server, scored, rows, models):
    want = scored[models[0].fingerprint]
    status, _, body = predict(server, rows, "?embedding=float16")
    found = json.loads(body)
    assert status == 200 and found["model"] == models[0].fingerprint and set(found["predictions"][0]) == set(want.column_names)  # fmt: skip
    columns = {name: [row[name] for row in found["predictions"]] for name in want.column_names}
    for name in want.column_names:  # 50 rows are computed by the shape of 64, as score did
        assert np.array_equal(np.asarray(columns[name]), np.asarray(want[name].to_pylist(), np.float64)), name
    part = json.loads(predict(server, rows.slice(7, 1), "?embedding=float16")[2])["predictions"]
    same({name: [row[name] for row in part] for name in want.column_names}, want.slice(7, 1))


def test_arrow_in_and_out_and_explanations(server, scored, rows, models):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    headers = AUTH | {"content-type": ARROW, "accept": ARROW}
    status, answered, body = ask(server, "POST", "/v1/predict?embedding=float16&explain=true", sink.getvalue().to_pybytes(), headers)  # fmt: skip
    assert status == 200 and answered["content-type"] == ARROW
    table = pa.ipc.open_stream(body).read_all()
    want = scored[models[0].fingerprint]
    assert table.select(want.column_names).replace_schema_metadata(None).equals(want.replace_schema_metadata(None))
    chains = json.loads(ask(server, "GET", "/v1/chains")[2])["chains"]
    exemplars = read_exemplars(models[0])
    nearest, similarity = exemplars.nearest(np.asarray(want["embedding"].to_pylist(), np.float32))
    assert table["chain"].to_pylist() == nearest.tolist()
    np.testing.assert_allclose(table["similarity"].to_numpy(), similarity, atol=1e-3)  # float16 of the embedding
    explained = json.loads(predict(server, rows.slice(0, 1), "?explain=true")[2])["predictions"][0]["explanation"]
    assert {name: explained[name] for name in chains[0]} == chains[nearest[0]] and explained["users"] >= 5


def test_refusals_have_one_shape_and_say_the_place(server, rows):
    row = rows.slice(0, 1).to_pylist()[0]
    post = lambda body, **headers: ask(server, "POST", "/v1/predict", body, JSON | headers)  # noqa: E731
    assert failure(predict(server, pa.Table.from_pylist([row, row | {"age": 7}])), 422)["where"] == {
        "row": 1,
        "field": "age",
    }
    assert failure(predict(server, pa.Table.from_pylist([row | {"plan": "gold"}])), 422)["where"]["field"] == "plan"
    failure(post(b'{"rows": '), 400)
    failure(post(b"\x00\x01", **{"content-type": ARROW}), 400)
    failure(post(b"{}", **{"content-type": "text/plain"}), 415)
    failure(post(b"{}", **{"content-encoding": "gzip"}), 415)
    failure(post(json.dumps({"rows": [row] * 101}).encode()), 413)
    failure(post(b" " * 60_001), 413)
    failure(ask(server, "GET", "/nowhere"), 404)
    assert "POST" in ask(server, "GET", "/v1/predict")[1]["allow"]
    failure(ask(server, "GET", "/v1/predict"), 405)
    assert failure(predict(server, rows, "?embedding=int4"), 422)["where"]["field"] == "embedding"
    failure(ask(server, "GET", "/v1/model", headers={}), 401)
    failure(ask(server, "POST", "/v1/reload", headers={"authorization": "Bearer another"}), 401)
    assert "Paris" not in server.log.read_text() and row["city"] not in server.log.read_text()


def raw(server, *parts, pause=0.0):
    """Sends bytes as a client of little manners, and returns what comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        answer = b""
        while True:
            try:
                data = connection.recv(1 << 16)
            except ConnectionResetError:
                return answer
            if not data:
                return answer
            answer += data


def test_slow_clients_and_unstated_lengths(server):
    head = f"POST /v1/predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-type: application/json\r\n".encode()
    found: dict[str, bytes] = {}

    def client(name, *parts):
        found[name] = raw(server, *parts)

    chunk = b"2000\r\n" + b" " * 0x2000 + b"\r\n"
    clients = {
        "no head": (b"",),
        "half a head": (b"GET /healthz HT",),
        "second head": (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /heal"),
        "slow body": (head + b"content-length: 50\r\n\r\n", b"{"),
        "chunks without end": (head + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 8),
        "no http": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\r\n\r\n",),
    }
    threads = [threading.Thread(target=client, args=(name, *parts)) for name, parts in clients.items()]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    assert ask(server, "GET", "/readyz", headers={})[0] == 200  # the others are not held up
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 25  # each is cut off after two seconds
    assert found["no head"] == found["half a head"] == b"" and found["second head"].startswith(b"HTTP/1.1 200")
    assert b" 408 " in found["slow body"].splitlines()[0] and b"too slowly" in found["slow body"]
    assert b" 413 " in found["chunks without end"].splitlines()[0]
    assert b" 400 " in found["no http"].splitlines()[0]


def swap(server, directory):
    aside = server.link.with_name("next")
    aside.symlink_to(directory)
    os.replace(aside, server.link)


def test_reload_under_load_loses_no_request_and_keeps_the_old_model_where_the_new_one_fails(server, scored, rows, models, tmp_path):  # fmt: skip
    answers, stop = [], threading.Event()

    def client(first):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        for i in range(first, 100_000):
            if stop.is_set():
                return
            part = rows.slice(i % 40, 1 + i % 3)
            connection.request("POST", "/v1/predict", json.dumps({"rows": part.to_pylist()}), JSON)
            response = connection.getresponse()
            answers.append((i % 40, part.num_rows, response.status, json.loads(response.read())))

    clients = [threading.Thread(target=client, args=(13 * i,)) for i in range(3)]
    for thread in clients:
        thread.start()
    try:
        for model in (models[1], models[0]):
            swap(server, model.directory)
            before = len(answers)
            status, _, body = ask(server, "POST", "/v1/reload")
            assert status == 200 and json.loads(body)["changed"] and json.loads(body)["model"] == model.fingerprint
            while len(answers) < before + 10:
                time.sleep(0.02)
        (tmp_path / "broken").mkdir()
        for file in models[1].directory.iterdir():
            (tmp_path / "broken" / file.name).write_bytes(file.read_bytes())
        seal_model(tmp_path / "broken")  # whole, and without a probe
        swap(server, tmp_path / "broken")
        error = failure(ask(server, "POST", "/v1/reload"), 409)
        assert "served on" in error["what"] and "no recorded probe" in error["why"]
    finally:
        stop.set()
        for thread in clients:
            thread.join()
    assert json.loads(ask(server, "GET", "/readyz")[2])["model"] == models[0].fingerprint
    assert {found["model"] for *_, found in answers} == set(scored) and {status for _, _, status, _ in answers} == {200}
    for begin, count, _, found in answers:
        want = scored[found["model"]].drop_columns(["embedding"]).slice(begin, count)
        same({name: [row[name] for row in found["predictions"]] for name in want.column_names}, want)


def test_metrics_count_and_hold_nothing_of_a_row(server, rows):
    predict(server, rows.slice(0, 3))
    text = ask(server, "GET", "/metrics")[2].decode()
    for name in (
        "scaletot_rows_total",
        "scaletot_batch_rows_bucket",
        "scaletot_request_seconds_bucket",
        "scaletot_queued_rows",
    ):
        assert name in text
    assert 'scaletot_requests_total{path="/v1/predict",status="200"}' in text and "Paris" not in text


def test_a_hangup_reloads_and_a_term_ends_it_in_order(server, models, request):
    """The last of the file: the server ends."""
    swap(server, models[1].directory)
    server.process.send_signal(signal.SIGHUP)
    wanted = f"model {models[1].fingerprint} in place of {models[0].fingerprint}"
    deadline = time.monotonic() + 60
    while server.log.read_text().count(wanted) < 2 and wanted not in server.log.read_text()[-400:]:
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert "Traceback" not in server.log.read_text()
