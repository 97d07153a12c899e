"""Speculative decoding: proposers of drafts, and how many drafts a step takes.

A proposer guesses how sequences go on; the next step verifies the guesses (`runner.drafts`). A
draft is accepted if it is the token sampled at its position, so all that is decided here changes
only how many steps an answer takes. A proposer is one file, and one line in `registries.PROPOSERS`.
"""
