"""What the machine is and can do: the peak table, device identification, NVML, measured ceilings."""
