"""What a user types: help, wrong flags, config files, exit codes. Every job is run as a process of its own."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "jobs"))

from command_line import parse  # noqa: E402 - the jobs are scripts, not a package

from pipeline.records.vocabulary import UsageError  # noqa: E402

JOBS = ("preprocess", "train", "evaluate", "score", "quarantine")


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
        (["--fractions", "1,2"], r"--fractions: .*1,2"),
        (["--config", "nothing.yaml"], r"nothing.yaml"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        parsed(*arguments)
    assert "\n" not in str(caught.value)


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
def test_help_tells_every_field_with_its_default_and_the_exit_codes(job):
    found = run(job, "--help")
    assert found.returncode == 0
    text = " ".join(found.stdout.split())
    assert "exit codes: 0 every input is accounted for" in text
    if job != "quarantine":
        assert "default:" in text
        assert "--output" in text


@pytest.mark.parametrize("job", JOBS)
def test_a_wrong_flag_ends_with_code_2_and_one_line(job):
    found = run(job, "--no-such-flag", "1")
    assert found.returncode == 2
    assert len(found.stderr.strip().splitlines()) == 1
    assert found.stderr.startswith(f"{job}.py: error: ")


@pytest.mark.parametrize(
    ("job", "arguments", "message"),
    [
        ("preprocess", ["--input", "no-such-folder", "--output", "out"], "no-such-folder"),
        ("train", ["--data", "no-such-folder", "--output", "out"], "no-such-folder"),
        ("evaluate", ["--data", "no-such-folder", "--checkpoint", "no-such-run", "--output", "out"], "no-such"),
        ("score", ["--input", "x", "--checkpoint", "no-such-run", "--output", "out"], "no-such-run"),
        ("quarantine", ["list", "no-such-folder"], "no-such-folder"),
        ("quarantine", ["burn", "no-such-folder"], "burn"),
    ],
)
def test_a_wrong_path_ends_with_code_2_and_one_line(job, arguments, message, tmp_path):
    arguments = [str(tmp_path / a) if a == "out" else a for a in arguments]
    found = run(job, *arguments)
    assert found.returncode == 2, found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert message in found.stderr
    assert not (tmp_path / "out" / "config.yaml").exists()
