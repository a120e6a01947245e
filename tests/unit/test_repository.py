"""What the repository promises about itself: a pure core, files of one subject, no address or path of a particular machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
# What would tie emp-core to an interpreter, a runtime, a socket, a clock, a logger or a source of randomness.
IMPURE_CRATES = {
    *("pyo3", "tokio", "async-std", "smol", "mio", "socket2", "hyper", "reqwest", "tonic"),
    *("tracing", "log", "env_logger", "rusqlite", "chrono", "time", "rand", "getrandom", "uuid", "rayon", "crossbeam"),
}
IMPURE_PATHS = re.compile(r"\b(SystemTime|Instant)::now|\bstd::(net|thread|fs|env|process)\b|\b(println|eprintln|dbg)!")


NOT_OURS = {"__pycache__", "node_modules", "target", "out", "dist", "data"}


def tracked_files() -> list[Path]:
    """Return the project's files, relative to the root: what git knows and does not ignore; without git, all but what is built."""
    try:
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        files = [Path(name) for name in listing if name]
    except (OSError, subprocess.CalledProcessError):
        everything = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.suffix not in {".so", ".pyc"})
        files = [path for path in everything if not any(part in NOT_OURS or part.startswith(".") for part in path.parts)]
    found = [path for path in files if (ROOT / path).is_file()]
    assert Path("tests/unit/test_repository.py") in found
    return found


def lines_with(pattern: re.Pattern[str], files: list[Path]) -> Iterator[str]:
    for path in files:
        text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                yield f"{path}:{number}: {line.strip()[:160]}"


def without_tests(rust_source: str) -> str:
    """Return the source without its `#[cfg(test)]` module, which stands at the end of a file."""
    return rust_source.split("#[cfg(test)]")[0]


def test_the_core_depends_on_nothing_that_has_a_clock_a_socket_a_thread_or_an_interpreter() -> None:
    manifest = tomllib.loads((ROOT / "rust/emp-core/Cargo.toml").read_text())
    assert manifest["dependencies"].keys() & IMPURE_CRATES == set()


def test_the_core_reads_no_clock_opens_no_file_and_prints_nothing() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in sorted((ROOT / "rust/emp-core/src").rglob("*.rs"))
        for match in IMPURE_PATHS.finditer(re.sub(r"//.*", "", without_tests(path.read_text())))
    ]
    assert found == [], "these belong in the caller; the core gets them as arguments"


def test_no_source_file_has_grown_past_one_subject() -> None:
    long = {
        str(path): count
        for path in tracked_files()
        if path.suffix in {".py", ".rs"} and (count := len((ROOT / path).read_text().splitlines())) > MAX_LINES
    }
    assert long == {}, f"over {MAX_LINES} lines: a file that grows past it usually has two subjects"


def test_no_file_names_a_package_index() -> None:
    # Cargo.lock names crates.io as every Cargo.lock does: a name of the default registry, not an address to download from.
    files = [path for path in tracked_files() if path.name != "Cargo.lock"]
    # Written in parts so that this file does not find itself.
    parts = ["--(extra-)?index-" + "url", '"resolved"' + ":", "registry\\.npm" + "js", "pypi\\.org/" + "simple", "GO" + "PROXY="]
    pattern = re.compile("|".join(parts))
    assert list(lines_with(pattern, files)) == []


def test_no_file_names_a_directory_of_the_machine_it_was_written_on() -> None:
    pattern = re.compile(r"(?<![\w.$}/-])/(work|root|home/\w+|Users)/(?!logs)" + r"\w")
    assert list(lines_with(pattern, tracked_files())) == []


def test_every_requirement_is_pinned_to_one_version() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        loose = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!+]+", line)]
        assert loose == [], f"{path.name}: name==version, without an address or a hash"


def test_what_the_product_needs_is_pinned_for_developers_within_its_published_ranges() -> None:
    pinned = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for line in (ROOT / "requirements/dev.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
        for name, version in [line.split("==")]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [], "the base install is what workers import beside their own packages: it brings nothing"
    for extra, wanted in project["optional-dependencies"].items():
        for requirement in wanted:
            name = re.split(r"[\[<>=!;]", requirement)[0].strip()
            if name != project["name"]:
                assert re.sub(r"[-_.]+", "-", name).lower() in pinned, f"[{extra}] needs {name}, which requirements/dev.txt does not pin"


def test_every_test_file_is_run_by_make_test_or_make_interop() -> None:
    configured = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    places = [Path(name) for name in [*configured, "tests/interop"]]
    tests = [path for path in tracked_files() if path.name.startswith("test_") and path.suffix == ".py"]
    assert tests
    assert [str(path) for path in tests if not any(path.is_relative_to(place) for place in places)] == []
