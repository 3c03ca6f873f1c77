"""One source of truth: constraints.txt pins what pyproject.toml asks for, and conda installs the
same."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINNED = [*PROJECT["dependencies"], *EXTRAS["book"], *EXTRAS["test"], *EXTRAS["cluster"]]
REQUIREMENTS = [Requirement(text) for text in PINNED]


def pins() -> dict[str, str]:
    file = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    texts = (line.partition("#")[0].strip() for line in file.splitlines())
    found = [Requirement(text) for text in texts if text]
    assert all(re.fullmatch(r"==[^*]+", str(pin.specifier)) for pin in found), (
        "every constraint is one exact version"
    )
    names = [canonicalize_name(pin.name) for pin in found]
    assert len(names) == len(set(names)), "no package is pinned twice"
    return {name: next(iter(pin.specifier)).version for name, pin in zip(names, found, strict=True)}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_pin_that_satisfies_it(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version, f"{requirement.name} is not pinned"
    assert requirement.specifier.contains(version, prereleases=True)


def test_every_pin_installs_on_the_oldest_python() -> None:
    """Debian 12 ships 3.11.2: a release that needs a later patch version would stop `make book`
    there."""
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    needs = {found.metadata["Name"]: found.metadata["Requires-Python"] for found in distributions()}
    pinned = {
        name: needed
        for name, needed in needs.items()
        if needed and canonicalize_name(name) in pins()
    }
    assert not {
        name: needed for name, needed in pinned.items() if not SpecifierSet(needed).contains(oldest)
    }


def test_conda_takes_python_alone_and_leaves_the_rest_to_the_constraints() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))[
        "dependencies"
    ]
    conda = {text.split("=")[0].split(">")[0] for text in dependencies if isinstance(text, str)}
    (pip,) = (item["pip"] for item in dependencies if isinstance(item, dict))
    assert conda == {"python", "pip"}
    assert pip == ["-c constraints.txt", "-e .[all]"]
    python = next(text for text in dependencies if text.startswith("python"))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        python.split("=")[-1].strip()
    )


def test_the_extra_all_holds_the_others() -> None:
    assert EXTRAS["all"] == ["fieldbook[book,test]"]
