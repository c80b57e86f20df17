"""The Lightning callbacks of a fit, which average, guard, measure, log, save and end it."""
