"""The local stack as it really is: started, found, killed, restarted, stopped. Nothing here is simulated."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hasten.platform import buckets, doctor, services, settings
from hasten.platform.services import Services
from hasten.platform.stack import environment, launcher, processes, ray_head, state, swift
from hasten.platform.stack.parts import Event
from hasten.trainers.errors import ConfigError, Fault

pytestmark = pytest.mark.stack

UP = "from hasten.platform import settings; from hasten.platform.stack import launcher; "
TELL = "tell = lambda event: print(event.kind, event.part, flush=True); "


@pytest.fixture
def kept_environment() -> Iterator[None]:
    """``connect`` changes ``os.environ`` on purpose; a test that uses it differently puts it back."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def roots(home: Path, part: str | None = None) -> list[psutil.Process]:
    """The processes of a stack that no other process of it started."""
    found = processes.members(home, part)
    pids = {process.pid for process in found}
    return [process for process in found if process.ppid() not in pids]


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.startswith(line):
            return
    pytest.fail(f"{line!r} never came: {process.communicate()}")


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def put(found: Services, key: str, content: bytes) -> None:
    buckets.client(found.endpoint, found.region).put_object(Bucket="hasten", Key=key, Body=content)


def get(found: Services, key: str) -> bytes:
    body = buckets.client(found.endpoint, found.region).get_object(Bucket="hasten", Key=key)["Body"]
    content: bytes = body.read()
    return content


def test_second_up_finds_the_first(stack: Services) -> None:
    home = settings.home()
    before = {process.pid for process in roots(home)}
    events: list[Event] = []
    again = services.connect(settings.load(), tracking=True, ray=True, tell=events.append)
    assert [(event.kind, event.part) for event in events] == [
        ("found", "storage"),
        ("found", "tracking"),
        ("found", "ray"),
    ]
    assert dataclasses.replace(again, environment={}) == dataclasses.replace(stack, environment={})
    assert {process.pid for process in roots(home)} == before
    assert len(before) == 3


def test_everything_listens_on_loopback_only(stack: Services) -> None:
    addresses = set()
    for process in processes.members(settings.home()):
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    addresses.add(connection.laddr.ip)
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


ATTACH = """
import pickle, sys
from hasten.platform import cluster

try:
    cluster.attach(pickle.loads(bytes.fromhex(sys.argv[1])))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_ray_has_the_cpus_of_this_machine_behind_its_token(
    stack: Services, kept_environment: None, tmp_path: Path
) -> None:
    from hasten.platform import cluster

    # In a process of its own: Ray keeps the first token that a process has shown.
    (tmp_path / "token").write_text("0" * 64)
    done = subprocess.run(
        [sys.executable, "-c", ATTACH, pickle.dumps(stack).hex()],
        env=os.environ | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "ConfigError" in done.stdout, done.stderr
    assert "refuses the token" in done.stdout
    with pytest.raises(Fault, match="does not answer"):
        cluster.attach(dataclasses.replace(stack, ray_address="127.0.0.1:1"))

    cluster.attach(stack)
    try:
        assert cluster.resources()["CPU"] == ray_head.num_cpus()
        assert "ran a task" in cluster.round_trip()
    finally:
        cluster.detach()


def test_doctor_is_content_and_no_secret_is_anywhere(stack: Services) -> None:
    found = list(doctor.checks(settings.load()))
    assert [check.name for check in found] == ["home", "disk", "xattrs", "storage", "tracking", "ray"]
    assert all(check.ok for check in found), found

    home = settings.home()
    _, secret = swift.credentials(home)
    token = ray_head.token_file(home).read_text()
    holders = {environment.credentials_file(home), home / "stack" / "swift" / "proxy.conf"}
    assert holding(home, secret) == holders
    assert holding(home, token) == {ray_head.token_file(home)}
    for path in (*holders, ray_head.token_file(home), home / "stack" / "swift" / "swift.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((home / "stack").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "stack" / "swift").stat().st_mode) == 0o700
    for process in [*processes.members(home), psutil.Process()]:
        with contextlib.suppress(psutil.Error):
            seen = " ".join([*process.cmdline(), *process.environ().values()])
            assert secret not in seen
            assert token not in seen
    assert secret not in repr(stack)


def holding(home: Path, secret: str) -> set[Path]:
    """Files below the home, and below Ray's folder, in which ``secret`` can be read."""
    folders = {home, ray_head.sessions(home)}
    return {
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and secret.encode() in path.read_bytes()
    }


