"""The image of a node: Debian, containerd, Kubernetes and the images of its pods, none of it from a registry.

What the kind command expects of it is listed in docs/designs/021-e2e.md.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

from berth.local.binaries import KUBERNETES_VERSION
from e2e.cluster import images, rootfs
from e2e.cluster.shell import run, succeeds, wait
from e2e.cluster.steps import cache, digest, locked, say

_FILES: Final = Path(__file__).parent / "node"
_SYSTEM: Final = ("kubelet", "kubeadm", "kubectl")
_LOCAL: Final = ("containerd", "containerd-shim-runc-v2", "ctr")
_NETWORK: Final = ("loopback", "ptp", "host-local", "portmap")
_MASKED: Final = (
    *("systemd-binfmt.service", "systemd-udevd.service", "systemd-logind.service", "systemd-modules-load.service"),
    *("systemd-timesyncd.service", "modprobe@.service", "getty.target", "proc-sys-fs-binfmt_misc.automount"),
    *("dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount"),
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
)
_DOCKERFILE: Final = """\
FROM {base}
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
"""


def ensure(paths: dict[str, Path]) -> str:
    """Name of the node image in the engine, made if it is not there."""
    system, preloaded = rootfs.node(), images.kubernetes(paths)
    used = [str(paths[name]) for name in (*_SYSTEM, *_LOCAL, *_NETWORK)]
    name = f"berth-e2e/node:{digest([system.name, preloaded.parent.name, *used, _FILES, Path(__file__)])}"
    with locked(cache() / ".node-image.lock"):
        if succeeds("docker", "image", "inspect", name):
            return name
        say("node image: making it")
        place = cache() / ".node-image.partial"
        shutil.rmtree(place, ignore_errors=True)
        run("cp", "--archive", "--reflink=auto", system, place)
        _fill(place, paths)
        _quiet(place)
        _preload(place, paths, preloaded)
        _import(place, name)
        shutil.rmtree(place)
        for old in run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}", "berth-e2e/node").split():
            if old != name:
                succeeds("docker", "rmi", old)
    return name


def _fill(place: Path, paths: dict[str, Path]) -> None:
    for name in ("etc/hostname", "etc/resolv.conf", "usr/sbin/policy-rc.d"):
        (place / name).unlink(missing_ok=True)
    for folder in ("etc/kubernetes/manifests", "etc/cni/net.d", "etc/containerd/certs.d"):
        (place / folder).mkdir(parents=True, exist_ok=True)
    for folder, names in (("usr/bin", _SYSTEM), ("usr/local/bin", _LOCAL), ("opt/cni/bin", _NETWORK)):
        (place / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(paths[name], place / folder / name)
            (place / folder / name).chmod(0o755)
    shutil.copytree(_FILES, place, dirs_exist_ok=True)
    (place / "kind" / "version").write_text(KUBERNETES_VERSION)


def _quiet(place: Path) -> None:
    """systemd in a container starts only what a node needs."""
    units, shipped = place / "etc/systemd/system", place / "lib/systemd/system"
    unwanted = [*units.glob("*.wants/*"), *shipped.glob("sockets.target.wants/*udev*")]
    unwanted += shipped.glob("sockets.target.wants/*initctl*")
    for target in ("multi-user", "local-fs", "basic"):
        unwanted += shipped.glob(f"{target}.target.wants/*")
    for path in (*unwanted, shipped / "sysinit.target.wants/systemd-tmpfiles-setup.service"):
        path.unlink(missing_ok=True)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    for name in ("containerd", "kubelet"):
        (wants / f"{name}.service").symlink_to(f"../{name}.service")
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")


def _preload(place: Path, paths: dict[str, Path], preloaded: Path) -> None:
    """A containerd of this machine writes into the node's storage: content only, each node unpacks what it uses."""
    own = cache() / ".preload"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    plugins = [f'"io.containerd.{name}"' for name in ("grpc.v1.cri", "cri.v1.runtime", "cri.v1.images", "nri.v1.nri")]
    (own / "config.toml").write_text(
        f'version = 3\nroot = "{place}/var/lib/containerd"\nstate = "{own}/state"\n'
        f"disabled_plugins = [{', '.join(plugins)}]\n"
        f'[grpc]\naddress = "{own}/c.sock"\n[ttrpc]\naddress = "{own}/t.sock"\n'
    )
    ctr: list[str | Path] = [paths["ctr"], f"--address={own / 'c.sock'}", "--namespace=k8s.io"]
    with (own / "log").open("w") as log:
        server = subprocess.Popen([paths["containerd"], "-c", own / "config.toml"], stdout=log, stderr=log)
        try:
            wait("containerd answers", lambda: run(*ctr, "version"), timeout=30)
            run(*ctr, "images", "import", "--all-platforms", "--no-unpack", "--digests", preloaded)
        finally:
            server.terminate()
            server.wait(timeout=30)
    shutil.rmtree(place / "var/lib/containerd/io.containerd.grpc.v1.introspection", ignore_errors=True)
    shutil.rmtree(own)


def _import(place: Path, name: str) -> None:
    """As one layer; `import` cannot set a stop signal, a build that changes nothing else can."""
    base = "berth-e2e/node-base:making"
    with subprocess.Popen(["tar", "-C", place, "-cf", "-", "--numeric-owner", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(["docker", "import", "-", base], stdin=tar.stdout, check=True, stdout=subprocess.DEVNULL)
    if tar.returncode:
        raise RuntimeError(f"tar ended with {tar.returncode}")
    classic = {"DOCKER_BUILDKIT": "0", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    run("docker", "build", "-q", "-t", name, "-", input=_DOCKERFILE.format(base=base), environment=classic)
    run("docker", "rmi", base)
