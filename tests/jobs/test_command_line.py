"""What a user types: help, wrong flags, config files, exit codes. Every job is run as a process of its own."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "jobs"))

from command_line import parse  # noqa: E402 - the jobs are scripts, not a package

from pipeline.records.settings import GROUPS  # noqa: E402
from pipeline.records.vocabulary import UsageError  # noqa: E402

JOBS = ("preprocess", "train", "evaluate", "score", "export", "view", "models", "quarantine", "demo", "benchmark")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A config of the tests."""

    input: str
    """Where from."""
    frames_per_clip: int = 8
    """Frames (count)."""
    rate: float | None = None
    """Rate (1/s)."""
    page: bool = True
    """Write the page."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares."""

    def __post_init__(self):
        if self.frames_per_clip < 1:
            raise ValueError(f"--frames-per-clip is {self.frames_per_clip}; give 1 or more")


def parsed(*arguments):
    return parse(Config, ["--input", "here", *arguments], description="A job of the tests.")


def test_flags_are_typed():
    found = parsed("--frames-per-clip", "3", "--rate", "2.5", "--page=false", "--fractions", "0.5,0.25,0.25")
    assert found == Config(input="here", frames_per_clip=3, rate=2.5, page=False, fractions=(0.5, 0.25, 0.25))


def test_a_switch_needs_no_value():
    assert parsed("--page").page is True


