"""Pure functions on a record. Nothing here loads torch or touches a device."""
