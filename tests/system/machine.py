"""A machine of its own with a systemd of its own: a container on a throw-away overlay of this machine's root.

One rule: what happens in it stays in it: files go to memory and are gone with it, and nothing of this machine's own
services is started there.  The network alone is shared, so that the provider and the clients are those of the test.

Theory.  `systemd-nspawn` boots the overlay.  perdure is laid out in it as an installation of the wheel would be: under
/opt, with a Python that service users can read, since neither a checkout in /tmp nor an interpreter in a home can be
seen by services under ProtectHome and PrivateTmp.  Commands are run by `nsenter`, which needs no bus and no login.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.processes import eventually

ROOT: Final = Path(__file__).resolve().parents[2]
PREFIX: Final = Path("/opt/perdure")
PYTHON: Final = Path("/opt/perdure-python")
MUST_RUN: Final = os.environ.get("CI") == "true" and os.geteuid() == 0
"""Continuous integration has what it needs: there a container that can not be made is a failure."""
BOOT_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 60.0
FILES_BYTES: Final = "512m"
"""Room for what is written in the container; it is memory only as far as it is used."""


class CanNot(Exception):
    """No container can be made here; the message says why."""


class Machine:
    """As a context manager: made and booted, and gone.  Raises CanNot."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="pd-machine-"))
        self.root = self._directory / "root"
        self._mounted: list[Path] = []
        self._container: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        try:
            self._make()
            self._lay_out()
            self._boot()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def run(self, *command: str, check: bool = True, **environ: str) -> str:
        """Run a command in it; what it says.  AssertionError with all of that where it fails."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-p", "-C", *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        said = done.stdout + done.stderr
        assert not check or done.returncode == 0, f"{command}: status {done.returncode}\n{said}"
        return said

    def write(self, path: str, text: str) -> None:
        """A file in it, readable by all."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
        target.chmod(0o644)

    def _make(self) -> None:
        if os.geteuid() != 0:
            raise CanNot("only root can boot a container")
        for program in ("systemd-nspawn", "nsenter"):
            if not shutil.which(program):
                raise CanNot(f"{program} is not installed (Debian: systemd-container, util-linux)")
        upper = self._directory / "upper"
        upper.mkdir()
        self._mount(upper, "-t", "tmpfs", "-o", f"size={FILES_BYTES},mode=0755", "tmpfs")
        self._overlay(Path("/"), "root", self.root)

    def _overlay(self, lower: Path, name: str, target: Path) -> None:
        layers = self._directory / "upper" / name
        for part in ("files", "work"):
            (layers / part).mkdir(parents=True)
        target.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={lower},upperdir={layers}/files,workdir={layers}/work"
        self._mount(target, "-t", "overlay", "-o", options, "overlay")

    def _mount(self, target: Path, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments, str(target)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CanNot(f"mount says: {done.stderr.strip()}")
        self._mounted.insert(0, target)

    def _lay_out(self) -> None:
        """Nothing of this machine starts; perdure is installed, as its wheel would be, but not set up."""
        units = self.root / "etc/systemd/system"
        for place in sorted(units.glob("*.wants")) + sorted(units.glob("*.requires")):
            shutil.rmtree(place)
        self._replace("etc/systemd/system/default.target").symlink_to("/lib/systemd/system/basic.target")
        self._replace("etc/machine-id").write_text(f"{os.urandom(16).hex()}\n", "ascii")
        for stale in ("etc/perdure", "var/lib/perdure", "etc/sysusers.d/perdure.conf", PREFIX.relative_to("/")):
            shutil.rmtree(self.root / stale, ignore_errors=True)
        base = self._python()
        environment = self.root / PREFIX.relative_to("/") / ".venv"
        (environment / "bin").mkdir(parents=True)
        (environment / "pyvenv.cfg").write_text(f"home = {base / 'bin'}\ninclude-system-site-packages = false\n")
        (environment / "bin/python").symlink_to(base / "bin" / f"python{sysconfig.get_python_version()}")
        script = Path(sys.executable).with_name("perdure").read_text("utf-8").partition("\n")[2]
        self.write(f"{PREFIX}/.venv/bin/perdure", f"#!{PREFIX}/.venv/bin/python\n{script}")
        (environment / "bin/perdure").chmod(0o755)
        packages = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        self._overlay(Path(sysconfig.get_path("purelib")), "packages", packages)
        self._install_wheel(packages)

    def _install_wheel(self, packages: Path) -> None:
        """What pyproject.toml puts into the wheel, from this checkout."""
        wheel = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"][
            "wheel"
        ]
        for source, target in {**{name: name for name in wheel["only-include"]}, **wheel["force-include"]}.items():
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, packages / target, dirs_exist_ok=True)
            else:
                shutil.copyfile(ROOT / source, packages / target)
        for path in (packages, *packages.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))

    def _python(self) -> Path:
        """An interpreter that service users can read; gives the prefix that it has in the container."""
        base = Path(sys.base_prefix).resolve()
        if base.is_relative_to("/usr"):
            return base
        target = self.root / PYTHON.relative_to("/")
        target.mkdir(parents=True)
        self._mount(target, "--bind", str(base))
        # Its own way to its library leads to where it was built.
        for library in (base / "lib").glob("libpython*.so*"):
            place = self._replace(f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}/{library.name}")
            shutil.copyfile(library, place)
        return PYTHON

    def _replace(self, path: str) -> Path:
        target = self.root / path
        target.unlink(missing_ok=True)
        return target

    def _boot(self) -> None:
        self._log = (self._directory / "console.log").open("wb")
        self._container = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", "--console=pipe"),
                # There may be no service manager on this machine to tell of it; and its name is nobody else's.
                *("--register=no", "--keep-unit", f"--machine=pd-{secrets.token_hex(6)}", "--link-journal=no"),
                # Without it a network of its own (PrivateNetwork) has no loopback, and that is complained of.
                *("--resolv-conf=off", "--timezone=off", "--capability=CAP_NET_ADMIN"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._init = eventually(self._found_init, BOOT_SECONDS, self.console)
        eventually(
            lambda: self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded"),
            BOOT_SECONDS,
            self.console,
        )

    def _found_init(self) -> int:
        """The container's first process, as this machine numbers it."""
        assert self._container is not None
        if self._container.poll() is not None:
            raise CanNot(f"systemd-nspawn ended with {self._container.returncode}: {self.console()}")
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                facts = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines() if ":" in line)
            except OSError:
                continue  # It has just ended.
            if facts["PPid"].strip() == str(self._container.pid) and facts["NSpid"].split()[1:] == ["1"]:
                return int(status.parent.name)
        return 0

    def console(self) -> str:
        """What it has said while it booted."""
        return (self._directory / "console.log").read_text("utf-8", "replace")[-4_000:]

    def _leave(self) -> None:
        if self._container is not None:
            # The end of its first process is the end of all in it, and nothing else is: without the program that booted
            # it, it goes on.  There is nothing to save.
            if self._init:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._init, signal.SIGKILL)
                eventually(lambda: not Path(f"/proc/{self._init}/root/bin").exists(), BOOT_SECONDS, "it has ended")
            self._container.kill()
            self._container.wait(BOOT_SECONDS)
            self._log.close()
        for target in self._mounted:
            subprocess.run(["umount", "--lazy", str(target)], check=False, capture_output=True)
        shutil.rmtree(self._directory, ignore_errors=True)