def test_a_config_file_gives_defaults_that_flags_override(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("frames_per_clip: 5\nrate: 1.5\nfractions: [0.8, 0.1, 0.1]\n")
    found = parsed("--config", str(file), "--rate", "2")
    assert found == Config(input="here", frames_per_clip=5, rate=2.0, fractions=(0.8, 0.1, 0.1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames-per-clip", "many"], r"--frames-per-clip: .*int.*many \(see --help\)"),
        (["--frames-per-clip", "0"], r"--frames-per-clip is 0; give 1 or more"),
        (["--frame-per-clip", "3"], r"--frame-per-clip 3; did you mean --frames-per-clip\?"),
        (["--frames", "3"], r"unrecognized arguments: --frames 3; did you mean --frames-per-clip\?"),
        (["--frames=3"], r"unrecognized arguments: --frames=3; did you mean --frames-per-clip\?"),
        (["--pag"], r"unrecognized arguments: --pag; did you mean --page\?"),
        (["--zzz"], r"unrecognized arguments: --zzz \(see --help\)"),
        (["--fractions", "1,2"], r"--fractions: .*1,2"),
        (["--config", "nothing.yaml"], r"nothing.yaml"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        parsed(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "root:$6$hunter2:19000:0:99999:7:::\nx:*:1\n",
        "password: hunter2\n",
        "hunter2\n",
        "frames_per_clip: hunter2 and more\n",
        "rate: [hunter2, {a: hunter2}]\n",
        "a: &a [hunter2]\nb: *a\n",
        "[" * 10**5,
        "{hunter2",
    ],
)
def test_a_file_that_is_no_config_is_not_printed(content, tmp_path):
    (tmp_path / "secret").write_text(content)
    with pytest.raises(UsageError, match=f"--config {tmp_path}/secret") as caught:
        parsed("--config", str(tmp_path / "secret"))
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_that_nests_too_deep_is_refused():
    with pytest.raises(UsageError, match="nests too deep"):
        parsed("--rate", "[" * 10**5)


def test_a_wrong_field_in_a_config_file_is_named(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("frames_per_klip: 5\n")
    with pytest.raises(UsageError, match="frames_per_klip"):
        parsed("--config", str(file))


ENDING = '''
import atexit, sys, time
sys.path.insert(0, "jobs")
from dataclasses import dataclass
from command_line import run_job

@dataclass
class Config:
    output: str
    """Where to."""

def end():
    print("ending", flush=True)
    time.sleep(1)

atexit.register(end)
run_job(Config, lambda config: 3, description="A job that has ended.")
'''


@pytest.mark.lengthy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_python_ends_leaves_the_exit_code_of_the_job(number, tmp_path):
    job = tmp_path / "job.py"
    job.write_text(ENDING)
    command = [sys.executable, str(job), "--output", "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout.readline() == b"ending\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (3, b"")


def run(job, *arguments):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )


@pytest.mark.parametrize("job", JOBS)
def test_help_has_the_flags_that_most_need_and_help_all_every_one(job):
    short, whole = run(job, "--help"), run(job, "--help-all")
    assert (short.returncode, whole.returncode) == (0, 0)
    assert len(short.stdout.splitlines()) < 80
    assert len(short.stdout.splitlines()) <= len(whole.stdout.splitlines())
    for text in (short.stdout, whole.stdout):
        assert "exit codes: 0 every input is accounted for" in " ".join(text.split())
    if job in ("preprocess", "train", "evaluate", "score", "export", "view", "quarantine"):
        examples = short.stdout.partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
        assert len(examples) == 2
        assert all(line.startswith(f"  {job}.py ") for line in examples)


@pytest.mark.parametrize("job", ["preprocess", "score"])
def test_help_is_grouped_with_the_input_first(job):
    titles = re.findall(r"^(\w+):$", run(job, "--help-all").stdout, re.MULTILINE)
    titles.remove("examples")
    wanted = [group for group in (*GROUPS, "options") if group in titles]
    assert titles == wanted
    assert {"input", "sampling", "faces", "work", "pages", "machine"} - set(titles) <= {"sampling"}
    assert "other" not in titles


@pytest.mark.parametrize("job", JOBS)
def test_the_examples_of_the_help_are_commands_of_the_job(job):
    command = load(job)
    for example in command.keywords.get("examples", ()):
        options = {name: command.keywords[name] for name in ("description", "positional") if name in command.keywords}
        parse(command.args[0], shlex.split(example), **options)


def load(job):
    """The `run_job` of a job, with its arguments."""
    return importlib.import_module(job).run


@pytest.mark.parametrize("job", JOBS)
def test_help_imports_no_library_that_takes_long(job):
    script = f"import sys, runpy; sys.argv = ['{job}.py', '--help']; sys.path.insert(0, 'jobs')\n"
    script += f"try: runpy.run_path('jobs/{job}.py', run_name='__main__')\nexcept SystemExit: print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    loaded = set(found.stdout.splitlines()[-1].split())
    assert "jsonargparse" in loaded
    assert not {"torch", "ray", "pandas", "pyarrow", "numpy", "fsspec", "duckdb", "av", "rich", "plotly"} & loaded


def test_version_is_the_packages():
    found = run("preprocess", "--version")
    assert (found.returncode, found.stdout) == (0, f"preprocess.py {metadata.version('emotion-pipeline')}\n")


def test_help_whose_reader_has_gone_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "jobs/preprocess.py", "--help-all"]
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=REPOSITORY, check=False)
    os.close(write)
    assert found.stderr == b""


def test_a_python_without_the_packages_is_told_which_to_use():
    command = [sys.executable, "-S", "jobs/preprocess.py", "--help"]  # -S: nothing that is installed is found.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("preprocess.py: error: ")
    assert ".venv/bin/python" in line


def installed(*arguments):
    """The command that pyproject.toml installs."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["emotion-pipeline"].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = 'emotion-pipeline'; {function}()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


@pytest.mark.lengthy
def test_the_installed_command_runs_every_job():
    found = installed("--help")
    assert found.returncode == 0
    for job in set(JOBS) - {"benchmark"}:
        assert f"    {job} " in found.stdout
        assert installed(job, "--help").stdout.startswith(f"usage: emotion-pipeline {job} ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["preproces"], "emotion-pipeline: error: .*preproces.*choose from 'preprocess'.*"),
        (["preprocess", "--frames", "3"], "emotion-pipeline preprocess: error: .*--frames 3; did you mean.*"),
        (["quarantine"], "emotion-pipeline quarantine: error: the following arguments are required: action, output.*"),
        (["quarantine", "list"], "emotion-pipeline quarantine: error: the following arguments are required: output .*"),
    ],
)
def test_the_installed_command_tells_what_is_wrong_in_one_line(arguments, message):
    found = installed(*arguments)
    assert found.returncode == 2
    assert re.fullmatch(message, found.stderr.removesuffix("\n"))


def test_completion_knows_every_job_and_every_flag():
    script = installed("--print_completion=shtab-bash").stdout
    for flag in ("preprocess", "score", "--frames-per-clip", "--min-decode-integrity", "--abstain-below"):
        assert flag in script
    syntax = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (syntax.returncode, syntax.stderr) == (0, "")


@pytest.mark.parametrize("job", JOBS)
def test_a_wrong_flag_ends_with_code_2_and_one_line(job):
    found = run(job, "--no-such-flag", "1")
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1
    assert found.stderr.startswith(f"{job}.py: error: ")


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("preprocess", ["--input", "no-such-folder", "--output", "out"], "no-such-folder"),
        ("train", ["--data", "no-such-folder", "--output", "out"], "no-such-folder"),
        ("evaluate", ["--data", "no-such-folder", "--checkpoint", "no-such-run", "--output", "out"], "no-such"),
        ("score", ["--input", "x", "--checkpoint", "no-such-run", "--output", "out"], "no-such-run"),
        (
            "preprocess",
            ["--input", "x", "--output", "out", "--stream", "x"],
            "--stream: give an integer, got x (see",
        ),
        (
            "preprocess",
            ["--input", "x", "--output", "out", "--detect-every", "x"],
            "--detect-every: give an integer, g",
        ),
        ("preprocess", ["--input", "x", "--output", "out", "--split-fractions", "a,b,c"], "give 3 numbers, separated"),
        ("train", ["--data", "x", "--output", "out", "--device", "tpu"], "--device: give auto, cpu or cuda, got tpu"),
        ("train", ["--data", "x", "--output", "out", "--context-crop", "all"], "give none, public or aspect, got all"),
        ("train", ["--data", "x", "--output", "out", "--flip", "maybe"], "--flip: give true or false, got maybe"),
        ("preprocess", ["--input", "x", "--output", "out", "--driver-memory", "9" * 14], "give 16777216 at most"),
        ("preprocess", ["--input", "x", "--output", ""], "--output is empty"),
        ("train", ["--data", "x", "--output", ""], "--output is empty"),
        ("quarantine", ["list", "no-such-folder"], "no-such-folder"),
        ("quarantine", ["burn", "no-such-folder"], "burn"),
        ("quarantine", ["verify", "no-such-folder"], "no-such-folder"),
        ("quarantine", ["verify", "no-such-folder", "undecodable"], "verify reads every shard"),
    ],
)
def test_a_wrong_path_ends_with_code_2_and_one_line(job, arguments, message, tmp_path):
    arguments = [str(tmp_path / a) if a == "out" else a for a in arguments]
    found = run(job, *arguments)
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert message in found.stderr
    assert not (tmp_path / "out" / "config.yaml").exists()


KEPT = REPOSITORY / "tests" / "kept" / "0.1.0"


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("job", "arguments", "output", "message"),
    [
        ("score", ("--input", KEPT / "uploads", "--checkpoint", KEPT / "run"), "data", "holds preprocessed examples"),
        ("score", ("--input", KEPT / "uploads", "--checkpoint", KEPT / "run"), "run", "holds a training run"),
        ("preprocess", ("--input", KEPT / "uploads"), "labels", "holds labels"),
        ("preprocess", ("--input", KEPT / "uploads"), "run", "holds a training run"),
        ("train", ("--data", KEPT / "data"), "data", "holds preprocessed examples"),
        ("train", ("--data", KEPT / "data"), "labels", "holds labels"),
        ("evaluate", ("--data", KEPT / "data", "--checkpoint", KEPT / "run"), "run", "holds a training run"),
    ],
)
def test_a_job_writes_into_no_output_of_another(job, arguments, output, message, tmp_path):
    shutil.copytree(KEPT / output, tmp_path / output)
    before = sorted(tmp_path.rglob("*"))
    found = run(job, *map(str, arguments), "--output", str(tmp_path / output))
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert message in line
    assert "give another --output" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.lengthy
@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_a_job_that_loads_pytorch_says_what_it_does_before(job, tmp_path):
    told = {"kind": "examples", "schema_version": 1, "config": {"face_px": 32, "context_px": 32}, "shards": []}
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    code = (
        "import sys, runpy; sys.path[:0] = ['jobs']; sys.modules['torch'] = None; "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    more = ["--checkpoint", "baseline"] if job == "evaluate" else []
    arguments = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), *more]
    found = subprocess.run(
        [sys.executable, "-c", code, f"jobs/{job}.py", *arguments], capture_output=True, text=True, check=False
    )
    assert f"on {tmp_path}: loading PyTorch" in found.stderr.splitlines()[0]
    assert found.returncode == 2  # There is no PyTorch.


@pytest.mark.lengthy
@pytest.mark.parametrize(("job", "more"), [("preprocess", []), ("score", ["--checkpoint", "baseline"])])
def test_a_job_on_clips_says_what_it_does_before_it_loads_decoders_and_ray(job, more, tmp_path):
    code = (
        "import sys, runpy; sys.path[:0] = ['jobs']; sys.modules |= dict.fromkeys(['av', 'ray', 'torch']); "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    arguments = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), *more]
    found = subprocess.run(
        [sys.executable, "-c", code, f"jobs/{job}.py", *arguments], capture_output=True, text=True, check=False
    )
    assert f" {tmp_path}: loading decoders" in found.stderr.splitlines()[0]
    assert found.returncode == 2  # There is no PyAV.


@pytest.mark.lengthy
def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path):
    for job, arguments in (("score", ("--input", KEPT / "uploads")), ("evaluate", ("--data", KEPT / "data"))):
        found = run(
            job, *map(str, arguments), "--checkpoint", str(tmp_path / "none"), "--output", str(tmp_path / "out")
        )
        assert found.returncode == 2
        (line,) = [line for line in found.stderr.splitlines() if "loading PyTorch" not in line]
        assert line.startswith(f"{job}.py: error: ")
        assert str(tmp_path / "none") in line
        assert not (tmp_path / "out").exists()


@pytest.mark.lengthy
def test_quarantine_takes_the_output_of_score_as_it_is():
    for action in ("list", "show", "verify"):
        found = run("quarantine", action, str(KEPT / "labels"))
        assert found.returncode == 0, found.stderr
        assert found.stdout.strip()


@pytest.mark.lengthy
def test_verify_tells_each_shard_that_is_not_what_was_committed(tmp_path):
    shutil.copytree(KEPT / "data", tmp_path / "data")
    whole = run("quarantine", "verify", str(tmp_path / "data"))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "each has the sha256 of its ledger entry" in whole.stdout
    first, second, *_ = sorted((tmp_path / "data" / "examples").rglob("*.parquet"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1] + b"\0")
    found = run("quarantine", "verify", str(tmp_path / "data"))
    assert found.returncode == 2
    one, other, total = found.stdout.splitlines()
    assert (first.name in one, second.name in other) == (True, True)
    assert total.endswith("read: 2 are not as committed")
    assert re.fullmatch(r"quarantine.py: error: 2 shards of .* are not what was committed; .*\n", found.stderr)
