"""The wheel, installed with each light extra alone in a fresh environment, does there what the extra is for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.extras.linked import ROOT, copy_sources

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore")]

USES = Path(__file__).parent / "uses"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sources = copy_sources(tmp_path_factory.mktemp("sources") / "attndrift")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "dist",
        ".",
    ]
    subprocess.run(build, cwd=sources, check=True, timeout=600)
    return next((sources / "dist").glob("*.whl"))


@pytest.fixture
def installed(wheel: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Run]:
    """An environment with the wheel and the extra of the test, and nothing else: runs a command in an empty folder."""
    extra, home = request.param, tmp_path / "environment"
    venv.create(home, with_pip=True)
    target = f"{wheel}[{extra}]" if extra else str(wheel)
    pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints.txt"), target], check=True, timeout=1800)
    folder = tmp_path / "empty"
    folder.mkdir()
    # The tests' own environment, less what would lead to the packages and sources of the tests.
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = {
        **kept,
        "PATH": f"{home / 'bin'}{os.pathsep}{kept['PATH']}",
        "ATTNDRIFT_CACHE": str(tmp_path / "cache"),
    }

    def run(*command: str, code: int = 0) -> str:
        ended = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200, check=False
        )
        assert ended.returncode == code, f"{command}: {ended.stdout}\n{ended.stderr}"
        return ended.stdout + ended.stderr

    for name in ("study.yaml", "runs.csv"):
        shutil.copy(USES / name, folder / name)
    yield run
    # Seven environments of a gigabyte each.
    shutil.rmtree(home)


def with_extra(extra: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("installed", [extra], indirect=True, ids=[extra or "plain"])


@with_extra("")
def test_plain(installed: Run) -> None:
    first = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert "cka_mean is 0.86" in installed("python", "-c", first)
    assert installed("python", str(USES / "plain.py")).endswith("watched\n")
    assert installed("attndrift", "--version") == "0.2.0\n"
    said = installed("attndrift", "demo", code=1)
    assert said.count("\n") == 1
    assert said.endswith('pip install "attndrift[study,report]"\n')


@with_extra("study")
def test_study(installed: Run) -> None:
    installed("attndrift", "check", "study.yaml")
    assert "3 finished" in installed("attndrift", "run", "study.yaml", "--jobs", "2")
    assert "3 runs" in installed("attndrift", "collect", "studies/small")
    assert "chance 1.00%" in installed("attndrift", "baseline", "embedded", "--zero-shot", "objects", "--limit", "100")
    assert 'pip install "attndrift[report]"' in installed("attndrift", "report", "studies/small", code=1)


@with_extra("report")
def test_report(installed: Run) -> None:
    installed("attndrift", "import", "runs.csv", "--output", "tables")
    assert "report.html" in installed("attndrift", "report", "tables")
    save = (
        "import torch\nfrom attndrift.data import load_dataset\nfrom attndrift.models import load_model, load_processor\n"
        "model = load_model('embedded')\nmodel.visual_projection.weight.data.mul_(1 + 0.1 * torch.rand(1))\n"
        "torch.nn.init.normal_(model.vision_model.post_layernorm.bias, std=0.1)\nmodel.save_pretrained('tuned')\n"
        "[part.save_pretrained('tuned') for part in load_processor('embedded')]\n"
        "import pathlib; pathlib.Path('photos').mkdir()\ntiles = load_dataset('tiles').test\n"
        "[tiles[i].save(f'photos/{i}.png') for i in range(6)]\n"
    )
    installed("python", "-c", save)
    assert "cka_mean" in installed("attndrift", "compare", "embedded", "tuned", "--images", "photos", "--json")
    assert 'pip install "attndrift[study]"' in installed("attndrift", "run", "study.yaml", code=1)


@with_extra("peft")
def test_peft(installed: Run) -> None:
    assert installed("python", "-W", "ignore", str(USES / "adapters.py")).endswith("adapted\n")


@with_extra("ray")
def test_ray(installed: Run) -> None:
    assert "3 finished" in installed("attndrift", "run", "study.yaml", "--engine", "ray")


@with_extra("slurm")
def test_slurm(installed: Run) -> None:
    assert "3 finished" in installed(
        "attndrift", "run", "study.yaml", "--engine", "slurm", "--scheduler", "cluster=local"
    )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3-compatible server on the loopback."""
    server, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("studies")
    yield "s3://studies"
    running.stop()


@with_extra("s3")
def test_s3(bucket: str, installed: Run) -> None:
    assert "3 finished" in installed("attndrift", "run", "study.yaml", "--output", f"{bucket}/small")
    assert "files fetched" in installed("attndrift", "fetch", f"{bucket}/small", "fetched")
