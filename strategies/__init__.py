"""Pure functions over arrays: signals of suspicion, fusion, selection, calibration and repair."""
