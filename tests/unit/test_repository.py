"""What the repository promises about itself: files that follow from others do."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from engine.settings import env_example, settings_table

ROOT = Path(__file__).parents[2]


def _pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE))


def _plain_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_env_example_lists_the_settings_as_they_are() -> None:
    assert (ROOT / ".env.example").read_text() == env_example(), "run `make generate`"


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    runtime = [*project["project"]["dependencies"], *groups["build"]]
    development = [line for line in groups["dev"] if isinstance(line, str)]
    pinned, pinned_dev = _pins("requirements.txt"), _pins("requirements-dev.txt")
    assert [line for line in runtime if _plain_name(line) not in pinned] == [], "run `make lock`"
    assert [line for line in development if _plain_name(line) not in pinned_dev] == [], "run `make lock`"


def test_the_tests_run_with_what_users_run_with() -> None:
    pinned, pinned_dev = _pins("requirements.txt"), _pins("requirements-dev.txt")
    assert {name: pinned_dev.get(name) for name in pinned} == pinned


def test_every_pin_has_a_hash_and_no_line_names_an_index() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert "--index-url" not in text
        assert "--find-links" not in text
        for block in re.split(r"\n(?=[a-z0-9])", text.strip()):
            assert "--hash=sha256:" in block, block


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^  make ([a-z-]+) +\S", listed, re.MULTILINE)
    targets = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found == targets
    assert {"up", "test", "check", "bench", "generate", "lock", "clean"} <= set(found)


def test_the_readme_lists_the_settings_as_they_are() -> None:
    found = re.search(
        r"<!-- settings -->\n(.*)<!-- /settings -->", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert found is not None
    assert found[1] == settings_table(), "run `make generate`"


def test_every_link_of_a_page_leads_somewhere() -> None:
    broken = [
        f"{page}: {target}"
        for page in ("README.md", "bench/README.md")
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
        if not ((ROOT / page).parent / target).exists()
    ]
    assert broken == []


def test_the_readme_names_every_folder_of_the_tree() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.partition("/")[0] for line in listing.splitlines() if "/" in line}
    text = (ROOT / "README.md").read_text()
    assert [folder for folder in sorted(folders) if f"{folder}/" not in text] == [".ci"]
