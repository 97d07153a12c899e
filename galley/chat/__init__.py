"""Chat templates: messages to the text of a prompt. Knows no HTTP.

Imports nothing here: `template_process` runs as a program of its own and starts quickly.
"""
