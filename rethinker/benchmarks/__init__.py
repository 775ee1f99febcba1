"""The paper's benchmarks, scored without a judge: adapters of one protocol, and a runner that can be killed."""
