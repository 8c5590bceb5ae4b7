"""The images that the cluster runs: Kubernetes' own, the pod network, mock GPUs, Berth's operator and Triton.

Kubernetes' images carry the names that kubeadm asks for. Ours are named by content, so that a changed one is another
image and an unchanged one is never loaded again.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from berth.local import binaries, triton_env
from berth.local.binaries import KUBERNETES_VERSION
from e2e.cluster import archive, programs, rootfs
from e2e.cluster.archive import Image
from e2e.cluster.shell import run, succeeds
from e2e.cluster.steps import Input, digest, made, say

CHECKOUT: Final = Path(__file__).parents[2]
SOURCES: Final = Path(__file__).parent
PAUSE: Final = "registry.k8s.io/pause:3.10.2"
ETCD_TAG: Final = f"{programs.ETCD_VERSION}-0"
PODNET: Final = "berth-e2e/podnet:v1"
"""Named in the manifest inside the node image, which changes with it."""
_KUBERNETES: Final = "registry.k8s.io"  # the names that kubeadm gives; nothing is fetched from there
_WRITER: Final[tuple[Input, ...]] = (SOURCES / "archive.py", "layout 1")
"""What decides beside an image's content how it is written; the number changes with the functions below."""


@dataclass(frozen=True)
class Archive:
    """An image that can be loaded into nodes."""

    name: str
    path: Path


def built(*, node_image: str = "") -> dict[str, Path]:
    """Every program that the cluster needs, by name; with a public node image those that are not in it."""
    return binaries.provide(programs.BESIDE_NODES if node_image else programs.EVERYTHING)


def kubernetes(paths: dict[str, Path]) -> Path:
    """Archive of the images that lie in the node image from the start."""
    called_by_name = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd")
    used = [paths[name] for name in (*called_by_name, "coredns", "podnet")]
    node = rootfs.node()

    def make(place: Path) -> None:
        images = []
        for name in called_by_name:
            folder = _with(place / name, f"usr/local/bin/{name}", paths[name])
            (folder / "tmp").mkdir()
            tag = ETCD_TAG if name == "etcd" else KUBERNETES_VERSION
            images.append(Image(f"{_KUBERNETES}/{name}:{tag}", [folder]))
        proxy = place / "kube-proxy"
        archive.copy_with_libraries(node, proxy, ["/usr/sbin/nft", "/usr/sbin/conntrack"])
        pause = place / "pause"
        pause.mkdir()
        run("gcc", "-Os", "-static", "-s", "-o", pause / "pause", SOURCES / "pause.c")
        images += [
            Image(
                f"{_KUBERNETES}/coredns/coredns:v{programs.COREDNS_VERSION}",
                [_with(place / "coredns", "coredns", paths["coredns"])],
                ["/coredns"],
            ),
            Image(PAUSE, [pause], ["/pause"]),
            Image(PODNET, [_with(place / "podnet", "podnet", paths["podnet"])], ["/podnet"]),
        ]
        archive.write(place / "images.tar", images)
        for image in images:
            shutil.rmtree(image.layers[0])

    inputs: list[Input] = [*(str(path) for path in used), node.name, SOURCES / "pause.c", *_WRITER]
    return made("images-kubernetes", inputs, make) / "images.tar"


def mock_gpu(paths: dict[str, Path]) -> Archive:
    """The device plugin."""
    return program("mockgpu", paths["mockgpu"], "mockgpu")


def program(name: str, path: Path, called: str) -> Archive:
    """One static program, as /`called`."""

    def make(place: Path, image: str) -> None:
        folder = _with(place / "root", called, path)
        archive.write(place / "image.tar", [Image(image, [folder], [f"/{called}"])])

    return _archive(name, [str(path), called, *_WRITER], make)


def operator(release: Path | None = None) -> Archive:
    """Berth as `operator/Dockerfile` packs it: with OPERATOR_BASE by the engine, else on Debian's Python.

    `release` is an archive of `operator/berth` as it was released. Dependencies come hash by hash from the operator's
    lock, what is set in the image from the Dockerfile.
    """
    dockerfile = CHECKOUT / "operator" / "Dockerfile"
    sources = [release or CHECKOUT / "operator" / "berth", dockerfile]
    if (base := os.environ.get("OPERATOR_BASE")) and not release:
        return _built_by_engine("operator", base, [*sources, CHECKOUT / "requirements-operator.lock"])
    system, wheels = rootfs.python(), _dependencies()

    def make(place: Path, name: str) -> None:
        berth = _parent(place / "berth" / "opt" / "berth" / "berth")
        if release:
            run("tar", "--extract", f"--file={release}", f"--directory={place}")
            shutil.move(place / "operator" / "berth", berth)
        else:
            shutil.copytree(CHECKOUT / "operator" / "berth", berth, ignore=shutil.ignore_patterns("__pycache__"))
        settings = _settings(dockerfile.read_text())
        image = Image(
            name,
            [system, wheels, place / "berth"],
            settings.entrypoint,
            settings.command,
            {**settings.environment, **({"LOGNAME": "berth"} if release else {})},  # the first one asked for its user
            settings.user,
        )
        archive.write(place / "image.tar", [image])

    name = release.name.removesuffix(".tar.xz") if release else "operator"
    return _archive(name, [*sources, "user" if release else "", wheels.name, system.name, *_WRITER], make)


