"""Pure decisions: no I/O, no clock, no framework. What goes in and comes out are frozen dataclasses and API models."""
