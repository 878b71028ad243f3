"""Zoos by name: published to the Hub, or to a plain folder that serves as one, and read back from either.

`names` says what a name and a file name may look like, `folder` is the hub in a folder, `remote` reads from
the Hub, `publish` writes to both, `locate` finds a zoo by its name, `foreign` reads data sets that are no zoos.
Nothing here imports huggingface_hub before it is needed.
"""
