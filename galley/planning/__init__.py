"""The planner: what a model needs of a machine, and how fast it answers there.

    program.py    the model's recorded program with its weight formats, before a weight is read
    machine.py    rates of a machine: measured here (calibrate.py), or of devices.toml
    step.py       seconds of one step: the program at those rates
    simulate.py   the real scheduler, driven with those seconds
    predict.py    memory, throughput, TTFT, ITL, cost of a workload

One model of a step stands behind all of them.
"""
