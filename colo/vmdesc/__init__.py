"""The description of the devices in a stream (vmdesc), and their fields."""
