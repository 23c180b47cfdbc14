"""Pure functions on a Run. Nothing here loads torch or touches a device."""
