"""Ids of Hugging Face, fetched from an endpoint of this machine that answers as its hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_hf_models import saved

from pipeline.models.hf_hub import is_hub_id
from pipeline.models.shipped import run_url_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = Path(__file__).resolve().parents[2]
LABEL = """
import json, sys
from example_shards import drawn_example
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.models.predict import Predictor
from pipeline.models.shipped import portable
from pipeline.score.model import model_record
examples = [drawn_example(number, label=None, split=None, px=32) for number in range(3)]
info = read_checkpoint_info(sys.argv[1])
pinned = portable(sys.argv[1])
found = Predictor(pinned, which="best", device="cpu", batch_size=2).predict(examples)
beside = Predictor(sys.argv[2], which="best", device="cpu", batch_size=2)
print(json.dumps({"pinned": pinned, "info": info, "model": model_record(info).facts(), "apart":
    float(abs(found - beside.predict(examples)).max()), "same": info["checkpoint_sha256"] == beside.sha256}))
"""


class Hub:
    """What a hub says of one repository; asked: the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        hub, self.asked = self, []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(path)
                name = path.rpartition("/")[2]
                if path.startswith("/api/models/made/vit/tree/"):
                    sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
                    files = [
                        {"type": "file", "path": each, "size": size, "oid": "0" * 40} for each, size in sizes.items()
                    ]
                    self.give(json.dumps(files).encode())
                elif path.startswith("/api/models/made/vit"):
                    files = [{"rfilename": each.name} for each in folder.iterdir()]
                    self.give(json.dumps({"id": "made/vit", "sha": COMMIT, "siblings": files}).encode())
                elif path == f"/made/vit/resolve/{COMMIT}/{name}" and (folder / name).is_file():
                    self.give((folder / name).read_bytes())
                else:
                    self.give(b"{}", status=404, error="RepoNotFound")

            def give(self, body: bytes, *, status: int = 200, error: str | None = None) -> None:
                self.send_response(status)
                headers = {"Content-Length": len(body), "X-Repo-Commit": COMMIT, "Content-Type": "application/json"}
                headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()}"'
                for key, value in (headers | ({"X-Error-Code": error} if error else {})).items():
                    self.send_header(key, str(value))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "vit"
    saved(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04 a pickle")
    (folder / "modeling_evil.py").write_text("raise SystemExit('it ran')\n")
    found = Hub(folder)
    found.folder = folder  # pyright: ignore[reportAttributeAccessIssue]
    yield found
    found.server.shutdown()
    found.server.server_close()


def run(*command: str, endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [str(REPOSITORY), str(REPOSITORY / "tests" / "support")]
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=home,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.lengthy
def test_an_id_labels_as_its_folder_does_and_is_pinned_to_its_commit(hub, tmp_path):
    found = run("-c", LABEL, "hf:made/vit", str(hub.folder), endpoint=hub.url, home=tmp_path)
    assert found.returncode == 0, found.stderr[-2000:]
    told = json.loads(found.stdout.splitlines()[-1])
    assert told["pinned"] == f"hf:made/vit@{COMMIT}" == told["info"]["source"] == told["model"]["source"]
    assert f"from hf:made/vit@{COMMIT}" in told["model"]["words"]
    assert (told["apart"], told["same"]) == (0, True)
    assert len(told["model"]["files_sha256"]) == 64
    there = {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")}
    assert there == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert not [path for path in hub.asked if path.endswith((".py", ".bin"))]
    # What is in the cache needs no network.
    again = run(
        str(REPOSITORY / "jobs" / "models.py"),
        "card",
        f"hf:made/vit@{COMMIT}",
        endpoint="http://127.0.0.1:9",
        home=tmp_path,
    )
    assert again.returncode == 0, again.stderr
    assert "vit, nobody noted when" in again.stdout


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("checkpoint", "is_there", "said"),
    [
        ("hf:made/other", True, "made/other can't be fetched from Hugging Face"),
        ("made/other@main", True, "made/other at revision main can't be fetched .*no folder 'made/other@main' is here"),
        ("hf:made/vit", False, "made/vit can't be fetched .*check the name, the network .* --local-dir FOLDER"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub, tmp_path, checkpoint, is_there, said):
    endpoint = hub.url if is_there else "http://127.0.0.1:9"
    found = run(str(REPOSITORY / "jobs" / "models.py"), "card", checkpoint, endpoint=endpoint, home=tmp_path)
    (line,) = found.stderr.splitlines()
    assert found.returncode == 2
    assert line.startswith("models.py: error: checkpoint")
    assert re.search(said, line), line


@pytest.mark.parametrize(
    ("checkpoint", "is_one"),
    [
        ("hf:owner/name", True),
        ("hf://owner/name@v1.0", True),
        ("owner/name", True),
        ("owner/name@refs/pr/3", True),
        ("owner/model.onnx", False),
        ("baseline", False),
        ("./owner/name", False),
        ("/owner/name", False),
        ("s3://owner/name", False),
        ("out/runs/one", False),
        ("here/run", False),
        ("../owner/name", False),
    ],
)
def test_what_is_an_id_and_what_a_path(tmp_path, monkeypatch, checkpoint, is_one):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(checkpoint) is is_one
    if not is_one and checkpoint != "baseline":
        assert run_url_of(checkpoint) == checkpoint
