"""Launches whose output, signals, files or machine are unusual."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ENDLESS, UNCONFIRMED, Gates, hooked, hpo, ledger, read_until, started, strict_json, write_study

LAUNCH = [sys.executable, "-m", "hpo.launch", "tiny.toml", "--trials", "2", "--workers", "1", "--no-dashboard"]


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a launch of two trials in a line of a shell, in which it is called ``"$@"``."""
    write_study()
    command = ["bash", "-c", line, "bash", *LAUNCH]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | UNCONFIRMED | environment
    )


def result() -> object:
    return strict_json(Path("results/tiny/best.json").read_text())


@pytest.mark.parametrize(
    "line",
    [
        '"$@" <&- >&- 2>&-',
        pytest.param('"$@" 2>/dev/full | true; exit ${PIPESTATUS[0]}', marks=pytest.mark.slow),
        pytest.param('"$@" 2> >(true) >/dev/null', marks=pytest.mark.slow),
    ],
)
def test_unusable_output_keeps_exit_code_and_result(line):
    done = shell(line)
    assert done.returncode == 0, done.stderr
    assert result()["trials"]["complete"] == 2


def test_full_disk_of_stdout_is_one_line_and_keeps_result():
    done = shell('"$@" --quiet >/dev/full')
    assert (done.returncode, done.stderr) == (
        1,
        "hpo: stdout: cannot be written: No space left on device; the result is in results/tiny/best.json\n",
    )
    assert result()["trials"]["complete"] == 2


@pytest.mark.slow
def test_log_file_has_no_control_codes():
    done = shell('"$@" >/dev/null', FORCE_COLOR="1")
    assert done.returncode == 0
    assert "2/2 trials" in done.stderr
    assert "\x1b" not in done.stderr


# A parent that ignores or blocks all signals that a launch can meet.
PARENT = """
import os, signal, sys
signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
for number in signals:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_launch_with_ignored_and_blocked_signals_finishes():
    write_study()
    command = [sys.executable, "-c", PARENT, *LAUNCH, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | UNCONFIRMED)
    assert (done.returncode, done.stderr) == (0, "")
    assert ledger() == [(0, "COMPLETE"), (1, "COMPLETE")]


@pytest.mark.slow
def test_ignored_signals_do_not_stop_launch():
    write_study()
    command = ["bash", "-c", "trap '' INT TERM HUP; exec \"$@\"", "bash", *LAUNCH]
    with Gates([0]) as gates:
        environment = os.environ | UNCONFIRMED | gates.environment
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as job:
            read_until(job, "1 running")
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                job.send_signal(number)
            gates.open(0)
            assert strict_json(job.communicate()[0])["trials"]["complete"] == 2
    assert job.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["launch", "worker"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_hangup_stops_like_sigterm(command, number):
    arguments = [command, write_study(ENDLESS), *(["--workers", 1, "--no-dashboard"] if command == "launch" else [])]
    with Gates([0]) as gates, started(*arguments, **gates.environment) as process:
        while not gates.reached:
            assert process.poll() is None
        process.send_signal(number)
        process.communicate()
    assert process.returncode == 130
    assert ledger("hpo.db") == [(0, "RUNNING")]


def start_on_terminal(*command: str, ignore_hangup: bool, **environment: str) -> tuple[int, int]:
    """Start a command on a terminal; return its process and the other end of the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignore_hangup else signal.SIG_DFL)
        os.execve(command[0], command, os.environ | environment)  # noqa: S606  # the arguments are fixed
    return pid, terminal


@pytest.mark.slow
@pytest.mark.parametrize(("ignore_hangup", "code"), [(True, 0), (False, 130)])
def test_launch_without_its_terminal(ignore_hangup, code):
    write_study()
    with Gates([0]) as gates:
        environment = {"HPO_CONFIRM": "1"} | gates.environment
        pid, terminal = start_on_terminal(*LAUNCH, ignore_hangup=ignore_hangup, **environment)
        while not gates.reached:
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 65536)
        os.close(terminal)
        if ignore_hangup:
            gates.open(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert Path("results/tiny/best.json").exists() == ignore_hangup
    if ignore_hangup:
        assert result()["confirmation"]["values"]


@pytest.mark.slow
def test_interrupt_of_launch_and_its_reader_keeps_checkpoints():
    """Ctrl-C reaches tee as well, so that the launch cannot print that it stops."""
    study = write_study(ENDLESS)
    with Gates([0, 1]) as gates:
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "hpo.launch", str(study), "--workers", "2", "--no-dashboard"]
        environment = os.environ | UNCONFIRMED | gates.environment
        with subprocess.Popen(command, stdout=writer, stderr=writer, env=environment) as launch:
            os.close(writer)
            while gates.reached != {0, 1}:
                assert launch.poll() is None
            os.close(reader)
            launch.send_signal(signal.SIGINT)
            assert launch.wait() == 130
    assert ledger() == [(0, "RUNNING"), (1, "RUNNING")]


