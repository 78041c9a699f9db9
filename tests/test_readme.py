"""README.md tells the truth: its examples run, and the commands and files it names exist."""

from __future__ import annotations

import functools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language in README.md."""
    text = README.read_text() if README.exists() else ""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    """The lines of shell blocks, and the inline code, that call a program."""
    text = README.read_text() if README.exists() else ""
    shell = "\n".join(blocks("(?:bash|sh|shell|console|text)?"))
    inline = re.findall(r"`([^`\n]+)`", text)
    lines = [line.strip().removeprefix("$ ") for line in (*shell.splitlines(), *inline)]
    return sorted({line for line in lines if re.match(rf"{program} +[a-z]", line)})


def test_there_is_a_readme() -> None:
    assert README.exists(), f"{README} is missing: it states the claim and the two commands"


def test_readme_has_an_example() -> None:
    assert README.exists(), f"{README} is missing"
    assert blocks("python"), "README.md has no python example"


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run(number: int, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(blocks("python")[number])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


@functools.cache
def make_targets() -> set[str]:
    """The targets of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", text, flags=re.MULTILINE))


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command: str) -> None:
    for target in command.split("#")[0].split()[1:]:
        if re.fullmatch(r"[a-z][\w-]*", target):
            assert target in make_targets(), f"`{command}`: the Makefile has no target {target}"


@functools.cache
def help_of(*words: str) -> str:
    """What a command of gtkern says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", "gtkern", *words, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.mark.parametrize("command", commands("gtkern"))
def test_gtkern_commands_exist(command: str) -> None:
    words = []
    for word in command.split("#")[0].split()[1:]:
        if not re.fullmatch(r"[a-z][\w-]*", word):
            break
        words.append(word)
    text = help_of(*words)
    for flag in re.findall(r"--[a-z][\w-]*", command):
        assert flag in text, f"`{command}`: no {flag} in the help of gtkern {words}"


def links() -> list[str]:
    """The relative links and images of README.md."""
    text = README.read_text() if README.exists() else ""
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    return sorted({link for link in found if not re.match(r"[a-z]+:", link)})


@pytest.mark.parametrize("link", links())
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), f"README.md links to {link}, which is not there"
