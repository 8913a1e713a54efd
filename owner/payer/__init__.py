"""The payer: an account of the owner's side that pays CPU and NET for what devices do.

```
rules.py     which transactions are signed, one check after the other, and each refusal's code
record.py    what was signed, in SQLite: limits and replays outlive a restart
service.py   the HTTP service, every resource of which is bounded
setup.py     the key that signs, and the permission under which it can do nothing else
cli.py       gradledger owner payer setup | run | show | revoke
```

Devices talk to it through `gradledger.chain.payer`.
"""