@pytest.mark.slow
def test_reader_that_does_not_read_does_not_stop_launch():
    write_study()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    while select.select([], [writer], [], 0)[1]:
        os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    done = subprocess.run(LAUNCH, stderr=writer, stdout=subprocess.PIPE, check=False, env=os.environ | UNCONFIRMED)
    assert done.returncode == 0
    assert json.loads(done.stdout)["trials"]["complete"] == 2
    for descriptor in (reader, writer):
        os.close(descriptor)


@pytest.mark.slow
def test_outputs_of_launch_and_export_can_be_special_files(tmp_path):
    master, slave = os.openpty()
    done = shell(f'"$@" --output {os.ttyname(slave)}')
    assert done.returncode == 0, done.stderr
    for descriptor in (master, slave):
        os.close(descriptor)
    Path("shared").mkdir()
    Path("link.json").symlink_to("shared/best.json")
    assert hpo("export", "tiny.toml", "--output", "link.json").returncode == 0
    assert Path("link.json").is_symlink()
    assert Path("shared/best.json").read_text() == done.stdout
    os.mkfifo("pipe")
    with started("export", "tiny.toml", "--output", "pipe") as export:
        assert Path("pipe").read_text() == done.stdout
        assert export.wait() == 0
    assert Path("pipe").is_fifo()
    printed = hpo("export", "tiny.toml", "--output", "/dev/stdout")
    assert printed.stdout == done.stdout


@pytest.mark.slow
def test_one_output_for_launch_and_export():
    study = write_study()
    for output in ("folder", "file.json"):
        environment = {"HPO_OUTPUT": output, "HPO_PORT": "tcp://10.43.0.5:8080"}
        launched = hpo("launch", study, "--trials", 1, "--no-dashboard", **environment)
        assert launched.returncode == 0, launched.stderr
        path = Path("folder/best.json") if output == "folder" else Path("file.json")
        assert path.read_text() == launched.stdout
        path.unlink()
        assert hpo("export", study, **environment).returncode == 0
        assert path.read_text() == launched.stdout
    assert hpo("export", study, "--trial", 0, "--output", "folder").returncode == 0
    assert Path("folder/trial_0.json").exists()


@pytest.mark.slow
def test_long_temporary_folder_and_missing_sigtimedwait(tmp_path):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    Path("hooks.py").write_text("import signal\ndel signal.sigtimedwait\n")
    environment = hooked()
    Path("sitecustomize.py").write_text("import hooks\n")
    done = shell('"$@" --quiet', TMPDIR=str(folder), **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["launch", "worker", "export", "dashboard", "reproduce"])
def test_windows_is_refused_in_one_line(command):
    environment = hooked()
    Path("sitecustomize.py").write_text("import sys\nsys.platform = 'win32'\n")
    done = hpo(command, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hpo: Windows is not supported")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONWARNINGS": "error"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"TMPDIR": "/nowhere"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_settings_of_python_do_not_stop_launch(environment):
    done = shell('"$@" --quiet', **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert strict_json(done.stdout) == result()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('"$@" 2>/dev/null | true; exit ${PIPESTATUS[0]}', 0),
        pytest.param('"$@" >/dev/full', 1, marks=pytest.mark.slow),
    ],
)
def test_unusable_stdout_of_script_keeps_its_result(line, code):
    script = "import optuna\nstudy = optuna.create_study()\nstudy.optimize(lambda trial: 0.5, n_trials=2)\nprint('end')"
    Path("tiny.py").write_text(script)
    command = ["bash", "-c", line, "bash", *LAUNCH]
    command[command.index("tiny.toml")] = "tiny.py"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert result()["trials"]["complete"] == 2
