"""Whether the keys that signed a transaction are keys of the accounts that it acts for."""

from __future__ import annotations

from collections.abc import Set

from gradledger.audit.reader import Step
from gradledger.audit.replay import UnexplainedError
from gradledger.chain.client import ChainClient
from gradledger.chain.keys import PublicKey
from gradledger.errors import ConfigError, NodeAnswerError

DEPTH_MAX = 3  # an account may let another one sign, and so on


class StrangerError(UnexplainedError):
    """A transaction acts for `account`, which has none of the keys that signed it."""

    def __init__(self, text: str, account: str) -> None:
        super().__init__(text)
        self.account = account


class Signers:
    """Who may sign, from the accounts' permissions now and the changes seen in blocks.

    Parameters
    ----------
    client : ChainClient
    rekeyed : set of str
        Accounts whose keys changed in the blocks read.

    Attributes
    ----------
    checked, unchecked : int
        Transactions. Unchecked are those signed with keys of another kind than K1, and those of an
        account whose earlier keys no block read here shows.
    """

    def __init__(self, client: ChainClient, rekeyed: Set[str]) -> None:
        self.checked = self.unchecked = 0
        self._client = client
        self._rekeyed = set(rekeyed)
        self._keys: dict[str, set[str]] = {}
        self._trusted: dict[str, set[str]] = {}
        self._asked: set[str] = set()

    def expect_changes(self, rekeyed: Set[str]) -> None:
        """Take note of further accounts whose keys change in the blocks that follow."""
        self._rekeyed |= rekeyed

    def check(self, step: Step) -> None:
        """Look at one transaction, in the chain's order.

        Raises
        ------
        StrangerError
            An account that it acts for has none of the keys that signed it.
        NodeError
            The node does not tell an account's permissions.
        """
        for one in step.authorities:
            self._keys.setdefault(one.account, set()).update(one.keys)
            self._trusted.setdefault(one.account, set()).update(one.accounts)
        if not step.actors:
            return
        signed = set(step.keys)
        strangers = [actor for actor in step.actors if not self._may_sign(actor, signed, 0)]
        if step.other_keys or any(actor in self._rekeyed for actor in strangers):
            self.unchecked += 1
            return
        if strangers:
            shown = ", ".join(PublicKey(bytes.fromhex(key)).legacy for key in step.keys)
            raise StrangerError(
                f"block {step.block}, transaction {step.trx}: it acts for {strangers[0]}, whose "
                f"permissions have none of the keys that signed it ({shown})",
                strangers[0],
            )
        self.checked += 1

    def _may_sign(self, account: str, signed: set[str], depth: int) -> bool:
        if signed & self._keys.get(account, set()):
            return True
        if account not in self._asked:
            self._asked.add(account)
            self._ask(account)
            return self._may_sign(account, signed, depth)
        others = self._trusted.get(account, set()) - {account}
        return depth < DEPTH_MAX and any(
            self._may_sign(other, signed, depth + 1) for other in others
        )

    def _ask(self, account: str) -> None:
        document = self._client.get_account(account)
        try:
            for permission in document["permissions"]:
                auth = permission["required_auth"]
                texts = [str(row["key"]) for row in auth["keys"]]
                known = [text for text in texts if text.startswith(("PUB_K1_", "EOS"))]
                keys = [PublicKey.from_string(text).raw.hex() for text in known]
                accounts = [str(row["permission"]["actor"]) for row in auth["accounts"]]
                self._keys.setdefault(account, set()).update(keys)
                self._trusted.setdefault(account, set()).update(accounts)
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise NodeAnswerError(f"expected the permissions of {account}: {error}") from None
