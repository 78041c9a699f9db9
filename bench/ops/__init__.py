"""The cases and peers of each room; a file's name is the room's."""
