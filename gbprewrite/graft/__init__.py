"""The backward graph goes into the file, with a record of what was done; and comes out again."""
