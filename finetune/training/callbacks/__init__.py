"""Hold the Lightning callbacks: what watches, records or ends a fit without being loss, optimizer or step."""
