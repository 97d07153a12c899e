"""Hostile model files: whatever they hold, the readers end with a galley error or a valid load.

    seeds       small valid files of every family, tensor type and tokenizer
    gguf        a GGUF file as Python values, so that single fields can be made to lie
    mutate      what an attacker, a bad disk or a broken converter does to them
    targets     what reads them, up to the packed weights and a text that is encoded
    run         many inputs, each within limits of memory and time

python -m tests.fuzz.readers.run --inputs 1000000
"""
