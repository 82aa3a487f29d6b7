"""The version, read from the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gbprewrite")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+source"


SOFTWARE = "gbprewrite"  # how our own pictures are known, by PNG's keyword Software
