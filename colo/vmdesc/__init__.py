"""The description of the devices in a stream (vmdesc): the one parser of its JSON, the one decoder of device fields.

A device section is told by records (``records``), which are checked (``schema``) whether they come from a peer's JSON
(``text``, ``document``) or from a program's own objects; the fields of a section are read by them (``decode``), whole or, for
people who look into a stream, in part (``field_values``).
"""
