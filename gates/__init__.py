"""The gate: one short test per link of the chain. Also reachable as `--pyargs pytest_imagefresh.gates`."""
