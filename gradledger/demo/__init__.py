"""`gradledger demo`: devices train, upload and are paid on a real local network.

`training` carries the whole: it brings the network up, hands the rounds to `owner.run` and writes
the report. `options` says which device misbehaves when, `data` reads and splits the data set,
`workers` and `phone` run the devices in processes of their own, `audit` checks the money from the
chain's tables, `view` shows progress, `report` and `plots` write what is left at the end.
"""
