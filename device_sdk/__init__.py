"""What an app embeds to take part in federated learning and be paid for it.

    device = Device("phone1", key="phone1.json", task="digits", chain=..., store=...)
    print(device.terms())
    device.join(classes=range(10))
    with device.round() as round:
        update = round.train(fit, examples=600)
        receipt = round.upload(update)
    print(receipt.wait())

`fit(model, validation) -> (trained, errors)` is the app's own, or comes from
`device_sdk.training_sklearn` or `device_sdk.training_torch`. The exceptions are those of
`gradledger.errors`. In a task with differential privacy `terms` shows epsilon and delta,
`join(..., epsilon_max=...)` bounds them, and `train` adds the noise. With an outbox (`Device(...,
outbox=FILE)`) uploads are written down before they leave, and `device.resume()` finishes what a
killed process left. Where the chain asks for more once a round is closed, a CID to be revealed or
an upload to be opened for an audit, `receipt.wait()` does it; an app that waits for nothing calls
`device.attend()` now and then. numpy and the cryptographic libraries are loaded when first used.
"""

from device_sdk.device import Device, Terms
from device_sdk.encryption import Encryption
from device_sdk.receipts import Abandoned, Paid, Receipt, Refused
from device_sdk.rounds import Round, Update

__all__ = [
    "Abandoned",
    "Device",
    "Encryption",
    "Paid",
    "Receipt",
    "Refused",
    "Round",
    "Terms",
    "Update",
]
