"""What watches or records a fit without being loss, optimizer or step: Lightning callbacks."""
