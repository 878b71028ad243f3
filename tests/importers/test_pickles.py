"""Reading files of torch.save in a process with limits: what is in them, and what they must not do."""

import os
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zootools.importers.pickles import Limits, read_states

State = dict[str, Any]


def read(folder: Path, *names: str, **limits: Any) -> list[State | str]:
    """Return the tensors of some files, or why a file is not read."""
    return list(read_states([folder / name for name in names], Limits(**limits)))


def children() -> list[Path]:
    """Return the folders in /proc of the readers that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(os.getpid()) and b"zootools.importers" in (entry / "cmdline").read_bytes():
                    found.append(entry)
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


class Payload:
    """What unpickling it would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_tensors_are_read_by_name(tmp_path: Path) -> None:
    """Also from nested dictionaries, of other types, transposed, and in the old format without zip."""
    state = OrderedDict(weight=torch.randn(3, 5).T, bias=torch.tensor([0.1, 0.2], dtype=torch.float16))
    value = {"state_dict": state, "epoch": 3, "names": ["a", "b"]}
    torch.save(value, tmp_path / "new.pt")
    torch.save(value, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for answer in read(tmp_path, "new.pt", "old.pt"):
        assert isinstance(answer, dict)
        assert sorted(answer) == ["bias", "weight"]
        np.testing.assert_array_equal(answer["weight"], state["weight"].numpy())
        np.testing.assert_array_equal(answer["bias"], np.array([0.1, 0.2], np.float16))


def test_files_that_are_none_of_weights_are_refused_and_the_others_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    torch.save({"a": Payload(tmp_path / "executed")}, tmp_path / "code.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({"a": torch.zeros(1).expand(10**10)}, tmp_path / "claims.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:-40])
    (tmp_path / "empty.pt").touch()
    os.mkfifo(tmp_path / "pipe.pt")
    reasons = {
        "code.pt": "with code",
        "module.pt": "with code or objects",
        "list.pt": "holds no state dict",
        "claims.pt": "memory",
        "cut.pt": "truncated or damaged",
        "empty.pt": "truncated or damaged",
        "pipe.pt": "is not a regular file",
        "missing.pt": "No such file",
    }
    names = [name for bad in reasons for name in (bad, "good.pt")]
    answers = read(tmp_path, *names)
    for name, answer in zip(names, answers, strict=True):
        if name == "good.pt":
            assert isinstance(answer, dict)
            np.testing.assert_array_equal(answer["a"], np.ones(2, np.float32))
        else:
            assert isinstance(answer, str), name
            assert reasons[name] in answer
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "code.pt", weights_only=False)  # the payload would have worked
    assert (tmp_path / "executed").exists()


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100 << 20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED, 1)
    assert (tmp_path / "bomb.pt").stat().st_size < 4 << 20
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    bomb_answer, good = read(tmp_path, "bomb.pt", "good.pt", memory=200 << 20)
    assert isinstance(good, dict)
    assert isinstance(bomb_answer, str)
    assert "memory" in bomb_answer


@pytest.mark.slow
def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    """Its process is ended; a new one reads the others."""
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    answers = read(tmp_path, "good.pt", "good.pt", seconds=0)
    assert answers == ["takes its reader more than 0 seconds"] * 2


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    answers = read_states([tmp_path / "good.pt"] * 40)
    assert isinstance(next(answers), dict)
    (child,) = children()
    os.kill(int(child.name), 9)
    rest = list(answers)
    assert len(rest) == 39
    assert sum(isinstance(answer, str) for answer in rest) <= 1
    assert isinstance(rest[-1], dict)
    assert children() == []


def test_the_process_gets_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    answers = read_states([tmp_path / "good.pt"] * 20)
    next(answers)
    (child,) = children()
    assert b"HF_TOKEN" not in (child / "environ").read_bytes()
    answers.close()
    assert children() == []


def test_no_module_of_the_current_folder_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded folder in which the user works may have a file that is named as a module."""
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    (tmp_path / "json.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    (answer,) = read(tmp_path, "good.pt")
    assert isinstance(answer, dict)