def triton() -> Archive:
    """A server as in NVIDIA's images: /opt/tritonserver, a python3 that has numpy, and no Berth, which pods bring."""
    lock, system = triton_env.LOCK, rootfs.python()

    def make(place: Path, name: str) -> None:
        root = place / "root"
        packages = root / "usr/lib/python3/dist-packages"
        _pip("install", "--target", packages, "--no-deps", f"-r{lock}")
        _lay_out(root, packages / "pytriton" / "tritonserver")
        libraries = "/usr/lib/python3/dist-packages/nvidia_pytriton.libs"
        archive.write(place / "image.tar", [Image(name, [system, root], environment={"LD_LIBRARY_PATH": libraries})])

    return _archive("triton", [lock, system.name, *_WRITER], make)


def _lay_out(root: Path, wheel: Path) -> None:
    """The server finds its backend beside it, and the backend its stub: the wheel keeps them apart."""
    home = root / "opt/tritonserver"
    (home / "bin").mkdir(parents=True)
    (home / "bin/tritonserver").symlink_to(f"/{(wheel / 'bin/tritonserver').relative_to(root)}")
    backend = _parent(home / "backends/python")
    (wheel / "backends/python").rename(backend)
    stubs = wheel / "python_backend_stubs"
    (stubs / rootfs.PYTHON_VERSION / "triton_python_backend_stub").rename(backend / "triton_python_backend_stub")
    shutil.rmtree(stubs)


# --- parts ------------------------------------------------------------------------------------------------------------
def _dependencies() -> Path:
    """Berth's dependencies as a layer: /opt/berth."""
    lock = CHECKOUT / "requirements-operator.lock"

    def make(place: Path) -> None:
        _pip("install", "--target", place / "opt" / "berth", f"-r{lock}")

    return made("berth-dependencies", [lock, rootfs.PYTHON_VERSION], make)


def _pip(action: str, *arguments: str | Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", action, "--quiet", "--no-compile"]
    wheels = ["--only-binary=:all:", f"--python-version={rootfs.PYTHON_VERSION}", "--implementation=cp"]
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 27, 28, 34, 35)]
    run(*pip, "--require-hashes", *wheels, *platforms, "--platform=manylinux2014_x86_64", *arguments)


@dataclass(frozen=True)
class _Settings:
    environment: dict[str, str]
    entrypoint: list[str]
    command: list[str]
    user: str


def _settings(dockerfile: str) -> _Settings:
    """What the last stage of a Dockerfile sets."""
    last = re.split(r"^FROM ", dockerfile, flags=re.MULTILINE)[-1].replace("\\\n", " ")
    lines = dict(re.findall(r"^(ENV|USER|ENTRYPOINT|CMD) (.*)$", last, re.MULTILINE))
    pairs = dict(pair.split("=", 1) for pair in lines["ENV"].split())
    return _Settings(pairs, ast.literal_eval(lines["ENTRYPOINT"]), ast.literal_eval(lines["CMD"]), lines["USER"])


def _built_by_engine(name: str, base: str, inputs: list[Input]) -> Archive:
    image = f"docker.io/berth-e2e/{name}:{digest([base, *inputs])}"
    if not succeeds("docker", "image", "inspect", image):
        say(f"{name}: docker build on {base}")
        dockerfile = CHECKOUT / "operator" / "Dockerfile"
        run("docker", "build", "-f", dockerfile, f"--build-arg=BASE={base}", "-t", image, CHECKOUT, timeout=1500)

    def make(place: Path) -> None:
        run("docker", "save", "-o", place / "image.tar", image)

    return Archive(image, made(f"image-{name}", [image], make) / "image.tar")


def _archive(name: str, inputs: list[Input], make: Callable[[Path, str], None]) -> Archive:
    image = f"docker.io/berth-e2e/{name}:{digest(inputs)}"

    def write(place: Path) -> None:
        make(place, image)
        for folder in place.iterdir():
            if folder.is_dir():
                shutil.rmtree(folder)

    return Archive(image, made(f"image-{name}", inputs, write) / "image.tar")


def _with(folder: Path, name: str, program: Path) -> Path:
    target = _parent(folder / name)
    shutil.copy(program, target)
    target.chmod(0o755)
    return folder


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
