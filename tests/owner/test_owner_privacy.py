"""Who can read a single device's update: docs/caveats.md, shown on a real round."""

from __future__ import annotations

import numpy as np
import pytest
from test_owner_run import carry

from gradledger import envelope
from gradledger.card import task_codec
from gradledger.errors import EnvelopeError
from owner import PaillierPrivateKey


def test_the_owner_opens_no_single_update_and_a_colluding_validator_does(make_training, tmp_path):
    training = make_training(mode="paillier", rounds=1)
    with training.played():
        carry(training, tmp_path / "state")
    owner, phone = training.make_owner(), training.phones[0]
    member = owner.contract.member(training.plan.task, phone.account)
    upload = envelope.parse(owner.store.get(member.upload_cid))
    validators = {one.account: one for one in training.validators}
    assert set(upload.readers) == set(validators)

    # The owner has its Antelope key, the X25519 secret that follows from it, and the Paillier key.
    own_secret = owner._key.encryption_key()
    for reader in (owner.account, *upload.readers):
        with pytest.raises(EnvelopeError):
            upload.open(reader, own_secret)

    # A validator alone gets ciphertexts. With the Paillier key beside it, the update lies open.
    judge = training.validators[0]
    ciphertexts = upload.open(judge.account, judge._key.encryption_key())
    task = owner.contract.task(training.plan.task)
    codec = task_codec(task)
    key = PaillierPrivateKey.load(training.paillier_key_file)
    update = codec.dequantise_mean(key.decrypt_sums(ciphertexts, codec, 1), 1)
    assert np.abs(update - phone.deltas[1]).max() <= 1e-6
