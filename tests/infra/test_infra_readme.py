"""infra/README.md: its commands parse, and what they name is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "infra/README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
STACK = yaml.safe_load((ROOT / "infra/compose/compose.yaml").read_text())


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_commands_are_shell(number: int) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=BLOCKS[number], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_files_that_are_named_exist() -> None:
    named = set(re.findall(r"\b(?:infra|jobs|tests)/[\w./-]*\w", TEXT))
    made = {f"infra/compose/secrets/{name}" for name in STACK["secrets"]} | {"infra/compose/.env"}
    assert named - made
    assert [path for path in named - made if not (ROOT / path).exists()] == []
    for link in re.findall(r"\]\((\.\./[^)#]+)\)", TEXT):
        assert (ROOT / "infra" / link).exists()


def test_services_ports_volumes_and_secrets_are_those_of_the_compose_file() -> None:
    joined = TEXT.replace("\\\n", "")
    for services in re.findall(
        r"compose (?:--profile gpu )?(?:exec|run|build)((?: +-\S+| +RAY_ADDRESS=auto)*) +(\S+)",
        joined,
    ):
        assert services[1] in STACK["services"]
    example = dict(
        line.split("=")
        for line in (ROOT / "infra/compose/.env.example").read_text().splitlines()
        if re.match(r"[A-Z_]+=", line)
    )
    published = {port for name, port in example.items() if name.endswith("_PORT")}
    assert set(re.findall(r"http://127\.0\.0\.1:(\d+)", TEXT)) == published
    volumes = {name.removeprefix("xtdist_") for name in re.findall(r"\bxtdist_\w+", TEXT)}
    assert volumes <= set(STACK["volumes"])
    table = TEXT[TEXT.index("### Secrets") : TEXT.index("### Backup")]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(STACK["secrets"])


def test_outputs_and_variables_of_terraform_exist() -> None:
    texts = {
        folder: "".join(f.read_text() for f in (ROOT / "infra/terraform" / folder).glob("*.tf"))
        for folder in ("eks", "gke")
    }
    both = texts["eks"] + texts["gke"]
    outputs = re.findall(r"terraform output -raw (\w+)|the output `(\w+)`", TEXT)
    assert outputs
    for name in (a or b for a, b in outputs):
        assert f'output "{name}"' in both
    for block in (block for block in BLOCKS if "terraform apply" in block):
        folder = "eks" if "infra/terraform/eks" in block else "gke"
        given = set(re.findall(r"-var '?(\w+)=", block))
        assert all(f'variable "{name}"' in texts[folder] for name in given)
        needed = {
            name
            for name, body in re.findall(
                r'variable "(\w+)" \{\n(.*?)\n\}', texts[folder], re.DOTALL
            )
            if not re.search(r"^  default ", body, re.MULTILINE)
        }
        assert needed <= given


def test_values_and_secrets_of_the_chart_exist() -> None:
    values = yaml.safe_load((ROOT / "infra/helm/xtdist/values.yaml").read_text())
    for path in re.findall(
        r"`((?:ray|mlflow|postgresql|objectStore|monitoring|networkPolicy)\.\w+)`", TEXT
    ):
        part, key = path.split(".")
        assert key in values[part], path
    made = re.findall(r"create secret generic (\S+) --from-literal=(\w+)", TEXT)
    laptop = yaml.safe_load((ROOT / "infra/helm/xtdist/ci/laptop.yaml").read_text())
    assert made == [
        (values["ray"]["tokenSecret"], "auth_token"),
        (values["postgresql"]["passwordSecret"], "password"),
        (laptop["objectStore"]["credentialsSecret"], "aws_access_key_id"),
    ]
    examples = set(re.findall(r"`(\w[\w-]*\.yaml)`", TEXT)) - {"values.yaml"}
    assert examples == {f.name for f in (ROOT / "infra/helm/xtdist/ci").glob("*.yaml")}


def test_xtdist_takes_the_options_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from xtdist.cli.main import main

    shown = re.findall(r"xtdist train (\S+\.yaml)((?: \\?\s*\S+=\S+)*)", TEXT)
    assert shown
    monkeypatch.chdir(ROOT)
    for config, rest in shown:
        changes = [word for word in rest.split() if word != "\\"]
        assert main(["config", config, *changes]) == 0
