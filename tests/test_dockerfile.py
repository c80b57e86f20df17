"""The Dockerfile of the server: read by Docker's own parser, and compared with what the server takes."""

import tomllib
from pathlib import Path

import dockerfile
import pytest

from finetune.cli import main
from finetune.inference.serve import Server

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def commands() -> list[dockerfile.Command]:
    return list(dockerfile.parse_file(str(ROOT / "docs/Dockerfile")))


def test_it_runs_serve_with_options_that_serve_has(
    commands: list[dockerfile.Command], capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = (command for command in commands if command.cmd.upper() == "ENTRYPOINT")
    # a shell in between would keep SIGTERM from the server
    assert entry.json
    assert entry.value[:3] == ("finetune", "serve", "/model")
    assert main(["serve", "--help"]) == 0
    listed = capsys.readouterr().out
    options = [word for word in entry.value if word.startswith("--")]
    assert options
    for option in options:
        assert option in listed
    assert str(entry.value[entry.value.index("--port") + 1]) in next(
        command.value for command in commands if command.cmd.upper() == "EXPOSE"
    )


def test_what_it_copies_exists_and_what_it_installs_is_an_extra(commands: list[dockerfile.Command]) -> None:
    copies = [command for command in commands if command.cmd.upper() == "COPY"]
    for command in copies:
        if not any(flag.startswith("--from") for flag in command.flags):
            for source in command.value[:-1]:
                assert (ROOT / source).exists(), source
    (bundle,) = (command for command in copies if any(flag.startswith("--from") for flag in command.flags))
    assert bundle.value == ("model", "/model")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "serve" in extras
    assert any('"/src[serve]"' in command.value[0] for command in commands if command.cmd.upper() == "RUN")


def test_it_ends_without_rights_and_asks_a_route_for_its_health(commands: list[dockerfile.Command]) -> None:
    kinds = [command.cmd.upper() for command in commands]
    assert kinds.index("USER") > max(at for at, kind in enumerate(kinds) if kind in ("RUN", "COPY"))
    assert next(command.value for command in commands if command.cmd.upper() == "USER") != ("root",)
    (health,) = (command for command in commands if command.cmd.upper() == "HEALTHCHECK")
    assert "http://127.0.0.1:8000/health" in health.original
    assert hasattr(Server, "_health")
