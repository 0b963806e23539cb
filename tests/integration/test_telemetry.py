"""OpenTelemetry: on with the standard variable, and not even loaded without it."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.processes import wait_until
from tests.support.service import Service


class Collector:
    """As much of an OTLP/HTTP collector as it takes to see which spans come in."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def named(self, name: str) -> list[dict[str, Any]]:
        """The attributes of the spans of this name."""
        return [
            {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
            for attributes in (span.attributes for span in self.spans if span.name == name)
        ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        for scope in resource.scope_spans:
                            spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        return Handler

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tasks.db"


def test_every_request_is_a_span_that_carries_on_the_callers_trace(
    collector: Collector, database: str
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    with Service(DATABASE_URL=database, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as service:
        assert httpx2.get(f"{service.url}/api/zoe/tasks/7", headers=headers).status_code == 404
        service.stop()  # which sends what has gathered
    (span,) = collector.named("GET /api/{user_id}/tasks/{id}")
    assert span["http.response.status_code"] == 404
    assert span["url.path"] == "/api/zoe/tasks/7"
    assert trace_id in {each.trace_id.hex() for each in collector.spans}


def test_spans_come_in_while_the_service_runs(collector: Collector, database: str) -> None:
    with Service(
        DATABASE_URL=database,
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="100",
    ):
        wait_until(lambda: collector.named("GET /health"), "the span of the readiness check")


def test_a_token_in_a_query_string_is_in_no_span(collector: Collector, database: str) -> None:
    with Service(DATABASE_URL=database, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as service:
        for query in ("access_token=seekrit", "since=0&access%5Ftoken=seekrit", "since=0"):
            answer = httpx2.get(f"{service.url}/api/tasks/changes?{query}")
            assert answer.status_code == 200
        service.stop()
    (span,) = collector.named("GET /api/tasks/changes")
    assert span["url.query"] == "since=0"
    assert not any(b"seekrit" in each.SerializeToString() for each in collector.spans)


def test_without_the_variable_nothing_of_the_sdk_is_loaded(database: str) -> None:
    # Python then writes a line for every module that it loads.
    with Service(DATABASE_URL=database, PYTHONPROFILEIMPORTTIME="1") as service:
        assert httpx2.post(f"{service.url}/api/tasks", json={"title": "task"}).status_code == 201
        assert "fastapi.telemetry" in service.log
        assert "opentelemetry.sdk" not in service.log
        assert "opentelemetry.exporter" not in service.log


def test_without_its_packages_one_line_says_so_and_the_service_runs(
    tmp_path: Path, database: str
) -> None:
    missing = "import sys; sys.modules['opentelemetry.exporter'] = None"
    (tmp_path / "sitecustomize.py").write_text(missing)
    with Service(
        DATABASE_URL=database,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        PYTHONPATH=str(tmp_path),
    ) as service:
        assert httpx2.get(f"{service.url}/api/tasks").status_code == 200
        (line,) = [line for line in service.log.splitlines() if "telemetry" in line.lower()]
        assert "fastapi[opentelemetry]" in line
        assert "Traceback" not in service.log