def test_wrong_credentials_missing_bucket_and_nobody_there(
    stack: Services, kept_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stack.endpoint is not None
    os.environ["HASTEN_STORAGE_ENDPOINT"] = stack.endpoint
    os.environ["HASTEN_STORAGE_URI"] = "s3://nowhere-to-be-found"
    with pytest.raises(ConfigError) as missing:
        services.connect(settings.load())
    assert missing.value.subject == "storage.uri"
    assert "'nowhere-to-be-found' does not exist" in missing.value.problem

    os.environ["HASTEN_STORAGE_URI"] = "s3://hasten"
    os.environ |= {"AWS_ACCESS_KEY_ID": "hasten:somebody", "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    with pytest.raises(ConfigError) as refused:
        services.connect(settings.load())
    assert refused.value.subject == stack.endpoint
    assert "refuses the credentials" in refused.value.problem
    assert "AWS_ACCESS_KEY_ID" in refused.value.remedy
    assert "not-the-secret" not in str(refused.value)

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        os.environ["HASTEN_STORAGE_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Fault, match="does not answer"):
            services.connect(settings.load())


def test_credentials_of_somebody_elses_store_are_left_out(stack: Services, kept_environment: None) -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "AKIAOTHER", "AWS_SECRET_ACCESS_KEY": "other", "AWS_PROFILE": "work"}
    found = services.connect(settings.load())
    assert "AWS_ACCESS_KEY_ID" not in os.environ
    assert "AWS_PROFILE" not in os.environ
    assert "put, got and deleted" in buckets.round_trip(
        found.storage_uri, endpoint=found.endpoint, region=found.region
    )


@pytest.mark.parametrize("part", ["storage", "tracking", "ray"])
def test_a_killed_part_alone_is_restarted_and_keeps_its_data(
    stack: Services, kept_environment: None, part: str
) -> None:
    home = settings.home()
    put(stack, "kept", b"before")
    others = {
        process.pid
        for name in ("storage", "tracking", "ray")
        if name != part
        for process in roots(home, name)
    }
    killed = roots(home, part)
    assert len(killed) == 1
    killed[0].kill()
    eventually(lambda: not processes.alive(killed[0]))

    check = next(check for check in doctor.checks(settings.load()) if check.name == part or not check.ok)
    assert check.name == part
    assert not check.ok
    assert "hasten up" in check.remedy
    shown = {status.part: status.state for status in launcher.status(settings.load())}
    assert shown.pop(part) == "dead"
    assert set(shown.values()) == {"running"}

    events: list[Event] = []
    again = services.connect(settings.load(), tracking=True, ray=True, tell=events.append)
    assert [event.part for event in events if event.kind == "starting"] == [part]
    assert dataclasses.replace(again, environment={}) == dataclasses.replace(stack, environment={})
    left = {
        process.pid
        for name in ("storage", "tracking", "ray")
        if name != part
        for process in roots(home, name)
    }
    assert left == others
    assert len(roots(home, part)) == 1
    assert get(again, "kept") == b"before"


def test_a_port_that_somebody_took(own_home: Path) -> None:
    first = services.connect(settings.load())
    put(first, "kept", b"x")
    port = state.read(own_home)["storage"].ports["s3"]
    assert launcher.down() == ["storage"]
    assert not processes.members(own_home)
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", port))
        somebody.listen()
        second = services.connect(settings.load())
        assert second.endpoint != first.endpoint
        assert get(second, "kept") == b"x"


def test_two_at_once_start_one(own_home: Path) -> None:
    code = UP + TELL + "launcher.up(settings.load(), ['storage'], tell=tell)"
    racers = [python(code) for _ in range(3)]
    said = [racer.communicate(timeout=200) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], said
    lines = [line for out, _ in said for line in out.splitlines()]
    assert lines.count("starting storage") == 1
    assert lines.count("found storage") == 2
    assert "waiting " in lines
    assert len(roots(own_home)) == 1


def test_two_installations_never_share_a_port(own_home: Path) -> None:
    """Both want one port in the same moment; a server that shares it would get the other's requests."""
    code = (
        "from hasten.platform import buckets, services, settings; found = services.connect(settings.load()); "
    )
    code += "[buckets.round_trip('s3://hasten', endpoint=found.endpoint, region='x') for _ in range(8)]; "
    homes = [own_home, own_home.with_name("other")]
    code += "print(found.endpoint)"
    try:
        running = []
        for home in homes:
            os.environ["HASTEN_HOME"] = str(home)
            running.append(python(code))
        said = [process.communicate(timeout=200) for process in running]
        assert [process.returncode for process in running] == [0, 0], said
        assert len({out for out, _ in said}) == 2
    finally:
        for home in homes:
            os.environ["HASTEN_HOME"] = str(home)
            launcher.down()


def test_launcher_killed_in_the_middle(own_home: Path) -> None:
    launching = python(UP + TELL + "launcher.up(settings.load(), ['storage'], tell=tell)")
    wait_for(launching, "starting storage")
    launching.kill()
    launching.communicate()
    orphans = {process.pid for process in roots(own_home)}
    assert len(orphans) == 1

    found = services.connect(settings.load())
    assert {process.pid for process in roots(own_home)} == orphans
    put(found, "kept", b"x")

    # Even with its memory lost: what runs is found by its mark, and replaced.
    (own_home / "stack" / "state.json").unlink()
    again = services.connect(settings.load())
    assert len(roots(own_home)) == 1
    assert get(again, "kept") == b"x"
    assert launcher.down() == ["storage"]
    assert not processes.members(own_home)


def test_ctrl_c_leaves_nothing(own_home: Path) -> None:
    # Children of a job in the background ignore Ctrl-C: whoever runs these tests there still sends it.
    listens = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    launching = python(listens + "from hasten.platform import stack_cli; stack_cli.up()")
    wait_for(launching, "… Starting Ray")
    assert processes.members(own_home)
    launching.send_signal(signal.SIGINT)
    _, error = launching.communicate(timeout=100)
    assert "hasten.trainers.errors.Stopped" in error
    assert launching.returncode != 0
    assert not processes.members(own_home)
    assert launcher.down() == []


@pytest.mark.parametrize("home", ["/proc/hasten", "/dev/null/hasten"])
def test_home_that_cannot_be_written(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_HOME", home)
    with pytest.raises(Fault) as caught:
        services.connect(settings.load({}))
    assert caught.value.subject == f"HASTEN_HOME ({home})"
    assert "set HASTEN_HOME to another folder" in caught.value.remedy
    found = {check.name: check for check in doctor.checks(settings.load({}))}
    assert not found["home"].ok
    assert "set HASTEN_HOME to another folder" in found["home"].remedy


def test_file_system_without_attributes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    # No file system of a test machine can be relied upon to lack them.
    monkeypatch.setattr(os, "setxattr", refuse)
    with pytest.raises(ConfigError) as caught:
        swift.check_xattrs(tmp_path)
    assert "no user extended attributes" in caught.value.problem
    assert "storage.uri" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_storage_in_a_folder_needs_no_server(own_home: Path, tmp_path: Path) -> None:
    os.environ["HASTEN_STORAGE_URI"] = str(tmp_path / "store")
    found = services.connect(settings.load())
    assert found.storage_uri == str(tmp_path / "store")
    assert found.endpoint is None
    assert not processes.members(own_home)
    checks = {check.name: check for check in doctor.checks(settings.load())}
    assert checks["storage"].ok
    assert "xattrs" not in checks


def test_sockets_of_a_deep_home_are_short(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    (deep / "stack").mkdir(parents=True)
    folder = ray_head.sessions(deep)
    assert len(str(folder)) < 40
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    ray_head.tidy(deep, stopped=True)
    assert not folder.parent.exists()


def test_a_process_that_has_ended_has_no_title() -> None:
    ending = subprocess.Popen(["sleep", "60"])
    seen = psutil.Process(ending.pid)
    deadline = time.monotonic() + 10
    while processes.title(seen) != "sleep 60" and time.monotonic() < deadline:
        time.sleep(0.01)  # until it has become what it runs
    assert processes.title(seen) == "sleep 60"
    ending.kill()
    while seen.status() != psutil.STATUS_ZOMBIE:  # nobody has asked for its exit status yet
        time.sleep(0.01)
    assert processes.title(seen) == ""
    ending.wait()
    assert processes.title(seen) == ""
