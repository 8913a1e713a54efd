"""`gradledger demo`: devices train, upload and are paid on a real local network.

`data` reads and splits the data set, `workers` and `phone` run the devices in processes of their
own, `training` carries the rounds, `audit` checks the money from the chain's tables, `report`
and `plots` write what is left at the end.
"""
