"""The commands that are forked in these tests need more than those of other tests."""

from forked_commands import PRELOADED

PRELOADED.append("distributed.preloaded")
