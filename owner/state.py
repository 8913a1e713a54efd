"""The owner's state directory: what the chain does not hold, written so that a kill costs nothing.

```
DIR/plan.json               what the training was started with
DIR/models/000000.st        T_0, T_1, ... as safetensors
DIR/models/000001.json      from which result of the chain T_1 was made
DIR/published/000001.json   CID and hash of the envelope of round 1's model, and who can open it
DIR/reports/000001.json     what round 1 came to
DIR/outbox/deposits.db      deposits on their way
DIR/lock                    held while a process works here
```

Each file is there whole or not at all, see `gradledger.files`. Everything but `plan.json` can be
had again from the chain and from IPFS.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradledger.errors import ConfigError, GradledgerError
from gradledger.files import make_folder, remove_unfinished, write_atomically
from gradledger.models import Model
from owner.errors import StateBusyError

__all__ = ["StateDir"]

JSON_BYTES_MAX = 16 * 2**20
MODEL_BYTES_MAX = 2**28 + 2**20
FOLDERS = ("models", "published", "reports")


class StateDir:
    """The files of one task's training.

    Parameters
    ----------
    path : path
        Created, with mode 0700, where it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        make_folder(self.path)
        for name in FOLDERS:
            make_folder(self.path / name)

    def __repr__(self) -> str:
        return f"StateDir({str(self.path)!r})"

    @contextmanager
    def locked(self) -> Iterator[StateDir]:
        """Hold the directory against other processes; the lock ends with the process.

        Raises
        ------
        StateBusyError
            Another process holds it.
        ConfigError
            It cannot be written.
        """
        handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StateBusyError(
                    f"{self.path}: another process carries this training on; wait for it or stop it"
                ) from None
            for folder in (self.path, *(self.path / name for name in FOLDERS)):
                remove_unfinished(folder)
            yield self
        finally:
            os.close(handle)

    # ---- plan ---------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any] | None:
        """Return the recorded plan."""
        return self._read_json("plan.json")

    def save_plan(self, plan: Mapping[str, Any]) -> None:
        """Record the plan."""
        self._write_json("plan.json", plan)

    @property
    def outbox_path(self) -> Path:
        """Where deposits on their way are written down."""
        return self.path / "outbox" / "deposits.db"

    # ---- models -------------------------------------------------------------------------------

    def model(self, version: int) -> Model | None:
        """Return T_version, or None where it is not here.

        A file that is not a model (a damaged disk) counts as not here: the chain and IPFS give the
        model again.
        """
        try:
            data = self._read(_name("models", version, "st"), MODEL_BYTES_MAX)
            return None if data is None else Model.from_bytes(data)
        except ConfigError:
            raise
        except GradledgerError:
            return None

    def save_model(self, version: int, model: Model, record: Mapping[str, Any]) -> None:
        """Write T_version, then the record that names its origin.

        Parameters
        ----------
        version : int
        model : Model
        record : mapping
            At least `evidence`. It lands after the model, so that whoever finds it finds the model.
        """
        write_atomically(self.path / _name("models", version, "st"), model.to_bytes())
        self._write_json(_name("models", version, "json"), record)

    def model_record(self, version: int) -> dict[str, Any] | None:
        """Return what `save_model` recorded."""
        return self._read_json(_name("models", version, "json"))

    # ---- publications and reports -------------------------------------------------------------

    def published(self, version: int) -> dict[str, Any] | None:
        """Return the record of round `version`'s published model."""
        return self._read_json(_name("published", version, "json"))

    def save_published(self, version: int, record: Mapping[str, Any]) -> None:
        """Record round `version`'s published model."""
        self._write_json(_name("published", version, "json"), record)

    def report(self, version: int) -> dict[str, Any] | None:
        """Return the report of round `version`."""
        return self._read_json(_name("reports", version, "json"))

    def save_report(self, version: int, record: Mapping[str, Any]) -> None:
        """Record the report of round `version`."""
        self._write_json(_name("reports", version, "json"), record)

    # ---- files --------------------------------------------------------------------------------

    def _read(self, name: str, bytes_max: int) -> bytes | None:
        try:
            with open(self.path / name, "rb") as file:
                data = file.read(bytes_max + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise ConfigError(f"{self.path / name}: cannot be read: {exc.strerror}") from exc
        if len(data) > bytes_max:
            raise ConfigError(f"{self.path / name}: expected at most {bytes_max} bytes")
        return data

    def _read_json(self, name: str) -> dict[str, Any] | None:
        data = self._read(name, JSON_BYTES_MAX)
        if data is None:
            return None
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ConfigError(f"{self.path / name}: expected a JSON object; remove the file")
        return value

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomically(self.path / name, text.encode())


def _name(folder: str, version: int, suffix: str) -> str:
    return f"{folder}/{version:06d}.{suffix}"
