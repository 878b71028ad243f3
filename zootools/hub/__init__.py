"""Zoos by name: published to the Hub, or to a plain folder that serves as one, and read back from either.

`folder` is the hub in a folder; `remote` reads from the Hub; `publish` writes to either, with `release` (what is
written) and `upload` (to the Hub); `locate` finds a zoo by URL, path or name; `foreign` reads Parquet files that are
not a zoo. huggingface_hub is imported by the modules `calls`, `repository`, `remote` and `upload` only.
"""
